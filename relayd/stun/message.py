"""STUN messages as values: reading and writing whole messages (RFC 8489 section 5), without judging what they ask for.

`decode` reads the frame of a message and leaves its attribute values as bytes: they are decoded when asked for, so a
message that is refused early costs little. Order and repeats are kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, TypeVar

from relayd.errors import DecodeError
from relayd.stun import attributes as a
from relayd.stun.attributes import ATTRIBUTES, MAGIC_COOKIE, Attribute
from relayd.stun.integrity import IntegrityProof, fingerprint, mac

HEADER_SIZE = 20
TRANSACTION_ID_SIZE = 12
MAX_MESSAGE = HEADER_SIZE + 0xFFFC  # bytes; the length field is a multiple of four
MAX_ATTRIBUTES = 0xFFFC - 44  # bytes of a message that we write: leaves room for integrity (4 + 32) and fingerprint (8)

_HEADER = struct.Struct("!HHI12s")
_TLV = struct.Struct("!HH")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by size modulo four

_MI = a.MESSAGE_INTEGRITY.code
_MI_SHA256 = a.MESSAGE_INTEGRITY_SHA256.code
_FINGERPRINT = a.FINGERPRINT.code
_SHA1_SIZE = 20
# RFC 8489 section 14.6: truncated only where the usage of STUN allows it, and neither RFC 8656 nor RFC 5780 does.
_SHA256_SIZE = 32

T = TypeVar("T")


class Class(IntEnum):
    """Message classes (RFC 8489 section 5)."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


class Method(IntEnum):
    """Methods of STUN (RFC 8489 section 18.2), TURN (RFC 8656 section 17) and TCP relaying (RFC 6062 section 6.1)."""

    BINDING = 0x001
    ALLOCATE = 0x003
    REFRESH = 0x004
    SEND = 0x006
    DATA = 0x007
    CREATE_PERMISSION = 0x008
    CHANNEL_BIND = 0x009
    CONNECT = 0x00A
    CONNECTION_BIND = 0x00B
    CONNECTION_ATTEMPT = 0x00C


_CLASSES = tuple(Class)
_CLASS_BITS = (0x000, 0x010, 0x100, 0x110)


def pack_type(method: int, cls: Class) -> int:
    """Interleave method and class into the 14-bit message type (RFC 8489 figure 3)."""
    return (method & 0xF80) << 2 | (method & 0x70) << 1 | method & 0xF | _CLASS_BITS[cls]


def unpack_type(value: int) -> tuple[int, Class]:
    """The method and class of a message type."""
    method = value & 0xF | (value & 0xE0) >> 1 | (value & 0x3E00) >> 2
    return method, _CLASSES[(value & 0x10) >> 4 | (value & 0x100) >> 7]


class Message:
    """One received message. `attributes` are those that count, in order, as (type, raw value).

    What follows message integrity does not count (RFC 8489 sections 14.5 and 14.6) and is not in it; neither are the
    integrity and fingerprint attributes themselves.
    """

    __slots__ = ("method", "cls", "transaction_id", "attributes", "_raw", "_sha1_at", "_sha256_at")

    def __init__(
        self,
        method: int,
        cls: Class,
        transaction_id: bytes,
        attributes: list[tuple[int, bytes]],
        raw: bytes = b"",
        sha1_at: int = 0,
        sha256_at: int = 0,
    ) -> None:
        self.method = method
        self.cls = cls
        self.transaction_id = transaction_id
        self.attributes = attributes
        self._raw = raw
        self._sha1_at = sha1_at
        self._sha256_at = sha256_at

    def get(self, attribute: Attribute[T]) -> T | None:
        """The first occurrence, which is the one that counts, or None. Raises DecodeError for a malformed value."""
        code = attribute.code
        for present, raw in self.attributes:
            if present == code:
                return attribute.decode(raw, self.transaction_id)
        return None

    def get_all(self, attribute: Attribute[T]) -> list[T]:
        """Every occurrence in order. Raises DecodeError for a malformed value."""
        code = attribute.code
        return [attribute.decode(raw, self.transaction_id) for present, raw in self.attributes if present == code]

    def __contains__(self, attribute: Attribute[Any]) -> bool:
        code = attribute.code
        return any(present == code for present, _ in self.attributes)

    def unknown_required(self) -> tuple[int, ...]:
        """The comprehension-required types that the table does not have, each once, for a 420."""
        unknown = {code: None for code, _ in self.attributes if code < 0x8000 and code not in ATTRIBUTES}
        return tuple(unknown)

    @property
    def has_sha256(self) -> bool:
        """Whether MESSAGE-INTEGRITY-SHA256 is there."""
        return self._sha256_at > 0

    @property
    def has_integrity(self) -> bool:
        """Whether either kind of message integrity is there."""
        return self._sha1_at > 0 or self._sha256_at > 0

    def proof(self) -> IntegrityProof | None:
        """What the message integrity claims; SHA-256 where both are present, since then it is the one that counts."""
        at, digest = (self._sha256_at, "sha256") if self._sha256_at else (self._sha1_at, "sha1")
        if not at:
            return None
        raw = self._raw
        size = raw[at + 2] << 8 | raw[at + 3]
        # The length covers everything up to and including the integrity attribute (RFC 8489 section 14.5).
        covered = raw[:2] + (at + 4 + size - HEADER_SIZE).to_bytes(2, "big") + raw[4:at]
        return IntegrityProof(covered, raw[at + 4 : at + 4 + size], digest)

    def __repr__(self) -> str:
        return f"<Message {self.method:#05x} {self.cls.name} {self.transaction_id.hex()}>"


