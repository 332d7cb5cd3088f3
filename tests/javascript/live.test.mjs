// Promises of relayd.js against a relay that runs, with peers on sockets of Node. RELAY_URL, RELAY_USERNAME and
// RELAY_CREDENTIAL say where it is; without them there is nothing to test.

import assert from "node:assert/strict";
import {randomBytes, webcrypto} from "node:crypto";
import {createSocket} from "node:dgram";
import {once} from "node:events";
import {test} from "node:test";

import {RemoteError, UnavailableError, connect} from "../../relayd/web/static/relayd.js";
import {WebSocket} from "./websocket.mjs";

const {RELAY_URL, RELAY_USERNAME: username, RELAY_CREDENTIAL: credential} = process.env;
const live = {skip: RELAY_URL ? false : "no relay was named (RELAY_URL)"};
const open = (credentials = {username, credential}) => connect(RELAY_URL, credentials, {WebSocket, crypto: webcrypto});

/** A UDP echo. */
async function echo(host) {
  const socket = createSocket(host.includes(":") ? "udp6" : "udp4");
  socket.on("message", (data, {address, port}) => socket.send(data, port, address));
  socket.bind(0, host);
  await once(socket, "listening");
  return {peer: {address: host, port: socket.address().port}, close: () => socket.close()};
}

async function closed(socket) {
  const end = once(socket, "close");
  socket.close();
  const [{error}] = await end;
  assert.equal(error, null);
}

for (const [family, host] of [["ipv4", "127.0.0.1"], ["ipv6", "::1"]]) {
  test(`datagrams to a UDP echo over ${family} come back whole, without and with a channel`, live, async () => {
    const {peer, close} = await echo(host);
    const socket = await (await open()).allocate({family});
    assert.equal(socket.relayedAddresses[0].address, host);
    for (const bind of [false, true]) {
      if (bind) await socket.bind(peer);
      for (const size of [0, 1, 2, 3, 4, 125, 126, 1200, 8000]) {
        const data = randomBytes(size);
        const back = once(socket, "message");
        assert.ok(socket.send(data, peer));
        const [event] = await back;
        assert.ok(Buffer.from(event.data).equals(data), `${size} bytes`);
        assert.deepEqual(event.peer, peer);
      }
    }
    await closed(socket);
    close();
  });
}

test("two pages reach each other, each at the address of the other", live, async () => {
  const [left, right] = await Promise.all([(await open()).allocate(), (await open()).allocate()]);
  const [here, there] = [left.relayedAddresses[0], right.relayedAddresses[0]];
  await Promise.all([left.permit(there.address), right.permit(here.address)]);
  right.addEventListener("message", ({data, peer}) => right.send(data, peer));
  const back = once(left, "message");
  left.send(Buffer.from("and back"), there);
  const [event] = await back;
  assert.deepEqual([Buffer.from(event.data).toString(), event.peer], ["and back", there]);
  await Promise.all([closed(left), closed(right)]);
});

test("an allocation of both families has an address of each", live, async () => {
  const socket = await (await open()).allocate({family: "both"});
  assert.deepEqual(socket.relayedAddresses.map(({address}) => address).sort(), ["127.0.0.1", "::1"]);
  await closed(socket);
});

test("what the relay refuses has its code", live, async () => {
  const client = await open({username, credential: "wrong"});
  await assert.rejects(client.allocate(), (error) => error instanceof RemoteError && error.code === 401);
  client.close();
  const socket = await (await open()).allocate();
  await assert.rejects(socket.permit("10.0.0.1"), {name: "RemoteError", code: 403});
  await assert.rejects(socket.permit("::1"), {name: "RemoteError", code: 443});
  await closed(socket);
});

test("a path at which there is no relay is an UnavailableError", live, async () => {
  const wrong = connect(new URL("/healthz", RELAY_URL), {username, credential}, {WebSocket, crypto: webcrypto});
  await assert.rejects(wrong, UnavailableError);
});
