/**
 * Times datagrams through a relay: to a UDP echo, or to an echo of its own at a second allocation on the same relay. Knows
 * nothing of the page that shows them.
 *
 * @license MIT
 */

import {connect, formatPeer} from "./relayd.js";

/** Milliseconds after which a datagram counts as lost. */
export const LOST_AFTER = 2000;

const HEADER = 12; // bytes of a datagram: a token of this run, and its number
const SWEEP = 200; // milliseconds between two looks for lost ones

/** @typedef {import("./relayd.js").Allocation} Allocation */
/** @typedef {import("./relayd.js").Environment} Environment */
/** @typedef {import("./relayd.js").Peer} Peer */
/** @typedef {import("./relayd.js").TurnClient} TurnClient */
/**
 * @typedef {object} Settings
 * @property {string | URL} url  Of the relay.
 * @property {string} username
 * @property {string} credential
 * @property {Peer | null} peer  A UDP echo; null: one of our own.
 * @property {number} rate  Datagrams a second.
 * @property {number} size  Bytes of each, 12 at least.
 */

/** "way": it is open. Times are in milliseconds. */
export class WayEvent extends Event {
  /** @param {Peer} peer @param {Allocation} socket @param {number} opened @param {number} allocated */
  constructor(peer, socket, opened, allocated) {
    super("way");
    this.peer = peer;
    this.relayed = socket.relayedAddresses[0];
    this.mapped = socket.mappedAddress;
    this.opened = opened;
    this.allocated = allocated;
  }
}

/** "result": what became of a datagram, sent at `at`; `time` is its round trip in milliseconds, null if it was lost. */
export class ResultEvent extends Event {
  /** @param {number} at @param {number | null} time */
  constructor(at, time) {
    super("result");
    this.at = at;
    this.time = time;
  }
}

/** "end", once: with what went wrong, or null after stop(). */
export class EndEvent extends Event {
  /** @param {unknown} error */
  constructor(error) {
    super("end");
    this.error = error;
  }
}

/** One run, from `start` to "end". */
export class RoundTrips extends EventTarget {
  sent = 0;
  received = 0;
  lost = 0;

  #settings;
  #environment;
  #now;
  #ended = false;
  /** @type {TurnClient[]} */
  #clients = [];
  /** @type {Allocation[]} */
  #sockets = [];
  /** @type {Map<number, number>} when each was sent that is on its way */
  #pending = new Map();
  #token;
  /** @type {Set<ReturnType<typeof setTimeout>>} */
  #timers = new Set();

  /** @param {Settings} settings @param {Environment} environment @param {() => number} now  milliseconds */
  constructor(settings, environment = {}, now = () => performance.now()) {
    super();
    this.#settings = settings;
    this.#environment = environment;
    this.#now = now;
    this.#token = (environment.crypto ?? crypto).getRandomValues(new Uint8Array(8));
  }

  /** Connect and send until `stop`. What goes wrong is told with "end". */
  async start() {
    try {
      const {peer} = this.#settings;
      const began = this.#now();
      const family = peer?.address.includes(":") ? "ipv6" : "ipv4";
      const client = await this.#connect();
      const opened = this.#now();
      const socket = await this.#allocate(client, family);
      const allocated = this.#now();
      const to = peer ?? (await this.#echo(socket.relayedAddresses[0]));
      socket.addEventListener("message", ({data}) => this.#returned(new DataView(data)));
      await socket.bind(to);
      if (this.#ended) return;
      this.dispatchEvent(new WayEvent(to, socket, opened - began, allocated - opened));
      this.#send(socket, to);
      this.#sweep();
    } catch (error) {
      this.#end(error);
    }
  }

  /** Delete the allocations and close everything. */
  stop() {
    this.#end(null);
  }

  /** The same, without a moment to wait for answers: the page is left. */
  leave() {
    this.#end(null);
    for (const client of this.#clients) client.close();
  }

  async #connect() {
    const {url, username, credential} = this.#settings;
    const client = await connect(url, {username, credential}, this.#environment);
    this.#clients.push(client);
    if (this.#ended) client.close();
    return client;
  }

  /** @param {TurnClient} client @param {"ipv4" | "ipv6"} family */
  async #allocate(client, family) {
    const socket = await client.allocate({family});
    this.#sockets.push(socket);
    if (this.#ended) socket.close();
    socket.addEventListener("close", ({error}) => this.#end(error));
    return socket;
  }

  /**
   * Send back whatever comes from that address, and tell where.
   * @param {Peer} from
   */
  async #echo(from) {
    const socket = await this.#allocate(await this.#connect(), "ipv4");
    const wanted = formatPeer(from);
    socket.addEventListener("message", ({data, peer}) => {
      if (formatPeer(peer) === wanted && socket.readyState === "open") socket.send(data, peer);
    });
    await socket.bind(from);
    return socket.relayedAddresses[0];
  }

  /** @param {Allocation} socket @param {Peer} peer */
  #send(socket, peer) {
    const datagram = new Uint8Array(Math.max(this.#settings.size, HEADER));
    datagram.set(this.#token);
    const number = this.sent++;
    new DataView(datagram.buffer).setUint32(8, number);
    this.#pending.set(number, this.#now());
    socket.send(datagram, peer);
    this.#later(1000 / this.#settings.rate, () => this.#send(socket, peer));
  }

  /** @param {DataView} datagram */
  #returned(datagram) {
    if (datagram.byteLength < HEADER || this.#token.some((byte, at) => datagram.getUint8(at) !== byte)) return;
    const number = datagram.getUint32(8);
    const at = this.#pending.get(number);
    if (at === undefined) return; // a second copy, or too late
    this.#pending.delete(number);
    this.received++;
    this.dispatchEvent(new ResultEvent(at, this.#now() - at));
  }

  #sweep() {
    const oldest = this.#now() - LOST_AFTER;
    for (const [number, at] of this.#pending) {
      if (at > oldest) break; // they are in order
      this.#pending.delete(number);
      this.lost++;
      this.dispatchEvent(new ResultEvent(at, null));
    }
    this.#later(SWEEP, () => this.#sweep());
  }

  /** @param {number} milliseconds @param {() => void} act */
  #later(milliseconds, act) {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      act();
    }, milliseconds);
    this.#timers.add(timer);
  }

  /** @param {unknown} error */
  #end(error) {
    if (this.#ended) return;
    this.#ended = true;
    for (const timer of this.#timers) clearTimeout(timer);
    for (const socket of this.#sockets) socket.close();
    if (this.#sockets.length < this.#clients.length) this.#clients.at(-1)?.close(); // it was about to allocate
    this.dispatchEvent(new EndEvent(error));
  }
}
