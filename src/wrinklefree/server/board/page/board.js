// The board: which runs there are, their figures as they come, and the charts of them.

import { byId, figure, make } from "./dom.js";
import { themeButton } from "./theme.js";
import { Chart } from "./chart.js";
import { Series } from "./series.js";

const EACH_MS = 2000;
const FRESH_SECONDS = 60; // or four times what lay between the last two lines
const MOST_STACKS = 4; // charts of shares: one for each run, of so many runs

// Charts in their order. `names(found)`: the figures each shows; a chart without any is left out.
const starts = (end) => (found) => found.filter((name) => name.endsWith(end));
const CHARTS = [
  { title: "Loss", names: () => ["loss"], wide: true, loss: true },
  { title: "Agreement with the teacher", about: "most likely token", names: starts("/top1_agreement"), percent: true },
  { title: "Objectives", about: "values before their weights", names: starts("/value"), loss: true, wide: true },
  { title: "Tokens a second", names: () => ["tokens_per_second"], zero: true },
  { title: "Shares of the loss", about: "by objective", names: starts("/share"), stacked: true },
  { title: "Lambda", about: "strength of quantisation", names: () => ["lambda"], plain: true },
  { title: "Learning rate", names: () => ["lr"], plain: true, zero: true },
  { title: "Zero weights", about: "share of ternary codes", names: () => ["ternary/zeros"], percent: true, plain: true },
  { title: "Flipped weights", about: "since the last look", names: () => ["ternary/flips"], percent: true, plain: true },
  { title: "Gradient norm", names: () => ["grad_norm"], log: true },
  { title: "Steps clipped or skipped", names: () => ["clipped", "nonfinite"], plain: true, zero: true },
];
const PLACED = /^(step|loss|lambda|lr|grad_norm|progress|tokens|tokens_per_second|seconds|nonfinite|clipped|ternary\/.*|.*\/(value|weight|share|top1_agreement))$/;

const runs = []; // {name, series, next, shown, element, status}
const charts = new Map(); // title -> Chart
const tools = byId("tools");
let drawn = 0; // when

themeButton(byId("theme"));
tools.addEventListener("input", draw);
tools.addEventListener("submit", (event) => event.preventDefault());
addEventListener("resize", draw);
look();

async function look() {
  try {
    const found = (await get("/runs")).runs;
    found.forEach((status, index) => {
      runs[index] ??= { name: status.name, series: new Series(), next: 0, shown: true, index };
      runs[index].status = status;
    });
    let news = false;
    for (const run of runs) news = (await follow(run)) || news;
    if (news || !runs[0]?.element) draw();
    for (const run of runs) card(run);
    const going = runs.filter(isGoing).length;
    say(going ? "ready" : "idle", going ? `${going} running` : "none running");
  } catch {
    say("error", "the board does not answer");
  }
  setTimeout(look, EACH_MS);
}

async function get(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

/** Take in what a run has written since the last look. */
async function follow(run) {
  let news = false;
  for (;;) {
    const found = await get(`/runs/${run.index}?from=${run.next}`);
    if (found.anew) run.series.clear();
    for (const row of found.rows) run.series.add(row);
    run.next = found.next;
    if (found.more && performance.now() - drawn > 1500) draw(); // a long run shows before all of it is here
    news ||= found.rows.length > 0 || found.anew;
    if (!found.more) return news;
  }
}

function isGoing(run) {
  const { state, age_seconds: age } = run.status;
  return state === "running" && age !== null && age < Math.max(FRESH_SECONDS, 4 * run.series.pace());
}

function say(state, text) {
  byId("live").dataset.state = state;
  byId("live-text").textContent = text;
}

/** The card of a run: its newest figures; pressing it hides or shows its curves. */
function card(run) {
  if (!run.element) {
    run.element = make("button.run", { type: "button", "aria-pressed": "true", onclick: () => press(run) });
    run.element.style.setProperty("--tone", tone(run.index));
    byId("runs").append(make("li", {}, run.element));
  }
  const { series, status } = run;
  const progress = series.last("progress");
  const numbers = [["loss", figure(series.last("loss"))], ["step", figure(series.last("step"))], ["tokens", short(series.last("tokens"))], ["tokens/s", figure(series.last("tokens_per_second"))]];
  const bar = make("i");
  bar.style.setProperty("--share", status.state === "completed" ? 1 : progress ?? 0);
  run.element.replaceChildren(
    make("div.top", {}, make("i"), make("b", { title: run.name }, run.name), make("span.state", {}, stateOf(run, progress))),
    make("div.numbers", {}, ...numbers.map(([name, value]) => make("div", {}, make("b", {}, value), name))),
    make("div.done", {}, bar),
  );
}

function stateOf(run, progress) {
  const { status, series } = run;
  if (status.age_seconds === null) return "no figures yet";
  if (status.state !== "running") return status.state;
  if (!isGoing(run)) return `silent for ${duration(status.age_seconds)}`;
  const seconds = series.last("seconds");
  return progress > 0.01 ? `about ${duration((seconds * (1 - progress)) / progress)} to go` : "running";
}

function press(run) {
  run.shown = !run.shown;
  run.element.setAttribute("aria-pressed", String(run.shown));
  draw();
}

function tone(index) {
  return `var(--run-${index % 8})`;
}

function draw() {
  drawn = performance.now();
  const options = new FormData(tools);
  const axis = options.get("axis");
  const smooth = Number(options.get("smooth"));
  const shown = runs.filter((run) => run.shown && run.series.length);
  byId("empty").hidden = runs.some((run) => run.series.length);
  const found = [...new Set(runs.flatMap((run) => run.series.names()))].sort();
  const rest = found.filter((name) => !PLACED.test(name)).map((name) => ({ title: name, names: () => [name] }));
  const wanted = [...CHARTS, ...rest].filter((chart) => chart.names(found).some((name) => found.includes(name)));
  const plans = wanted.flatMap((wish) => (wish.stacked ? shown.slice(0, MOST_STACKS).map((run) => ({ ...wish, about: run.name, only: run })) : [wish]));
  const titles = new Set(plans.map(titleOf));
  for (const [title, chart] of charts) chart.element.hidden = !titles.has(title);
  for (const wish of plans) {
    if (charts.has(titleOf(wish))) continue;
    const chart = new Chart(wish, (x) => charts.forEach((one) => one.point(x)));
    charts.set(titleOf(wish), chart);
    byId("charts").append(chart.element);
  }
  plans.forEach((wish, order) => {
    const names = wish.names(found).filter((name) => found.includes(name));
    const lines = [];
    for (const run of wish.only ? [wish.only] : shown) {
      names.forEach((name, at) => {
        const [x, y] = run.series.curve(axis, name);
        if (!x.length) return;
        const what = names.length > 1 ? name.replace(/\/(value|share|top1_agreement)$/, "") : "";
        const label = [(shown.length > 1 && !wish.only) || !what ? run.name : "", what].filter(Boolean).join(" · ");
        const apart = names.length > 1 && (shown.length === 1 || wish.stacked);
        lines.push({ x, y, label, tone: tone(apart ? at : run.index), dash: apart ? 0 : at % 4 });
      });
    }
    const chart = charts.get(titleOf(wish));
    chart.element.style.order = order;
    chart.draw(lines, { axis, smooth: wish.plain || wish.stacked ? 0 : smooth, log: wish.log || (wish.loss && options.has("log")) });
  });
}

function titleOf(wish) {
  return wish.only ? `${wish.title} ${wish.only.index}` : wish.title;
}

function short(value) {
  if (value === null) return "–";
  return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}
