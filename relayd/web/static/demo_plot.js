/**
 * The plot of the demo page: round trips of the last minute as dots, lost datagrams as strokes at the bottom. In SVG.
 *
 * @license MIT
 */

import {draw} from "./svg.js";

/** Milliseconds that the plot spans. */
export const SPAN = 60_000;

const [LEFT, RIGHT, TOP, BOTTOM] = [44, 8, 8, 22]; // pixels around the dots, for the labels
const LOST_HEIGHT = 12; // pixels
const GAP = 3; // times the usual distance of two dots, from which on no line joins them
const STEPS = [1, 2, 4, 6, 8, 10]; // times a power of ten: tops of the scale that divide into halves

/** @typedef {{at: number, time: number | null}} Result  Milliseconds; null: it was lost. */

/**
 * The least round number that is not below.
 * @param {number} value
 */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  const step = STEPS.find((each) => each * power >= value);
  return (step ?? 20) * power;
}

/**
 * Draw everything anew.
 * @param {SVGSVGElement} svg @param {Result[]} results  In the order in which they were sent. @param {number} now
 */
export function drawPlot(svg, results, now) {
  const {width, height} = svg.getBoundingClientRect();
  if (width < 2 * LEFT) return;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const top = ceiling(results.reduce((most, {time}) => Math.max(most, time ?? 0), 0));
  const x = (/** @type {number} */ at) => width - RIGHT - ((now - at) * (width - LEFT - RIGHT)) / SPAN;
  const y = (/** @type {number} */ time) => height - BOTTOM - (time * (height - TOP - BOTTOM)) / top;
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const at = y(top * share);
    parts.push(draw("line", {x1: LEFT, x2: width - RIGHT, y1: at, y2: at}));
    parts.push(draw("text", {x: LEFT - 8, y: at + 4, "text-anchor": "end"}, String(top * share)));
  }
  for (const seconds of [60, 40, 20, 0]) {
    const anchor = {60: "start", 0: "end"}[seconds] ?? "middle";
    const label = seconds ? `−${seconds} s` : "now";
    parts.push(draw("text", {x: x(now - 1000 * seconds), y: height - 4, "text-anchor": anchor}, label));
  }
  const back = results.filter(({time}) => time !== null);
  const spots = back.map(({at, time}) => `${x(at).toFixed(1)} ${y(time ?? 0).toFixed(1)}`);
  const usual = results.length > 1 ? (results[results.length - 1].at - results[0].at) / (results.length - 1) : 0;
  const joined = (/** @type {number} */ index) => index > 0 && back[index].at - back[index - 1].at <= GAP * usual;
  parts.push(draw("path", {class: "line", d: spots.map((spot, index) => `${joined(index) ? "L" : "M"}${spot}`).join("")}));
  parts.push(draw("path", {class: "dots", d: spots.map((spot) => `M${spot}h0`).join("")}));
  const gone = results.filter(({time}) => time === null);
  const strokes = gone.map(({at}) => `M${x(at).toFixed(1)} ${height - BOTTOM}v${-LOST_HEIGHT}`);
  parts.push(draw("path", {class: "gone", d: strokes.join("")}));
  svg.replaceChildren(...parts);
}
