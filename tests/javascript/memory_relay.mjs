// A TURN relay in memory, and WebSockets to it. It reads and writes STUN with code of its own, and signs with node:crypto,
// so that it shares no mistake with what it tests.

import {createHash, createHmac} from "node:crypto";

const COOKIE = 0x2112a442;
export const METHODS = {allocate: 3, refresh: 4, send: 6, data: 7, createPermission: 8, channelBind: 9};
const NAMES = Object.fromEntries(Object.entries(METHODS).map(([name, number]) => [number, name]));
export const SUCCESS = 0x100;
export const ERROR = 0x110;
export const INDICATION = 0x010;

export const TYPES = {
  mappedAddress: 0x0001, username: 0x0006, integrity: 0x0008, errorCode: 0x0009, channelNumber: 0x000c, lifetime: 0x000d,
  peer: 0x0012, data: 0x0013, realm: 0x0014, nonce: 0x0015, relayed: 0x0016, family: 0x0017, transport: 0x0019,
  sha256: 0x001c, algorithm: 0x001d, userhash: 0x001e, mapped: 0x0020, additional: 0x8000, algorithms: 0x8002,
  domain: 0x8003, icmp: 0x8004, alternate: 0x8023,
};

/** Bytes of an address attribute; the key is all zeros for one that is not XOR-ed. */
export function address(raw, port, id, xored = true) {
  const key = xored ? Buffer.concat([Buffer.from([0x21, 0x12, 0xa4, 0x42]), id]) : Buffer.alloc(16);
  const bytes = Buffer.from([0, raw.length === 4 ? 1 : 2, (port >> 8) ^ key[0], (port & 255) ^ key[1]]);
  return Buffer.concat([bytes, Buffer.from(raw.map((byte, index) => byte ^ key[index]))]);
}

export function encode(type, id, attributes) {
  const parts = attributes.map(([code, value]) => {
    const head = Buffer.alloc(4);
    head.writeUInt16BE(code, 0);
    head.writeUInt16BE(value.length, 2);
    return Buffer.concat([head, value, Buffer.alloc(-value.length & 3)]);
  });
  const body = Buffer.concat(parts);
  const header = Buffer.alloc(20);
  header.writeUInt16BE(type, 0);
  header.writeUInt16BE(body.length, 2);
  header.writeUInt32BE(COOKIE, 4);
  id.copy(header, 8);
  return Buffer.concat([header, body]);
}

export function signed(message, key, digest) {
  const size = digest === "sha256" ? 32 : 20;
  const covered = Buffer.from(message);
  covered.writeUInt16BE(message.length - 20 + 4 + size, 2);
  const head = Buffer.from([0, digest === "sha256" ? 0x1c : 0x08, 0, size]);
  return Buffer.concat([covered, head, createHmac(digest, key).update(covered).digest()]);
}

/** A message of the client: `attributes` by type, in order; `covered` is what its integrity is over. */
export function decode(message) {
  const type = message.readUInt16BE(0);
  const attributes = new Map();
  let covered = null;
  for (let at = 20; at < message.length; ) {
    const code = message.readUInt16BE(at);
    const size = message.readUInt16BE(at + 2);
    if (code === TYPES.integrity || code === TYPES.sha256) {
      covered = Buffer.from(message.subarray(0, at));
      covered.writeUInt16BE(at + 4 + size - 20, 2);
    }
    attributes.set(code, message.subarray(at + 4, at + 4 + size));
    at += 4 + ((size + 3) & ~3);
  }
  return {type, name: NAMES[type & 0xf], id: Buffer.from(message.subarray(8, 20)), attributes, covered};
}

/** What a browser's WebSocket does, as far as relayd.js knows it. */
class MemoryWebSocket extends EventTarget {
  readyState = 0;
  bufferedAmount = 0;
  sent = [];

  constructor(relay, url) {
    super();
    this.url = url;
    relay.connected(this);
  }

  open() {
    this.readyState = 1;
    this.dispatchEvent(new Event("open"));
  }

  send(data) {
    const bytes = Buffer.from(data); // copied, as a browser does before it returns
    this.sent.push(bytes);
    this.onSent(bytes);
  }

  close() {
    if (this.readyState < 2) queueMicrotask(() => this.lose(1000));
    this.readyState = Math.max(this.readyState, 2);
  }

  lose(code, reason = "") {
    if (this.readyState === 3) return;
    this.readyState = 3;
    this.dispatchEvent(Object.assign(new Event("close"), {code, reason, wasClean: code === 1000}));
  }

  deliver(...messages) {
    const data = new Uint8Array(Buffer.concat(messages)).buffer;
    if (this.readyState === 1) this.dispatchEvent(Object.assign(new Event("message"), {data}));
  }
}

export class MemoryRelay {
  username = "alice";
  credential = "correct-horse";
  realm = "example.org";
  algorithms = [2, 1]; // as PASSWORD-ALGORITHMS lists them; null: it knows nothing of them
  wantsUserhash = false;
  lifetime = 600;
  echoes = false; // whether ChannelData comes back
  opens = true; // whether WebSockets open by themselves
  nonces = 1; // its nonce is the latest of them
  relayed = [[[192, 0, 2, 15], 50000]]; // addresses to grant
  /** By name of a method: what to do in place of the usual, if it gives anything but undefined. */
  instead = {};
  requests = [];
  indications = [];
  channelData = [];
  #waiters = [];

