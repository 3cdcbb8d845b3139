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
  if (stored) root.dataset.theme = stored;
  button.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem(STORED, root.dataset.theme);
    } catch {
      // Storage is forbidden: the choice lasts as long as the page.
    }
    dispatchEvent(new Event("themechange"));
  });
}