def decode(data: bytes) -> Message:
    """Read one whole message, 20 to 65,552 bytes, with nothing behind it. Raises DecodeError and nothing else.

    A FINGERPRINT is checked where there is one, and must be last.
    """
    size = len(data)
    if size < HEADER_SIZE:
        raise DecodeError("shorter than a STUN header")
    kind, length, cookie, transaction_id = _HEADER.unpack_from(data)
    if kind > 0x3FFF or cookie != MAGIC_COOKIE:
        raise DecodeError("not STUN")
    if length & 3 or length + HEADER_SIZE != size:
        raise DecodeError("wrong length")
    found: list[tuple[int, bytes]] = []
    sha1_at = sha256_at = 0
    at = HEADER_SIZE
    while at < size:
        # Both sizes are multiples of four, so a type and a length are there whenever anything is.
        code, length = _TLV.unpack_from(data, at)
        value_at = at + 4
        end = value_at + length
        if end > size:
            raise DecodeError("attribute longer than its message")
        if code == _FINGERPRINT:
            if end != size or length != 4 or int.from_bytes(data[value_at:end], "big") != fingerprint(data[:at]):
                raise DecodeError("wrong fingerprint")
        elif code == _MI_SHA256:
            if not sha256_at:
                if length != _SHA256_SIZE:
                    raise DecodeError("wrong size of MESSAGE-INTEGRITY-SHA256")
                sha256_at = at
        elif sha256_at or sha1_at:
            pass
        elif code == _MI:
            if length != _SHA1_SIZE:
                raise DecodeError("wrong size of MESSAGE-INTEGRITY")
            sha1_at = at
        else:
            found.append((code, data[value_at:end]))
        at = end + -length % 4
    method, cls = unpack_type(kind)
    return Message(method, cls, transaction_id, found, data, sha1_at, sha256_at)


def encode(
    method: int,
    cls: Class,
    transaction_id: bytes,
    attributes: Iterable[tuple[Attribute[Any], Any]] = (),
    *,
    key: bytes | None = None,
    sha256: bool = False,
    with_fingerprint: bool = False,
) -> bytes:
    """Write one message. With `key` it is signed with MESSAGE-INTEGRITY, or MESSAGE-INTEGRITY-SHA256 if `sha256`.

    Padding is zeros. Raises ValueError where the attributes, with their headers and padding, exceed MAX_ATTRIBUTES.
    """
    parts: list[bytes] = []
    for attribute, value in attributes:
        raw = attribute.encode(value, transaction_id)
        length = len(raw)
        if length > MAX_ATTRIBUTES:
            raise ValueError("attribute too long for a STUN message")
        parts += _TLV.pack(attribute.code, length), raw, _PADDING[length & 3]
    body = b"".join(parts)
    size = len(body)
    if size > MAX_ATTRIBUTES:
        raise ValueError("attributes too long for one STUN message")
    kind = pack_type(method, cls)
    if key is not None:
        code, digest, mac_size = (_MI_SHA256, "sha256", _SHA256_SIZE) if sha256 else (_MI, "sha1", _SHA1_SIZE)
        size += 4 + mac_size
        covered = _HEADER.pack(kind, size, MAGIC_COOKIE, transaction_id) + body
        signature = _TLV.pack(code, mac_size) + mac(key, covered, digest)
        if not with_fingerprint:
            return covered + signature
        body += signature
    if with_fingerprint:
        size += 8
        covered = _HEADER.pack(kind, size, MAGIC_COOKIE, transaction_id) + body
        return covered + _TLV.pack(_FINGERPRINT, 4) + fingerprint(covered).to_bytes(4, "big")
    return _HEADER.pack(kind, size, MAGIC_COOKIE, transaction_id) + body