  /** The constructor for connect()'s environment. */
  get WebSocket() {
    const relay = this;
    return function (url) {
      return new MemoryWebSocket(relay, url);
    };
  }

  connected(websocket) {
    this.websocket = websocket;
    websocket.onSent = (bytes) => this.receive(bytes);
    if (this.opens) queueMicrotask(() => websocket.open());
  }

  /** The next request of that name which is signed; it may have come already. */
  async asked(name) {
    for (;;) {
      const at = this.requests.findIndex((request) => request.name === name && request.covered && !request.seen);
      if (at >= 0) {
        this.requests[at].seen = true;
        return this.requests[at];
      }
      await this.something();
    }
  }

  /** When the next message of any kind has come. */
  something() {
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  get nonce() {
    const features = (this.algorithms ? 0x80 : 0) | (this.wantsUserhash ? 0x40 : 0);
    return Buffer.from(`obMatJos2${Buffer.from([features, 0, 0]).toString("base64")}-${this.nonces}`);
  }

  get key() {
    const text = `${this.username}:${this.realm}:${this.credential}`;
    return createHash(this.algorithms?.[0] === 2 ? "sha256" : "md5").update(text).digest();
  }

  get digest() {
    return this.algorithms ? "sha256" : "sha1";
  }

  receive(bytes) {
    if (bytes[0] >= 0x40) {
      this.channelData.push(bytes);
      if (this.echoes) this.websocket.deliver(bytes);
    } else {
      const message = decode(bytes);
      if (message.type & INDICATION) this.indications.push(message);
      else this.requested(message);
    }
    this.#waiters.splice(0).forEach((resolve) => resolve());
  }

  requested(request) {
    this.requests.push(request);
    const answer = this.instead[request.name]?.(request) ?? this.answer(request);
    if (answer !== "silence") queueMicrotask(() => this.websocket.deliver(answer));
  }

  answer(request) {
    const {attributes} = request;
    if (!request.covered) return this.challenge(request, 401);
    if (!this.proves(request)) return this.challenge(request, 401);
    if (!attributes.get(TYPES.nonce).equals(this.nonce)) return this.challenge(request, 438);
    if (request.name === "allocate") {
      return this.success(request, [
        ...this.relayed.map(([raw, port]) => [TYPES.relayed, address(raw, port, request.id)]),
        [TYPES.mapped, address([198, 51, 100, 7], 1234, request.id)],
        [TYPES.lifetime, uint32(this.lifetime)],
      ]);
    }
    if (request.name === "refresh") return this.success(request, [[TYPES.lifetime, uint32(this.lifetime)]]);
    return this.success(request, []);
  }

  proves({attributes, covered}) {
    const expected = createHmac(this.digest, this.key).update(covered).digest();
    const given = attributes.get(this.digest === "sha256" ? TYPES.sha256 : TYPES.integrity);
    const hash = createHash("sha256").update(`${this.username}:${this.realm}`).digest();
    const who = this.wantsUserhash ? [TYPES.userhash, hash] : [TYPES.username, Buffer.from(this.username)];
    return Boolean(given?.equals(expected) && attributes.get(who[0])?.equals(who[1]));
  }

  challenge(request, code, {withAlgorithms = true} = {}) {
    const attributes = [this.reason(code), [TYPES.realm, Buffer.from(this.realm)], [TYPES.nonce, this.nonce]];
    if (this.algorithms && withAlgorithms) {
      attributes.push([TYPES.algorithms, Buffer.from(this.algorithms.flatMap((number) => [0, number, 0, 0]))]);
    }
    return encode(request.type | ERROR, request.id, attributes);
  }

  success(request, attributes) {
    return signed(encode(request.type | SUCCESS, request.id, attributes), this.key, this.digest);
  }

  /** An error response; to an unsigned request it is unsigned. */
  refusal(request, code, attributes = []) {
    const message = encode(request.type | ERROR, request.id, [this.reason(code), ...attributes]);
    return request.covered ? signed(message, this.key, this.digest) : message;
  }

  reason(code) {
    return [TYPES.errorCode, Buffer.from([0, 0, Math.floor(code / 100), code % 100, ...Buffer.from("because")])];
  }

  /** A Data indication. */
  data(raw, port, payload, more = []) {
    const id = Buffer.from("indications!");
    return encode(METHODS.data | INDICATION, id, [
      [TYPES.peer, address(raw, port, id)],
      ...(payload !== null ? [[TYPES.data, Buffer.from(payload)]] : []),
      ...more,
    ]);
  }
}

export const uint32 = (value) => {
  const raw = Buffer.alloc(4);
  raw.writeUInt32BE(value);
  return raw;
};

export function channelData(number, payload, padded = false) {
  const head = Buffer.alloc(4);
  head.writeUInt16BE(number, 0);
  head.writeUInt16BE(payload.length, 2);
  return Buffer.concat([head, Buffer.from(payload), Buffer.alloc(padded ? -payload.length & 3 : 0)]);
}
