"""As much of WebSocket as a load generator speaks (RFC 6455): the handshake, and whole binary messages."""

from __future__ import annotations

import os
import socket

from bench import wire
from bench.client import StreamExchange
from bench.errors import BenchError

MASK = 4
"""Bytes of a masking key."""
_BINARY = 0x82
_HANDSHAKE = (
    b"GET /turn HTTP/1.1\r\nHost: bench.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def masked_frame(message: bytes) -> bytes:
    """A binary message as a client sends it, with a fresh masking key (section 5.3)."""
    mask = os.urandom(MASK)
    payload = bytes(byte ^ mask[index % MASK] for index, byte in enumerate(message))
    return _header(len(message), 0x80) + mask + payload


def plain_frame(message: bytes) -> bytes:
    """A binary message as a server sends it."""
    return _header(len(message), 0) + message


def _header(size: int, masked: int) -> bytes:
    if size < 126:
        return bytes((_BINARY, masked | size))
    return bytes((_BINARY, masked | 126)) + size.to_bytes(2, "big")


class WebSocketExchange(StreamExchange):
    """Over a WebSocket on a TCP or TLS connection. Raises BenchError if the server will have none."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        try:
            sock.sendall(_HANDSHAKE)
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += self._read(1)
        except OSError as error:
            raise BenchError(f"the server did not answer a WebSocket handshake: {error}") from error
        if not answer.startswith(b"HTTP/1.1 101 "):
            raise BenchError(f"the server refused a WebSocket: {answer.splitlines()[0].decode(errors='replace')}")

    def exchange(self, data: bytes) -> bytes:
        """A message each way."""
        return super().exchange(masked_frame(data))

    def _read_message(self) -> bytes:
        opening, size = self._read(2)
        if opening != _BINARY or size > 126:
            raise BenchError("the server sent a frame that is no answer")
        if size == 126:
            size = int.from_bytes(self._read(2), "big")
        message = self._read(size)
        if len(message) < 4 or wire.message_size(message[:4]) != size:
            raise BenchError("the server sent a WebSocket message that is no STUN message")
        return message
