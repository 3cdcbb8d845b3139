// The controls: described as data, drawn from it, kept in the browser; `fields()` is what a request says.

import { make } from "./dom.js";

const STORED = "wrinklefree.settings";
const KEY = "wrinklefree.key";

// `unset`: the value at which the request does not name the field. `modes`: where it has a meaning.
const CONTROLS = [
  { group: "Decoding", name: "mode", kind: "segments", initial: "auto", unset: "auto",
    options: [["auto", "Auto"], ["ar", "AR"], ["block", "Block"], ["speculative", "Spec"]],
    help: "One token a pass, a block at a time, or drafts that the next pass verifies." },
  { group: "Decoding", name: "rule", kind: "select", label: "A block decides", initial: "threshold", modes: ["auto", "block"],
    options: [["threshold", "what is sure enough"], ["tokens_per_forward", "so many a pass"], ["entropy_bound", "up to an entropy"]] },
  { group: "Decoding", name: "threshold", kind: "range", label: "Sure from", initial: 0.9, unset: 0.9, min: 0, max: 1, step: 0.01, rule: "threshold" },
  { group: "Decoding", name: "tokens_per_forward", kind: "number", label: "Tokens a pass", initial: 2, min: 1, max: 64, step: 1, rule: "tokens_per_forward" },
  { group: "Decoding", name: "entropy_bound", kind: "number", label: "Entropy (nats)", initial: 0.1, min: 0, max: 20, step: "any", rule: "entropy_bound" },
  { group: "Decoding", name: "sub_block", kind: "number", label: "Sub-block", initial: "", unset: "", min: 1, max: 1024, step: 1, modes: ["auto", "block"], blank: "auto" },
  { group: "Decoding", name: "window", kind: "number", label: "Drafts a pass", initial: "", unset: "", min: 1, max: 64, step: 1, modes: ["auto", "speculative"], blank: "auto" },
  { group: "Sampling", name: "temperature", kind: "range", label: "Temperature", initial: 0.7, min: 0, max: 2, step: 0.05, help: "0 always takes the most likely token." },
  { group: "Sampling", name: "top_p", kind: "range", label: "Top-p", initial: 0.9, min: 0.01, max: 1, step: 0.01 },
  { group: "Sampling", name: "top_k", kind: "number", label: "Top-k", initial: 0, unset: 0, min: 0, max: 100000, step: 1 },
  { group: "Sampling", name: "min_p", kind: "number", label: "Min-p", initial: 0, unset: 0, min: 0, max: 1, step: "any" },
  { group: "Sampling", name: "seed", kind: "number", label: "Seed", initial: "", unset: "", min: 0, max: 9007199254740991, step: 1, blank: "random" },
  { group: "Repetition", name: "repetition_penalty", kind: "number", label: "Repetition", initial: 1, unset: 1, min: 0.01, max: 10, step: "any" },
  { group: "Repetition", name: "presence_penalty", kind: "number", label: "Presence", initial: 0, unset: 0, min: -2, max: 2, step: "any" },
  { group: "Repetition", name: "frequency_penalty", kind: "number", label: "Frequency", initial: 0, unset: 0, min: -2, max: 2, step: "any" },
  { group: "Answer", name: "max_tokens", kind: "number", label: "Most tokens", initial: 256, min: 1, max: 1048576, step: 1 },
  { group: "Answer", name: "stop", kind: "text", label: "Stop at", initial: "", unset: "", help: "Several: one | other. \\n is a line's end." },
  { group: "Answer", name: "system", kind: "area", label: "System prompt", initial: "" },
  { group: "Access", name: "key", kind: "password", label: "API key", initial: "", help: "Kept for this tab only." },
];
const NOT_SENT = new Set(["rule", "system", "key"]);

export class Settings {
  all = false;
  rows = new Map();

