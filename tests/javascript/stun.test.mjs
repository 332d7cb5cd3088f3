// Promises of stun.js about bytes: published vectors, addresses, hostile input.

import assert from "node:assert/strict";
import {createHash, randomBytes, webcrypto} from "node:crypto";
import {test} from "node:test";

import {
  A, Authentication, Message, encodeMessage, formatPeer, md5, parsePeer, peerAttribute, splitMessage, text,
} from "../../relayd/web/static/stun.js";

const bytes = (hex) => new Uint8Array(Buffer.from(hex.replace(/\s/g, ""), "hex"));
const utf8 = (string) => new TextEncoder().encode(string);
const hmacKey = (raw, hash) => webcrypto.subtle.importKey("raw", raw, {name: "HMAC", hash}, false, ["sign", "verify"]);

// RFC 5769 section 2.3
const IPV6_RESPONSE = bytes(`
  01010048 2112a442 b7e7a701 bc34d686 fa87dfae 8022000b 74657374 20766563 746f7220
  00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9
  00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41 80280004 c8fb0b4c`);
// RFC 5769 section 2.4
const LONG_TERM_REQUEST = bytes(`
  00010060 2112a442 78ad3433 c6ad72c0 29da412e 00060012 e3839ee3 8388e383 aae38383 e382afe3 82b90000
  0015001c 662f2f34 39396b39 35346436 4f4c3334 6f4c3946 53547679 36347341 0014000b 6578616d 706c652e 6f726700
  00080014 f6702465 6dd64a3e 02b8e071 2e85c9a2 8ca89666`);
// RFC 8489 appendix B.1, with erratum 6268
const SHA256_REQUEST = bytes(`
  00010090 2112a442 78ad3433 c6ad72c0 29da412e 001e0020 4a3cf38f ef6992bd a952c678 0417da0f 24819415 569e60b2 05c46e41
  407f1704 00150029 6f624d61 744a6f73 32414141 43662f2f 3439396b 39353464 364f4c33 346f4c39 46535476 79363473 41000000
  0014000b 6578616d 706c652e 6f726700 001d0004 00020000
  001c0020 b5c7bf00 5b6c52a2 1c51c5e8 92f81924 136296cb 927c4314 9309278c c6518e65`);
const USERNAME = "\u30de\u30c8\u30ea\u30c3\u30af\u30b9";
const REALM = "example.org";
const PASSWORD = "TheMatrIX"; // what preparation makes of the password in the RFC

/** How a relay that challenges so is answered: what Authentication makes of a 401. */
async function signatureFor(attributes) {
  const authentication = new Authentication({username: USERNAME, credential: PASSWORD}, webcrypto.subtle);
  const challenge = new Message(encodeMessage(0x0111, new Uint8Array(12), attributes));
  await authentication.challenged(challenge, {code: 401, reason: ""}, null);
  return authentication.signature;
}

test("an IPv6 response of RFC 5769 is read, and its integrity holds for its key only", async () => {
  const message = new Message(IPV6_RESPONSE);
  assert.deepEqual(message.addresses(A.XOR_MAPPED_ADDRESS), [
    {address: "2001:db8:1234:5678:11:2233:4455:6677", port: 32853},
  ]);
  const {Signature} = await import("../../relayd/web/static/stun.js");
  const short = (key) => hmacKey(utf8(key), "SHA-1");
  assert.ok(await new Signature(webcrypto.subtle, "", [], await short("VOkJxbRl1RmTxUk/WvJxBt"), false).proves(message));
  assert.ok(!(await new Signature(webcrypto.subtle, "", [], await short("another"), false).proves(message)));
});

test("the long-term request of RFC 5769 is signed byte for byte", async () => {
  const nonce = utf8("f//499k954d6OL34oL9FSTvy64sA");
  const signature = await signatureFor([[A.REALM, utf8(REALM)], [A.NONCE, nonce]]);
  const id = LONG_TERM_REQUEST.subarray(8, 20);
  const [realm, , username] = signature.attributes;
  const unsigned = encodeMessage(1, id, [username, [A.NONCE, nonce], realm]);
  assert.deepEqual(await signature.sign(unsigned), LONG_TERM_REQUEST);
});

test("the SHA-256 request of RFC 8489 is signed byte for byte, user hash and key included", async () => {
  const vector = new Message(SHA256_REQUEST);
  const signature = await signatureFor([
    [A.REALM, utf8(REALM)],
    [A.NONCE, utf8("obMatJos2wAAA")], // both features
    [A.PASSWORD_ALGORITHMS, bytes("00020000 00010000")],
  ]);
  const own = new Map(signature.attributes);
  const unsigned = encodeMessage(1, vector.id, [
    [A.USERHASH, own.get(A.USERHASH)],
    [A.NONCE, vector.get(A.NONCE)],
    [A.REALM, own.get(A.REALM)],
    [A.PASSWORD_ALGORITHM, own.get(A.PASSWORD_ALGORITHM)],
  ]);
  assert.deepEqual(await signature.sign(unsigned), SHA256_REQUEST);
  assert.ok(await signature.proves(vector));
});

