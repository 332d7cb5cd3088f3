// Promises of relayd.js, against a relay in memory and a clock that is set forward.

import assert from "node:assert/strict";
import {webcrypto} from "node:crypto";
import {test} from "node:test";

import {
  MAX_BUFFERED, MAX_DATA, MAX_WAITING, RedirectionError, RemoteError, UnavailableError, connect,
} from "../../relayd/web/static/relayd.js";
import {Clock} from "./clock.mjs";
import {MemoryRelay, SUCCESS, TYPES, address, channelData, encode, signed, uint32} from "./memory_relay.mjs";

const URL = "wss://relay.test/turn";
const PEER = {address: "192.0.2.9", port: 7};
const PEER6 = {address: "2001:db8::9", port: 7};
const RAW6 = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
const bytes = (text) => new TextEncoder().encode(text);

function open(relay, credentials = {}) {
  const {username, credential} = relay;
  return connect(URL, {username, credential, ...credentials}, {WebSocket: relay.WebSocket, crypto: webcrypto});
}

/** A relay, a clock, a client and its allocation. */
async function allocated(test, settings = {}) {
  const clock = new Clock(test);
  const relay = Object.assign(new MemoryRelay(), settings);
  const client = await open(relay);
  const socket = await client.allocate();
  return {clock, relay, client, socket, events: recorded(socket)};
}

/** Every event of an allocation, in order. */
function recorded(socket) {
  const events = [];
  const waiters = [];
  for (const type of ["message", "bufferedamountlow", "error", "icmp", "close"]) {
    socket.addEventListener(type, (event) => {
      events.push(event);
      waiters.splice(0).forEach((resolve) => resolve());
    });
  }
  /** The first of a type, once it is there. */
  events.first = async (type) => {
    for (;;) {
      const found = events.find((event) => event.type === type);
      if (found) return found;
      await new Promise((resolve) => waiters.push(resolve));
    }
  };
  events.messages = () =>
    events.filter(({type}) => type === "message").map(({data, peer}) => [Buffer.from(data).toString(), peer]);
  return events;
}

/** Until a condition holds that follows from what has been done already; no clock is waited for. */
async function eventually(holds) {
  for (let turn = 0; !holds(); turn++) {
    assert.ok(turn < 10_000, "it never came about");
    await new Promise(setImmediate);
  }
}

/** Deletes the allocation, and sees that nothing is left. */
async function ends({clock, relay, socket, events}) {
  socket.close();
  assert.equal(socket.readyState, "closing");
  const request = await relay.asked("refresh");
  assert.deepEqual(request.attributes.get(TYPES.lifetime), uint32(0));
  assert.equal((await events.first("close")).error, null);
  assert.equal(socket.readyState, "closed");
  assert.ok(relay.websocket.readyState >= 2, "the WebSocket is open");
  assert.equal(clock.pending, 0, "timers are left");
}

// --- allocating ---

test("an allocation: challenged, signed with SHA-256 as offered, its addresses told", async (test) => {
  const all = await allocated(test);
  const {relay, socket} = all;
  assert.equal(relay.websocket.url, URL);
  assert.deepEqual(socket.relayedAddresses, [{address: "192.0.2.15", port: 50000}]);
  assert.deepEqual(socket.mappedAddress, {address: "198.51.100.7", port: 1234});
  assert.equal(socket.readyState, "open");
  const [first, second] = relay.requests;
  assert.deepEqual([...first.attributes.keys()], [TYPES.transport]);
  assert.deepEqual(second.attributes.get(TYPES.algorithm), Buffer.from([0, 2, 0, 0]));
  assert.deepEqual(second.attributes.get(TYPES.algorithms), Buffer.from([0, 2, 0, 0, 0, 1, 0, 0]));
  assert.ok(second.attributes.has(TYPES.sha256));
  await ends(all);
});

test("a relay of RFC 5389 gets MD5 and SHA-1", async (test) => {
  const all = await allocated(test, {algorithms: null});
  const {attributes} = all.relay.requests[1];
  assert.ok(attributes.has(TYPES.integrity) && !attributes.has(TYPES.sha256) && !attributes.has(TYPES.algorithm));
  await ends(all);
});

test("a relay that offers MD5 only gets it, signed with SHA-256", async (test) => {
  await ends(await allocated(test, {algorithms: [1]}));
});

