"""As much of STUN and TURN as a load generator speaks (RFC 8489, RFC 8656), apart from relayd's own. IPv4 only."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
from typing import NamedTuple

from bench.errors import BenchError

BINDING, ALLOCATE, REFRESH, CREATE_PERMISSION, CHANNEL_BIND = 0x001, 0x003, 0x004, 0x008, 0x009
CONNECT, CONNECTION_BIND, CONNECTION_ID = 0x00A, 0x00B, 0x002A  # RFC 6062 section 6
SUCCESS, ERROR = 0x100, 0x110
USERNAME, MESSAGE_INTEGRITY, ERROR_CODE, REALM, NONCE = 0x0006, 0x0008, 0x0009, 0x0014, 0x0015
CHANNEL_NUMBER, LIFETIME, XOR_PEER_ADDRESS, XOR_RELAYED_ADDRESS, REQUESTED_TRANSPORT = (
    0x000C,
    0x000D,
    0x0012,
    0x0016,
    0x0019,
)

MAGIC_COOKIE = 0x2112A442
_COOKIE_BYTES = MAGIC_COOKIE.to_bytes(4, "big")
HEADER_SIZE = 20
_INTEGRITY_SIZE = 24
"""A MESSAGE-INTEGRITY attribute with its header."""


class Message(NamedTuple):
    """A response: `kind` is the STUN message type; of repeated attributes the first counts."""

    kind: int
    transaction: bytes
    attributes: dict[int, bytes]

    @property
    def error(self) -> int:
        """The number in ERROR-CODE (RFC 8489 section 14.8), or 0."""
        value = self.attributes.get(ERROR_CODE)
        return value[2] * 100 + value[3] if value and len(value) >= 4 else 0


class Credentials(NamedTuple):
    """A long-term credential (RFC 8489 section 9.2), all of it ready for the attributes."""

    username: bytes
    realm: bytes
    nonce: bytes
    key: bytes


def long_term_key(username: str, realm: bytes, password: str) -> bytes:
    """The MD5 key (RFC 8489 section 9.2.2), which every server of today accepts."""
    return hashlib.md5(b":".join((username.encode(), realm, password.encode())), usedforsecurity=False).digest()


def request(method: int, attributes: list[tuple[int, bytes]], credentials: Credentials | None = None) -> bytes:
    """A request with a fresh transaction ID, and with MESSAGE-INTEGRITY if there are credentials."""
    if credentials is not None:
        attributes = [
            *attributes,
            (USERNAME, credentials.username),
            (REALM, credentials.realm),
            (NONCE, credentials.nonce),
        ]
    body = b"".join(_attribute(kind, value) for kind, value in attributes)
    transaction = os.urandom(12)
    if credentials is None:
        return struct.pack("!HHI", method, len(body), MAGIC_COOKIE) + transaction + body
    head = struct.pack("!HHI", method, len(body) + _INTEGRITY_SIZE, MAGIC_COOKIE) + transaction
    proof = hmac.digest(credentials.key, head + body, "sha1")
    return head + body + struct.pack("!HH", MESSAGE_INTEGRITY, len(proof)) + proof


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def parse(data: bytes) -> Message:
    """Read a whole STUN message. Raises BenchError for anything else: the server is broken, or is none."""
    if len(data) < HEADER_SIZE or data[4:8] != _COOKIE_BYTES:
        raise BenchError("the server answered with something that is not STUN")
    attributes: dict[int, bytes] = {}
    at, end = HEADER_SIZE, HEADER_SIZE + int.from_bytes(data[2:4], "big")
    if end > len(data):
        raise BenchError("the server answered with a truncated STUN message")
    while at + 4 <= end:
        kind, size = struct.unpack_from("!HH", data, at)
        attributes.setdefault(kind, data[at + 4 : at + 4 + size])
        at += 4 + size + -size % 4
    return Message(int.from_bytes(data[:2], "big"), data[8:20], attributes)


def xor_address(address: tuple[str, int]) -> bytes:
    """The value of an XOR-PEER-ADDRESS (RFC 8489 section 14.2)."""
    host, port = address
    number = int.from_bytes(socket.inet_aton(host), "big") ^ MAGIC_COOKIE
    return struct.pack("!BBHI", 0, 1, port ^ (MAGIC_COOKIE >> 16), number)


def address(value: bytes) -> tuple[str, int]:
    """The reverse of `xor_address`. Raises BenchError for IPv6."""
    if len(value) != 8:
        raise BenchError("the server gave a relayed address that is not IPv4")
    _, _, port, number = struct.unpack("!BBHI", value)
    return socket.inet_ntoa((number ^ MAGIC_COOKIE).to_bytes(4, "big")), port ^ (MAGIC_COOKIE >> 16)


def channel_data(number: int, payload: bytes, padded: bool = False) -> bytes:
    """ChannelData (RFC 8656 section 12.4); `padded` to four bytes as streams need it."""
    return struct.pack("!HH", number, len(payload)) + payload + (bytes(-len(payload) % 4) if padded else b"")


def message_size(head: bytes) -> int:
    """Size on a stream of the STUN or ChannelData message that begins with these 4 bytes, padding and all."""
    kind, size = head[0] << 8 | head[1], head[2] << 8 | head[3]
    return HEADER_SIZE + size if kind < 0x4000 else 4 + size + -size % 4
