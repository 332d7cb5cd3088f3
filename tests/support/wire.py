"""STUN and TURN as a stranger writes them: struct, hmac and hashlib only, sharing no line with relayd.

It can say things that a good client would not say; it checks nothing that a test does not ask it to check.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import socket
import struct
import zlib
from dataclasses import dataclass
from typing import Self

from tests.support.ports import family_of

COOKIE = 0x2112A442  # RFC 8489 section 5

BINDING, ALLOCATE, REFRESH, SEND, DATA, CREATE_PERMISSION, CHANNEL_BIND = 1, 3, 4, 6, 7, 8, 9
REQUEST, INDICATION, SUCCESS, ERROR = 0x000, 0x010, 0x100, 0x110

MAPPED_ADDRESS = 0x0001
USERNAME = 0x0006
MESSAGE_INTEGRITY = 0x0008
ERROR_CODE = 0x0009
UNKNOWN_ATTRIBUTES = 0x000A
CHANNEL_NUMBER = 0x000C
LIFETIME = 0x000D
XOR_PEER_ADDRESS = 0x0012
DATA_ATTRIBUTE = 0x0013
REALM = 0x0014
NONCE = 0x0015
XOR_RELAYED_ADDRESS = 0x0016
REQUESTED_ADDRESS_FAMILY = 0x0017
EVEN_PORT = 0x0018
REQUESTED_TRANSPORT = 0x0019
XOR_MAPPED_ADDRESS = 0x0020
RESERVATION_TOKEN = 0x0022
FINGERPRINT = 0x8028

UDP = struct.pack("!B3x", 17)  # the value of REQUESTED-TRANSPORT

Attributes = list[tuple[int, bytes]]
Address = tuple[str, int]


@dataclass(frozen=True)
class Message:
    """A message that came in. `raw` is what integrity is computed over."""

    method: int
    kind: int
    transaction: bytes
    attributes: Attributes
    raw: bytes

    def get(self, number: int) -> bytes | None:
        """The value of the first attribute of that number."""
        return next((value for found, value in self.attributes if found == number), None)

    def value(self, number: int) -> bytes:
        """The same where the attribute has to be there."""
        value = self.get(number)
        assert value is not None, f"attribute 0x{number:04x} is missing in {self!r}"
        return value

    @property
    def error(self) -> int:
        """The code in ERROR-CODE; 0 in a message that is no error response."""
        value = self.get(ERROR_CODE)
        return 0 if value is None else (value[2] & 7) * 100 + value[3]

    def address(self, number: int) -> Address:
        """An XOR-ed address attribute (RFC 8489 section 14.2)."""
        value = self.value(number)
        port = struct.unpack_from("!H", value, 2)[0] ^ (COOKIE >> 16)
        mask = struct.pack("!I", COOKIE) + self.transaction
        return str(ipaddress.ip_address(_xor(value[4:], mask))), port

    def integrity_holds(self, key: bytes) -> bool:
        """Whether MESSAGE-INTEGRITY is there and right for `key` (RFC 8489 section 14.5)."""
        offset = 20
        for number, value in self.attributes:
            if number == MESSAGE_INTEGRITY:
                covered = self.raw[:2] + struct.pack("!H", offset + 24 - 20) + self.raw[4:offset]
                return hmac.compare_digest(hmac.digest(key, covered, "sha1"), value)
            offset += 4 + len(value) + -len(value) % 4
        return False


def _xor(value: bytes, mask: bytes) -> bytes:
    """`value` masked with the beginning of `mask`."""
    return bytes(left ^ right for left, right in zip(value, mask[: len(value)], strict=True))


def xor_address(address: Address, transaction: bytes) -> bytes:
    """The value of an XOR-ed address attribute."""
    packed = ipaddress.ip_address(address[0]).packed
    mask = struct.pack("!I", COOKIE) + transaction
    family = 1 if len(packed) == 4 else 2
    return struct.pack("!xBH", family, address[1] ^ (COOKIE >> 16)) + _xor(packed, mask)


def encode(
    method: int,
    kind: int,
    attributes: Attributes,
    *,
    transaction: bytes,
    key: bytes | None = None,
    fingerprint: bool = False,
) -> bytes:
    """A whole message. With `key` MESSAGE-INTEGRITY comes after the attributes; FINGERPRINT, if wanted, is last."""
    head = ((method & 0xF80) << 2) | ((method & 0x70) << 1) | (method & 0xF) | kind
    body = b"".join(
        struct.pack("!HH", number, len(value)) + value + bytes(-len(value) % 4) for number, value in attributes
    )
    if key is not None:
        covered = struct.pack("!HHI", head, len(body) + 24, COOKIE) + transaction + body
        body += struct.pack("!HH", MESSAGE_INTEGRITY, 20) + hmac.digest(key, covered, "sha1")
    if fingerprint:
        covered = struct.pack("!HHI", head, len(body) + 8, COOKIE) + transaction + body
        body += struct.pack("!HHI", FINGERPRINT, 4, zlib.crc32(covered) ^ 0x5354554E)
    return struct.pack("!HHI", head, len(body), COOKIE) + transaction + body


def decode(raw: bytes) -> Message:
    """Take a message apart; ValueError if it is none, or if its length is not what the header says."""
    if len(raw) < 20 or raw[0] & 0xC0:
        raise ValueError(f"no STUN message: {raw[:40]!r}")
    head, length, cookie = struct.unpack_from("!HHI", raw)
    if cookie != COOKIE or length != len(raw) - 20 or length % 4:
        raise ValueError(f"a broken STUN header: {raw[:20]!r}, {len(raw)} bytes")
    attributes: Attributes = []
    offset = 20
    while offset < len(raw):
        number, size = struct.unpack_from("!HH", raw, offset)
        attributes.append((number, raw[offset + 4 : offset + 4 + size]))
        offset += 4 + size + -size % 4
    method = (head & 0x3E00) >> 2 | (head & 0xE0) >> 1 | head & 0xF
    return Message(method, head & 0x110, raw[8:20], attributes, raw)


def long_term_key(user: str, realm: str, password: str) -> bytes:
    """RFC 8489 section 9.2.2, for ASCII."""
    return hashlib.md5(f"{user}:{realm}:{password}".encode(), usedforsecurity=False).digest()


def channel_data(number: int, payload: bytes, padded: bool = False) -> bytes:
    """RFC 8656 section 12.4; `padded` as on a stream."""
    return struct.pack("!HH", number, len(payload)) + payload + (bytes(-len(payload) % 4) if padded else b"")


class StrangeClient:
    """One TURN client on a blocking socket of its own, over UDP or TCP. It waits `patience` seconds for an answer."""

    def __init__(self, server: Address, user: str, password: str, *, tcp: bool = False, patience: float = 5.0) -> None:
        self.user, self.password = user, password
        self.realm = ""
        self.nonce = b""
        self.key: bytes | None = None
        self.tcp = tcp
        self.socket = self._connected(server, patience)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def local(self) -> Address:
        host, port = self.socket.getsockname()[:2]
        return str(host), int(port)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> bytes:
        """The next datagram, or on TCP the next whole message with its padding. TimeoutError if none comes."""
        if not self.tcp:
            return self.socket.recv(65536)
        head = self._exactly(4)
        length = int.from_bytes(head[2:], "big")
        return head + self._exactly(16 + length if head[0] < 0x40 else length + -length % 4)

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing at all comes for so long."""
        before = self.socket.gettimeout()
        self.socket.settimeout(seconds)
        try:
            self.receive()
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(before)
        return False

    def ask(self, method: int, attributes: Attributes, *, signed: bool = True, fingerprint: bool = False) -> Message:
        """Send one request, as it stands, and wait for the answer to it, passing over what else comes in between."""
        transaction = os.urandom(12)
        self.send(self.request(method, attributes, transaction, signed=signed, fingerprint=fingerprint))
        return self.answer_to(transaction)

    def request(
        self, method: int, attributes: Attributes, transaction: bytes, *, signed: bool = True, fingerprint: bool = False
    ) -> bytes:
        """A request of this client's; `signed` adds credentials once the realm is known."""
        key = self.key if signed else None
        if key is not None:
            credentials = [(USERNAME, self.user.encode()), (REALM, self.realm.encode()), (NONCE, self.nonce)]
            attributes = [*attributes, *credentials]
        return encode(method, REQUEST, attributes, transaction=transaction, key=key, fingerprint=fingerprint)

    def answer_to(self, transaction: bytes) -> Message:
        while True:
            raw = self.receive()
            if raw[0] < 0x40 and raw[8:20] == transaction:
                return decode(raw)

    def learn(self, challenge: Message) -> None:
        """Take realm and nonce from a 401 or 438."""
        self.realm, self.nonce = challenge.value(REALM).decode(), challenge.value(NONCE)
        self.key = long_term_key(self.user, self.realm, self.password)

    def allocate(self, *more: tuple[int, bytes]) -> Message:
        """Allocate: first without credentials, then with. The last answer, whatever it is."""
        attributes = [(REQUESTED_TRANSPORT, UDP), *more]
        if self.key is None:
            challenge = self.ask(ALLOCATE, attributes)
            assert challenge.error == 401, challenge
            self.learn(challenge)
        return self.ask(ALLOCATE, attributes)

    def permit(self, *peers: Address) -> Message:
        """CreatePermission for all of `peers` in one request."""
        transaction = os.urandom(12)
        attributes = [(XOR_PEER_ADDRESS, xor_address(peer, transaction)) for peer in peers]
        self.send(self.request(CREATE_PERMISSION, attributes, transaction))
        return self.answer_to(transaction)

    def bind_channel(self, number: int, peer: Address) -> Message:
        transaction = os.urandom(12)
        self.send(self.channel_bind_request(number, peer, transaction))
        return self.answer_to(transaction)

    def channel_bind_request(self, number: int, peer: Address, transaction: bytes) -> bytes:
        attributes = [(CHANNEL_NUMBER, struct.pack("!H2x", number)), (XOR_PEER_ADDRESS, xor_address(peer, transaction))]
        return self.request(CHANNEL_BIND, attributes, transaction)

    def send_indication(self, peer: Address, payload: bytes) -> None:
        transaction = os.urandom(12)
        attributes = [(XOR_PEER_ADDRESS, xor_address(peer, transaction)), (DATA_ATTRIBUTE, payload)]
        self.send(encode(SEND, INDICATION, attributes, transaction=transaction))

    def refresh(self, lifetime: int) -> Message:
        return self.ask(REFRESH, [(LIFETIME, struct.pack("!I", lifetime))])

    def _connected(self, server: Address, patience: float) -> socket.socket:
        connecting = socket.socket(family_of(server[0]), socket.SOCK_STREAM if self.tcp else socket.SOCK_DGRAM)
        connecting.settimeout(patience)
        connecting.connect(server)
        return connecting

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            piece = self.socket.recv(65536)
            if not piece:
                raise ConnectionError("the server closed the connection")
            self._buffer += piece
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken
