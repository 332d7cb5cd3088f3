/**
 * What a TURN client in JavaScript writes and reads: STUN messages, addresses, keys, and the errors that come of them
 * (RFC 8489, RFC 8656). It opens nothing and waits for nothing; relayd.js does.
 *
 * @license MIT
 */

/** @typedef {{address: string, port: number}} Peer  An IPv4 or IPv6 address in text, and a UDP port. */
/** @typedef {{username: string, credential: string}} Credentials  As in an entry of RTCPeerConnection's iceServers. */

// --- errors --------------------------------------------------------------------------------------------------------

/** What the relay or the network did; one of the classes below. */
export class TurnError extends Error {
  get name() {
    return this.constructor.name;
  }
}

/** The relay refused, with a code of STUN: 401 (unknown user or password), 403 (peer not allowed), 486 (quota)… */
export class RemoteError extends TurnError {
  /** @param {number} code @param {string} reason  What the relay wrote beside it; not for machines. */
  constructor(code, reason) {
    super(`the relay answered ${code}${reason && ` (${reason})`}`);
    this.code = code;
    this.reason = reason;
  }
}

/** The relay asks to use another one (300, RFC 8489 section 10). Connecting there is up to the caller. */
export class RedirectionError extends RemoteError {
  /** @param {string} reason @param {Peer} alternateServer @param {string | null} alternateDomain  Its name, for TLS. */
  constructor(reason, alternateServer, alternateDomain) {
    super(300, reason);
    this.alternateServer = alternateServer;
    this.alternateDomain = alternateDomain;
  }
}

/** The relay cannot be reached, does not answer, is gone, or did not prove who it is. */
export class UnavailableError extends TurnError {
  /** @param {string} message @param {number | null} closeCode  Of the WebSocket, if it closed. */
  constructor(message, closeCode = null) {
    super(message);
    this.closeCode = closeCode;
  }
}

// --- addresses -----------------------------------------------------------------------------------------------------

/**
 * Read "192.0.2.1:4000" or "[2001:db8::1]:4000"; a TypeError for anything else. Names are not looked up.
 * @param {string} text @returns {Peer}
 */
export function parsePeer(text) {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text.trim());
  if (!match) throw new TypeError("not a peer: write 192.0.2.1:4000 or [2001:db8::1]:4000");
  return canonicalPeer({address: match[1] ?? match[2], port: Number(match[3])});
}

/**
 * The text that parsePeer reads.
 * @param {Peer} peer
 */
export const formatPeer = ({address, port}) =>
  address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;

/** @param {Peer} peer @returns {Peer} */
export function canonicalPeer({address, port}) {
  if (!Number.isInteger(port) || port < 1 || port > 65_535) throw new TypeError("a port is a number from 1 to 65535");
  return Object.freeze({address: formatAddress(parseAddress(address)), port});
}

/** @param {string} text @returns {Uint8Array} 4 or 16 bytes */
export function parseAddress(text) {
  if (/^\d{1,3}(\.\d{1,3}){3}$/.test(text)) {
    const parts = text.split(".").map(Number);
    if (parts.every((part) => part < 256)) return Uint8Array.from(parts);
  } else if (/^[0-9a-f:.]*:[0-9a-f:.]*$/i.test(text)) {
    try {
      // The parser of URLs knows every way to write one, and gives back the one of RFC 5952.
      const [head, tail] = new URL(`http://[${text}]`).hostname.slice(1, -1).split("::");
      const groups = (/** @type {string | undefined} */ part) => (part ? part.split(":") : []);
      const missing = tail === undefined ? 0 : 8 - groups(head).length - groups(tail).length;
      const all = [...groups(head), ...Array(missing).fill("0"), ...groups(tail)];
      return Uint8Array.from(all.flatMap((group) => [parseInt(group, 16) >> 8, parseInt(group, 16) & 255]));
    } catch {
      // Told below.
    }
  }
  throw new TypeError("not an IP address: names are not looked up");
}

