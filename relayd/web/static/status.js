// The status page: asks status.json every second for what is new, and draws it. Nothing here leaves the relay's own site.

import { Plot, count, rate, volume, bits } from "./plot.js";

const WINDOW = 300; // seconds that the plots show, which is what the relay keeps
const INTERVAL = 1000; // ms between two questions
const PATIENCE = 5000; // ms for an answer
const SLOWEST = 10_000; // ms between two questions when there are no answers
const SERIES = ["sent_bytes", "received_bytes", "sent_packets", "received_packets", "dropped", "allocations"];

// What the reasons of status.json mean to a person.
const REASONS = {
  "malformed": ["Not a STUN message", "dropped"],
  "throttled": ["Too many unauthenticated requests", "dropped, so that nobody is flooded with answers"],
  "redirected": ["Sent to another relay", ""],
  "bad-request": ["Bad request", ""],
  "unauthorized": ["Credentials missing or wrong", "every client's first request is one"],
  "forbidden": ["Refused by a policy", ""],
  "peer-forbidden": ["Peer not allowed", "by the peer rules or a policy"],
  "unknown-attribute": ["Unknown attribute", ""],
  "allocation-mismatch": ["No such allocation, or a second one", ""],
  "stale-nonce": ["Nonce expired", "clients just try again"],
  "address-family": ["Address family not available", ""],
  "wrong-credentials": ["Credentials of another user", ""],
  "transport": ["Transport not available", ""],
  "peer-family": ["Peer of another address family", ""],
  "connection-exists": ["A second connection to one peer", ""],
  "connection-failed": ["Peer not reached over TCP", ""],
  "peer-not-authenticated": ["Peer's certificate not good", ""],
  "quota": ["User's quota reached", ""],
  "server-error": ["Server error", "see the log"],
  "capacity": ["No relayed address free", ""],
  "other": ["Another reason", "a policy's own"],
};

const $ = (id) => document.getElementById(id);
const history = Object.fromEntries(SERIES.map((name) => [name, []]));
let started = 0; // of the relay: when that changes, it is another run
let next = 0; // number of the first second that is yet to be asked for
let failures = 0;
let timer = 0;
let asking = false; // two answers to one question would count its seconds twice

const traffic = new Plot($("traffic"), WINDOW, bits, [
  { name: "to peers", style: "sent", values: history.sent_bytes, factor: 8 },
  { name: "to clients", style: "received", values: history.received_bytes, factor: 8 },
]);
const packets = new Plot($("packets"), WINDOW, rate, [
  { name: "to peers", style: "sent", values: history.sent_packets },
  { name: "to clients", style: "received", values: history.received_packets },
  { name: "dropped", style: "dropped", values: history.dropped },
]);
const allocations = new Plot($("allocations"), WINDOW, count, [
  { name: "allocations", style: "other", values: history.allocations },
]);