  /** `form`: where to draw; `changed()` is called after each change. */
  constructor(form, changed) {
    this.form = form;
    this.changed = changed;
    this.values = this.#load();
    this.#draw();
    this.#adapt();
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  get key() {
    return this.values.key;
  }

  get system() {
    return this.values.system.trim();
  }

  /** The request's fields. With `mode` those of that mode instead of the chosen one. */
  fields(mode = this.values.mode) {
    const found = {};
    for (const control of CONTROLS) {
      const { name } = control;
      const value = this.values[name];
      if (NOT_SENT.has(name) || name === "mode" || value === control.unset) continue;
      if (!this.#applies(control, mode)) continue;
      found[name] = name === "stop" ? value.split("|").map((one) => one.replaceAll("\\n", "\n")).filter(Boolean) : value;
    }
    if (mode !== "auto") found.mode = mode;
    return found;
  }

  /** Only what the model can do may be chosen. */
  offer(modes) {
    for (const input of this.rows.get("mode").querySelectorAll("input")) {
      input.disabled = input.value !== "auto" && !modes.includes(input.value);
      if (input.disabled && this.values.mode === input.value) this.set("mode", "auto");
    }
    this.modes = modes;
    this.#adapt();
  }

  /** Show what any mode uses, for a view that chooses modes itself. */
  showAll(all) {
    this.all = all;
    this.#adapt();
  }

  set(name, value) {
    this.values[name] = value;
    const row = this.rows.get(name);
    for (const input of row.querySelectorAll("input, select, textarea")) {
      if (input.type === "radio") input.checked = input.value === value;
      else input.value = value;
    }
    this.#store();
    this.#adapt();
  }

  /** Whether everything typed is allowed; shows what is not. */
  check() {
    return this.form.reportValidity();
  }

  focus(name) {
    this.rows.get(name).querySelector("input, textarea").focus();
  }

  #applies(control, mode) {
    const possible = this.modes ?? ["ar", "block", "speculative"];
    const can = (one) => possible.includes(one) && (mode === "auto" || mode === one);
    if (control.rule) return control.rule === this.values.rule && can("block");
    return !control.modes || control.modes.some(can);
  }

  #adapt() {
    for (const control of CONTROLS) {
      const hidden = this.all ? control.name === "mode" || !this.#applies(control, "auto") : !this.#applies(control, this.values.mode);
      this.rows.get(control.name).hidden = hidden;
    }
  }

  #load() {
    const found = {};
    let stored = {};
    try {
      stored = JSON.parse(localStorage.getItem(STORED) ?? "{}");
    } catch {
      // Damaged or forbidden: begin anew.
    }
    for (const { name, kind, initial } of CONTROLS) {
      const number = kind === "number" || kind === "range";
      found[name] = typeof stored[name] === typeof initial || (number && typeof stored[name] === "number") ? stored[name] : initial;
    }
    try {
      found.key = sessionStorage.getItem(KEY) ?? "";
    } catch {
      found.key = "";
    }
    return found;
  }

  #store() {
    const { key, ...rest } = this.values;
    try {
      localStorage.setItem(STORED, JSON.stringify(rest));
      sessionStorage.setItem(KEY, key);
    } catch {
      // Storage is forbidden or full: the settings last as long as the page.
    }
  }

  #read(control, input) {
    if (!input.checkValidity()) return;
    const number = control.kind === "number" || control.kind === "range";
    const value = number && input.value !== "" ? Number(input.value) : input.value;
    if (number && value === "" && control.unset !== "") return;
    this.values[control.name] = value;
    for (const other of this.rows.get(control.name).querySelectorAll("input")) {
      if (other !== input && other.type !== "radio") other.value = input.value;
    }
    this.#store();
    this.#adapt();
    this.changed(control.name);
  }

  #draw() {
    const groups = new Map();
    for (const control of CONTROLS) {
      if (!groups.has(control.group)) {
        const group = make("fieldset.group", {}, make("legend", {}, control.group));
        groups.set(control.group, group);
        this.form.append(group);
      }
      const row = make("div.control");
      row.append(...this.#parts(control));
      if (control.help) row.append(make("p.help", {}, control.help));
      groups.get(control.group).append(row);
      this.rows.set(control.name, row);
    }
    this.form.append(make("button.quiet", { type: "button", onclick: () => this.#reset() }, "Reset to defaults"));
  }

  #reset() {
    for (const { name, initial } of CONTROLS) if (name !== "key" && name !== "system") this.set(name, initial);
    this.changed("all");
  }

  #parts(control) {
    const { name, kind, label } = control;
    const id = `set-${name}`;
    const read = (event) => this.#read(control, event.target);
    const value = this.values[name];
    if (kind === "segments") {
      const box = make("div.segments.fill", { role: "radiogroup", "aria-label": "Mode" });
      for (const [option, text] of control.options) {
        const input = make("input", { type: "radio", name, value: option, checked: option === value, onchange: read });
        box.append(make("label", {}, input, make("span", {}, text)));
      }
      return [box];
    }
    if (kind === "select") {
      const select = make("select.full", { id, onchange: read });
      for (const [option, text] of control.options) select.append(make("option", { value: option, selected: option === value }, text));
      return [make("label.row", { htmlFor: id }, label), select];
    }
    if (kind === "area") return [make("label.row", { htmlFor: id }, label), make("textarea.full", { id, value, oninput: read })];
    if (kind === "text" || kind === "password") {
      const input = make("input.full", { id, type: kind, value, oninput: read, autocomplete: "off", spellcheck: false });
      return [make("label.row", { htmlFor: id }, label), input];
    }
    const { min, max, step } = control;
    const number = make("input", { id, type: "number", min, max, step, value, placeholder: control.blank ?? "", oninput: read, required: control.unset !== "" });
    number.value = value;
    const row = make("label.row", { htmlFor: id }, label, number);
    if (kind === "number") return [row];
    const slider = make("input", { type: "range", min, max, step, oninput: read, "aria-label": label });
    slider.value = value;
    return [row, slider];
  }
}