/** @param {Uint8Array} raw @returns {string} */
export function formatAddress(raw) {
  if (raw.length === 4) return raw.join(".");
  const groups = Array.from({length: 8}, (_, index) => ((raw[2 * index] << 8) | raw[2 * index + 1]).toString(16));
  return new URL(`http://[${groups.join(":")}]`).hostname.slice(1, -1);
}

// --- the wire format (RFC 8489 section 5, RFC 8656 section 12.4) ---------------------------------------------------

const COOKIE = Uint8Array.of(0x21, 0x12, 0xa4, 0x42);
/** Methods, all below 16, so that type = method | class. */
export const METHOD = {ALLOCATE: 3, REFRESH: 4, SEND: 6, DATA: 7, CREATE_PERMISSION: 8, CHANNEL_BIND: 9};
export const CLASS = {REQUEST: 0x000, INDICATION: 0x010, SUCCESS: 0x100, ERROR: 0x110};
export const UDP = 17; // REQUESTED-TRANSPORT
export const FAMILY = {ipv4: 1, ipv6: 2};

const MESSAGE_INTEGRITY = 0x0008;
const MESSAGE_INTEGRITY_SHA256 = 0x001c;
/** Attributes (RFC 8489 section 18.3, RFC 8656 section 18). */
export const A = {
  MAPPED_ADDRESS: 0x0001, USERNAME: 0x0006, ERROR_CODE: 0x0009, UNKNOWN_ATTRIBUTES: 0x000a, CHANNEL_NUMBER: 0x000c,
  LIFETIME: 0x000d, XOR_PEER_ADDRESS: 0x0012, DATA: 0x0013, REALM: 0x0014, NONCE: 0x0015, XOR_RELAYED_ADDRESS: 0x0016,
  REQUESTED_ADDRESS_FAMILY: 0x0017, REQUESTED_TRANSPORT: 0x0019, PASSWORD_ALGORITHM: 0x001d, USERHASH: 0x001e,
  XOR_MAPPED_ADDRESS: 0x0020, ADDITIONAL_ADDRESS_FAMILY: 0x8000, PASSWORD_ALGORITHMS: 0x8002, ALTERNATE_DOMAIN: 0x8003,
  ICMP: 0x8004, ALTERNATE_SERVER: 0x8023,
};
const KNOWN = new Set(Object.values(A));

/** @typedef {[type: number, value: Uint8Array]} Attribute */

const utf8 = (/** @type {string} */ text) => new TextEncoder().encode(text);
export const text = (/** @type {Uint8Array | undefined} */ raw) => new TextDecoder().decode(raw);
export const uint32 = (/** @type {number} */ value) => Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
export const view = (/** @type {Uint8Array} */ raw) => new DataView(raw.buffer, raw.byteOffset, raw.byteLength);

/**
 * One STUN message, unsigned.
 * @param {number} type @param {Uint8Array} id  12 bytes @param {Attribute[]} attributes @returns {Uint8Array}
 */
export function encodeMessage(type, id, attributes) {
  const size = attributes.reduce((sum, [, value]) => sum + 4 + ((value.length + 3) & ~3), 0);
  const message = new Uint8Array(20 + size);
  const header = view(message);
  header.setUint16(0, type);
  header.setUint16(2, size);
  message.set(COOKIE, 4);
  message.set(id, 8);
  let at = 20;
  for (const [code, value] of attributes) {
    header.setUint16(at, code);
    header.setUint16(at + 2, value.length);
    message.set(value, at + 4);
    at += 4 + ((value.length + 3) & ~3);
  }
  return message;
}

