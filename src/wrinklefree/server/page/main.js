// The page: views, theme, settings, and the model that is served.

import { fetchModel } from "./api.js";
import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { byId, make } from "./dom.js";
import { Settings } from "./settings.js";
import { themeButton } from "./theme.js";

const STARTERS = [
  "What is the capital of France?",
  "Write two sentences about the sea.",
  "List three things that a bicycle needs.",
];
let soon = null;
let attempt = 0; // to reach the server; only the latest one counts
const NARROW = matchMedia("(max-width: 980px)");

const page = {
  model: null,
  settings: new Settings(byId("settings-form"), (name) => name === "key" && connectSoon()),
  modelId: () => page.model?.id ?? "default",
  needKey() {
    showSettings(true);
    page.settings.focus("key");
  },
};
const chat = new Chat(page);
const compare = new Compare(page);

themeButton(byId("theme"));
tabs();
connect();
for (const text of STARTERS) {
  byId("starters").append(make("button.chip", { type: "button", onclick: () => chat.send(text) }, text));
}
settle(byId("headline"));
weave(byId("weave"));

byId("open-settings").addEventListener("click", () => showSettings(byId("settings").hidden));
byId("close-settings").addEventListener("click", () => {
  showSettings(false);
  byId("open-settings").focus();
});
showSettings(!NARROW.matches);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  chat.stop();
  compare.stop();
  if (NARROW.matches && !byId("settings").hidden) showSettings(false);
});

function showSettings(show) {
  byId("settings").hidden = !show;
  byId("open-settings").setAttribute("aria-expanded", String(show));
  if (show && NARROW.matches) byId("close-settings").focus();
}

function connectSoon() {
  clearTimeout(soon); // not with every letter of a key that is typed
  soon = setTimeout(connect, 400);
}

async function connect() {
  const mine = ++attempt;
  const label = byId("model");
  const say = (state, text) => {
    label.dataset.state = state;
    byId("model-text").textContent = label.title = text;
  };
  try {
    const model = await fetchModel(page.settings.key);
    if (mine !== attempt) return;
    page.model = model;
    describe(model);
    say("ready", model.id);
  } catch (error) {
    if (mine !== attempt) return;
    if (error.status === 401) {
      say("error", "needs an API key");
      page.needKey();
      return;
    }
    say(error.status === 503 ? "loading" : "error", error.status ? error.message : "the server does not answer");
    setTimeout(() => mine === attempt && connect(), 3000);
  }
}

function describe(model) {
  const facts = model.wrinklefree ?? {};
  const modes = facts.modes ?? ["ar"];
  page.settings.offer(modes);
  compare.offer(modes);
  const sentences = ["A ternary model on this machine's CPU: every weight is −1, 0 or +1."];
  if (facts.block_size) sentences.push(`It was trained to denoise blocks of ${facts.block_size} tokens; switch on “Watch it decide” to see each one come out.`);
  byId("facts").textContent = sentences.join(" ");
  document.title = `${model.id} · WrinkleFree`;
}

function tabs() {
  const found = [...document.querySelectorAll('[role="tab"]')];
  const choose = (tab, focus) => {
    for (const one of found) {
      const chosen = one === tab;
      one.setAttribute("aria-selected", String(chosen));
      one.tabIndex = chosen ? 0 : -1;
      byId(one.getAttribute("aria-controls")).hidden = !chosen;
    }
    page.settings.showAll(tab.id === "tab-compare");
    if (focus) tab.focus();
    history.replaceState(null, "", tab.id === "tab-chat" ? location.pathname : `#${tab.id.slice(4)}`);
  };
  for (const [index, tab] of found.entries()) {
    tab.addEventListener("click", () => choose(tab, false));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) choose(found[(index + step + found.length) % found.length], true);
    });
  }
  const asked = found.find((tab) => `#${tab.id.slice(4)}` === location.hash);
  if (asked) choose(asked, false);
}

/** The headline comes out of the noise as answers do. */
function settle(headline) {
  const text = headline.textContent;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  headline.setAttribute("aria-label", text);
  const letters = [...text].map((letter) => make("span.letter.open", { "aria-hidden": "true" }, letter));
  headline.replaceChildren(...letters);
  const order = letters.map((letter) => [Math.random(), letter]).sort((a, b) => a[0] - b[0]);
  order.forEach(([, letter], at) => setTimeout(() => letter.classList.remove("open"), 250 + Math.floor(at / 3) * 130));
}

/** A cloth of ternary weights behind the headline, in the shares that trained models have: four of ten are 0. */
function weave(cloth) {
  let state = 7;
  const draw = () => (state = (state * 16807) % 2147483647) / 2147483647;
  for (let at = 0; at < 560; at++) {
    const value = draw();
    const lit = draw() < 0.05;
    const sign = value < 0.4 ? "·" : value < 0.7 ? "+" : "−";
    cloth.append(lit && sign !== "·" ? make(sign === "+" ? "i" : "b", {}, sign) : sign);
  }
}
