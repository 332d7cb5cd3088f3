// A plot of the last minutes in SVG: one value a second and curve, the newest at the right.

import { draw } from "./svg.js";

const LEFT = 66, RIGHT = 8, TOP = 8, BOTTOM = 22; // pixels around the curves, for the labels
const PREFIXES = ["", "k", "M", "G", "T", "P"];

/** A number with three significant digits and its unit: [text, unit]. */
function scaled(value, unit, wholes) {
  let at = 0;
  while (value >= 999.5 && at < PREFIXES.length - 1) {
    value /= 1000;
    at += 1;
  }
  const digits = value >= 99.95 || (wholes && at === 0) ? 0 : value >= 9.995 ? 1 : 2;
  return [value.toFixed(value ? digits : 0), `${PREFIXES[at]}${unit}`];
}

export const bits = (value) => scaled(value, "bit/s", true);
export const rate = (value) => scaled(value, "/s", true);
export const volume = (value) => scaled(value, "B", true);
export const count = (value) => scaled(value, "", true);

/** A number that is at least `value`, of which the quarters are round too; of a count too small for that, whole. */
export function ceiling(value) {
  if (value <= 12) return [4, 8, 12].find((step) => step >= value);
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10].find((step) => step * power >= value * 0.9999) * power;
}

export class Plot {
  /**
   * In `card`, behind its heading, which becomes the name of the picture. `format` is one of the functions above;
   * `curves` have a name, a style, values that their owner adds to, and perhaps a factor.
   */
  constructor(card, seconds, format, curves) {
    this.seconds = seconds;
    this.format = format;
    this.curves = curves;
    this.pointed = null; // seconds ago that the pointer is at
    this.title = card.querySelector("h2").textContent;
    this.legend = document.createElement("p");
    this.legend.className = "legend";
    this.svg = draw("svg", { role: "img" });
    const box = document.createElement("div");
    box.className = "plot";
    box.append(this.svg);
    card.append(this.legend, box);
    new ResizeObserver(() => this.draw()).observe(box);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.point(null));
  }

  point(event) {
    const { left, width } = this.svg.getBoundingClientRect();
    const inside = event && event.clientX - left >= LEFT;
    const step = (width - LEFT - RIGHT) / (this.seconds - 1);
    this.pointed = inside ? Math.max(0, Math.round((left + width - RIGHT - event.clientX) / step)) : null;
    this.draw();
  }

  /** Draw everything anew. */
  draw() {
    const { width, height } = this.svg.getBoundingClientRect();
    if (width < LEFT + RIGHT + 20) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const highest = Math.max(...this.curves.map((curve) => Math.max(0, ...curve.values) * (curve.factor ?? 1)));
    const top = ceiling(highest);
    const x = (ago) => width - RIGHT - (ago * (width - LEFT - RIGHT)) / (this.seconds - 1);
    const y = (value) => height - BOTTOM - (value * (height - TOP - BOTTOM)) / top;
    const parts = [...this.scale(width, height, top, x, y), ...this.curves.map((curve) => this.curve(curve, x, y))];
    this.svg.replaceChildren(...parts, ...this.cursor(height, x, y));
    this.describe();
  }

  scale(width, height, top, x, y) {
    const parts = [];
    for (let at = 0; at <= 4; at += 1) {
      const value = (top * at) / 4;
      parts.push(draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
      if (at % 2 && height < 170) continue;
      const [number, unit] = this.format(value);
      const text = `${Number(number)} ${unit}`.trim(); // round numbers need no zeros behind the point
      parts.push(draw("text", { class: "axis left", x: LEFT - 8, y: y(value) + 4 }, text));
    }
    const minutes = Math.floor(this.seconds / 60);
    for (let ago = 0; ago <= minutes; ago += width < 600 ? 2 : 1) {
      const anchor = ago === 0 ? "end" : ago === minutes ? "start" : "middle";
      const at = x(Math.min(60 * ago, this.seconds - 1));
      const text = ago ? `−${ago} min` : "now";
      parts.push(draw("text", { class: "axis", x: at, y: height - 4, "text-anchor": anchor }, text));
    }
    return parts;
  }

  curve({ style, values, factor = 1 }, x, y) {
    const group = draw("g", { class: style });
    const points = values.map((value, at) => `${x(values.length - 1 - at).toFixed(1)},${y(value * factor).toFixed(1)}`);
    if (points.length) {
      const [first, last] = [x(values.length - 1), x(0)].map((each) => each.toFixed(1));
      const floor = y(0).toFixed(1);
      group.append(
        draw("polygon", { class: "area", points: `${first},${floor} ${points.join(" ")} ${last},${floor}` }),
        draw("polyline", { class: "curve", points: points.join(" ") }),
      );
    }
    return group;
  }

  cursor(height, x, y) {
    if (this.pointed === null) return [];
    const at = x(this.pointed);
    const parts = [draw("line", { class: "cursor", x1: at, x2: at, y1: TOP, y2: height - BOTTOM })];
    for (const { style, values, factor = 1 } of this.curves) {
      const value = values.at(-1 - this.pointed);
      if (value !== undefined) parts.push(draw("circle", { class: `${style} dot`, cx: at, cy: y(value * factor), r: 4.5 }));
    }
    return parts;
  }

  /** What the curves are, and where the pointer is; for those who do not see it, in words as well. */
  describe() {
    const ago = this.pointed ?? 0;
    const texts = this.curves.map(({ name, style, values, factor = 1 }) => {
      const text = document.createElement("span");
      const mark = document.createElement("i");
      const figure = document.createElement("b");
      const value = values.at(-1 - ago);
      mark.className = style;
      figure.textContent = value === undefined ? "–" : this.format(value * factor).join(" ").trim();
      text.append(mark, `${name} `, figure);
      return text;
    });
    const when = document.createElement("span");
    when.className = "when";
    when.textContent = ago ? `${ago} s ago` : "";
    this.legend.replaceChildren(...texts, when);
    this.svg.setAttribute("aria-label", `${this.title}: ${texts.map((each) => each.textContent).join(", ")}`);
  }
}