/** One STUN message that came. What follows its integrity does not count, and is left out (RFC 8489 section 14.5). */
export class Message {
  /** @param {Uint8Array} raw  All of it; throws a RangeError where it is none. */
  constructor(raw) {
    const header = view(raw);
    const isWhole = raw.length >= 20 && raw.length % 4 === 0 && header.getUint16(2) === raw.length - 20;
    if (!isWhole || raw[0] > 0x3f || COOKIE.some((byte, index) => raw[4 + index] !== byte))
      throw new RangeError("not one whole STUN message");
    this.raw = raw;
    this.type = header.getUint16(0);
    this.id = raw.subarray(8, 20);
    /** @type {Attribute[]} */
    this.attributes = [];
    /** @type {Map<number, number>} */
    this.integrityAt = new Map();
    for (let at = 20; at < raw.length; ) {
      const code = header.getUint16(at);
      const end = at + 4 + header.getUint16(at + 2);
      if (end > raw.length) throw new RangeError("an attribute is longer than its message");
      if (code === MESSAGE_INTEGRITY || code === MESSAGE_INTEGRITY_SHA256) {
        if (!this.integrityAt.has(code)) this.integrityAt.set(code, at);
      } else if (!this.integrityAt.size) {
        this.attributes.push([code, raw.subarray(at + 4, end)]);
      }
      at = (end + 3) & ~3;
    }
  }

  /**
   * The first of that type, which is the one that counts.
   * @param {number} code @returns {Uint8Array | undefined}
   */
  get(code) {
    return this.attributes.find(([present]) => present === code)?.[1];
  }

  /** @param {number} code @returns {number | undefined} */
  uint32(code) {
    const raw = this.get(code);
    return raw?.length === 4 ? view(raw).getUint32(0) : undefined;
  }

  /**
   * Every address of that type; malformed ones are left out.
   * @param {number} code @param {boolean} xored  Whether they are XOR-ed (RFC 8489 section 14.2).
   */
  addresses(code, xored = true) {
    const key = xored ? Uint8Array.of(...COOKIE, ...this.id) : new Uint8Array(16);
    return this.attributes
      .filter(([present, raw]) => present === code && raw.length === [0, 8, 20][raw[1]])
      .map(([, raw]) => readAddress(raw, key));
  }

  /** Types that have to be understood, and are not (RFC 8489 section 6.3.3). */
  get unknown() {
    return this.attributes.filter(([code]) => code < 0x8000 && !KNOWN.has(code)).map(([code]) => code);
  }

  get error() {
    const raw = this.get(A.ERROR_CODE);
    return raw && raw.length >= 4 ? {code: (raw[2] & 7) * 100 + raw[3], reason: text(raw.subarray(4))} : undefined;
  }
}

/** @param {Uint8Array} raw @param {Uint8Array} key @returns {Peer} */
function readAddress(raw, key) {
  const port = ((raw[2] ^ key[0]) << 8) | (raw[3] ^ key[1]);
  return Object.freeze({address: formatAddress(raw.slice(4).map((byte, index) => byte ^ key[index])), port});
}

/**
 * XOR-PEER-ADDRESS.
 * @param {Peer} peer @param {Uint8Array} id @returns {Attribute}
 */
export function peerAttribute(peer, id) {
  const raw = parseAddress(peer.address);
  const key = [...COOKIE, ...id];
  const family = raw.length === 4 ? FAMILY.ipv4 : FAMILY.ipv6;
  const port = [(peer.port >> 8) ^ key[0], (peer.port & 255) ^ key[1]];
  return [A.XOR_PEER_ADDRESS, Uint8Array.of(0, family, ...port, ...raw.map((byte, index) => byte ^ key[index]))];
}

/**
 * The STUN and ChannelData messages in one WebSocket message: usually one, else padded to four bytes but for the last.
 * @param {Uint8Array} data @returns {Generator<Uint8Array>} Ends at the first that is not whole.
 */
export function* splitMessage(data) {
  for (let at = 0; data.length - at >= 4; ) {
    const size = (data[at] < 0x40 ? 20 : 4) + ((data[at + 2] << 8) | data[at + 3]);
    if (at + size > data.length) return;
    yield data.subarray(at, at + size);
    at += (size + 3) & ~3;
  }
}

// --- long-term credentials (RFC 8489 section 9.2) ------------------------------------------------------------------

