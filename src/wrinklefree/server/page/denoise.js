// The denoising view: every position of an answer, filling in pass by pass; afterwards any pass can be looked at again.

import { make, figure } from "./dom.js";

const SPEEDS = [["0", "pass by pass"], ["1", "as fast as it was"], ["0.2", "a fifth as fast"]];
const PASS_MS = 320; // pass by pass

/** One answer's passes. A pass is {rows: [first, last], decided, waiting, ms} with entries [position, token, confidence, text]. */
export class Denoise {
  constructor() {
    this.passes = [];
    this.cells = [];
    this.decided = []; // by position: {token, confidence, text, pass}
    this.end = null; // tokens of the answer, once it is known
    this.shown = -1; // index of the pass that is shown; the last one while it follows
    this.follow = true;
    this.timer = null;
    this.frame = 0;
    this.tokens = make("div.tokens", { "aria-hidden": "true" });
    this.canvas = make("canvas");
    this.slider = make("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Pass to look at", oninput: () => this.#seek() });
    this.button = make("button", { type: "button", onclick: () => (this.timer === null ? this.play() : this.pause()) }, "Replay");
    this.speed = make("select", { "aria-label": "Speed of the replay" }, ...SPEEDS.map(([value, text]) => make("option", { value }, text)));
    this.readout = make("span.readout");
    this.controls = make("div.passes", {},
      make("div.track", {}, this.canvas, this.slider),
      make("div.pass-row", {}, this.button, this.speed, this.readout,
        make("span.scale", { title: "Confidence: the token's probability when it was decided" }, "unsure", make("i"), "sure")));
    this.controls.hidden = true;
    new ResizeObserver(() => this.#drawTrack()).observe(this.controls);
    addEventListener("themechange", () => this.#drawTrack());
  }

  add(passes) {
    for (const pass of passes) {
      const index = this.passes.push(pass) - 1;
      const before = index ? this.passes[index - 1].waiting : [];
      pass.missed = 0;
      for (const [position, token, confidence, text] of pass.decided) {
        this.decided[position] = { token, confidence, text, pass: index };
        const guess = before.find((one) => one[0] === position);
        if (guess && guess[1] !== token) pass.missed += 1;
      }
    }
    this.controls.hidden = false;
    this.#schedule();
  }

  /** The answer is complete with so many tokens; what was decided behind them does not belong to it. */
  finish(tokens) {
    this.end = tokens ?? null;
    this.tokens.classList.add("still");
    this.#schedule();
  }

  play() {
    const from = this.shown >= this.passes.length - 1 ? 0 : this.shown + 1;
    this.follow = false;
    this.tokens.classList.remove("still");
    this.button.textContent = "Pause";
    const step = (index) => {
      this.show(index);
      if (index >= this.passes.length - 1) return this.pause();
      const factor = Number(this.speed.value);
      const wait = factor ? this.passes[index + 1].ms / factor : PASS_MS;
      this.timer = setTimeout(() => step(index + 1), Math.max(16, wait));
    };
    this.timer = 0;
    step(from);
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = null;
    this.button.textContent = "Replay";
  }

  #seek() {
    this.pause();
    this.tokens.classList.add("still");
    this.follow = false;
    this.show(Number(this.slider.value));
  }

  #schedule() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (this.follow) this.show(this.passes.length - 1);
      else this.#drawTrack();
    });
  }

  /** Show the answer as it was after a pass. */
  show(index) {
    if (index < 0) return;
    const pass = this.passes[index];
    const waiting = new Map(pass.waiting.map((one) => [one[0], one]));
    // Forward by one: only what this pass touched can differ, but for cells that lose their mark.
    const last = Math.max(this.decided.length - 1, ...waiting.keys());
    for (let position = this.cells.length; position <= last; position++) {
      this.cells.push(make("span.cell"));
      this.tokens.append(this.cells[position]);
    }
    for (let position = 0; position < this.cells.length; position++) {
      this.#paint(position, index, waiting.get(position));
    }
    this.#keepInSight();
    this.shown = index;
    this.slider.max = this.passes.length - 1;
    this.slider.value = index;
    this.#say(pass, index);
    this.#drawTrack();
  }

  /** Where the tokens scroll: the newest ones, while they come and in a replay. */
  #keepInSight() {
    const { tokens } = this;
    if (this.timer !== null || (this.follow && this.end === null)) tokens.scrollTop = tokens.scrollHeight;
  }

  #paint(position, index, waiting) {
    const cell = this.cells[position];
    const fixed = this.decided[position];
    const known = fixed && fixed.pass <= index;
    const state = known ? "decided" : waiting ? "waiting" : "absent";
    const joined = known && this.decided[position - 1]?.pass === fixed.pass;
    const fresh = known && fixed.pass === index && !(this.end !== null && this.follow);
    const beyond = this.end !== null && position >= this.end;
    const token = known ? fixed.token : waiting?.[1];
    const confidence = known ? fixed.confidence : waiting?.[2];
    const mark = [state, token, joined, fresh, beyond, confidence].join("|");
    if (cell.mark === mark) return;
    cell.mark = mark;
    cell.hidden = state === "absent";
    if (cell.hidden) return;
    const text = known ? fixed.text : waiting[3];
    const classes = { joined, fresh, beyond, blank: !known && !text, special: /^<[|/]?[^<>\s]*\|?>$/.test(text), plain: confidence === null };
    cell.className = ["cell", state, ...Object.keys(classes).filter((name) => classes[name])].join(" ");
    cell.style.setProperty("--c", confidence ?? (known ? 1 : 0.5)); // a draft of speculation has none
    cell.replaceChildren(...pieces(text || "   "));
    const sure = confidence === null ? "" : `, confidence ${confidence.toFixed(2)}`;
    cell.title = known ? `${JSON.stringify(text)}: pass ${fixed.pass + 1}${sure}` : `open; best guess ${JSON.stringify(text)}${sure}`;
  }

  #say(pass, index) {
    const [first, last] = pass.rows;
    const count = pass.decided.length;
    const parts = [
      `Pass ${index + 1} of ${this.passes.length}`,
      `${last - first + 1} ${last === first ? "row" : "rows"}`,
      `${count} decided`,
    ];
    if (pass.waiting.length) parts.push(`${pass.waiting.length} open`);
    if (pass.missed) parts.push(`${pass.missed} not as guessed`);
    parts.push(`${figure(pass.ms)} ms`);
    this.readout.textContent = parts.join(" · ");
    this.slider.setAttribute("aria-valuetext", this.readout.textContent);
  }

  /** A bar for each pass: its height the tokens decided, its colour their confidence. */
  #drawTrack() {
    const { width, height } = this.canvas.getBoundingClientRect();
    if (!width || !this.passes.length) return;
    const scale = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(this.controls);
    const unsure = style.getPropertyValue("--unsure").trim();
    const sure = style.getPropertyValue("--sure").trim();
    const plain = style.getPropertyValue("--muted").trim();
    const most = Math.max(2, ...this.passes.map((pass) => pass.decided.length));
    const room = width - 3; // the playhead runs from edge to edge
    const step = room / Math.max(this.passes.length, 24);
    const gap = step > 5 ? 2 : step > 2 ? 1 : 0;
    this.passes.forEach((pass, index) => {
      const known = pass.decided.map((one) => one[2]).filter((one) => one !== null);
      const tall = Math.max(1, (height - 8) * (pass.decided.length / most));
      pen.globalAlpha = index <= this.shown ? 1 : 0.3;
      pen.fillStyle = known.length ? blend(unsure, sure, known.reduce((a, b) => a + b) / known.length) : plain;
      pen.beginPath();
      pen.roundRect(1 + index * step, height - 4 - tall, Math.max(0.8, step - gap), tall, Math.min(2, step / 3));
      pen.fill();
    });
    this.slider.style.width = `${Math.max(12, step * this.passes.length)}px`;
  }
}

/** A token's text: the space before a word apart from it, and line ends made visible. */
function pieces(text) {
  const found = [];
  text.split("\n").forEach((part, index) => {
    if (index) found.push(make("span.ink.newline", {}, "↵"), "\n");
    const word = part.trimStart();
    if (word.length < part.length) found.push(make("span.lead", {}, part.slice(0, part.length - word.length)));
    if (word) found.push(make("span.ink", {}, word));
  });
  return found;
}

function blend(from, to, share) {
  const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const [a, b] = [parts(from), parts(to)];
  return `rgb(${a.map((value, index) => Math.round(value + (b[index] - value) * share)).join(" ")})`;
}