test("the user name is not sent where its hash will do", async (test) => {
  const all = await allocated(test, {wantsUserhash: true});
  assert.ok(!all.relay.websocket.sent.some((message) => message.includes("alice")));
  await ends(all);
});

test("the password is never sent", async (test) => {
  const all = await allocated(test);
  assert.ok(!all.relay.websocket.sent.some((message) => message.includes("correct-horse")));
  await ends(all);
});

test("addresses of each family are asked for", async (test) => {
  new Clock(test);
  for (const [family, type] of [["ipv6", TYPES.family], ["both", TYPES.additional]]) {
    const relay = new MemoryRelay();
    if (family === "both") relay.relayed.push([RAW6, 50001]);
    const socket = await (await open(relay)).allocate({family});
    assert.deepEqual(relay.requests[1].attributes.get(type), Buffer.from([2, 0, 0, 0]));
    assert.equal(socket.relayedAddresses.length, relay.relayed.length);
    socket.close();
  }
  await assert.rejects((await open(new MemoryRelay())).allocate({family: "ipx"}), TypeError);
});

test("a wrong password is a 401, after one attempt", async (test) => {
  new Clock(test);
  const relay = new MemoryRelay();
  const client = await open(relay, {credential: "wrong"});
  await assert.rejects(client.allocate(), (error) => error instanceof RemoteError && error.code === 401);
  assert.equal(relay.requests.length, 2);
});

test("an offer of algorithms that was taken out on the way is noticed, and nothing is signed", async (test) => {
  new Clock(test);
  const relay = new MemoryRelay();
  relay.instead.allocate = (request) => relay.challenge(request, 401, {withAlgorithms: false});
  await assert.rejects((await open(relay)).allocate(), /bid-down/);
  assert.equal(relay.requests.length, 1);
});

test("an offer of unknown algorithms only is refused", async (test) => {
  new Clock(test);
  const relay = Object.assign(new MemoryRelay(), {algorithms: [9]});
  await assert.rejects((await open(relay)).allocate(), UnavailableError);
});

test("a stale nonce is replaced; a relay that has nothing but stale ones is given up", async (test) => {
  const all = await allocated(test);
  const {relay, socket} = all;
  relay.nonces = 2;
  await socket.permit(PEER.address);
  assert.equal(relay.requests.filter(({name}) => name === "createPermission").length, 2);
  relay.instead.createPermission = (request) => relay.challenge(request, 438);
  await assert.rejects(socket.permit(PEER6.address), (error) => error.code === 438);
  await ends(all);
});

test("an answer has to prove the key: forged or missing integrity counts for nothing", async (test) => {
  new Clock(test);
  const genuine = (relay, request) => relay.answer(request);
  const forgeries = {
    forged: (relay, request) => genuine(relay, request).map((byte, at, all) => (at < all.length - 4 ? byte : byte ^ 1)),
    missing: (relay, request) => encode(request.type | SUCCESS, request.id, [[TYPES.relayed, address([1, 2, 3, 4], 5, request.id)]]),
    weaker: (relay, request) => signed(encode(request.type | SUCCESS, request.id, []), relay.key, "sha1"),
    refusal: (relay, request) => relay.refusal({...request, covered: null}, 486),
  };
  for (const [name, forge] of Object.entries(forgeries)) {
    const relay = new MemoryRelay();
    relay.instead.allocate = (request) => (request.covered ? forge(relay, request) : undefined);
    await assert.rejects((await open(relay)).allocate(), /does not prove/, name);
  }
});

test("what the relay refuses is told with its code, and may be asked again", async (test) => {
  new Clock(test);
  const relay = new MemoryRelay();
  relay.instead.allocate = (request) => (request.covered ? relay.refusal(request, 486) : undefined);
  const client = await open(relay);
  await assert.rejects(client.allocate(), {name: "RemoteError", code: 486, reason: "because"});
  relay.instead = {};
  (await client.allocate()).close();
});

test("a relay that names another one is left for the caller to leave", async (test) => {
  new Clock(test);
  const relay = new MemoryRelay();
  const alternate = [TYPES.alternate, address([203, 0, 113, 5], 3478, null, false)];
  relay.instead.allocate = (request) => relay.refusal(request, 300, [alternate, [TYPES.domain, Buffer.from("b.example")]]);
  await assert.rejects((await open(relay)).allocate(), (error) => {
    assert.ok(error instanceof RedirectionError);
    assert.deepEqual(error.alternateServer, {address: "203.0.113.5", port: 3478});
    assert.equal(error.alternateDomain, "b.example");
    return true;
  });
});

