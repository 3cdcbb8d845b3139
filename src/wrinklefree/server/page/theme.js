// Light or dark: the system's choice until the button is pressed.

const STORED = "wrinklefree.theme";

export function themeButton(button) {
  const root = document.documentElement;
  const stored = (() => {
    try {
      return localStorage.getItem(STORED);
    } catch {
      return null;
    }
  })();
  if (stored) show(stored);
  button.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    show(dark ? "light" : "dark");
    try {
      localStorage.setItem(STORED, root.dataset.theme);
    } catch {
      // Storage is forbidden: the choice lasts as long as the page.
    }
    dispatchEvent(new Event("themechange"));
  });
}

function show(theme) {
  document.documentElement.dataset.theme = theme;
  for (const sheet of document.querySelectorAll("link[data-dark]")) sheet.media = theme === "dark" ? "all" : "not all";
}