test("no flipped bit passes", async () => {
  const signature = await signatureFor([[A.REALM, utf8(REALM)], [A.NONCE, utf8("plain")]]);
  for (let bit = 0; bit < LONG_TERM_REQUEST.length * 8; bit++) {
    const flipped = LONG_TERM_REQUEST.slice();
    flipped[bit >> 3] ^= 1 << (bit & 7);
    let message;
    try {
      message = new Message(flipped);
    } catch (error) {
      assert.ok(error instanceof RangeError);
      continue;
    }
    assert.ok(!(await signature.proves(message)), `bit ${bit}`);
  }
});

test("whatever is cut off or added, a message is refused and nothing else happens", () => {
  for (const vector of [IPV6_RESPONSE, LONG_TERM_REQUEST, SHA256_REQUEST]) {
    for (let size = 0; size < vector.length; size++) {
      assert.throws(() => new Message(vector.slice(0, size)), RangeError);
    }
    assert.throws(() => new Message(Uint8Array.of(...vector, 0, 0, 0, 0)), RangeError);
  }
});

test("attributes behind the integrity do not count", () => {
  const tail = bytes("000d0004 00000001"); // LIFETIME
  const longer = Uint8Array.of(...LONG_TERM_REQUEST, ...tail);
  longer[3] += tail.length;
  assert.equal(new Message(longer).get(A.LIFETIME), undefined);
  assert.equal(text(new Message(longer).get(A.REALM)), REALM);
});

test("MD5 is MD5, for every length around its blocks", () => {
  for (let size = 0; size < 200; size++) {
    const data = new Uint8Array(randomBytes(size));
    assert.equal(Buffer.from(md5(data)).toString("hex"), createHash("md5").update(data).digest("hex"), `${size} bytes`);
  }
});

test("names and passwords are compared as RFC 8265 prepares them", () => {
  const prepared = (username) => new Authentication({username, credential: "x"}, webcrypto.subtle).username;
  assert.equal(prepared("a\u00a0b"), "a b"); // another space
  assert.equal(prepared("e\u0301"), "\u00e9"); // NFC
  for (const unusable of ["", "a\nb", "\0", undefined]) assert.throws(() => prepared(unusable), TypeError);
});

test("peers are read and written, in the one way of RFC 5952", () => {
  const cases = [
    ["192.0.2.1:4000", "192.0.2.1", 4000, "192.0.2.1:4000"],
    [" 0.0.0.0:1 ", "0.0.0.0", 1, "0.0.0.0:1"],
    ["[2001:DB8:0:0:0:0:0:1]:65535", "2001:db8::1", 65535, "[2001:db8::1]:65535"],
    ["[::]:9", "::", 9, "[::]:9"],
    ["[::1]:9", "::1", 9, "[::1]:9"],
    ["[1::]:9", "1::", 9, "[1::]:9"],
    ["[1:2:3:4:5:6:7:8]:9", "1:2:3:4:5:6:7:8", 9, "[1:2:3:4:5:6:7:8]:9"],
    ["[::ffff:192.0.2.1]:9", "::ffff:c000:201", 9, "[::ffff:c000:201]:9"],
  ];
  for (const [given, address, port, formatted] of cases) {
    const peer = parsePeer(given);
    assert.deepEqual(peer, {address, port});
    assert.equal(formatPeer(peer), formatted);
    const id = new Uint8Array(randomBytes(12));
    assert.deepEqual(new Message(encodeMessage(1, id, [peerAttribute(peer, id)])).addresses(A.XOR_PEER_ADDRESS), [peer]);
  }
});

test("what is no peer is a TypeError", () => {
  const wrong = ["", "example.org:80", "192.0.2.1", "192.0.2.256:1", "192.0.2:1", "192.0.2.1:0", "192.0.2.1:65536", "0x7f.1:80",
    "[2001:db8::1]", "2001:db8::1:80", "[fe80::1%eth0]:1", "[1:2:3]:1", "[::1::2]:1", "[192.0.2.1]x:1", "1.2.3.4:1e3", "[a@::1]:1"];
  for (const each of wrong) assert.throws(() => parsePeer(each), TypeError, each);
});

test("messages that were joined are told apart; what is not whole ends it", () => {
  const [one, two] = [bytes("4000 0001 aa 000000"), bytes("4001 0003 010203")];
  const joined = Uint8Array.of(...one, ...IPV6_RESPONSE, ...two);
  const found = [...splitMessage(joined)];
  assert.deepEqual(found, [one.subarray(0, 5), IPV6_RESPONSE, two]);
  for (let size = 0; size < joined.length; size++) assert.ok([...splitMessage(joined.subarray(0, size))].length < 3);
});

test("any bytes at all are one message, some, or none", () => {
  for (let round = 0; round < 2000; round++) {
    const data = new Uint8Array(randomBytes(round % 64));
    if (round % 3 === 0 && data.length > 8) data.set([0x01, 0x01, 0, data.length - 20, 0x21, 0x12, 0xa4, 0x42]);
    for (const part of splitMessage(data)) assert.ok(part.length <= data.length);
    try {
      const message = new Message(data);
      message.addresses(A.XOR_MAPPED_ADDRESS);
      void message.error;
      void message.unknown;
    } catch (error) {
      assert.ok(error instanceof RangeError, String(error));
    }
  }
});