/** Put text into an element, if it is not there already. */
function write(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

/** An element with a class and children, which are elements or texts: never markup. */
function make(tag, style, ...children) {
  const made = document.createElement(tag);
  if (style) made.className = style;
  made.append(...children);
  return made;
}

/** Seconds, as people say it. */
function duration(seconds) {
  const [s, m, h, d] = [seconds % 60, (seconds / 60) % 60, (seconds / 3600) % 24, seconds / 86400].map(Math.floor);
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min` : `${s} s`;
}

function remember(status) {
  if (status.started !== started) {
    started = status.started;
    for (const name of SERIES) history[name].length = 0;
  }
  for (const name of SERIES) {
    history[name].push(...status.history[name]);
    history[name].splice(0, Math.max(0, history[name].length - WINDOW));
  }
  next = status.history.next;
}

/** The mean of the last three seconds, so that the large figures can be read. */
function lately(name) {
  const last = history[name].slice(-3);
  return last.length ? last.reduce((sum, each) => sum + each, 0) / last.length : 0;
}

function showTiles(status) {
  const kinds = Object.entries(status.allocations).filter(([, number]) => number);
  const total = kinds.reduce((sum, [, number]) => sum + number, 0);
  const made = Object.values(status.allocations_started).reduce((sum, each) => sum + each, 0);
  write("now-allocations", count(total).join(" ").trim());
  const peers = Object.values(status.peer_connections).reduce((sum, each) => sum + each, 0);
  const tcp = peers ? `, ${count(peers).join(" ").trim()} TCP\u00a0connection${peers > 1 ? "s" : ""}` : "";
  write("sub-allocations", `${count(made).join(" ").trim()} since the start${tcp}`);
  for (const way of ["sent", "received"]) {
    const [number, unit] = bits(8 * lately(`${way}_bytes`));
    write(`now-${way}`, number);
    write(`unit-${way}`, unit);
    const packets = rate(lately(`${way}_packets`)).join(" ").replace("/s", " packets/s").replace("  ", " ");
    const moved = volume(status.traffic[`${way}_bytes`]).join(" ");
    write(`sub-${way}`, `${packets}, ${`${moved} in all`.replaceAll(" ", "\u00a0")}`);
  }
  const [number, unit] = rate(lately("dropped"));
  write("now-dropped", number);
  write("unit-dropped", unit.replace("/s", " packets/s").trim());
  write("sub-dropped", `${count(status.traffic.dropped).join(" ").trim()} since the start`);
}

function showKinds(status) {
  const most = Math.max(1, ...Object.values(status.allocations));
  const box = $("kinds");
  if (!box.children.length) {
    for (const kind of Object.keys(status.allocations)) {
      box.append(make("span", "kind", kind), make("div", "bar", make("div")), make("span"));
    }
  }
  Object.values(status.allocations).forEach((number, at) => {
    const [label, bar, figure] = [0, 1, 2].map((offset) => box.children[3 * at + offset]);
    label.classList.toggle("zero", !number);
    figure.classList.toggle("zero", !number);
    bar.firstChild.style.width = `${(100 * number) / most}%`;
    figure.textContent = String(number);
  });
}

function showListeners(status) {
  const text = JSON.stringify(status.listeners);
  const list = $("listeners");
  if (list.dataset.shown === text) return;
  list.dataset.shown = text;
  list.replaceChildren(...status.listeners.map((each) => {
    const where = each.addresses.length ? each.addresses.join(", ") : each.description;
    const spoken = each.description.split(" ", 1)[0]; // of one port for all, more than its app_connection
    return make("li", "", make("span", "kind", spoken), make("span", "mono", where));
  }));
}

function showSessions(status) {
  $("sessions").hidden = !status.sessions.length;
  $("no-sessions").hidden = status.sessions.length > 0;
  $("sessions").tBodies[0].replaceChildren(...status.sessions.map((each) => {
    const name = make("td", "", make("code", "", each.session), make("span", "kind", each.app_connection));
    const moved = make("td", "spare", volume(each.sent_bytes + each.received_bytes).join(" "));
    const rates = [each.sent_rate, each.received_rate].map((value) => make("td", "", bits(8 * value).join(" ")));
    return make("tr", "", name, ...rates, moved, make("td", "spare", duration(each.age)));
  }));
}

function showRefusals(status) {
  const rows = status.refusals.filter((each) => each.count).sort((one, other) => other.count - one.count);
  $("refusals").hidden = !rows.length;
  $("no-refusals").hidden = rows.length > 0;
  $("refusals").tBodies[0].replaceChildren(...rows.map((each) => {
    const [words, more] = REASONS[each.reason] ?? [each.reason, ""];
    const reason = make("td", "", words, ...(more ? [make("small", "", more)] : []));
    return make("tr", "", reason, make("td", "mono", each.code ? String(each.code) : "–"), make("td", "", count(each.count).join(" ").trim()));
  }));
}

function show(status) {
  write("about", `version ${status.version} · ${status.data_plane} data plane · up ${duration(status.uptime)}`);
  showTiles(status);
  showKinds(status);
  showListeners(status);
  showSessions(status);
  showRefusals(status);
  for (const plot of [traffic, packets, allocations]) plot.draw();
}

/** Say how it goes: `live`, `waiting` or `lost`, and, where something has to be done, what. */
function say(style, word, notice = "") {
  $("state").className = `state ${style}`;
  write("state", word);
  write("notice", notice);
  $("notice").hidden = !notice;
}

async function ask() {
  const answer = await fetch(`status.json?since=${next}`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.status === 403 || answer.status === 404) {
    say("lost", "not let in", answer.status === 403 ? await answer.text() : "The relay no longer shows this page.");
    throw new Error("not let in");
  }
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const status = await answer.json();
  if (next && status.started !== started && status.history.next) {
    next = 0; // another run, of which all the seconds are wanted
    return ask();
  }
  remember(status);
  show(status);
  say("live", "live");
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || asking) return; // until it is looked at again, or answered
  asking = true;
  try {
    await ask();
    failures = 0;
  } catch (why) {
    failures += 1;
    if (why.message !== "not let in") say("lost", failures > 1 ? "no answer, trying again" : "waiting");
  } finally {
    asking = false;
  }
  timer = setTimeout(poll, failures ? Math.min(SLOWEST, INTERVAL * 2 ** (failures - 1)) : INTERVAL);
}

document.addEventListener("visibilitychange", poll);
poll();
