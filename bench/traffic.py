"""Drives packets through a server, at full rate or paced, and counts those that truly arrived at the far end."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from bench.errors import BenchError
from bench.fleet import TLS_TRANSPORTS, Fleet, Send, readable
from bench.mmsg import Mirror, ReceiveBatch

STALL_NS = 50_000_000
"""50 ms without anything arriving while the window is full: what is outstanding is lost."""
DRAIN_NS = 300_000_000
"""After the last packet went, wait this long for stragglers."""
GAP_NS = 200_000
"""A paced generator that was kept off its core longer than 0.2 ms does not catch up: a burst would not be paced."""
POLL_PACKETS = 32
"""While pacing, the far end is emptied once in so many packets: a look takes time in which one may be due."""
LATE_PACKETS = 2
"""Packets that a paced generator may be behind before one counts as late."""
_READ_SIZE = 1 << 18


class Flowed(NamedTuple):
    """What a run moved. `relayed` counts each passage through the server; `late` is the share that missed its pace."""

    sent: int
    relayed: int
    expected: int
    seconds: float
    late: float = 0.0

    @property
    def loss(self) -> float:
        """Share of the passages that did not happen."""
        return 1 - self.relayed / self.expected if self.expected else 0.0


class Sink(Protocol):
    """The far end."""

    relayed: int
    passages: int

    def poll(self) -> int:
        """Take what has arrived; how many packets ended their journey."""


class _Counting:
    """Counts datagrams of one size; anything else that arrives means that the server is broken."""

    passages = 1
    """How often a packet goes through the server on its whole journey."""

    def __init__(self, sockets: Sequence[socket.socket], size: int) -> None:
        self.relayed = 0
        self._size = size
        self._readable = readable(sockets)
        self._batch = ReceiveBatch()

    def poll(self) -> int:
        got = 0
        for fd in self._readable():
            count = self._batch.receive(fd)
            if count and self._batch.length(0) != self._size:
                raise BenchError(f"a datagram of {self._batch.length(0)} bytes arrived where {self._size} were relayed")
            got += count
        self.relayed += got
        return got


class PeerSink(_Counting):
    """Client to peer: the peer counts."""

    def __init__(self, fleet: Fleet, size: int) -> None:
        super().__init__([fleet.peer], size)


class ClientSink(_Counting):
    """Peer to client over UDP: the clients count."""

    def __init__(self, fleet: Fleet, size: int) -> None:
        super().__init__(fleet.sockets(), size + 4)


class EchoSink(ClientSink):
    """Client to peer and back: the peer sends back, the clients count."""

    passages = 2

    def __init__(self, fleet: Fleet, size: int) -> None:
        super().__init__(fleet, size)
        self._peer = fleet.peer.fileno()
        self._mirror = Mirror()

    def poll(self) -> int:
        came, went = self._mirror.reflect(self._peer)
        if went < came:
            raise BenchError("the generator's own socket was full: it cannot keep up")
        self.relayed += came
        return super().poll()


class StreamSink:
    """Peer to client over a stream: whole frames are counted by their bytes."""

    passages = 1

    def __init__(self, fleet: Fleet, size: int) -> None:
        self.relayed = 0
        self._frame = len(fleet.framed(bytes(size)))
        self._bytes = 0
        self._buffer = bytearray(_READ_SIZE)
        self._sockets = {sock.fileno(): sock for sock in fleet.sockets()}
        self._readable = readable(fleet.sockets())
        for sock in self._sockets.values():
            sock.setblocking(False)

    def poll(self) -> int:
        for fd in self._readable():
            # Past the methods of SSLSocket, where it is one.
            with contextlib.suppress(BlockingIOError):
                while count := socket.socket.recv_into(self._sockets[fd], self._buffer):
                    self._bytes += self._content(fd, count)
                raise BenchError("the server closed a connection under load")
        before, self.relayed = self.relayed, self._bytes // self._frame
        return self.relayed - before

    def _content(self, _fd: int, count: int) -> int:
        """How many bytes of frames are in those that came into the buffer."""
        return count


class TlsSink(StreamSink):
    """The same over TLS, where records are measured and not deciphered: a server that writes one for each message takes
    less for that than reading them would. `Fleet.prove` has seen what they hold. Afterwards OpenSSL cannot go on.
    """

    def __init__(self, fleet: Fleet, size: int) -> None:
        super().__init__(fleet, size)
        self._records = {fd: RecordLengths(record_overhead(sock)) for fd, sock in self._sockets.items()}

    def _content(self, fd: int, count: int) -> int:
        return self._records[fd].receive(bytes(memoryview(self._buffer)[:count]))


def record_overhead(sock: socket.socket) -> int:
    """Bytes in a record besides its content. Raises BenchError for a cipher that nobody should use any more."""
    assert isinstance(sock, ssl.SSLSocket)
    cipher = sock.cipher()
    if cipher is not None and sock.version() == "TLSv1.3":
        return 17  # the type and the tag (RFC 8446 section 5.2)
    if cipher is not None and "GCM" in cipher[0]:
        return 24  # the explicit nonce and the tag (RFC 5288 section 3)
    raise BenchError(f"the server speaks {sock.version()} with {cipher}, of which the bench knows no record size")


class RecordLengths:
    """Measures the records in a stream of bytes."""

    HEADER = 5

    def __init__(self, overhead: int) -> None:
        self._overhead = overhead
        self._pending = b""

    def receive(self, data: bytes) -> int:
        """How many bytes of content are in the records that `data` completes."""
        if self._pending:
            data = self._pending + data
        content, at, size = 0, 0, len(data)
        while size - at >= self.HEADER:
            length = data[at + 3] << 8 | data[at + 4]
            end = at + self.HEADER + length
            if end > size:
                break
            content += length - self._overhead
            at = end
        self._pending = data[at:]
        return content


def full_rate(sends: Sequence[Send], sink: Sink, window: int, seconds: float) -> Flowed:
    """Keep up to `window` packets on their way: the server always has work, and its socket buffers never overflow."""
    started = moved = now = time.perf_counter_ns()
    deadline = started + int(seconds * 1e9)
    turns = itertools.cycle(sends)
    outstanding = sent = chunk = next(turns)()
    while now < deadline:
        if outstanding + chunk <= window:
            count = next(turns)()
            sent += count
            outstanding += count
        arrived = sink.poll()
        now = time.perf_counter_ns()
        if arrived:
            outstanding -= arrived
            moved = now
        elif now - moved > STALL_NS:
            outstanding = 0
            moved = now
    _drain(sink, sent * sink.passages)
    return Flowed(sent, sink.relayed, sent * sink.passages, (now - started) / 1e9)


def paced(sends: Sequence[Send], sink: Sink, rate: float, seconds: float) -> Flowed:
    """Send one packet every 1/`rate` seconds, watching the clock all the time."""
    interval = 1e9 / rate
    sent = late = 0
    turns = itertools.cycle(sends)
    started = now = time.perf_counter_ns()
    due = float(started)
    deadline = started + int(seconds * 1e9)
    while now < deadline:
        if now >= due:
            sent += next(turns)()
            if now - due > GAP_NS:
                due = now
            late += now - due > LATE_PACKETS * interval
            due += interval
            if sent % POLL_PACKETS == 0:
                sink.poll()
        now = time.perf_counter_ns()
    _drain(sink, sent * sink.passages)
    wanted = seconds * rate
    return Flowed(
        sent, sink.relayed, sent * sink.passages, (now - started) / 1e9, (late + max(0.0, wanted - sent)) / wanted
    )


def _drain(sink: Sink, expected: int) -> None:
    until = time.perf_counter_ns() + DRAIN_NS
    while sink.relayed < expected and time.perf_counter_ns() < until:
        sink.poll()


def sink_for(fleet: Fleet, direction: str, size: int) -> Sink:
    """The far end of a direction: `up`, `down` or `echo`."""
    if direction == "up":
        return PeerSink(fleet, size)
    if direction == "echo":
        return EchoSink(fleet, size)
    if fleet.transport == "udp":
        return ClientSink(fleet, size)
    return TlsSink(fleet, size) if fleet.transport in TLS_TRANSPORTS else StreamSink(fleet, size)
