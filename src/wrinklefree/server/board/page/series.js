// The figures of one run, a column for each name.

export class Series {
  constructor() {
    this.clear();
  }

  clear() {
    this.rows = [];
    this.found = new Set();
  }

  get length() {
    return this.rows.length;
  }

  /** Take in a line. A run that was resumed writes some steps again: the newer ones count. */
  add(row) {
    while (this.rows.length && this.rows.at(-1).step >= row.step) this.rows.pop();
    this.rows.push(row);
    for (const name in row) this.found.add(name);
  }

  names() {
    return [...this.found];
  }

  last(name) {
    for (let at = this.rows.length - 1; at >= 0; at--) {
      const value = this.rows[at][name];
      if (value !== undefined) return value;
    }
    return null;
  }

  /** Seconds between the last two lines, 0 when unknown. */
  pace() {
    const [before, last] = this.rows.slice(-2);
    return last?.seconds > before?.seconds ? last.seconds - before.seconds : 0;
  }

  /** [x, y] of the steps that have both figures. A figure that was none (null) is NaN: a gap. */
  curve(axis, name) {
    const x = [];
    const y = [];
    for (const row of this.rows) {
      if (row[name] === undefined || row[axis] === undefined || row[axis] === null) continue;
      x.push(row[axis]);
      y.push(row[name] === null ? NaN : row[name]);
    }
    return [x, y];
  }
}

/** Exponential mean over the steps before, without the pull of the beginning towards zero. */
export function smoothed(values, weight) {
  let sum = 0;
  let mass = 0;
  return values.map((value) => {
    if (!Number.isFinite(value)) return value;
    sum = sum * weight + value;
    mass = mass * weight + 1;
    return sum / mass;
  });
}

/** The index of the entry nearest to x in rising numbers. */
export function nearest(xs, x) {
  let low = 0;
  let high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle;
    else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}
