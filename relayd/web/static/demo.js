/**
 * The demo page: reads the form, runs the round trips, shows them, and tells a person what went wrong.
 *
 * @license MIT
 */

import {RedirectionError, RemoteError, UnavailableError, formatPeer, parsePeer} from "./relayd.js";
import {SPAN, drawPlot} from "./demo_plot.js";
import {RoundTrips} from "./round_trips.js";

const SILENCE = 5000; // milliseconds in which nothing came back, after which a person may want a hint
const FIELDS = ["username", "credential", "peer", "rate", "size"];
const FRAME = 100; // milliseconds between two pictures

/** @template {Element} [T=HTMLElement] @param {string} id @returns {T} */
const byId = (id) => /** @type {any} */ (document.getElementById(id));
const input = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ (byId(id));
/** @param {string} id @param {string | number} value */
const show = (id, value) => (byId(id).textContent = String(value));
const milliseconds = (/** @type {number} */ value) => value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0);

/** The relay that served this page, wherever a proxy in front put it. */
const relay = new URL("turn", location.href);
relay.protocol = location.protocol === "https:" ? "wss:" : "ws:";
relay.hash = relay.search = "";

/** @type {RoundTrips | null} */
let run = null;
/** @type {import("./demo_plot.js").Result[]} */
let results = [];
let drawn = 0;

/** A link may carry credentials behind its #, which browsers send to nobody. They do not stay in the address bar. */
function takeCredentials() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of ["username", "credential", "peer"]) {
    const value = given.get(name);
    if (value !== null) input(name).value = value;
  }
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
}

/** @param {"" | "running" | "failed"} kind @param {string} text */
function tell(kind, text) {
  byId("state").className = `state ${kind}`;
  show("state", text);
  byId("button").classList.toggle("stop", run !== null);
  for (const id of FIELDS) input(id).disabled = run !== null;
  show("button", run ? "Stop" : "Start");
}

/** @param {string | null} text */
function notify(text) {
  if (byId("notice").textContent === (text ?? "")) return;
  byId("notice").hidden = text === null;
  show("notice", text ?? "");
}

/** @param {unknown} error @param {string} peer  As it was typed. */
function explanation(error, peer) {
  if (error instanceof RedirectionError)
    return `This relay sends its clients to another one, ${formatPeer(error.alternateServer)}.`;
  if (error instanceof RemoteError) {
    const echo = peer
      ? `send to ${peer}`
      : "send to its own address. Behind a NAT relays often do: give the address of a UDP echo instead";
    const meanings = new Map([
      [401, "The relay does not know this user, or the password is wrong."],
      [403, `The relay refuses to ${echo}. Private and special addresses are refused unless its operator allows them.`],
      [440, "The relay has no address of the family that this UDP echo needs."],
      [443, "The relay has no address of the family that this UDP echo needs."],
      [486, "This user holds as many allocations as the relay grants. Close other pages, or wait until they end."],
      [508, "The relay has no room for another allocation at the moment."],
    ]);
    return meanings.get(error.code) ?? `The relay refused: ${error.code} ${error.reason}`;
  }
  if (error instanceof UnavailableError && error.closeCode === 1006)
    return `No connection to ${relay}, or it broke. Is the relay there, and does it let pages of ${location.origin} in?`;
  return error instanceof Error ? `${error.message[0].toUpperCase()}${error.message.slice(1)}.` : String(error);
}

function start() {
  const typed = input("peer").value.trim();
  let peer = null;
  try {
    peer = typed ? parsePeer(typed) : null;
  } catch (error) {
    tell("failed", "not connected");
    notify(explanation(error, typed));
    input("peer").focus();
    return;
  }
  const [rate, size] = [Number(input("rate").value), Number(input("size").value)];
  const [username, credential] = [input("username").value, input("credential").value];
  const trips = new RoundTrips({url: relay, username, credential, peer, rate, size});
  run = trips;
  results = [];
  notify(null);
  for (const id of ["mapped", "relayed", "echo", "opened", "allocated", "last", "median"]) show(id, "–");
  show("spread", "last minute");
  tell("", "connecting");
  trips.addEventListener("way", (event) => opened(/** @type {import("./round_trips.js").WayEvent} */ (event), typed));
  trips.addEventListener("result", (event) => {
    const {at, time} = /** @type {import("./round_trips.js").ResultEvent} */ (event);
    results.push({at, time});
    if (time !== null) show("last", milliseconds(time));
  });
  trips.addEventListener("end", (event) => {
    const {error} = /** @type {import("./round_trips.js").EndEvent} */ (event);
    if (run === trips) run = null;
    tell(error ? "failed" : "", error ? "failed" : "stopped");
    if (error) notify(explanation(error, typed));
  });
  trips.start();
  requestAnimationFrame((now) => picture(trips, now));
}

/** @param {import("./round_trips.js").WayEvent} event @param {string} typed */
function opened({peer, relayed, mapped, opened, allocated}, typed) {
  tell("running", `running over ${relay.protocol.slice(0, -1)}`);
  show("mapped", mapped ? formatPeer(mapped) : "–");
  show("relayed", formatPeer(relayed));
  show("echo", typed ? formatPeer(peer) : `${formatPeer(peer)}, this page's second connection`);
  show("opened", `${milliseconds(opened)} ms`);
  show("allocated", `${milliseconds(allocated)} ms`);
}

/**
 * Show what there is, some ten times a second as long as it runs.
 * @param {RoundTrips} trips @param {number} now
 */
function picture(trips, now) {
  if (now - drawn >= FRAME || run !== trips) {
    drawn = now;
    const first = results.findIndex(({at}) => at > now - SPAN);
    results = first < 0 ? [] : results.slice(first);
    results.sort((one, other) => one.at - other.at);
    drawPlot(byId("plot"), results, now);
    numbers(trips);
    const isSilent = trips.sent > 0 && trips.received === 0 && trips.lost > 0 && results[0]?.at < now - SILENCE;
    if (run === trips && isSilent)
      notify("Nothing has come back so far. Is there a UDP echo at that address, and does it hear the relay?");
    else if (run === trips) notify(null);
  }
  if (run === trips) requestAnimationFrame((later) => picture(trips, later));
}

/** @param {RoundTrips} trips */
function numbers(trips) {
  show("sent", trips.sent);
  show("received", trips.received);
  show("lost", trips.lost);
  byId("loss").classList.toggle("some", trips.lost > 0);
  const known = trips.received + trips.lost;
  show("share", trips.lost ? `${((100 * trips.lost) / known).toFixed(1)} %, not back after two seconds` : "not back after two seconds");
  const times = results.flatMap(({time}) => time ?? []).sort((one, other) => one - other);
  if (!times.length) return;
  const median = milliseconds(times[times.length >> 1]);
  show("median", median);
  show("spread", `${milliseconds(times[0])} to ${milliseconds(times[times.length - 1])}, last minute`);
  byId("plot").setAttribute("aria-label", `${times.length} round trips, ${median} ms in the median; ${trips.lost} lost`);
}

takeCredentials();
addEventListener("hashchange", takeCredentials);
addEventListener("pagehide", () => run?.leave()); // browsers may keep a page that was left, with its connections
show("url", relay.href);
drawPlot(byId("plot"), [], performance.now());
addEventListener("resize", () => drawPlot(byId("plot"), results, performance.now()));
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (run) run.stop();
  else start();
});
