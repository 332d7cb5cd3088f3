"""ChannelData (RFC 8656 section 12.4), and where messages end in a stream (section 12.5, RFC 8489 section 6.2.2)."""

from __future__ import annotations

import struct
from functools import lru_cache

from relayd.errors import DecodeError

CHANNEL_HEADER_SIZE = 4
STUN_HEADER_SIZE = 20
MIN_CHANNEL = 0x4000
# Deviation: RFC 8656 section 12 ends at 0x4FFF; clients of RFC 5766 (coturn's among them) pick from twice as many
# bits, and nothing else that reaches our ports begins with 0x50 to 0x7F (RFC 7983).
MAX_CHANNEL = 0x7FFF

CONNECTION_BIND = b"\x00\x0b"  # the type of that request (RFC 6062 section 6.1)

_MAGIC_COOKIE = b"\x21\x12\xa4\x42"
_CHANNEL_HEADER = struct.Struct("!HH")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def encode_channel_data(number: int, payload: bytes, *, padded: bool) -> bytes:
    """Frame up to 65,535 bytes; `padded` to four bytes where the path is a stream."""
    size = len(payload)
    if padded:
        return _CHANNEL_HEADER.pack(number, size) + payload + _PADDING[size & 3]
    return _CHANNEL_HEADER.pack(number, size) + payload


@lru_cache(maxsize=4096)  # a few sizes come again and again; what does not is made anew
def channel_frame(number: int, size: int, *, padded: bool) -> tuple[bytes, bytes]:
    """What `encode_channel_data` puts before and behind a payload of `size` bytes."""
    return _CHANNEL_HEADER.pack(number, size), _PADDING[size & 3] if padded else b""


def decode_channel_data(data: bytes) -> tuple[int, bytes]:
    """The channel number and payload of one ChannelData message. The length field counts, not the size of `data`:
    padding may follow even in a datagram. Raises DecodeError.
    """
    if len(data) < CHANNEL_HEADER_SIZE:
        raise DecodeError("shorter than a ChannelData header")
    number, size = _CHANNEL_HEADER.unpack_from(data)
    if not MIN_CHANNEL <= number <= MAX_CHANNEL:
        raise DecodeError("not a channel number")
    if CHANNEL_HEADER_SIZE + size > len(data):
        raise DecodeError("ChannelData longer than what carries it")
    return number, data[CHANNEL_HEADER_SIZE : CHANNEL_HEADER_SIZE + size]


def split_message(data: bytes) -> list[bytes]:
    """The STUN and ChannelData messages in one message of a transport that keeps its boundaries, such as WebSocket.

    Usually that is one; where there are several, each but the last is padded to four bytes. ChannelData comes out
    without its padding. Raises DecodeError unless all of `data` is whole messages, and at least one.
    """
    messages = []
    at, size = 0, len(data)
    while True:
        if size - at < CHANNEL_HEADER_SIZE:
            raise DecodeError("less than a message")
        end = at + _size_of(data, at)
        if end > size:
            raise DecodeError("a message that is not whole")
        messages.append(data[at:end])
        at = end + (at - end) % 4
        if at >= size:
            return messages


def _size_of(data: bytes, at: int) -> int:
    """How long the message is that begins there, by its own account. Raises DecodeError if none can begin so."""
    first = data[at]
    length = data[at + 2] << 8 | data[at + 3]
    if first < 0x40 and not length & 3 and _MAGIC_COOKIE.startswith(data[at + 4 : at + 8]):
        return STUN_HEADER_SIZE + length
    if 0x40 <= first < 0x80:
        return CHANNEL_HEADER_SIZE + length
    raise DecodeError("neither STUN nor ChannelData")


class StreamSplitter:
    """Cuts a byte stream into STUN and ChannelData messages. Holds back one incomplete message: less than 65,552 bytes.

    ChannelData comes out without its padding. Bytes that can begin neither are a DecodeError as soon as they can be
    told, and the stream is then of no further use.

    Behind a ConnectionBind request it stops: if that is granted, what follows is not TURN (RFC 6062 section 5.4).
    """

    __slots__ = ("_pending", "stopped")

    def __init__(self) -> None:
        self._pending = b""
        self.stopped = False  # behind a ConnectionBind

    @property
    def pending(self) -> int:
        """How many bytes of an incomplete message are held."""
        return len(self._pending)

    def go_on(self) -> list[bytes]:
        """The ConnectionBind was refused: the messages that came behind it. Raises DecodeError."""
        self.stopped = False
        return self.receive(b"")

    def rest(self) -> bytes:
        """It was granted: what came behind it, and belongs to a peer. No more is to be received here."""
        rest, self._pending = self._pending, b""
        return rest

    def receive(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes, in order.

        Raises DecodeError for what is no TURN stream; messages before the offending byte in the same `data` are lost
        with it.
        """
        if self._pending:
            data = self._pending + data
        if self.stopped:
            self._pending = data
            return []
        messages = []
        at, size = 0, len(data)
        while size - at >= CHANNEL_HEADER_SIZE:
            first = data[at]
            length = data[at + 2] << 8 | data[at + 3]
            if first < 0x40:
                end = step = at + STUN_HEADER_SIZE + length
                if length & 3 or not _MAGIC_COOKIE.startswith(data[at + 4 : at + 8]):
                    raise DecodeError("neither STUN nor ChannelData")
                if step <= size and data[at : at + 2] == CONNECTION_BIND:
                    self.stopped = True
                    self._pending = data[end:]
                    messages.append(data[at:end])
                    return messages
            elif first < 0x80:
                end = at + CHANNEL_HEADER_SIZE + length
                step = end + -length % 4
            else:
                raise DecodeError("neither STUN nor ChannelData")
            if step > size:
                break
            messages.append(data[at:end])
            at = step
        if at < size and data[at] >= 0x80:
            raise DecodeError("neither STUN nor ChannelData")
        self._pending = data[at:]
        return messages
