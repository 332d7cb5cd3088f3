/**
 * Elements of SVG, for the plots of the status page and of the demo.
 *
 * @license MIT
 */

const NAMESPACE = "http://www.w3.org/2000/svg";

/**
 * An element with attributes, and a text in it if there is one.
 * @param {string} tag @param {Record<string, string | number>} attributes @param {string} [text]
 */
export function draw(tag, attributes = {}, text) {
  const made = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}
