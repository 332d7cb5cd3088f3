// Compiles only if the types of relayd.js are what its documentation says. It is never run.

import { type Allocation, type Peer, RedirectionError, RemoteError, connect } from "relayd";

export async function greet(url: string): Promise<Peer> {
  const client = await connect(url, { username: "alice", credential: "correct-horse" });
  const socket: Allocation = await client.allocate({ family: "both" });
  socket.addEventListener("message", ({ data, peer }) => socket.send(new Uint8Array(data), peer));
  socket.addEventListener("close", ({ error }) => {
    if (error instanceof RedirectionError) console.log(error.alternateServer.address);
    if (error instanceof RemoteError) console.log(error.code.toFixed());
  });
  const sent: boolean = socket.send(new ArrayBuffer(4), "192.0.2.1:7");
  // @ts-expect-error: a datagram is bytes
  socket.send("text", "192.0.2.1:7");
  // @ts-expect-error: both are needed
  await connect(url, { username: "alice" });
  return sent ? socket.relayedAddresses[0] : { address: "::1", port: 1 };
}
