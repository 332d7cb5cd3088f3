// Promises of round_trips.js, the measuring part of the demo page, against a relay in memory and a stepped clock.

import assert from "node:assert/strict";
import {webcrypto} from "node:crypto";
import {once} from "node:events";
import {test} from "node:test";

import {LOST_AFTER, RoundTrips} from "../../relayd/web/static/round_trips.js";
import {Clock} from "./clock.mjs";
import {MemoryRelay, TYPES, channelData} from "./memory_relay.mjs";

const PEER = {address: "192.0.2.9", port: 7};

/** A run to a UDP echo that is beyond a relay, which has just begun to send. */
async function running(test, settings = {}) {
  const clock = new Clock(test);
  const relay = new MemoryRelay();
  relay.echoes = true;
  const {username, credential} = relay;
  const wanted = {url: "wss://relay.test/turn", username, credential, peer: PEER, rate: 10, size: 200, ...settings};
  const trips = new RoundTrips(wanted, {WebSocket: relay.WebSocket, crypto: webcrypto}, () => clock.now);
  const results = [];
  trips.addEventListener("result", ({at, time}) => results.push([at, time]));
  const way = once(trips, "way");
  trips.start();
  const [{peer, relayed, mapped}] = await way;
  assert.deepEqual([peer, relayed.port, mapped.port], [PEER, 50000, 1234]);
  return {clock, relay, trips, results};
}

async function ends({clock, relay, trips}) {
  const end = once(trips, "end");
  trips.stop();
  assert.equal((await end)[0].error, null);
  await relay.asked("refresh");
  relay.websocket.lose(1000); // else it would wait for its deletion
  assert.equal(clock.pending, 0, "timers are left");
}

test("datagrams go at their rate, in their size, and come back", async (test) => {
  const all = await running(test);
  all.clock.advance(1);
  assert.deepEqual([all.trips.sent, all.trips.received, all.trips.lost], [11, 11, 0]);
  assert.deepEqual(all.results.at(-1), [1000, 0]);
  assert.ok(all.relay.channelData.every((message) => message.length === 4 + 200));
  await ends(all);
});

test("one that is not back after two seconds is lost, once, and cannot come back", async (test) => {
  const all = await running(test, {rate: 1});
  const {clock, relay, trips, results} = all;
  relay.echoes = false;
  clock.advance(1);
  const late = relay.channelData.at(-1);
  clock.advance(LOST_AFTER / 1000 + 0.2);
  assert.deepEqual([trips.sent, trips.received, trips.lost], [4, 1, 1]);
  relay.websocket.deliver(late);
  assert.deepEqual([trips.received, trips.lost], [1, 1]);
  assert.deepEqual(results, [[0, 0], [1000, null]]);
  await ends(all);
});

test("what is none of ours, or comes twice, is not counted", async (test) => {
  const all = await running(test);
  const {relay, trips} = all;
  relay.websocket.deliver(relay.channelData[0]);
  relay.websocket.deliver(channelData(0x4000, "short"));
  relay.websocket.deliver(channelData(0x4000, "from somebody else altogether"));
  assert.equal(trips.received, 1);
  await ends(all);
});

test("an IPv6 echo is reached from an IPv6 address", async (test) => {
  const clock = new Clock(test);
  const relay = new MemoryRelay();
  const {username, credential} = relay;
  const wanted = {url: "wss://relay.test/", username, credential, peer: {address: "2001:db8::9", port: 7}, rate: 1, size: 16};
  const trips = new RoundTrips(wanted, {WebSocket: relay.WebSocket, crypto: webcrypto}, () => clock.now);
  const way = once(trips, "way");
  trips.start();
  await way;
  assert.ok(relay.requests[0].attributes.has(TYPES.family));
  await ends({clock, relay, trips});
});

test("what goes wrong ends it, once, whenever that is", async (test) => {
  const refusing = new MemoryRelay();
  refusing.instead.channelBind = (request) => refusing.refusal(request, 403);
  const clock = new Clock(test);
  const {username, credential} = refusing;
  const wanted = {url: "wss://relay.test/", username, credential, peer: PEER, rate: 1, size: 16};
  const refused = new RoundTrips(wanted, {WebSocket: refusing.WebSocket, crypto: webcrypto}, () => clock.now);
  const end = once(refused, "end");
  refused.start();
  assert.equal((await end)[0].error.code, 403);

  const {relay, trips} = await running(test);
  const broken = once(trips, "end");
  relay.websocket.lose(1001);
  assert.equal((await broken)[0].error.closeCode, 1001);
  trips.stop();
});

test("one that is stopped while it connects closes what opens afterwards", async (test) => {
  const clock = new Clock(test);
  const relay = Object.assign(new MemoryRelay(), {opens: false});
  const {username, credential} = relay;
  const wanted = {url: "wss://relay.test/", username, credential, peer: PEER, rate: 1, size: 16};
  const trips = new RoundTrips(wanted, {WebSocket: relay.WebSocket, crypto: webcrypto}, () => clock.now);
  const end = once(trips, "end");
  trips.start();
  trips.stop();
  await end;
  relay.websocket.open();
  while (relay.websocket.readyState < 2) await new Promise(setImmediate);
  assert.equal(relay.requests.length, 0);
  assert.equal(clock.pending, 0);
});

test("a page that is left closes its connections without waiting for answers", async (test) => {
  const {clock, relay, trips} = await running(test);
  relay.instead.refresh = () => "silence";
  trips.leave();
  assert.ok(relay.websocket.readyState >= 2);
  assert.equal(clock.pending, 0);
});