test("an answer that has to be understood, and is not, is an error", async (test) => {
  new Clock(test);
  const relay = new MemoryRelay();
  relay.instead.allocate = (request) => (request.covered ? relay.success(request, [[0x7fff, Buffer.alloc(0)]]) : undefined);
  await assert.rejects((await open(relay)).allocate(), /understood/);
});

test("a connection has one allocation", async (test) => {
  const all = await allocated(test);
  await assert.rejects(all.client.allocate(), {name: "InvalidStateError"});
  await ends(all);
});

// --- connecting ---

test("what cannot be used is a TypeError, and opens nothing", async () => {
  const relay = new MemoryRelay();
  const environment = {WebSocket: relay.WebSocket, crypto: webcrypto};
  const {username, credential} = relay;
  await assert.rejects(connect("https://relay.test/", {username, credential}, environment), TypeError);
  await assert.rejects(connect("turn:relay.test", {username, credential}, environment), TypeError);
  await assert.rejects(connect(URL, {username: "", credential}, environment), TypeError);
  await assert.rejects(connect(URL, {username}, environment), TypeError);
  await assert.rejects(connect(URL, {username, credential}, {...environment, WebSocket: null}), TypeError);
  await assert.rejects(connect(URL, {username, credential}, {...environment, crypto: {}}), UnavailableError);
  assert.equal(relay.websocket, undefined);
});

test("a relay that cannot be reached is told, at the latest after twenty seconds", async (test) => {
  const clock = new Clock(test);
  const refusing = Object.assign(new MemoryRelay(), {opens: false});
  const refused = open(refusing);
  refusing.websocket.lose(1006);
  await assert.rejects(refused, (error) => error instanceof UnavailableError && error.closeCode === 1006);
  const silent = Object.assign(new MemoryRelay(), {opens: false});
  const waiting = open(silent);
  clock.advance(20);
  await assert.rejects(waiting, /within 20 seconds/);
  assert.ok(silent.websocket.readyState >= 2);
  assert.equal(clock.pending, 0);
});

test("a browser that forbids the connection is an UnavailableError", async () => {
  const forbidding = function () {
    throw new DOMException("mixed content", "SecurityError");
  };
  const {username, credential} = new MemoryRelay();
  const attempt = connect(URL, {username, credential}, {WebSocket: forbidding, crypto: webcrypto});
  await assert.rejects(attempt, (error) => error instanceof UnavailableError && /mixed content/.test(error.message));
});

test("an error without a close, as some versions of Node have it, ends the connection", async (test) => {
  const {relay, events, clock} = await allocated(test);
  relay.websocket.dispatchEvent(new Event("error"));
  assert.equal((await events.first("close")).error.closeCode, 1006);
  assert.equal(clock.pending, 0);
});

test("a relay that does not answer is given up after 39.5 seconds", async (test) => {
  const clock = new Clock(test);
  const relay = new MemoryRelay();
  relay.instead.allocate = () => "silence";
  const client = await open(relay);
  const allocation = client.allocate();
  await eventually(() => relay.requests.length === 1);
  clock.advance(39.5);
  await assert.rejects(allocation, /does not answer/);
  assert.equal(clock.pending, 0);
});

// --- data ---

test("datagrams wait for the permission, then go in order", async (test) => {
  const all = await allocated(test);
  const {relay, socket} = all;
  for (const word of ["one", "two"]) assert.ok(socket.send(bytes(word), PEER));
  assert.equal(socket.bufferedAmount, 6);
  assert.equal(relay.indications.length, 0);
  await relay.asked("createPermission");
  await eventually(() => relay.indications.length === 2);
  assert.equal(socket.bufferedAmount, 0);
  assert.ok(socket.send(bytes("three").buffer, "192.0.2.9:8"));
  const sent = relay.indications.map(({id, attributes}) => [
    attributes.get(TYPES.data).toString(),
    attributes.get(TYPES.peer).equals(address([192, 0, 2, 9], 7, id)),
  ]);
  assert.deepEqual(sent, [["one", true], ["two", true], ["three", false]]);
  assert.equal(relay.requests.filter(({name}) => name === "createPermission").length, 1);
  await ends(all);
});

