/**
 * UDP for web pages: a TURN client (RFC 8656) over WebSocket, which sends and receives datagrams from an address that a
 * relay lends it. It needs WebSocket and WebCrypto, and nothing else.
 *
 *     import {connect} from "./relayd.js";
 *
 *     const client = await connect("wss://relay.example.org/turn", {username, credential});
 *     const socket = await client.allocate();
 *     socket.addEventListener("message", ({data, peer}) => console.log(peer.address, peer.port, data.byteLength));
 *     socket.send(new TextEncoder().encode("hello"), {address: "198.51.100.7", port: 7});
 *
 * One WebSocket message is one STUN or ChannelData message (draft-chenxin-behave-turn-websocket). Errors: TypeError and
 * RangeError for what no call may be given, InvalidStateError (a DOMException) for a call at the wrong time, and one of
 * the TurnErrors below for what the relay or the network did.
 *
 * @module relayd
 * @license MIT
 */

import {
  A, Authentication, CLASS, FAMILY, METHOD, Message, RedirectionError, RemoteError, TurnError, UDP, UnavailableError,
  canonicalPeer, encodeMessage, formatAddress, parseAddress, parsePeer, formatPeer, peerAttribute, splitMessage, text,
  uint32, view,
} from "./stun.js";

export {RedirectionError, RemoteError, TurnError, UnavailableError, formatPeer, parsePeer};

/** @typedef {import("./stun.js").Attribute} Attribute */
/** @typedef {import("./stun.js").Credentials} Credentials */
/** @typedef {import("./stun.js").Peer} Peer */
/**
 * @typedef {object} Environment  What a page need not give, because its browser has it.
 * @property {new (url: string | URL) => WebSocket} [WebSocket]  Such as that of the package ws, in a Node without.
 * @property {Crypto} [crypto]  WebCrypto.
 */

// --- limits: times are in seconds, sizes in bytes ------------------------------------------------------------------

/** The longest datagram: what a Send indication to an IPv6 peer has room for, header and integrity left out. */
export const MAX_DATA = 65_460;
/** How much may wait to be sent; a datagram beyond it is dropped and counted, as a full socket would drop it. */
export const MAX_BUFFERED = 1_048_576;
/** How many datagrams to one address may wait for its permission: the first round trip of a brisk sender. */
export const MAX_WAITING = 64;

const OPEN_PATIENCE = 20; // DNS, TCP, TLS and two proxies on a bad network
const ANSWER_PATIENCE = 39.5; // RFC 8489 section 6.2.2
const CLOSE_PATIENCE = 3; // for the answer to a deletion: what is not deleted by then expires by itself
const DEFAULT_LIFETIME = 600; // RFC 8656 section 3.2, of a relay that does not say
const REFRESH_MARGIN = 60; // before the end of the lifetime; browsers run timers of hidden pages once a minute
const MIN_REFRESH = 5; // between two, however short the lifetime
const MAX_REFRESH = 86_400; // and however long: timers of browsers end at 24.8 days
const PROBE = 30; // silence after which the relay is asked whether it is still there: pages do not see its pings
const PERMISSION_RENEWAL = 240; // a permission lasts 300 (RFC 8656 section 9)
const CHANNEL_RENEWAL = 540; // a channel lasts 600 (RFC 8656 section 12)
const BUFFER_POLL = 0.02; // a WebSocket does not tell when its buffer has drained
const FIRST_CHANNEL = 0x4000;
const LAST_CHANNEL = 0x4fff; // RFC 8656 section 12; a number is never used for a second peer
const MAX_CHALLENGES = 5; // of one request: one 401, and more stale nonces in a row than an honest relay has

/** @param {string} message */
const invalidState = (message) => new DOMException(message, "InvalidStateError");

// --- one WebSocket, and what is asked over it ----------------------------------------------------------------------

/** @typedef {ReturnType<typeof setTimeout>} Timer */
/**
 * @typedef {{method: number, resolve: (answer: Message) => void, reject: (error: TurnError) => void, timer: Timer}}
 *   Question  A transaction that waits for its answer.
 */

