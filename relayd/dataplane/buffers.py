"""The memory that batches of datagrams are received into and sent from; no payload byte is touched in between.

Theory of operation. `Inbox` has `SLOTS` slots. recvmmsg puts the sender's address, and for client ports the first four
bytes (the ChannelData header), into a dense table, so that one pass of `struct` in C yields all keys of a batch; the
payload goes into the slot. To forward, an iovec per slot points at the payload where it lies (up), or four bytes before
it, where a ChannelData header is written (down, and across from client to client: `Frames`). Only lengths and headers
change from packet to packet. `Outbox` holds
the messages of one sendmmsg: each takes a stretch of those iovecs, one for a single datagram, several for a run that
UDP_SEGMENT splits.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

from relayd.address import TransportAddress
from relayd.dataplane.libc import (
    IOVEC,
    MMSGHDR_LENGTH,
    MMSGHDR_SIZE,
    MSGHDR,
    SEGMENT_CONTROL,
    SEGMENT_CONTROL_LENGTH,
    Memory,
    segment_control,
)
from relayd.dataplane.sockets import MAX_DATAGRAM

SLOTS = 64
"""Datagrams in a batch, and so segments in a run: the kernel allows 64 since UDP_SEGMENT came (Linux 4.18)."""

RUN_BYTES = 65_000
"""Most bytes in one UDP_SEGMENT send. With headers it has to fit the 65,535 bytes of an IP packet."""

HEADER = 4
"""Bytes of a ChannelData header."""

# Slots start at different offsets within a page; at the same one all payloads would compete for one cache set.
_STRIDE = 65_536 + 192
assert _STRIDE >= HEADER + MAX_DATAGRAM + 1

SOCKADDR_SIZE = {4: 16, 16: 28}
"""Bytes of struct sockaddr_in and sockaddr_in6, by the length of the IP address."""

_pack_message = MSGHDR.pack_into
_IPV4 = struct.Struct("=H2s4s8x")
_IPV6 = struct.Struct("=H2sI16sI")


def pack_sockaddr(address: TransportAddress) -> bytes:
    """As the kernel writes it, so that equal addresses are equal bytes."""
    port = address.port.to_bytes(2, "big")
    if len(address.ip) == 4:
        return _IPV4.pack(socket.AF_INET, port, address.ip)
    return _IPV6.pack(socket.AF_INET6, port, 0, address.ip, address.scope)


def unpack_sockaddr(sockaddr: bytes) -> TransportAddress:
    """The address in a sockaddr_in or sockaddr_in6."""
    port = int.from_bytes(sockaddr[2:4], "big")
    if len(sockaddr) == 16:
        return TransportAddress(sockaddr[4:8], port)
    return TransportAddress(sockaddr[8:24], port, int.from_bytes(sockaddr[24:28], sys.byteorder))


class Frames:
    """The slots of an inbox as ChannelData: `headers` and `sizes` are to be written, `gather` has the iovecs."""

    __slots__ = ("headers", "sizes", "gather", "_iovecs")

    def __init__(self, payload: Memory) -> None:
        self._iovecs = Memory(SLOTS * IOVEC.size)
        for slot in range(SLOTS):
            IOVEC.pack_into(self._iovecs.view, slot * IOVEC.size, payload.at + slot * _STRIDE, 0)
        self.headers: Any = payload.view.cast("I")[:: _STRIDE // 4]
        self.sizes: Any = self._iovecs.view.cast("Q")[1 :: IOVEC.size // 8]
        self.gather = [self._iovecs.at + slot * IOVEC.size for slot in range(SLOTS)]


class Inbox:
    """Where recvmmsg puts a batch, for sockets of one address family.

    With `split` the first four bytes of each datagram land in the table of heads, behind the sender's address.
    """

    def __init__(self, name_size: int, split: bool) -> None:
        self.name_size = name_size
        self._split = split
        self.filled = 0  # slots that hold what is yet to be sent
        head = self._head_size = name_size + (HEADER if split else 0)
        self._payload = Memory(SLOTS * _STRIDE)
        self._heads = Memory(SLOTS * head)
        self._heads_raw = self._heads.raw
        self._messages = Memory(SLOTS * MMSGHDR_SIZE)
        self._messages.view[:] = bytes(SLOTS * MMSGHDR_SIZE)
        parts = 2 if split else 1
        self._scatter = Memory(SLOTS * parts * IOVEC.size)
        self._payloads = Memory(SLOTS * IOVEC.size)
        self._payload_at = [slot * _STRIDE + HEADER for slot in range(SLOTS)]
        for slot, payload in enumerate(self._payload_at):
            iovec = slot * parts * IOVEC.size
            name = self._heads.at + slot * head
            MSGHDR.pack_into(
                self._messages.view, slot * MMSGHDR_SIZE, name, name_size, self._scatter.at + iovec, parts, 0, 0
            )
            if split:
                IOVEC.pack_into(self._scatter.view, iovec, name + name_size, HEADER)
                iovec += IOVEC.size
            IOVEC.pack_into(self._scatter.view, iovec, self._payload.at + payload, MAX_DATAGRAM)
            IOVEC.pack_into(self._payloads.view, slot * IOVEC.size, self._payload.at + payload, 0)
        self._head_format = struct.Struct(f"!{name_size + 2}sH" if split else f"={name_size}s")
        self.messages = [self._messages.pointer(slot * MMSGHDR_SIZE) for slot in range(SLOTS)]
        # Views with a stride: an index is a slot, and neither bytes nor attributes are looked at on the way.
        self.lengths = self._messages.view.cast("I")[MMSGHDR_LENGTH // 4 :: MMSGHDR_SIZE // 4]
        self.sizes = self._payloads.view.cast("Q")[1 :: IOVEC.size // 8]
        self.gather = [self._payloads.at + slot * IOVEC.size for slot in range(SLOTS)]
        self.frames = Frames(self._payload)

    def heads(self, first: int, count: int) -> Any:
        """Of each datagram: (address and channel number, length field) if `split`, or (address,)."""
        return self._head_format.iter_unpack(
            self._heads.view[first * self._head_size : (first + count) * self._head_size]
        )

    def first_head(self) -> tuple[bytes, int]:
        """As `heads` if `split`, of the first datagram: for one alone this is quicker."""
        head = self._heads_raw[: self._head_size]
        return head[:-2], head[-2] << 8 | head[-1]

    def name(self, slot: int) -> bytes:
        """The address of the sender. Only where not `split`: for one datagram this is quicker than `heads`."""
        start = slot * self.name_size
        name: bytes = self._heads_raw[start : start + self.name_size]
        return name

    def payload(self, slot: int, size: int) -> bytes:
        """A copy of `size` bytes of payload: behind the ChannelData header if `split`."""
        start = self._payload_at[slot]
        copy: bytes = self._payload.raw[start : start + size]
        return copy

    def payloads(self, first: int, count: int, size: int) -> list[bytes]:
        """As `payload`, for `count` slots from `first`."""
        raw = self._payload.raw
        return [raw[start : start + size] for start in self._payload_at[first : first + count]]

    def datagram(self, slot: int, length: int) -> bytes:
        """A copy of the whole datagram."""
        if not self._split:
            return self.payload(slot, length)
        start = slot * self._head_size + self.name_size
        head: bytes = self._heads.raw[start : start + min(length, HEADER)]
        return head + self.payload(slot, length - HEADER) if length > HEADER else head


class Outbox:
    """The messages of one sendmmsg, or of one sendmsg."""

    def __init__(self) -> None:
        self._messages = Memory(SLOTS * MMSGHDR_SIZE)
        self._messages.view[:] = bytes(SLOTS * MMSGHDR_SIZE)
        self._controls = Memory(SLOTS * SEGMENT_CONTROL.size)
        for index in range(SLOTS):
            offset = index * SEGMENT_CONTROL.size
            self._controls.view[offset : offset + SEGMENT_CONTROL.size] = segment_control(0)
        self._segments = self._controls.view.cast("H")[SEGMENT_CONTROL_LENGTH // 2 - 1 :: SEGMENT_CONTROL.size // 2]
        self._view = self._messages.view
        self.messages = [self._messages.pointer(index * MMSGHDR_SIZE) for index in range(SLOTS)]

    def put(self, index: int, name: int, name_size: int, gather: int, count: int, segment: int) -> None:
        """Message `index`: `count` iovecs from `gather` to the sockaddr at `name`, split every `segment` bytes."""
        if count == 1:
            _pack_message(self._view, index * MMSGHDR_SIZE, name, name_size, gather, 1, 0, 0)
            return
        self._segments[index] = segment
        control = self._controls.at + index * SEGMENT_CONTROL.size
        MSGHDR.pack_into(
            self._view, index * MMSGHDR_SIZE, name, name_size, gather, count, control, SEGMENT_CONTROL.size
        )