test("what waits is a copy: the caller's buffer may be used again", async (test) => {
  const all = await allocated(test);
  const data = bytes("before");
  all.socket.send(data.subarray(2, 4), PEER);
  data.fill(0);
  await eventually(() => all.relay.indications.length === 1);
  assert.equal(all.relay.indications[0].attributes.get(TYPES.data).toString(), "fo");
  await ends(all);
});

test("a refused peer is told by an event, its datagrams are counted, and others go on", async (test) => {
  const all = await allocated(test);
  const {relay, socket, events} = all;
  relay.instead.createPermission = (request) =>
    request.attributes.get(TYPES.peer)[1] === 2 ? relay.refusal(request, 443) : undefined;
  socket.send(bytes("lost"), PEER6);
  const {error, address: refused} = await events.first("error");
  assert.deepEqual([error.code, refused, socket.dropped, socket.bufferedAmount], [443, PEER6.address, 1, 0]);
  await assert.rejects(socket.permit(PEER6.address), {code: 443});
  socket.send(bytes("found"), PEER);
  await eventually(() => relay.indications.length === 1);
  await ends(all);
});

test("a channel makes datagrams short, both ways, IPv6 too", async (test) => {
  const all = await allocated(test);
  const {relay, socket, events} = all;
  const binding = Promise.all([socket.bind(PEER), socket.bind(PEER6), socket.bind(PEER)]);
  const requests = [await relay.asked("channelBind"), await relay.asked("channelBind")];
  relay.websocket.deliver(channelData(0x4000, "early")); // it may overtake the answer
  await binding;
  assert.deepEqual(requests.map(({attributes}) => attributes.get(TYPES.channelNumber).readUInt16BE()), [0x4000, 0x4001]);
  assert.ok(requests[1].attributes.get(TYPES.peer).equals(address(RAW6, 7, requests[1].id)));
  socket.send(bytes("short"), PEER6);
  socket.send(bytes(""), PEER);
  assert.deepEqual(relay.channelData, [channelData(0x4001, "short"), channelData(0x4000, "")]);
  relay.websocket.deliver(channelData(0x4001, "six"));
  relay.websocket.deliver(channelData(0x4fff, "not ours"));
  assert.deepEqual(events.messages(), [["early", PEER], ["six", PEER6]]);
  assert.equal(relay.requests.filter(({name}) => name === "createPermission").length, 0);
  await ends(all);
});

test("a channel that is refused is told, and datagrams go without it", async (test) => {
  const all = await allocated(test);
  const {relay, socket, events} = all;
  relay.instead.channelBind = (request) => relay.refusal(request, 508);
  await assert.rejects(socket.bind(PEER), {code: 508});
  assert.equal((await events.first("error")).error.code, 508);
  socket.send(bytes("anyway"), PEER);
  await eventually(() => relay.indications.length === 1);
  await ends(all);
});

test("datagrams come from permitted peers only, of both families, and several in one message", async (test) => {
  const all = await allocated(test);
  const {relay, socket, events} = all;
  const {websocket} = relay;
  websocket.deliver(relay.data([192, 0, 2, 9], 7, "too early"));
  await Promise.all([socket.permit(PEER.address), socket.permit(PEER6.address), socket.bind(PEER)]);
  websocket.deliver(relay.data([192, 0, 2, 10], 7, "a stranger"));
  websocket.deliver(relay.data([192, 0, 2, 9], 8, "another port"), channelData(0x4000, "abc", true), relay.data(RAW6, 7, ""));
  assert.deepEqual(events.messages(), [["another port", {...PEER, port: 8}], ["abc", PEER], ["", PEER6]]);
  await ends(all);
});

test("what a router says of a datagram is an event of its own", async (test) => {
  const all = await allocated(test);
  await all.socket.permit(PEER.address);
  const icmp = Buffer.from([0, 0, 3, 4, 0, 0, 5, 220]);
  all.relay.websocket.deliver(all.relay.data([192, 0, 2, 9], 7, null, [[TYPES.icmp, icmp]]));
  const {peer, icmpType, code, info} = await all.events.first("icmp");
  assert.deepEqual([peer, icmpType, code, info], [PEER, 3, 4, 1500]);
  assert.deepEqual(all.events.messages(), []);
  await ends(all);
});

