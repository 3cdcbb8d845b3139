// A chart of lines, or of areas on each other, with a cross-hair that all charts of the page share.

import { figure, make } from "./dom.js";
import { nearest, smoothed } from "./series.js";

const LEFT = 46;
const BOTTOM = 20;
const TOP = 6;
const MOST_MEASURED = 4000; // points of a line that the height of a chart is taken from

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "tone") element.style.setProperty("--tone", value);
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

export class Chart {
  /** `wish`: title, about, percent, zero, stacked, wide; `pointed(x)` is called with where the pointer is, or null. */
  constructor(wish, pointed) {
    this.wish = wish;
    this.picture = svg("svg", { role: "img" });
    this.at = make("span.at");
    this.keys = make("div.keys");
    const caption = make("figcaption", {}, make("h2", {}, wish.title), make("span.about", {}, wish.about ?? ""), this.at);
    this.element = make(wish.wide ? "figure.chart.wide" : "figure.chart", {}, caption, this.picture, this.keys);
    this.lines = [];
    this.picture.addEventListener("pointermove", (event) => {
      const box = this.picture.getBoundingClientRect();
      const share = (event.clientX - box.left - LEFT) / (box.width - LEFT);
      if (this.range && share >= 0) pointed(this.range[0] + share * (this.range[1] - this.range[0]));
    });
    this.picture.addEventListener("pointerleave", () => pointed(null));
  }

