"""Reads the frames that a WebSocket client sends by the million: whole, small, binary, with one ChannelData in each.

Theory of operation. Autobahn reads a frame through some twenty calls and two copies of all that is behind it, 30 us of
which a message of 200 bytes needs 2. So what lies between two frames of Autobahn's is looked at here first: one
`struct` gives opcode, length, mask and the ChannelData header, which is unmasked by itself; then the message is, in
one operation on whole numbers. Whatever is unusual in the least (a fragment, another opcode, a reserved bit, no mask,
a length that is not the shortest, several messages, STUN, a size that does not fit) ends the run, and is Autobahn's.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from relayd.stun.framing import CHANNEL_HEADER_SIZE, MAX_CHANNEL, MIN_CHANNEL

MOST = 2048  # bytes in a frame that is read here: any datagram that an Ethernet carries whole

# RFC 6455 section 5.2: FIN and opcode 2; MASK and 7 bits of length; 126 says that 16 bits of it follow; masking key.
_LONG = struct.Struct("!HHII")
_SHORT = struct.Struct("!HII")
# Bound once: looking up attributes takes a tenth of what a frame does.
_unpack_long = _LONG.unpack_from
_number = int.from_bytes
_BINARY = 0x8280  # whole, binary, masked, empty
_BINARY_LONG = _BINARY | 126
_MASK_SIZE = 4
_LOWEST, _HIGHEST = MIN_CHANNEL << 16, MAX_CHANNEL << 16 | 0xFFFF  # ChannelData headers as numbers


class ChannelFrames(NamedTuple):
    """The `messages`, unmasked and without padding, in the first `size` bytes. `more`: a frame of the same kind has
    begun behind them and is not whole.
    """

    messages: list[bytes]
    size: int
    more: bool


def read_channel_frames(data: bytes) -> ChannelFrames:
    """As many as there are at the beginning of `data`, which is where a frame begins."""
    messages: list[bytes] = []
    append = messages.append
    at, size = 0, len(data)
    more = False
    # In a burst one header follows the other unchanged, and so does what it says.
    known, message_size, padding, times = -1, 0, 0, 0
    while size - at >= _LONG.size:  # what is shorter is as good as nothing, and can wait, or is Autobahn's
        opening, length, mask, header = _unpack_long(data, at)
        if opening == _BINARY_LONG:
            begin = at + 4 + _MASK_SIZE
            if not 126 <= length <= MOST:
                break
        else:
            length = opening - _BINARY
            if not CHANNEL_HEADER_SIZE <= length < 126:
                break
            opening, mask, header = _SHORT.unpack_from(data, at)
            begin = at + 2 + _MASK_SIZE
        header ^= mask
        if header != known:
            message_size = CHANNEL_HEADER_SIZE + (header & 0xFFFF)
            padding = -message_size % 4
            if not _LOWEST <= header <= _HIGHEST or message_size > length:
                break
            known, times = header, _times(message_size)
        if not message_size <= length <= message_size + padding:
            break
        end = begin + length
        if end > size:
            more = True
            break
        keys = mask * times >> padding * 8 if padding else mask * times
        masked = _number(data[begin : begin + message_size], "big")
        append((masked ^ keys).to_bytes(message_size, "big"))
        at = end
    return ChannelFrames(messages, at, more)


@lru_cache(maxsize=MOST + 1)
def _times(size: int) -> int:
    """What to multiply a masking key with, to have it again and again for at least `size` bytes."""
    return int.from_bytes(b"\0\0\0\1" * -(-size // _MASK_SIZE), "big")
