// One prompt, decided in several ways side by side.

import { Answer, watched } from "./answer.js";
import { announce, byId, figure, make } from "./dom.js";

const WAYS = {
  ar: ["Autoregressive", "One token a pass, from left to right. The reference."],
  block: ["Block diffusion", "Starts as noise; each pass decides what is sure."],
  speculative: ["Self-speculative", "Drafts several tokens, verifies them in the next pass."],
};

export class Compare {
  constructor(page) {
    this.page = page;
    this.lanes = [];
    this.running = null;
    byId("compare-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run(byId("compare-prompt").value);
    });
    byId("compare-prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.run(event.target.value);
      }
    });
    byId("compare-stop").addEventListener("click", () => this.stop());
  }

  /** Draw a lane for each mode that the model can do. */
  offer(modes) {
    const notice = byId("compare-notice");
    notice.hidden = modes.length > 1;
    notice.textContent = "This model decides one token a pass. Block diffusion and self-speculation need a model that was trained for them (docs/training.md).";
    this.lanes = modes.filter((mode) => mode in WAYS).map((mode) => new Lane(mode));
    byId("lanes").replaceChildren(...this.lanes.map((lane) => lane.element));
  }

  stop() {
    this.running?.abort();
  }

  async run(prompt) {
    if (this.running || !prompt.trim() || !this.page.settings.check()) return;
    this.running = new AbortController();
    const { signal } = this.running;
    byId("compare-run").hidden = true;
    byId("compare-stop").hidden = false;
    for (const lane of this.lanes) lane.clear();
    const jobs = this.lanes.map((lane) => () => lane.run(this.#body(lane.mode, prompt), this.page.settings.key, signal));
    if (new FormData(byId("compare-form")).get("order") === "together") await Promise.all(jobs.map((job) => job()));
    else for (const job of jobs) if (!signal.aborted) await job();
    this.running = null;
    byId("compare-run").hidden = false;
    byId("compare-stop").hidden = true;
    if (this.lanes.some((lane) => lane.answer?.error?.status === 401)) this.page.needKey();
    this.#judge();
  }

  #body(mode, prompt) {
    const { settings } = this.page;
    const system = settings.system ? [{ role: "system", content: settings.system }] : [];
    const messages = [...system, { role: "user", content: prompt }];
    return { model: this.page.modelId(), messages, stream: true, stream_options: { include_usage: true }, ...settings.fields(mode), ...watched(mode) };
  }

  /** Speeds beside each other, and whether the words are the same. */
  #judge() {
    const done = this.lanes.filter((lane) => lane.answer?.figures);
    if (done.length < 2) return;
    const fastest = Math.max(...done.map((lane) => lane.speedFound));
    const reference = done.find((lane) => lane.mode === "ar") ?? done[0];
    for (const lane of done) {
      const ratio = lane.speedFound / reference.speedFound;
      const words = lane === reference ? "the reference" : `${ratio.toFixed(2)} times its speed, ${difference(reference, lane)}`;
      lane.judge(words, lane.speedFound / fastest);
    }
    announce(`Comparison complete. ${done.map((lane) => `${WAYS[lane.mode][0]}: ${figure(lane.speedFound)} tokens a second`).join("; ")}`);
  }
}

function difference(one, other) {
  const [a, b] = [one.answer.denoise.decided, other.answer.denoise.decided];
  const length = Math.min(one.answer.live.tokens, other.answer.live.tokens);
  for (let at = 0; at < length; at++) {
    if (a[at]?.token !== b[at]?.token) return `other words from token ${at + 1} on`;
  }
  return one.answer.text === other.answer.text ? "the same text" : "the same text, of another length";
}

class Lane {
  constructor(mode) {
    this.mode = mode;
    const [name, about] = WAYS[mode];
    this.speed = make("b", {}, "–");
    this.share = make("b", {}, "–");
    this.against = make("div.against");
    this.bodyBox = make("div.body");
    this.element = make("section.lane", { "data-mode": mode, "aria-label": name },
      make("div.lane-head", {}, make("h2", {}, name)),
      make("p.lane-about", {}, about),
      make("div.big", {}, make("div", {}, this.speed, make("span", {}, "tokens a second")), make("div", {}, this.share, make("span", {}, "tokens a pass"))),
      this.against,
      this.bodyBox);
    this.clear();
  }

  clear() {
    this.answer = null;
    this.speed.textContent = this.share.textContent = "–";
    this.bodyBox.replaceChildren();
    this.against.replaceChildren();
    this.element.classList.remove("leads");
  }

  get speedFound() {
    return this.answer.figures.tokens_per_second;
  }

  /** Say how it did beside the others; `share`: of the fastest one's speed. */
  judge(words, share) {
    const bar = make("i");
    bar.style.setProperty("--share", share);
    this.element.classList.toggle("leads", share === 1);
    this.against.replaceChildren(make("div.length", {}, bar), make("span", {}, words));
  }

  async run(body, key, signal) {
    this.answer = new Answer({}, true);
    this.bodyBox.replaceChildren(this.answer.element);
    await this.answer.run(body, key, signal, (answer) => {
      const { tokensPerSecond, tokensPerForward } = answer.live;
      this.speed.textContent = tokensPerSecond === null ? "–" : tokensPerSecond.toFixed(1);
      this.share.textContent = tokensPerForward === null ? "–" : tokensPerForward.toFixed(2);
    });
  }
}
