// One answer of the model: its text as it comes, its passes when they are watched, and its figures.

import { streamChat, asCurl } from "./api.js";
import { Denoise } from "./denoise.js";
import { make, figure } from "./dom.js";

/** The fields of a request that shows its passes. Blocks have confidences anyway; elsewhere they are log probabilities. */
export function watched(mode) {
  return mode === "block" ? { watch: true } : { watch: true, logprobs: true };
}

export class Answer {
  /** `actions`: further buttons, {label: function}. `brief`: the speed stands elsewhere. */
  constructor(actions = {}, brief = false) {
    this.brief = brief;
    this.text = "";
    this.figures = null;
    this.finishReason = null;
    this.denoise = null;
    this.prose = make("div.prose");
    this.list = make("dl.figures", { hidden: true });
    this.buttons = make("div.actions", { hidden: true });
    this.actions = actions;
    this.element = make("article.message.answer", { "aria-label": "Answer" }, this.prose, this.list, this.buttons);
  }

  /** Ask and show. Returns true when the answer is complete; `progress(answer)` is called as it grows. */
  async run(body, key, signal, progress = () => {}) {
    this.body = body;
    this.withKey = Boolean(key);
    this.prose.classList.add("busy");
    this.element.setAttribute("aria-busy", "true");
    if (body.watch) this.#openTokens();
    this.started = performance.now();
    this.first = null;
    this.count = 0;
    let complete = false;
    try {
      for await (const chunk of streamChat(body, key, signal)) {
        this.#take(chunk);
        this.#showLive();
        progress(this);
      }
      complete = true;
    } catch (error) {
      if (error.name === "AbortError") this.finishReason = "stopped";
      else this.#fail(error);
      this.error = error;
    }
    this.seconds = (performance.now() - this.started) / 1000;
    this.prose.classList.remove("busy");
    this.element.removeAttribute("aria-busy");
    this.denoise?.finish(this.usage?.completion_tokens);
    this.#showFigures();
    this.#showButtons();
    progress(this);
    return complete;
  }

  /** What is known while it runs and after it. */
  get live() {
    const seconds = this.first === null ? 0 : (performance.now() - this.first) / 1000;
    return {
      tokens: this.usage?.completion_tokens ?? this.count,
      tokensPerSecond: this.figures?.tokens_per_second ?? (seconds > 0.2 ? (this.count - 1) / seconds : null),
      tokensPerForward: this.figures?.tokens_per_forward ?? (this.denoise?.passes.length ? this.count / this.denoise.passes.length : null),
    };
  }

  #take(chunk) {
    const choice = chunk.choices?.[0];
    const extra = chunk.wrinklefree;
    if (extra?.passes) {
      this.denoise?.add(extra.passes);
      this.count = this.denoise?.decided.length ?? this.count;
    }
    const piece = choice?.delta?.content;
    if (piece) {
      this.text += piece;
      this.prose.append(piece);
      if (!this.denoise) this.count += 1;
    }
    if ((piece || extra?.passes?.some((pass) => pass.decided.length)) && this.first === null) this.first = performance.now();
    if (choice?.finish_reason) this.finishReason = choice.finish_reason;
    if (chunk.usage) this.usage = chunk.usage;
    if (extra?.mode) this.figures = extra;
  }

  #openTokens() {
    this.denoise = new Denoise();
    this.prose.classList.add("hidden"); // stays there for screen readers
    this.prose.after(this.denoise.tokens, this.denoise.controls);
  }

  #fail(error) {
    const text = error.param ? `${error.message} (field: ${error.param})` : error.message;
    this.prose.after(make("p.failure", { role: "alert" }, text));
  }

  /** The speed so far, four times a second. */
  #showLive() {
    const now = performance.now();
    if (this.brief || this.first === null || now - (this.said ?? 0) < 250) return;
    this.said = now;
    const { tokens, tokensPerSecond, tokensPerForward } = this.live;
    const rows = [[String(tokens), "tokens"], [figure(tokensPerSecond), "tokens/s"]];
    if (tokensPerForward !== null) rows.push([tokensPerForward.toFixed(2), "tokens a pass"]);
    this.#fill(rows);
  }

  #fill(rows) {
    this.list.replaceChildren(...rows.map(([value, label]) => make("div", {}, make("dt", {}, label), make("dd", {}, value))));
    this.list.hidden = !rows.length;
  }

  #showFigures() {
    const found = this.figures;
    const rows = [];
    if (found) {
      if (!this.brief) rows.push([figure(found.tokens_per_second), "tokens/s"], [figure(found.tokens_per_forward), "tokens a pass"]);
      rows.push([figure(found.forwards), found.forwards === 1 ? "pass" : "passes"], [`${figure(found.time_to_first_token_ms)} ms`, "to the first token"]);
      this.element.dataset.mode = found.mode;
    }
    if (this.usage) {
      const cached = this.usage.prompt_tokens_details?.cached_tokens;
      rows.push([String(this.usage.completion_tokens), "tokens"], [String(this.usage.prompt_tokens), cached ? `in the prompt, ${cached} of them cached` : "in the prompt"]);
    }
    if (found?.seed !== undefined && this.body.temperature !== 0) rows.push([String(found.seed), "seed"]);
    const why = { length: "most tokens reached", stopped: "stopped by you", content_filter: "filtered" }[this.finishReason];
    if (why) rows.push([why, ""]);
    this.#fill(rows);
    if (found && !this.brief) this.list.prepend(make("div", {}, make("dt.hidden", {}, "mode"), make("dd.mode-tag", {}, found.mode)));
  }

  #showButtons() {
    const copy = (label, text) => make("button.quiet", { type: "button", onclick: (event) => copyText(event.target, text()) }, label);
    const found = [];
    if (this.denoise?.passes.length) {
      const toggle = make("button.quiet", { type: "button", "aria-pressed": "true", onclick: () => this.#toggle(toggle) }, "Passes");
      found.push(toggle);
    }
    if (this.text) found.push(copy("Copy", () => this.text));
    found.push(copy("Copy as curl", () => asCurl(this.body, this.withKey)));
    for (const [label, act] of this.text ? Object.entries(this.actions) : []) found.push(make("button.quiet", { type: "button", onclick: act }, label));
    this.buttons.replaceChildren(...found);
    this.buttons.hidden = false;
  }

  #toggle(button) {
    const show = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(show));
    this.denoise.tokens.hidden = this.denoise.controls.hidden = !show;
    this.prose.classList.toggle("hidden", show);
  }
}

async function copyText(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "The browser forbids it";
  }
  setTimeout(() => (button.textContent = label), 1400);
}