test("garbage, text and strange answers change nothing", async (test) => {
  const all = await allocated(test);
  const {relay, socket, events} = all;
  await socket.permit(PEER.address);
  const {websocket} = relay;
  websocket.deliver(Buffer.from("half"));
  websocket.deliver(Buffer.alloc(0));
  websocket.deliver(Buffer.alloc(40, 0xff));
  websocket.deliver(encode(0x0103, Buffer.alloc(12), []));
  websocket.deliver(relay.data([192, 0, 2, 9], 7, "unknown", [[0x7ffe, Buffer.alloc(4)]]));
  websocket.dispatchEvent(Object.assign(new Event("message"), {data: "text"}));
  assert.equal(events.length, 0);
  await ends(all);
});

test("what no datagram can be is an error at once", async (test) => {
  const all = await allocated(test);
  const {socket} = all;
  assert.throws(() => socket.send("text", PEER), TypeError);
  assert.throws(() => socket.send(bytes("x"), "example.org:7"), TypeError);
  assert.throws(() => socket.send(bytes("x"), {address: "192.0.2.9", port: 0}), TypeError);
  assert.throws(() => socket.send(new Uint8Array(MAX_DATA + 1), PEER), RangeError);
  await assert.rejects(socket.permit("example.org"), TypeError);
  await assert.rejects(socket.bind({address: "::1", port: 70_000}), TypeError);
  assert.ok(socket.send(new Uint8Array(MAX_DATA), PEER6));
  await eventually(() => all.relay.indications.length === 1);
  await ends(all);
  assert.throws(() => socket.send(bytes("x"), PEER), {name: "InvalidStateError"});
});

// --- backpressure ---

test("what waits is told, bounded, and its end announced once", async (test) => {
  const all = await allocated(test);
  const {clock, relay, socket, events} = all;
  await socket.permit(PEER.address);
  socket.bufferedAmountLowThreshold = 1000;
  const low = () => events.filter(({type}) => type === "bufferedamountlow").length;
  relay.websocket.bufferedAmount = 900;
  socket.send(bytes("below"), PEER);
  clock.advance(1);
  assert.equal(low(), 0);
  relay.websocket.bufferedAmount = MAX_BUFFERED - 3;
  assert.ok(socket.send(bytes("fit"), PEER));
  assert.ok(!socket.send(bytes("does not fit"), PEER));
  assert.deepEqual([socket.bufferedAmount, socket.dropped], [MAX_BUFFERED - 3, 1]);
  clock.advance(1);
  assert.equal(low(), 0);
  relay.websocket.bufferedAmount = 1000;
  clock.advance(1);
  assert.equal(low(), 1);
  clock.advance(1);
  assert.equal(low(), 1);
  await ends(all);
});

test("to one address so many datagrams wait for its permission, and no more", async (test) => {
  const all = await allocated(test);
  const {relay, socket} = all;
  relay.instead.createPermission = () => "silence";
  for (let count = 0; count < MAX_WAITING; count++) assert.ok(socket.send(bytes("x"), PEER));
  assert.ok(!socket.send(bytes("x"), PEER));
  assert.deepEqual([socket.bufferedAmount, socket.dropped], [MAX_WAITING, 1]);
  await relay.asked("createPermission");
  await ends(all);
});

// --- time ---

test("allocation, permissions and channels are renewed in time", async (test) => {
  const all = await allocated(test);
  const {clock, relay, socket} = all;
  await socket.bind(PEER);
  await relay.asked("channelBind");
  const live = (seconds) => {
    for (let elapsed = 0; elapsed < seconds; elapsed += 20) {
      relay.websocket.deliver(channelData(0x4fff, "alive"));
      clock.advance(20);
    }
  };
  const renewed = () => eventually(() => clock.pending === 4); // allocation, permission, channel, and the probe
  for (let round = 0; round < 2; round++) {
    live(240);
    await relay.asked("createPermission");
    await renewed();
  }
  live(60);
  assert.deepEqual((await relay.asked("refresh")).attributes.get(TYPES.lifetime), undefined);
  const again = await relay.asked("channelBind");
  assert.equal(again.attributes.get(TYPES.channelNumber).readUInt16BE(), 0x4000);
  await renewed();
  assert.equal(relay.requests.filter(({name}) => name === "refresh").length, 1);
  socket.send(bytes("still here"), PEER);
  assert.deepEqual(relay.channelData, [channelData(0x4000, "still here")]);
  await ends(all);
});

