// The WebSocket of a browser on the sockets of Node, as far as relayd.js uses it: Node had none of its own before 22.

import {createHash, randomBytes} from "node:crypto";
import {connect as connectTcp} from "node:net";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455 section 1.3
const [BINARY, CLOSE, PING, PONG] = [2, 8, 9, 10];

export class WebSocket extends EventTarget {
  readyState = 0;
  #socket;
  #received = Buffer.alloc(0);
  #key = randomBytes(16).toString("base64");
  #code = 1006;

  constructor(url) {
    super();
    const {hostname, port, pathname, host} = new URL(url);
    this.#socket = connectTcp(Number(port), hostname.replace(/[[\]]/g, ""), () => {
      this.#socket.write(
        `GET ${pathname} HTTP/1.1\r\nHost: ${host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
          `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${this.#key}\r\n\r\n`,
      );
    });
    this.#socket.on("data", (data) => {
      this.#received = Buffer.concat([this.#received, data]);
      this.#read();
    });
    this.#socket.on("error", () => {});
    this.#socket.on("close", () => {
      this.readyState = 3;
      this.dispatchEvent(Object.assign(new Event("close"), {code: this.#code, reason: ""}));
    });
  }

  get bufferedAmount() {
    return this.#socket.writableLength; // what the kernel took is gone, however far it came
  }

  send(data) {
    this.#write(BINARY, Buffer.from(data));
  }

  close() {
    if (this.readyState === 1) this.#write(CLOSE, Buffer.from([0x03, 0xe8]));
    else this.#socket.destroy();
    this.readyState = Math.max(this.readyState, 2);
  }

  #write(opcode, data) {
    const mask = randomBytes(4);
    const size = data.length < 126 ? Buffer.from([data.length | 0x80]) : Buffer.from([126 | 0x80, data.length >> 8, data.length]);
    const masked = data.map((byte, at) => byte ^ mask[at & 3]);
    this.#socket.write(Buffer.concat([Buffer.from([0x80 | opcode]), size, mask, masked]));
  }

  #read() {
    if (this.readyState === 0) {
      const end = this.#received.indexOf("\r\n\r\n");
      if (end < 0) return;
      const answer = this.#received.subarray(0, end).toString("latin1");
      this.#received = this.#received.subarray(end + 4);
      const accept = createHash("sha1").update(this.#key + GUID).digest("base64");
      if (!answer.startsWith("HTTP/1.1 101 ") || !answer.includes(accept)) {
        this.#socket.destroy();
        return;
      }
      this.readyState = 1;
      this.dispatchEvent(new Event("open"));
    }
    for (let frame = this.#frame(); frame; frame = this.#frame()) this.#heard(...frame);
  }

  /** The next whole frame of the relay, which never fragments: [opcode, payload]. */
  #frame() {
    if (this.#received.length < 2) return null;
    let [at, size] = [2, this.#received[1]];
    if (size === 126) {
      if (this.#received.length < 4) return null;
      [at, size] = [4, this.#received.readUInt16BE(2)];
    }
    if (this.#received.length < at + size) return null;
    const frame = [this.#received[0] & 0xf, this.#received.subarray(at, at + size)];
    this.#received = this.#received.subarray(at + size);
    return frame;
  }

  #heard(opcode, payload) {
    if (opcode === PING) this.#write(PONG, payload);
    if (opcode === CLOSE) {
      this.#code = payload.length ? payload.readUInt16BE(0) : 1005;
      if (this.readyState === 1) this.close();
      this.#socket.end();
    }
    if (opcode !== BINARY) return;
    this.dispatchEvent(Object.assign(new Event("message"), {data: new Uint8Array(payload).buffer}));
  }
}