/** Requests and their answers. What is neither goes to `onData`, the end to `onClosed`. */
class Connection {
  /** @param {WebSocket} websocket @param {Authentication} authentication @param {Crypto} crypto */
  constructor(websocket, authentication, crypto) {
    this.websocket = websocket;
    this.heard = 0; // messages
    /** @type {(data: Uint8Array) => void} */
    this.onData = () => {};
    /** @type {(error: UnavailableError) => void} */
    this.onClosed = () => {};
    this.authentication = authentication;
    this.crypto = crypto;
    /** @type {Map<string, Question>} */
    this.questions = new Map();
    /** @type {UnavailableError | null} */
    this.ended = null;
    websocket.binaryType = "arraybuffer";
    websocket.addEventListener("message", (event) => this.receive(event.data));
    /** @param {number} code @param {string} reason */
    const lost = (code, reason) =>
      this.end(new UnavailableError(`the connection to the relay closed (${code}${reason && `: ${reason}`})`, code));
    websocket.addEventListener("close", ({code, reason}) => lost(code, reason));
    websocket.addEventListener("error", () => lost(1006, "")); // some versions of Node let no "close" follow
  }

  newId() {
    return this.crypto.getRandomValues(new Uint8Array(12));
  }

  /**
   * Ask until it is answered with anything but a challenge: the success response, or a TurnError.
   * @param {number} method @param {Attribute[] | ((id: Uint8Array) => Attribute[])} attributes
   * @param {number} [patience]  seconds
   */
  async ask(method, attributes, patience = ANSWER_PATIENCE) {
    for (let challenges = 0; ; challenges++) {
      const id = this.newId();
      const signature = this.authentication.signature;
      const own = typeof attributes === "function" ? attributes(id) : attributes;
      const request = encodeMessage(method | CLASS.REQUEST, id, [...own, ...(signature?.attributes ?? [])]);
      const answer = await this.exchange(method, id, signature ? await signature.sign(request) : request, patience);
      const error = (answer.type & CLASS.ERROR) === CLASS.ERROR ? answer.error ?? {code: 500, reason: ""} : null;
      if (error && (error.code === 401 || error.code === 438)) {
        if (challenges >= MAX_CHALLENGES) throw new RemoteError(error.code, error.reason);
        await this.authentication.challenged(answer, error, signature);
        continue;
      }
      // RFC 8489 section 9.2.5: an answer has to prove the key, too
      if (signature && !(await signature.proves(answer))) {
        const what = error ? `answer ${error.code}` : "answer";
        throw new UnavailableError(`the relay's ${what} does not prove that the relay knows us`);
      }
      if (answer.unknown.length)
        throw new UnavailableError("the relay's answer has attributes that would have to be understood");
      if (!error) return answer;
      const [alternate] = error.code === 300 ? answer.addresses(A.ALTERNATE_SERVER, false) : [];
      const domain = answer.get(A.ALTERNATE_DOMAIN);
      if (alternate) throw new RedirectionError(error.reason, alternate, domain ? text(domain) : null);
      throw new RemoteError(error.code, error.reason);
    }
  }

  /**
   * One transaction.
   * @param {number} method @param {Uint8Array} id @param {Uint8Array} request @param {number} patience
   * @returns {Promise<Message>}
   */
  exchange(method, id, request, patience) {
    return new Promise((resolve, reject) => {
      if (this.ended) return reject(this.ended);
      const silence = () => {
        this.questions.delete(id.join());
        reject(new UnavailableError("the relay does not answer"));
      };
      this.questions.set(id.join(), {method, resolve, reject, timer: setTimeout(silence, patience * 1000)});
      this.transmit(request);
    });
  }

  /** @param {Uint8Array} message */
  transmit(message) {
    if (this.websocket.readyState === 1) this.websocket.send(/** @type {BufferSource} */ (message));
  }