test("lifetimes of any size are refreshed neither too late nor in a frenzy", async (test) => {
  for (const [lifetime, due] of [[1, 5], [60, 30], [600, 540], [2 ** 32 - 1, 86_400]]) {
    const all = await allocated(test, {lifetime});
    const refreshes = () => all.relay.requests.filter(({name}) => name === "refresh").length;
    const early = Math.min(due - 1, 25);
    all.clock.advance(early);
    assert.equal(refreshes(), 0, `lifetime ${lifetime}`);
    if (due <= 30) {
      all.clock.advance(due - early);
      await all.relay.asked("refresh");
    }
    await ends(all);
  }
});

test("a permission that is not renewed is told, and asked for again when it is needed", async (test) => {
  const all = await allocated(test);
  const {clock, relay, socket, events} = all;
  await socket.permit(PEER.address);
  await relay.asked("createPermission");
  relay.instead.createPermission = (request) => relay.refusal(request, 403);
  for (let elapsed = 0; elapsed < 240; elapsed += 20) {
    relay.websocket.deliver(channelData(0x4fff, "alive"));
    clock.advance(20);
  }
  assert.equal((await events.first("error")).error.code, 403);
  relay.websocket.deliver(relay.data([192, 0, 2, 9], 7, "no more"));
  assert.deepEqual(events.messages(), []);
  relay.instead = {};
  await socket.permit(PEER.address);
  await ends(all);
});

test("a refresh that is refused ends the allocation", async (test) => {
  const {clock, relay, socket, events} = await allocated(test);
  relay.instead.refresh = (request) => relay.refusal(request, 437);
  clock.advance(30);
  const {error} = await events.first("close");
  assert.deepEqual([error.code, socket.readyState, clock.pending], [437, "closed", 0]);
});

test("a relay that died without a word is noticed", async (test) => {
  const {clock, relay, socket, events} = await allocated(test);
  relay.instead.refresh = () => "silence";
  clock.advance(30);
  await relay.asked("refresh");
  clock.advance(39.5);
  const {error} = await events.first("close");
  assert.ok(error instanceof UnavailableError);
  assert.deepEqual([socket.readyState, clock.pending], ["closed", 0]);
});

test("a relay that sends data is not asked whether it is there", async (test) => {
  const all = await allocated(test);
  for (let elapsed = 0; elapsed < 200; elapsed += 10) {
    all.relay.websocket.deliver(channelData(0x4fff, "alive"));
    all.clock.advance(10);
  }
  assert.equal(all.relay.requests.filter(({name}) => name === "refresh").length, 0);
  await ends(all);
});

// --- the end ---

test("a connection that breaks ends everything, with its code, and nothing is left", async (test) => {
  const {clock, relay, socket, events} = await allocated(test);
  await socket.bind(PEER);
  relay.instead.createPermission = () => "silence";
  const waiting = socket.permit(PEER6.address);
  await relay.asked("createPermission");
  socket.send(bytes("waiting"), PEER6);
  relay.websocket.lose(1001, "restart");
  const {error} = await events.first("close");
  assert.deepEqual([error.name, error.closeCode, socket.readyState], ["UnavailableError", 1001, "closed"]);
  assert.match(error.message, /1001: restart/);
  await assert.rejects(waiting, UnavailableError);
  assert.equal(events.filter(({type}) => type === "close").length, 1);
  assert.deepEqual([clock.pending, socket.bufferedAmount], [0, 0]);
  await assert.rejects(socket.permit(PEER.address), {name: "InvalidStateError"});
});

test("a connection that breaks while allocating rejects", async (test) => {
  const clock = new Clock(test);
  const relay = new MemoryRelay();
  relay.instead.allocate = (request) => {
    queueMicrotask(() => relay.websocket.lose(1006));
    return relay.answer(request);
  };
  const client = await open(relay);
  await assert.rejects(client.allocate(), UnavailableError);
  await assert.rejects(client.allocate(), UnavailableError);
  assert.equal(clock.pending, 0);
});

test("a deletion that is not answered is over after three seconds", async (test) => {
  const {clock, relay, socket, events} = await allocated(test);
  relay.instead.refresh = () => "silence";
  socket.close();
  await relay.asked("refresh");
  clock.advance(3);
  assert.equal((await events.first("close")).error, null);
  assert.equal(clock.pending, 0);
});

test("a client that is closed takes its allocation along", async (test) => {
  const {clock, client, relay, socket, events} = await allocated(test);
  client.close();
  assert.ok((await events.first("close")).error instanceof UnavailableError);
  assert.deepEqual([socket.readyState, clock.pending], ["closed", 0]);
  assert.ok(relay.websocket.readyState >= 2);
});
