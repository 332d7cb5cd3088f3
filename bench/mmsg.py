"""Batches of datagrams through ``sendmmsg`` and ``recvmmsg``, built once and sent many times. IPv4; Linux.

The generator has to be cheaper than the servers that it loads, so nothing is built or parsed while packets move: a
`SendBatch` keeps its payloads, destinations and source addresses in C memory, and a `ReceiveBatch` only counts what
came. Packets leave one by one, as those of real clients reach a server; only where that would leave the generator
slower than the server (towards streams) do bursts leave through ``UDP_SEGMENT``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from cffi import FFI

MAX_DATAGRAM = 2048
"""Bytes kept of a received datagram: the largest that the bench sends is 1,204."""

IP_PKTINFO = 8
"""linux/in.h; the socket module of Python 3.11 lacks it."""

_SOCKADDR_SIZE = 16
_CONTROL_HEADER_SIZE = 16
_CONTROL_SIZE = 32
"""CMSG_SPACE on a 64-bit system of an in_pktinfo (12 bytes), and room for a segment size (2 bytes)."""
_UDP_SEGMENT = 103

_ffi = FFI()
_ffi.cdef(
    """
    struct iovec { void *iov_base; size_t iov_len; };
    struct msghdr {
        void *msg_name; unsigned int msg_namelen; struct iovec *msg_iov; size_t msg_iovlen;
        void *msg_control; size_t msg_controllen; int msg_flags;
    };
    struct mmsghdr { struct msghdr msg_hdr; unsigned int msg_len; };
    int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags);
    int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, void *timeout);
    """
)
_libc: Any = _ffi.dlopen(None)
_WOULD_BLOCK = frozenset((errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ECONNREFUSED))


class Datagram(NamedTuple):
    """What to send: `destination` is (host, port); `source` picks the local address of a wildcard socket."""

    payload: bytes
    destination: tuple[str, int]
    source: str | None = None
    segment: int = 0
    """Bytes of each of the datagrams into which the kernel cuts `payload`; 0: it is one."""

    @property
    def control(self) -> bytes:
        """Ancillary data: the source address or the segment size."""
        if self.source is not None:
            return _control(socket.IPPROTO_IP, IP_PKTINFO, packet_info(self.source))
        if self.segment:
            return _control(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", self.segment))
        return b""


def sockaddr(address: tuple[str, int]) -> bytes:
    """A `struct sockaddr_in`."""
    host, port = address
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(host))


def address_of(raw: bytes) -> tuple[str, int]:
    """(host, port) of a `struct sockaddr_in`."""
    port, packed = struct.unpack_from("!H4s", raw, 2)
    return socket.inet_ntoa(packed), port


def packet_info(source: str) -> bytes:
    """`struct in_pktinfo` that makes a datagram leave from `source` (ip(7))."""
    return struct.pack("=i4s4s", 0, socket.inet_aton(source), bytes(4))


def _control(level: int, kind: int, data: bytes) -> bytes:
    return (struct.pack("@Nii", _CONTROL_HEADER_SIZE + len(data), level, kind) + data).ljust(_CONTROL_SIZE, b"\0")


class SendBatch:
    """Datagrams that are sent together, again and again."""

    def __init__(self, datagrams: Sequence[Datagram]) -> None:
        self.count = len(datagrams)
        self._messages = _ffi.new("struct mmsghdr[]", self.count)
        self._keep: list[Any] = []
        self.payloads: list[Any] = []
        for index, datagram in enumerate(datagrams):
            payload = _ffi.new("char[]", datagram.payload)
            name = _ffi.new("char[]", sockaddr(datagram.destination))
            vector = _ffi.new("struct iovec *", {"iov_base": payload, "iov_len": len(datagram.payload)})
            header = self._messages[index].msg_hdr
            header.msg_name, header.msg_namelen = name, _SOCKADDR_SIZE
            header.msg_iov, header.msg_iovlen = vector, 1
            self._keep += [payload, name, vector]
            self.payloads.append(_ffi.buffer(payload, len(datagram.payload)))
            if datagram.control:
                control = _ffi.new("char[]", datagram.control)
                header.msg_control, header.msg_controllen = control, _CONTROL_SIZE
                self._keep.append(control)

    def send(self, fd: int) -> int:
        """Send all of it, or as much as the socket takes; how many went. Raises OSError unless it is just full."""
        return _checked(_libc.sendmmsg(fd, self._messages, self.count, socket.MSG_DONTWAIT))


class ReceiveBatch:
    """Room for `capacity` datagrams; what arrives is overwritten by the next `receive`."""

    def __init__(self, capacity: int = 128) -> None:
        self.capacity = capacity
        self._messages = _ffi.new("struct mmsghdr[]", capacity)
        self._room = _ffi.new("char[]", capacity * MAX_DATAGRAM)
        self._names = _ffi.new("char[]", capacity * _SOCKADDR_SIZE)
        self._vectors = _ffi.new("struct iovec[]", capacity)
        for index in range(capacity):
            vector = self._vectors[index]
            vector.iov_base, vector.iov_len = self._room + index * MAX_DATAGRAM, MAX_DATAGRAM
            header = self._messages[index].msg_hdr
            header.msg_name, header.msg_namelen = self._names + index * _SOCKADDR_SIZE, _SOCKADDR_SIZE
            header.msg_iov, header.msg_iovlen = self._vectors + index, 1

    def receive(self, fd: int) -> int:
        """Take what is there without waiting; how many datagrams."""
        return _checked(_libc.recvmmsg(fd, self._messages, self.capacity, socket.MSG_DONTWAIT, _ffi.NULL))

    def length(self, index: int) -> int:
        """Size in bytes of a datagram of the last `receive`."""
        return int(self._messages[index].msg_len)

    def datagram(self, index: int) -> bytes:
        """A datagram of the last `receive`."""
        return bytes(_ffi.buffer(self._room + index * MAX_DATAGRAM, self.length(index)))

    def sender(self, index: int) -> tuple[str, int]:
        """Where a datagram of the last `receive` came from."""
        return address_of(bytes(_ffi.buffer(self._names + index * _SOCKADDR_SIZE, _SOCKADDR_SIZE)))


class Mirror(ReceiveBatch):
    """Sends every datagram back to where it came from, out of the buffer that it was received into."""

    def __init__(self, capacity: int = 128) -> None:
        super().__init__(capacity)
        self._replies = _ffi.new("struct mmsghdr[]", capacity)
        self._reply_vectors = _ffi.new("struct iovec[]", capacity)
        for index in range(capacity):
            vector = self._reply_vectors[index]
            vector.iov_base = self._room + index * MAX_DATAGRAM
            header = self._replies[index].msg_hdr
            header.msg_name, header.msg_namelen = self._names + index * _SOCKADDR_SIZE, _SOCKADDR_SIZE
            header.msg_iov, header.msg_iovlen = self._reply_vectors + index, 1

    def reflect(self, fd: int) -> tuple[int, int]:
        """Receive and send back; how many came, and how many went."""
        count = self.receive(fd)
        if not count:
            return 0, 0
        for index in range(count):
            self._reply_vectors[index].iov_len = self._messages[index].msg_len
        return count, _checked(_libc.sendmmsg(fd, self._replies, count, socket.MSG_DONTWAIT))


def _checked(result: int) -> int:
    if result >= 0:
        return result
    if _ffi.errno in _WOULD_BLOCK:
        return 0
    raise OSError(_ffi.errno, os.strerror(_ffi.errno))