  /** @param {unknown} data */
  receive(data) {
    this.heard++;
    if (!(data instanceof ArrayBuffer)) return;
    for (const message of splitMessage(new Uint8Array(data))) {
      if (message[0] < 0x40 && message[0] & 1) this.answered(message);
      else this.onData(message);
    }
  }

  /** @param {Uint8Array} raw */
  answered(raw) {
    const message = readMessage(raw);
    const question = message && this.questions.get(message.id.join());
    if (!question || (message.type & ~CLASS.ERROR) !== question.method) return;
    this.questions.delete(message.id.join());
    clearTimeout(question.timer);
    question.resolve(message);
  }

  /**
   * Nothing more comes or goes.
   * @param {UnavailableError} error
   */
  end(error) {
    if (this.ended) return;
    this.ended = error;
    for (const question of this.questions.values()) {
      clearTimeout(question.timer);
      question.reject(error);
    }
    this.questions.clear();
    this.websocket.close();
    this.onClosed(error);
  }
}

/** @param {Uint8Array} raw @returns {Message | null}  null for what is none, which is dropped. */
function readMessage(raw) {
  try {
    return new Message(raw);
  } catch {
    return null;
  }
}

/**
 * Open a WebSocket to a relay. Allocate within ten seconds: relays end connections that ask for nothing.
 *
 * Rejects with an UnavailableError if it does not open; why, browsers tell the console only. Rejects with a TypeError
 * for a URL or credentials that cannot be used.
 * @param {string | URL} url  Of the relay's WebSocket, such as wss://relay.example.org/turn; it holds no secret.
 * @param {Credentials} credentials @param {Environment} [environment] @returns {Promise<TurnClient>}
 */
export async function connect(url, credentials, environment = {}) {
  const {WebSocket = globalThis.WebSocket, crypto = globalThis.crypto} = environment;
  if (!/^wss?:/.test(String(url))) throw new TypeError("not the URL of a WebSocket: it begins with wss://");
  if (!WebSocket) throw new TypeError("there is no WebSocket here: give one, such as that of the package ws");
  if (!crypto?.subtle)
    throw new UnavailableError("there is no WebCrypto: browsers have it on pages from https: and from localhost only");
  const authentication = new Authentication(credentials, crypto.subtle);
  /** @type {WebSocket} */
  let websocket;
  try {
    websocket = new WebSocket(url);
  } catch (why) {
    throw new UnavailableError(`the browser forbids this connection: ${why instanceof Error ? why.message : why}`);
  }
  const connection = new Connection(websocket, authentication, crypto);
  await new Promise((resolve, reject) => {
    const silence = new UnavailableError(`no connection to the relay within ${OPEN_PATIENCE} seconds`);
    const timer = setTimeout(() => connection.end(silence), OPEN_PATIENCE * 1000);
    connection.onClosed = (error) => {
      clearTimeout(timer);
      const code = error.closeCode;
      reject(code === null ? error : new UnavailableError("no WebSocket could be opened to the relay", code));
    };
    websocket.addEventListener("open", () => {
      clearTimeout(timer);
      resolve(undefined);
    });
  });
  connection.onClosed = () => {};
  return new TurnClient(connection);
}

/** An open connection to a relay. Made by `connect`. */
export class TurnClient {
  #connection;
  #allocated = false;

  /** @param {Connection} connection */
  constructor(connection) {
    this.#connection = connection;
  }

