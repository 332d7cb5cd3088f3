"""BFCP messages (RFC 8855) as bytes and back, as far as tests need them: no fragments, and no rules of who says what.

Those are in `tests.support.floor_control`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

# Section 5.1: the version tells the kind of transport.
RELIABLE = 1
UNRELIABLE = 2

_HEADER = struct.Struct(">BBHIHH")  # version and flags, primitive, length, conference, transaction, user
_WORD = 4  # bytes: the unit of the payload length, and what attributes are padded to
_RESPONDER = 0x10
_FRAGMENT = 0x08
_MANDATORY = 0x01
_MAX_ATTRIBUTE = 255  # bytes, with the two of its head


class BfcpError(ValueError):
    """The bytes are no BFCP message, or none that is understood here."""


class Primitive(IntEnum):
    """Section 5.1."""

    FLOOR_REQUEST = 1
    FLOOR_RELEASE = 2
    FLOOR_REQUEST_STATUS = 4
    HELLO = 11
    HELLO_ACK = 12
    ERROR = 13
    FLOOR_REQUEST_STATUS_ACK = 14
    GOODBYE = 16
    GOODBYE_ACK = 17


class AttributeType(IntEnum):
    """Section 5.2."""

    FLOOR_ID = 2
    FLOOR_REQUEST_ID = 3
    REQUEST_STATUS = 5
    ERROR_CODE = 6
    ERROR_INFO = 7
    PARTICIPANT_PROVIDED_INFO = 8
    SUPPORTED_ATTRIBUTES = 10
    SUPPORTED_PRIMITIVES = 11
    FLOOR_REQUEST_INFORMATION = 15
    FLOOR_REQUEST_STATUS = 17
    OVERALL_REQUEST_STATUS = 18


class RequestStatus(IntEnum):
    """Section 5.2.5."""

    ACCEPTED = 2
    GRANTED = 3
    RELEASED = 6


class ErrorCode(IntEnum):
    """Section 5.2.6."""

    NO_SUCH_CONFERENCE = 1
    NO_SUCH_USER = 2
    UNKNOWN_PRIMITIVE = 3
    INVALID_FLOOR = 6
    NO_SUCH_FLOOR_REQUEST = 7


@dataclass(frozen=True)
class Attribute:
    """One attribute; `value` is what follows the two bytes of its head, without padding."""

    type: int
    value: bytes
    is_mandatory: bool = False

    @property
    def number(self) -> int:
        """An identifier, or that before a group."""
        return int.from_bytes(self.value[:2])

    @property
    def group(self) -> tuple[Attribute, ...]:
        """What is in a grouped attribute, behind its identifier."""
        return tuple(_decode_attributes(self.value[2:]))


def identifier(kind: AttributeType, number: int) -> Attribute:
    """FLOOR-ID, FLOOR-REQUEST-ID."""
    return Attribute(kind, number.to_bytes(2))


def request_status(status: RequestStatus, position: int = 0) -> Attribute:
    """REQUEST-STATUS; the position in the queue is 0 where there is none."""
    return Attribute(AttributeType.REQUEST_STATUS, bytes([status, position]))


def group(kind: AttributeType, number: int, *attributes: Attribute) -> Attribute:
    """A grouped attribute, which begins with an identifier. Its length counts the padding within (section 5.2)."""
    return Attribute(kind, number.to_bytes(2) + _encode_attributes(attributes))


@dataclass(frozen=True)
class Message:
    """One message. `is_response` has a meaning, and is sent, on unreliable transports only."""

    primitive: int
    conference: int
    transaction: int
    user: int
    attributes: tuple[Attribute, ...] = ()
    version: int = RELIABLE
    is_response: bool = False

    def get(self, kind: AttributeType) -> Attribute:
        """The first attribute of that type. Raises `BfcpError` where there is none."""
        return find(self.attributes, kind)


def find(attributes: Iterable[Attribute], kind: AttributeType) -> Attribute:
    """The first of that type. Raises `BfcpError` where there is none."""
    for attribute in attributes:
        if attribute.type == kind:
            return attribute
    raise BfcpError(f"there is no {kind.name}")


def encode(message: Message) -> bytes:
    """The message in one piece (section 5.1)."""
    payload = _encode_attributes(message.attributes)
    flags = message.version << 5
    if message.is_response and message.version == UNRELIABLE:
        flags |= _RESPONDER
    header = _HEADER.pack(
        flags, message.primitive, len(payload) // _WORD, message.conference, message.transaction, message.user
    )
    return header + payload


def decode(data: bytes) -> Message:
    """One whole message. Raises `BfcpError`."""
    if len(data) < _HEADER.size:
        raise BfcpError(f"{len(data)} bytes are no header")
    flags, primitive, words, conference, transaction, user = _HEADER.unpack_from(data)
    version = flags >> 5
    if version not in (RELIABLE, UNRELIABLE):
        raise BfcpError(f"version {version}")
    if flags & _FRAGMENT:
        raise BfcpError("fragments are not understood here")
    payload = data[_HEADER.size :]
    if len(payload) != words * _WORD:
        raise BfcpError(f"{len(payload)} bytes of payload instead of {words * _WORD}")
    is_response = version == UNRELIABLE and bool(flags & _RESPONDER)
    attributes = tuple(_decode_attributes(payload))
    return Message(primitive, conference, transaction, user, attributes, version, is_response)


class MessageSplitter:
    """Finds the messages in a stream, by their payload length."""

    def __init__(self) -> None:
        self._waiting = b""

    def receive(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole now. Raises `BfcpError`, after which there is no going on."""
        self._waiting += data
        while len(self._waiting) >= _HEADER.size:
            size = _HEADER.size + _HEADER.unpack_from(self._waiting)[2] * _WORD
            if len(self._waiting) < size:
                return
            message, self._waiting = self._waiting[:size], self._waiting[size:]
            yield decode(message)


def _encode_attributes(attributes: Iterable[Attribute]) -> bytes:
    encoded = b""
    for attribute in attributes:
        size = 2 + len(attribute.value)
        if size > _MAX_ATTRIBUTE:
            raise BfcpError(f"an attribute of {size} bytes")
        encoded += bytes([attribute.type << 1 | attribute.is_mandatory, size]) + attribute.value + bytes(-size % _WORD)
    return encoded


def _decode_attributes(data: bytes) -> Iterator[Attribute]:
    while data:
        if len(data) < _WORD:
            raise BfcpError(f"{len(data)} bytes are no attribute")
        head, size = data[0], data[1]
        padded = size + -size % _WORD
        if size < 2 or padded > len(data):
            raise BfcpError(f"an attribute of {size} bytes in {len(data)}")
        yield Attribute(head >> 1, data[2:size], bool(head & _MANDATORY))
        data = data[padded:]