  draw(lines, { axis, smooth, log }) {
    const { width, height } = this.picture.getBoundingClientRect();
    this.axis = axis;
    this.lines = (this.wish.stacked ? stack(lines) : lines).map((line) => ({ ...line, shown: smooth ? smoothed(line.y, smooth) : line.y }));
    const xs = this.lines.flatMap((line) => [line.x[0], line.x.at(-1)]);
    if (!xs.length || !width) {
      this.range = null;
      this.picture.replaceChildren();
      this.keys.replaceChildren();
      return;
    }
    const [first, last] = [Math.min(...xs), Math.max(...xs)];
    this.range = [first, last > first ? last : first + 1];
    const [low, high] = this.#heights(log, smooth);
    const to = log ? (v) => Math.log10(v) : (v) => v;
    const [bottom, top] = [to(low), to(high)];
    this.x = (value) => LEFT + ((value - this.range[0]) / (this.range[1] - this.range[0])) * (width - LEFT - 2);
    this.y = (value) => {
      if (log && value <= 0) return NaN;
      return TOP + (1 - (to(value) - bottom) / (top - bottom)) * (height - TOP - BOTTOM);
    };
    const parts = [];
    for (const tick of log ? logTicks(low, high) : ticks(low, high, height > 220 ? 7 : 5)) {
      const y = this.y(tick);
      parts.push(svg("line", { class: "grid", x1: LEFT, x2: width, y1: y, y2: y }), svg("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, this.#say(tick)));
    }
    const marks = ticks(...this.range, Math.max(3, Math.floor(width / 90))).filter((tick) => tick >= this.range[0] && tick <= this.range[1]);
    for (const tick of marks) {
      const x = this.x(tick);
      const anchor = x > width - 24 ? "end" : "middle";
      parts.push(svg("text", { x: anchor === "end" ? width : x, y: height - 2, "text-anchor": anchor }, place(tick, axis)));
    }
    for (const line of this.lines) {
      if (this.wish.stacked) parts.push(svg("path", { class: "area", tone: line.tone, d: this.#area(line) }));
      else {
        if (smooth) parts.push(svg("path", { class: "raw", tone: line.tone, d: this.#path(line.x, line.y, width) }));
        parts.push(svg("path", { class: `line dash-${line.dash}`, tone: line.tone, d: this.#path(line.x, line.shown, width) }));
      }
    }
    this.cross = svg("g");
    this.picture.replaceChildren(...parts, this.cross);
    this.#legend(null);
  }

  /** Show the figures at x (on the axis of the page); null shows the last ones. */
  point(x) {
    if (!this.range) return;
    this.cross.replaceChildren();
    if (x === null) return this.#legend(null);
    const spots = this.lines.map((line) => {
      const at = nearest(line.x, x);
      return [line, at];
    });
    const where = spots.length ? spots[0][0].x[spots[0][1]] : x;
    const height = this.picture.getBoundingClientRect().height;
    this.cross.append(svg("line", { class: "cross", x1: this.x(where), x2: this.x(where), y1: TOP, y2: height - BOTTOM }));
    if (!this.wish.stacked) {
      for (const [line, at] of spots) {
        if (Number.isFinite(this.y(line.shown[at]))) this.cross.append(svg("circle", { class: "spot", tone: line.tone, r: 3.5, cx: this.x(line.x[at]), cy: this.y(line.shown[at]) }));
      }
    }
    this.#legend(where);
  }

  #legend(x) {
    this.at.textContent = x === null ? "" : `${this.axis} ${place(x, this.axis)}`;
    const found = this.lines.map((line) => {
      const at = x === null ? line.x.length - 1 : nearest(line.x, x);
      const value = this.wish.stacked ? line.own[at] : line.shown[at];
      return [line, this.#say(value)];
    });
    this.keys.replaceChildren(...found.map(([line, value]) =>
      make("span", {}, svg("svg", { viewBox: "0 0 22 6", "aria-hidden": "true" }, svg("path", { class: `line dash-${line.dash}`, tone: line.tone, d: "M0 3H22" })), line.label, make("b", {}, value))));
    if (x === null) this.picture.setAttribute("aria-label", `${this.wish.title}. Newest: ${found.map(([line, value]) => `${line.label} ${value}`).join(", ")}`);
  }

  #say(value) {
    if (!Number.isFinite(value)) return "–";
    if (this.wish.percent || this.wish.stacked) return `${Number((value * 100).toPrecision(3))} %`;
    return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1).replace("e-", "e−") : figure(value);
  }

  #heights(log, smooth) {
    if (this.wish.stacked) return [0, 1];
    const some = (list) => (list.length > MOST_MEASURED ? list.filter((_, at) => at % Math.ceil(list.length / MOST_MEASURED) === 0) : list);
    const values = this.lines.flatMap((line) => some(smooth > 0.5 ? line.shown : line.y)).filter((v) => Number.isFinite(v) && (!log || v > 0)).sort((a, b) => a - b);
    if (!values.length) return [log ? 0.1 : 0, 1];
    // One spike must not flatten everything else.
    const most = values.at(-1);
    const usual = values[Math.floor((values.length - 1) * 0.99)];
    const high = !log && most > 3 * usual && usual > 0 ? usual * 1.5 : most;
    const low = this.wish.zero ? Math.min(0, values[0]) : values[0];
    if (log) return [low / 1.1, high * 1.1];
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [this.wish.zero && low === 0 ? 0 : low - room, high + room];
  }

  /** A line; where several points fall on one pixel column, their least and largest. */
  #path(xs, ys, width) {
    const step = Math.max(1, Math.floor(xs.length / (width * 2)));
    const height = this.picture.getBoundingClientRect().height;
    let path = "";
    let pen = "M";
    const put = (at) => {
      const y = this.y(ys[at]);
      if (!Number.isFinite(y)) {
        pen = "M";
        return;
      }
      path += `${pen}${this.x(xs[at]).toFixed(1)} ${Math.min(height - BOTTOM, Math.max(-4, y)).toFixed(1)}`;
      pen = "L";
    };
    for (let at = 0; at < xs.length; at += step) {
      if (step === 1) {
        put(at);
        continue;
      }
      let [least, most] = [at, at];
      for (let i = at; i < Math.min(at + step, xs.length); i++) {
        if (ys[i] < ys[least]) least = i;
        if (ys[i] > ys[most]) most = i;
      }
      put(Math.min(least, most));
      if (least !== most) put(Math.max(least, most));
    }
    return path;
  }

  #area(line) {
    const up = line.x.map((x, at) => `${this.x(x).toFixed(1)} ${this.y(line.y[at]).toFixed(1)}`);
    const down = line.x.map((x, at) => `${this.x(x).toFixed(1)} ${this.y(line.y[at] - line.own[at]).toFixed(1)}`).reverse();
    return `M${up.join("L")}L${down.join("L")}Z`;
  }
}

/** Lines on each other; `own` keeps each one's height. */
function stack(lines) {
  const base = new Map();
  return lines.map((line) => {
    const own = line.y.map((value) => (Number.isFinite(value) ? Math.max(0, value) : 0));
    const y = own.map((value, at) => {
      const sum = (base.get(line.x[at]) ?? 0) + value;
      base.set(line.x[at], sum);
      return sum;
    });
    return { ...line, own, y };
  });
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const one of high / low < 50 ? [1, 2, 5] : [1]) {
      const value = one * 10 ** power;
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found;
}

function place(value, axis) {
  if (axis === "seconds") return value >= 3600 ? `${Number((value / 3600).toFixed(2))} h` : value >= 60 ? `${Number((value / 60).toFixed(1))} min` : `${Number(value.toFixed(1))} s`;
  return new Intl.NumberFormat("en", { notation: value >= 1e5 ? "compact" : "standard", maximumFractionDigits: 1 }).format(value);
}