const MD5_ALGORITHM = 1;
const SHA256_ALGORITHM = 2;
const NONCE_COOKIE = "obMatJos2";
const FEATURES = {PASSWORD_ALGORITHMS: 0x80, USERNAME_ANONYMITY: 0x40}; // in the first byte (RFC 8489 section 18.1)

/**
 * MD5 (RFC 1321), which WebCrypto leaves out and STUN's older keys are made with.
 * @param {Uint8Array} data
 */
export function md5(data) {
  const shifts = [7, 12, 17, 22, 5, 9, 14, 20, 4, 11, 16, 23, 6, 10, 15, 21];
  const padded = new Uint8Array((data.length + 72) & ~63);
  padded.set(data);
  padded[data.length] = 0x80;
  const words = view(padded);
  words.setUint32(padded.length - 8, data.length << 3, true);
  words.setUint32(padded.length - 4, data.length >>> 29, true);
  const state = [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476];
  for (let block = 0; block < padded.length; block += 64) {
    let [a, b, c, d] = state;
    for (let step = 0; step < 64; step++) {
      const round = step >> 4;
      const mixed = [(b & c) | (~b & d), (d & b) | (~d & c), b ^ c ^ d, c ^ (b | ~d)][round];
      const word = [step, 5 * step + 1, 3 * step + 5, 7 * step][round] & 15;
      const constant = Math.floor(Math.abs(Math.sin(step + 1)) * 2 ** 32);
      const sum = (a + mixed + constant + words.getUint32(block + 4 * word, true)) | 0;
      const shift = shifts[4 * round + (step & 3)];
      [a, b, c, d] = [d, (b + ((sum << shift) | (sum >>> (32 - shift)))) | 0, b, c];
    }
    [a, b, c, d].forEach((value, index) => (state[index] = (state[index] + value) | 0));
  }
  const digest = new Uint8Array(16);
  state.forEach((value, index) => view(digest).setUint32(4 * index, value, true));
  return digest;
}

/**
 * The OpaqueString profile (RFC 8265 section 4.2), as far as it changes text that people can type.
 * @param {string} given @param {string} what @returns {string}
 */
function opaqueString(given, what) {
  if (typeof given !== "string" || !given || /\p{Cc}/u.test(given))
    throw new TypeError(`the ${what} has to be text, not empty and without control characters`);
  return given.replace(/\p{Zs}/gu, " ").normalize("NFC");
}

/** How one request is signed, and so how its answer has to be. */
export class Signature {
  /**
   * @param {SubtleCrypto} subtle @param {string} realm @param {Attribute[]} attributes  What goes before the integrity.
   * @param {CryptoKey} key @param {boolean} sha256
   */
  constructor(subtle, realm, attributes, key, sha256) {
    this.realm = realm;
    this.attributes = attributes;
    this.subtle = subtle;
    this.key = key;
    this.code = sha256 ? MESSAGE_INTEGRITY_SHA256 : MESSAGE_INTEGRITY;
    this.size = sha256 ? 32 : 20;
  }

  /** @param {Uint8Array} message  Unsigned. @returns {Promise<Uint8Array>} */
  async sign(message) {
    const signed = new Uint8Array(message.length + 4 + this.size);
    signed.set(message);
    const header = view(signed);
    // RFC 8489 section 14.5: the length counts the integrity attribute already, what is signed ends before it.
    header.setUint16(2, signed.length - 20);
    header.setUint16(message.length, this.code);
    header.setUint16(message.length + 2, this.size);
    const mac = await this.subtle.sign("HMAC", this.key, signed.subarray(0, message.length));
    signed.set(new Uint8Array(mac), message.length + 4);
    return signed;
  }

  /**
   * Whether who wrote it knew the key; compared in constant time.
   * @param {Message} message
   */
  async proves(message) {
    const at = message.integrityAt.get(this.code);
    if (at === undefined || view(message.raw).getUint16(at + 2) !== this.size) return false;
    const covered = message.raw.slice(0, at);
    view(covered).setUint16(2, at + 4 + this.size - 20);
    return this.subtle.verify("HMAC", this.key, message.raw.slice(at + 4, at + 4 + this.size), covered);
  }
}

