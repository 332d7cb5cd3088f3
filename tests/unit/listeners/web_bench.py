"""A `web` listener on a simulated clock, and a client that writes its frames by hand."""

from __future__ import annotations

from typing import Any

from relayd.config import ListenerSettings
from relayd.listeners.web import WebListener
from relayd.web.pages import make_pages
from tests.unit.listeners.test_connection import CLIENT, SERVER, Bench, Transport

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MASK = b"\x37\xfa\x21\x3d"


def handshake(*more: str, path: str = "/turn") -> bytes:
    """The request that opens a WebSocket, with `more` header lines."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: relay.example.org",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY}",
        *more,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0) -> bytes:
    """One frame as a client sends it (RFC 6455 section 5.2)."""
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65536 else b"\x7f" + size.to_bytes(8)
    if masked:
        length = bytes([length[0] | 0x80]) + length[1:] + MASK
        payload = bytes(byte ^ MASK[at & 3] for at, byte in enumerate(payload))
    return bytes([fin << 7 | rsv << 4 | opcode]) + length + payload


def frames_in(data: bytes) -> list[tuple[int, bytes]]:
    """The opcode and payload of each frame that a server sent: whole, final and unmasked."""
    found = []
    while data:
        assert data[0] & 0xF0 == 0x80
        size, at = data[1], 2
        assert size < 0x80
        if size >= 126:
            at += 2 if size == 126 else 8
            size = int.from_bytes(data[2:at])
        assert len(data) >= at + size
        found.append((data[0] & 0x0F, data[at : at + size]))
        data = data[at + size :]
    return found


class WebTransport(Transport):
    """Keeps what HTTP writes, too."""

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))


class WebBench(Bench):
    """Connections to a `web` listener."""

    listener: Any
    transport_class = WebTransport

    def __init__(self, description: str = "tcp:8080", address: Any = SERVER, **settings: Any) -> None:
        super().__init__(description, address, **settings)
        service: Any = self.service
        port: Any = self.port
        chosen = ListenerSettings(**settings)
        self.listener = WebListener(description, self.clock, service, chosen, make_pages(chosen))
        self.listener.listening(port)

    def open(self, *more: str, peer: Any = CLIENT, tls: bool = False) -> tuple[Any, Any]:
        """A WebSocket; what was written to open it is forgotten."""
        client, transport = self.connect(peer, tls=tls)
        client.dataReceived(handshake(*more))
        assert transport.writes[0].startswith(b"HTTP/1.1 101 ")
        transport.writes.clear()
        return client, transport


def sent(transport: Any) -> list[tuple[int, bytes]]:
    """The frames that were written since the last call."""
    data = b"".join(transport.writes)
    transport.writes.clear()
    return frames_in(data)


def close_code(transport: Any) -> int:
    """The code of the one Close frame that was written, which is the last frame."""
    opcode, payload = sent(transport)[-1]
    assert opcode == CLOSE
    return int.from_bytes(payload[:2])