  /**
   * Ask for an address at which peers reach us. A connection has one allocation; when that ends, both do. After a
   * refusal it may be asked again.
   * @param {{family?: "ipv4" | "ipv6" | "both"}} options  "both": a relay may grant one of the two only.
   * @returns {Promise<Allocation>}
   */
  async allocate({family = "ipv4"} = {}) {
    if (this.#allocated) throw invalidState("this connection has an allocation, or had one");
    /** @type {Attribute[]} */
    const attributes = [[A.REQUESTED_TRANSPORT, uint32(UDP << 24)]];
    // RFC 8656 section 7.1: without either of these it is IPv4
    if (family === "ipv6") attributes.push([A.REQUESTED_ADDRESS_FAMILY, uint32(FAMILY.ipv6 << 24)]);
    else if (family === "both") attributes.push([A.ADDITIONAL_ADDRESS_FAMILY, uint32(FAMILY.ipv6 << 24)]);
    else if (family !== "ipv4") throw new TypeError('the family is "ipv4", "ipv6" or "both"');
    this.#allocated = true;
    try {
      return new Allocation(this.#connection, await this.#connection.ask(METHOD.ALLOCATE, attributes));
    } catch (error) {
      this.#allocated = false;
      throw error;
    }
  }

  /** Close the connection, and with it what was allocated. */
  close() {
    this.#connection.end(new UnavailableError("the connection was closed here"));
  }
}

// --- the allocation ------------------------------------------------------------------------------------------------

/** "message": a datagram came. */
export class DatagramEvent extends Event {
  /** @param {ArrayBuffer} data @param {Peer} peer */
  constructor(data, peer) {
    super("message");
    this.data = data;
    this.peer = peer;
  }
}

/** "icmp": what the relay heard of a datagram to a peer (RFC 8656 section 18.13), such as type 3, code 4: too big. */
export class IcmpEvent extends Event {
  /** @param {Peer} peer @param {number} icmpType @param {number} code @param {number} info  For instance the MTU. */
  constructor(peer, icmpType, code, info) {
    super("icmp");
    this.peer = peer;
    this.icmpType = icmpType;
    this.code = code;
    this.info = info;
  }
}

/** "error": the relay does not, or no longer, let datagrams to that peer through; the others go on. */
export class PeerErrorEvent extends Event {
  /** @param {TurnError} error @param {string} address */
  constructor(error, address) {
    super("error");
    this.error = error;
    this.address = address;
  }
}

/** "close", the last event: with null after close(), else with what ended the allocation. */
export class AllocationCloseEvent extends Event {
  /** @param {TurnError | null} error */
  constructor(error) {
    super("close");
    this.error = error;
  }
}

/**
 * @typedef {{message: DatagramEvent, bufferedamountlow: Event, error: PeerErrorEvent, icmp: IcmpEvent,
 *   close: AllocationCloseEvent}} AllocationEventMap
 */
/** @typedef {{granted: Promise<void>, isGranted: boolean, waiting: {peer: Peer, data: Uint8Array}[]}} Permission */
/** @typedef {{number: number, peer: Peer, bound: Promise<void>, isBound: boolean}} Channel */

/**
 * An address on the relay, and the datagrams to and from it. Made by `TurnClient.allocate`. The allocation, its
 * permissions and its channels are renewed until `close`. Events: "message", "bufferedamountlow", "error", "icmp",
 * "close".
 */
export class Allocation extends EventTarget {
  /** As of RTCDataChannel: "bufferedamountlow" comes when what waits to be sent has fallen to this many bytes. */
  bufferedAmountLowThreshold = 0;
  /** Datagrams that were not sent because too much was waiting already, or the peer was refused. */
  dropped = 0;

  #connection;
  /** @type {"open" | "closing" | "closed"} */
  #readyState = "open";
  /** @type {Map<string, Permission>} by address */
  #permissions = new Map();
  /** @type {Map<string, Channel>} by peer */
  #channels = new Map();
  /** @type {Map<number, Channel>} */
  #channelNumbers = new Map();
  #nextChannel = FIRST_CHANNEL;
  #waiting = 0;
  /** @type {Map<string, Timer>} */
  #timers = new Map();

  /** @param {Connection} connection @param {Message} answer */
  constructor(connection, answer) {
    super();
    /**
     * Where peers reach us: one for each family.
     * @type {readonly Peer[]}
     */
    this.relayedAddresses = Object.freeze(answer.addresses(A.XOR_RELAYED_ADDRESS));
    /**
     * Our own address as the relay sees it.
     * @type {Peer | null}
     */
    this.mappedAddress = answer.addresses(A.XOR_MAPPED_ADDRESS)[0] ?? null;
    if (!this.relayedAddresses.length) throw new UnavailableError("the relay says that it allocated, but not what");
    if (connection.ended) throw connection.ended;
    this.#connection = connection;
    connection.onData = (data) => this.#receive(data);
    connection.onClosed = (error) => this.#end(this.#readyState === "closing" ? null : error);
    this.#refreshLater(answer);
    this.#probeLater();
  }

  /**
   * As of EventTarget; it is here for the types of its events.
   * @template {keyof AllocationEventMap} K
   * @param {K} type @param {(event: AllocationEventMap[K]) => void} listener
   * @param {boolean | AddEventListenerOptions} [options]
   */
  addEventListener(type, listener, options) {
    super.addEventListener(type, /** @type {EventListener} */ (listener), options);
  }

  get readyState() {
    return this.#readyState;
  }

  /** Bytes that wait: in the WebSocket's buffer, and for permissions. */
  get bufferedAmount() {
    return this.#connection.websocket.bufferedAmount + this.#waiting;
  }

  /**
   * Send one datagram. To a new address it waits for a permission, which is asked for; up to `MAX_WAITING` can.
   * @param {ArrayBuffer | ArrayBufferView} data  At most `MAX_DATA` bytes; text is for a TextEncoder.
   * @param {Peer | string} peer
   * @returns {boolean} Whether it goes; false if it was dropped, because more than `MAX_BUFFERED` is waiting.
   */
  send(data, peer) {
    this.#assertOpen();
    const bytes = ArrayBuffer.isView(data)
      ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
      : new Uint8Array(data instanceof ArrayBuffer ? data : fail("a datagram is an ArrayBuffer or a view of one"));
    if (bytes.length > MAX_DATA) throw new RangeError(`a datagram through a relay has at most ${MAX_DATA} bytes`);
    const to = canonicalPeer(typeof peer === "string" ? parsePeer(peer) : peer);
    const permission = this.#permission(to.address);
    if (this.bufferedAmount + bytes.length > MAX_BUFFERED || permission.waiting.length >= MAX_WAITING) {
      this.dropped++;
      return false;
    }
    if (permission.isGranted) {
      this.#transmit(to, bytes);
    } else {
      permission.waiting.push({peer: to, data: bytes.slice()});
      this.#waiting += bytes.length;
    }
    this.#watchBuffer();
    return true;
  }

  /**
   * Let in what comes from an address, whatever its port. `send` does that by itself; who wants to hear a peer first
   * calls this.
   * @param {string} address @returns {Promise<void>} Rejects with a TurnError where the relay refuses.
   */
  async permit(address) {
    this.#assertOpen();
    return this.#permission(formatAddress(parseAddress(address))).granted;
  }

  /**
   * Bind a channel: each datagram to and from that peer is some 30 bytes shorter.
   * @param {Peer | string} peer @returns {Promise<void>} Rejects with a TurnError where the relay refuses.
   */
  async bind(peer) {
    this.#assertOpen();
    const to = canonicalPeer(typeof peer === "string" ? parsePeer(peer) : peer);
    const present = this.#channels.get(formatPeer(to));
    if (present) return present.bound;
    if (this.#nextChannel > LAST_CHANNEL) throw invalidState("this allocation has used up its 4,096 channel numbers");
    /** @type {Channel} */
    const channel = {number: this.#nextChannel++, peer: to, bound: Promise.resolve(), isBound: false};
    this.#channels.set(formatPeer(to), channel);
    this.#channelNumbers.set(channel.number, channel); // its data may overtake the answer to ChannelBind
    channel.bound = this.#bindChannel(channel);
    channel.bound.catch(() => {}); // told by an event, too
    return channel.bound;
  }

  /** Delete the allocation and close the connection. "close" follows, after three seconds at the latest. */
  close() {
    if (this.#readyState !== "open") return;
    this.#readyState = "closing";
    this.#forget();
    const deleted = this.#connection.ask(METHOD.REFRESH, [[A.LIFETIME, uint32(0)]], CLOSE_PATIENCE);
    deleted.catch(() => {}).then(() => this.#end(null));
  }

  #assertOpen() {
    if (this.#readyState !== "open") throw invalidState(`the allocation is ${this.#readyState}`);
  }

  // --- permissions and channels ---

  /** @param {string} address  Canonical. @returns {Permission} */
  #permission(address) {
    let permission = this.#permissions.get(address);
    if (!permission) {
      permission = {granted: Promise.resolve(), isGranted: false, waiting: []};
      this.#permissions.set(address, permission);
      permission.granted = this.#askPermission(address, permission);
      permission.granted.catch(() => {}); // told by an event, too
    }
    return permission;
  }

  /** @param {string} address @param {Permission} permission */
  async #askPermission(address, permission) {
    try {
      await this.#connection.ask(METHOD.CREATE_PERMISSION, (id) => [peerAttribute({address, port: 0}, id)]);
    } catch (error) {
      this.#refused(error, address, () => {
        this.#permissions.delete(address);
        for (const {data} of permission.waiting) this.#waiting -= data.length;
        this.dropped += permission.waiting.length;
      });
      throw error;
    }
    this.#granted(address, permission);
  }

  /** @param {string} address @param {Permission} permission */
  #granted(address, permission) {
    if (this.#readyState !== "open") return;
    permission.isGranted = true;
    this.#later(address, PERMISSION_RENEWAL, () => this.#askPermission(address, permission).catch(() => {}));
    for (const {peer, data} of permission.waiting.splice(0)) {
      this.#waiting -= data.length;
      this.#transmit(peer, data);
    }
  }

  /** @param {Channel} channel */
  async #bindChannel(channel) {
    const {number, peer} = channel;
    const key = formatPeer(peer);
    try {
      await this.#connection.ask(METHOD.CHANNEL_BIND, (id) => [
        [A.CHANNEL_NUMBER, uint32(number << 16)],
        peerAttribute(peer, id),
      ]);
    } catch (error) {
      this.#refused(error, peer.address, () => {
        this.#channels.delete(key);
        this.#channelNumbers.delete(number);
      });
      throw error;
    }
    if (this.#readyState !== "open") return;
    channel.isBound = true;
    this.#later(key, CHANNEL_RENEWAL, () => this.#bindChannel(channel).catch(() => {}));
    // RFC 8656 section 12.2: it installs, or renews, the permission as well
    const permission = this.#permissions.get(peer.address) ?? {granted: channel.bound, isGranted: true, waiting: []};
    this.#permissions.set(peer.address, permission);
    this.#granted(peer.address, permission);
  }

  /**
   * A refusal ends one permission or channel; silence, on a reliable connection, ends all.
   * @param {unknown} error @param {string} address @param {() => void} drop
   */
  #refused(error, address, drop) {
    if (this.#readyState !== "open") return;
    if (!(error instanceof RemoteError)) return this.#end(asTurnError(error));
    drop();
    this.dispatchEvent(new PeerErrorEvent(error, address));
  }

  // --- data ---

  /** @param {Peer} peer @param {Uint8Array} data */
  #transmit(peer, data) {
    const channel = this.#channels.get(formatPeer(peer));
    if (channel?.isBound) {
      const message = new Uint8Array(4 + data.length);
      view(message).setUint32(0, (channel.number << 16) | data.length);
      message.set(data, 4);
      this.#connection.transmit(message);
    } else {
      const id = this.#connection.newId();
      const attributes = [peerAttribute(peer, id), /** @type {Attribute} */ ([A.DATA, data])];
      this.#connection.transmit(encodeMessage(METHOD.SEND | CLASS.INDICATION, id, attributes));
    }
  }

  /** @param {Uint8Array} raw  ChannelData or an indication. */
  #receive(raw) {
    if (this.#readyState !== "open") return;
    if (raw[0] >= 0x40) {
      const channel = this.#channelNumbers.get((raw[0] << 8) | raw[1]);
      if (channel) this.dispatchEvent(new DatagramEvent(copy(raw.subarray(4)), channel.peer));
      return;
    }
    const message = readMessage(raw);
    if (message?.type !== (METHOD.DATA | CLASS.INDICATION) || message.unknown.length) return;
    const [peer] = message.addresses(A.XOR_PEER_ADDRESS);
    if (!peer || !this.#permissions.has(peer.address)) return;
    const [icmp, data] = [message.get(A.ICMP), message.get(A.DATA)];
    if (icmp?.length === 8) {
      this.dispatchEvent(new IcmpEvent(peer, icmp[2], icmp[3], view(icmp).getUint32(4)));
    } else if (data && !icmp) {
      this.dispatchEvent(new DatagramEvent(copy(data), peer));
    }
  }

  /** See that "bufferedamountlow" comes, if it is due one day. */
  #watchBuffer() {
    if (this.#timers.has("buffer") || this.bufferedAmount <= this.bufferedAmountLowThreshold) return;
    this.#later("buffer", BUFFER_POLL, () => {
      if (this.bufferedAmount > this.bufferedAmountLowThreshold) this.#watchBuffer();
      else this.dispatchEvent(new Event("bufferedamountlow"));
    });
  }

  // --- time ---

  /** @param {string} purpose  One timer for each. @param {number} seconds @param {() => void} act */
  #later(purpose, seconds, act) {
    clearTimeout(this.#timers.get(purpose));
    const run = () => {
      this.#timers.delete(purpose);
      act();
    };
    this.#timers.set(purpose, setTimeout(run, seconds * 1000));
  }

  /** @param {Message} answer  To Allocate or Refresh. */
  #refreshLater(answer) {
    const lifetime = answer.uint32(A.LIFETIME) ?? DEFAULT_LIFETIME;
    const wait = Math.max(lifetime - REFRESH_MARGIN, lifetime / 2, MIN_REFRESH);
    this.#later("refresh", Math.min(wait, MAX_REFRESH), () => this.#refresh());
  }

  /** Ask for as long again. A relay that refuses, or does not answer over a reliable connection, is of no more use. */
  async #refresh() {
    clearTimeout(this.#timers.get("refresh"));
    this.#timers.delete("refresh");
    try {
      const answer = await this.#connection.ask(METHOD.REFRESH, []);
      if (this.#readyState === "open") this.#refreshLater(answer);
    } catch (error) {
      if (this.#readyState === "open") this.#end(asTurnError(error));
    }
  }

  /** Ask a relay that says nothing whether it is there: a connection that died without a word looks just so. */
  #probeLater() {
    const heard = this.#connection.heard;
    this.#later("probe", PROBE, () => {
      const isRefreshing = !this.#timers.has("refresh");
      if (this.#connection.heard === heard && !isRefreshing) this.#refresh();
      this.#probeLater();
    });
  }

  #forget() {
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
    this.#permissions.clear();
    this.#channels.clear();
    this.#channelNumbers.clear();
    this.#waiting = 0;
  }

  /** @param {TurnError | null} error  null: it was asked for. */
  #end(error) {
    if (this.#readyState === "closed") return;
    this.#readyState = "closed";
    this.#forget();
    this.#connection.end(new UnavailableError("the allocation has ended"));
    this.dispatchEvent(new AllocationCloseEvent(error));
  }
}

/** @param {Uint8Array} raw @returns {ArrayBuffer} */
const copy = (raw) => /** @type {ArrayBuffer} */ (raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength));

/** @param {unknown} error  A bug of ours, or of the browser, unless it is one of ours. */
const asTurnError = (error) => (error instanceof TurnError ? error : new UnavailableError(String(error)));

/** @param {string} message @returns {never} */
function fail(message) {
  throw new TypeError(message);
}