/** One user's name and password, and how the latest challenge is answered. */
export class Authentication {
  /** @param {Credentials} credentials @param {SubtleCrypto} subtle */
  constructor({username, credential}, subtle) {
    this.username = opaqueString(username, "user name");
    this.credential = opaqueString(credential, "credential");
    this.subtle = subtle;
    /** @type {Signature | null} */
    this.signature = null; // of the next request; null as long as there was no challenge
  }

  /**
   * Take the 401 or 438 that answered a request with `signature`; throws where there must be no other attempt.
   * @param {Message} message @param {{code: number, reason: string}} error @param {Signature | null} signature
   */
  async challenged(message, error, signature) {
    const realmRaw = message.get(A.REALM);
    const nonce = message.get(A.NONCE);
    if (!realmRaw || !nonce) throw new UnavailableError("the relay asks for credentials without a realm and a nonce");
    const realm = text(realmRaw);
    // RFC 8489 section 9.2.5: no second attempt with what was refused
    if (error.code === 401 && signature?.realm === realm) throw new RemoteError(401, error.reason);
    const features = securityFeatures(nonce);
    const offer = message.get(A.PASSWORD_ALGORITHMS);
    // Section 9.2.5: the nonce, which nobody can forge, tells of an offer that somebody took out.
    if (!offer && features & FEATURES.PASSWORD_ALGORITHMS)
      throw new UnavailableError("the relay's offer of password algorithms was removed on the way (bid-down attack)");
    const algorithm = offer ? choose(offer) : MD5_ALGORITHM;
    const material = utf8(`${this.username}:${realm}:${this.credential}`);
    const raw = algorithm === MD5_ALGORITHM ? md5(material) : await this.subtle.digest("SHA-256", material);
    // Whoever names algorithms is asked, and answers, with MESSAGE-INTEGRITY-SHA256.
    const hmac = {name: "HMAC", hash: offer ? "SHA-256" : "SHA-1"};
    const key = await this.subtle.importKey("raw", raw, hmac, false, ["sign", "verify"]);
    /** @type {Attribute[]} */
    const attributes = [[A.REALM, realmRaw], [A.NONCE, nonce]];
    if (features & FEATURES.USERNAME_ANONYMITY) {
      const hash = await this.subtle.digest("SHA-256", utf8(`${this.username}:${realm}`));
      attributes.push([A.USERHASH, new Uint8Array(hash)]);
    } else {
      attributes.push([A.USERNAME, utf8(this.username)]);
    }
    if (offer) attributes.push([A.PASSWORD_ALGORITHMS, offer], [A.PASSWORD_ALGORITHM, uint32(algorithm << 16)]);
    this.signature = new Signature(this.subtle, realm, attributes, key, Boolean(offer));
  }
}

/**
 * The first algorithm of the relay's list that we know.
 * @param {Uint8Array} offer @returns {number}
 */
function choose(offer) {
  const list = view(offer);
  for (let at = 0; at + 4 <= offer.length; at += 4 + ((list.getUint16(at + 2) + 3) & ~3)) {
    const algorithm = list.getUint16(at);
    if (algorithm === MD5_ALGORITHM || algorithm === SHA256_ALGORITHM) return algorithm;
  }
  throw new UnavailableError("the relay offers no password algorithm that we know");
}

/** @param {Uint8Array} nonce @returns {number} */
function securityFeatures(nonce) {
  const encoded = text(nonce);
  if (!encoded.startsWith(NONCE_COOKIE)) return 0;
  try {
    return atob(encoded.slice(NONCE_COOKIE.length, NONCE_COOKIE.length + 4)).charCodeAt(0);
  } catch {
    throw new UnavailableError("the relay's nonce has malformed security features");
  }
}
