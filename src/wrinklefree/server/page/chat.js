// The conversation.

import { Answer, watched } from "./answer.js";
import { announce, byId, make } from "./dom.js";

export class Chat {
  /** `page`: {settings, model, needKey()}. */
  constructor(page) {
    this.page = page;
    this.turns = []; // {role, content}
    this.running = null;
    this.frame = null;
    this.form = byId("composer");
    this.input = byId("prompt");
    this.list = byId("messages");
    this.scroll = byId("chat-scroll");
    this.watch = byId("watch");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send(this.input.value);
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send(this.input.value);
      }
    });
    this.input.addEventListener("input", () => this.#grow());
    byId("stop").addEventListener("click", () => this.stop());
    byId("clear").addEventListener("click", () => this.clear());
    this.watch.checked = recall("wrinklefree.watch", "true") === "true";
    this.watch.addEventListener("change", () => remember("wrinklefree.watch", String(this.watch.checked)));
  }

  async send(text) {
    if (this.running || !text.trim() || !this.page.settings.check()) return;
    this.input.value = "";
    this.#grow();
    byId("welcome").hidden = true;
    this.turns.push({ role: "user", content: text });
    this.list.append(make("div.message.user", {}, make("p", {}, text)));
    await this.#answer();
  }

  stop() {
    this.running?.abort();
  }

  clear() {
    this.stop();
    this.turns = [];
    this.list.replaceChildren();
    byId("welcome").hidden = false;
    this.input.focus();
  }

  async #answer() {
    const { settings } = this.page;
    const system = settings.system ? [{ role: "system", content: settings.system }] : [];
    const body = {
      model: this.page.modelId(),
      messages: [...system, ...this.turns],
      stream: true,
      stream_options: { include_usage: true },
      ...settings.fields(),
    };
    if (this.watch.checked) Object.assign(body, watched(body.mode));
    const turns = this.turns;
    const answer = new Answer({ "Answer again": () => this.#again(answer, turns) });
    this.list.append(answer.element);
    this.running = new AbortController();
    this.#busy(true);
    const complete = await answer.run(body, settings.key, this.running.signal, () => this.#keepDown());
    this.running = null;
    this.#busy(false);
    if (turns !== this.turns) return; // a new chat has begun meanwhile
    if (answer.text || complete) this.turns.push({ role: "assistant", content: answer.text });
    else this.#giveBack(answer);
    if (answer.error?.status === 401) this.page.needKey();
    announce(complete ? `Answer complete: ${answer.text}` : "The answer was broken off.");
    this.input.focus();
  }

  /** Nothing came: the words go back to where they were typed. */
  #giveBack(answer) {
    const { content } = this.turns.pop();
    if (answer.element.previousElementSibling) answer.element.previousElementSibling.remove();
    if (!this.input.value) this.input.value = content;
    this.#grow();
  }

  async #again(answer, turns) {
    if (this.running || turns !== this.turns || this.list.lastElementChild !== answer.element) return;
    this.turns.pop();
    answer.element.remove();
    await this.#answer();
  }

  #busy(busy) {
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
  }

  /** Keep the newest words in sight, unless the reader has gone up; measured once a frame. */
  #keepDown() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      const { scroll } = this;
      if (scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 200) scroll.scrollTop = scroll.scrollHeight;
    });
  }

  #grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${this.input.scrollHeight}px`;
  }
}

function recall(name, otherwise) {
  try {
    return localStorage.getItem(name) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // Storage is forbidden: the choice lasts as long as the page.
  }
}
