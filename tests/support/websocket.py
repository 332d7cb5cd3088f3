"""A TURN client on a WebSocket that is written by hand, over TLS, from a local address of its choice.

Like `tests.support.wire` it shares no code with the relay.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping

from tests.support.ports import family_of
from tests.support.wire import Address, StrangeClient

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3


class Closed(ConnectionError):
    """The server closed the WebSocket, with that code; None if it hung up without one."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


class Refused(ConnectionError):
    """The server answered the handshake with that status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"refused with {status}")
        self.status = status


class StrangeWebSocket(StrangeClient):
    """One TURN client at wss://localhost/turn, wherever that is. Raises Refused, and Closed later."""

    def __init__(
        self,
        server: Address,
        user: str,
        password: str,
        trusted: str,
        *,
        source: str = "",
        headers: Mapping[str, str] | None = None,
        patience: float = 10.0,
    ) -> None:
        """`trusted` is the file of the certificate; `source` an address of ours; `headers` go with the handshake."""
        self._source = source
        self._trusted = trusted
        self._headers = headers or {}
        self.pings = 0
        super().__init__(server, user, password, tcp=True, patience=patience)
        self._open()

    def send(self, data: bytes) -> None:
        self.send_frame(BINARY, data)

    def receive(self) -> bytes:
        """The next message. Pings that come before it are answered."""
        while True:
            opcode, payload = self._frame()
            if opcode == BINARY:
                return payload
            if opcode == CLOSE:
                raise Closed(int.from_bytes(payload[:2]) if payload else None)
            if opcode == PING:
                self.pings += 1
                self.send_frame(PONG, payload)

    def send_frame(self, opcode: int, payload: bytes) -> None:
        """One frame, final and masked."""
        size = len(payload)
        length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))
        self.socket.sendall(bytes([0x80 | opcode, 0x80 | length[0]]) + length[1:] + mask + masked)

    def _connected(self, server: Address, patience: float) -> socket.socket:
        plain = socket.socket(family_of(server[0]), socket.SOCK_STREAM)
        plain.settimeout(patience)
        if self._source:
            plain.bind((self._source, 0))
        plain.connect(server)
        context = ssl.create_default_context(cafile=self._trusted)
        return context.wrap_socket(plain, server_hostname="localhost")

    def _open(self) -> None:
        headers = {
            "Host": "localhost",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": KEY,
            **self._headers,
        }
        lines = ["GET /turn HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._exactly(1)
        answer = head.decode().split("\r\n")
        status = int(answer[0].split(" ", 2)[1])
        if status != 101:
            self.socket.close()
            raise Refused(status)
        assert any(line.lower() == f"sec-websocket-accept: {ACCEPT.lower()}" for line in answer), answer

    def _frame(self) -> tuple[int, bytes]:
        first, size = self._exactly(2)
        assert first & 0xF0 == 0x80, "the relay sends whole messages"
        if size >= 126:
            size = int.from_bytes(self._exactly(2 if size == 126 else 8))
        return first & 0x0F, self._exactly(size)
