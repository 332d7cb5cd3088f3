"""Relayed TCP connections (RFC 6062) that carry bytes as fast as the server lets them, one way at a time."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self

from bench import client
from bench.errors import BenchError
from bench.websocket import WebSocketExchange, masked_frame

if TYPE_CHECKING:
    from bench.servers import Server

MEGABYTE = 1 << 20
PIECE = 1 << 16
"""Bytes that are sent, or read, at once."""
FRAME = 16_000
"""Bytes in one binary message of a WebSocket."""
_QUIET_SECONDS = 1.0

StreamTransport = Literal["tcp", "ws"]
Direction = Literal["up", "down"]


class Streams:
    """Relayed connections, each with an allocation of its own: the clients' ends, and the peer's in the same order."""

    def __init__(self, server: Server, transport: StreamTransport) -> None:
        self._server = server
        self._transport = transport
        self._listening = socket.create_server((client.local_address(server.udp), 0), backlog=128)
        self._peer: tuple[str, int] = self._listening.getsockname()
        self._controls: list[socket.socket] = []
        self.clients: list[socket.socket] = []
        self.peers: list[socket.socket] = []

    @classmethod
    @contextlib.contextmanager
    def of(cls, server: Server, count: int, transport: StreamTransport) -> Iterator[Self]:
        """Set them up; close them at the end. Raises BenchError."""
        streams = cls(server, transport)
        try:
            for _ in range(count):
                streams._add()
            yield streams
        finally:
            streams._close()

    def run(self, direction: Direction, seconds: float) -> tuple[float, float]:
        """Send for that long, and read until nothing comes any more. The megabytes that came, and in what time."""
        sources, sinks = (self.clients, self.peers) if direction == "up" else (self.peers, self.clients)
        piece = memoryview(self._piece(direction))
        offsets = dict.fromkeys((source.fileno() for source in sources), 0)
        by_fd = {each.fileno(): each for each in (*sources, *sinks)}
        poll = select.epoll()
        for source in sources:
            poll.register(source, select.EPOLLOUT)
        for sink in sinks:
            poll.register(sink, select.EPOLLIN)
        buffer = bytearray(4 * PIECE)
        received = 0
        begin = ended = time.monotonic()
        until: float | None = begin + seconds
        while True:
            now = time.monotonic()
            if until is not None and now >= until:
                until = None
                for source in sources:
                    poll.unregister(source)
            events = poll.poll(_QUIET_SECONDS)
            if not events:
                break
            for fd, event in events:
                if event & select.EPOLLIN:
                    received += by_fd[fd].recv_into(buffer)
                elif event & select.EPOLLOUT:
                    at = offsets[fd]
                    offsets[fd] = (at + by_fd[fd].send(piece[at:])) % len(piece)
                else:
                    raise BenchError("the server closed a relayed connection")
            ended = time.monotonic()
        poll.close()
        return received / MEGABYTE, ended - begin

    def stall(self, seconds: float) -> None:
        """Have all clients send as fast as they may for that long, while the peer reads nothing."""
        piece = self._piece("up")
        poll = select.epoll()
        for sending in self.clients:
            poll.register(sending, select.EPOLLOUT)
        by_fd = {sending.fileno(): sending for sending in self.clients}
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for fd, _ in poll.poll(left):
                by_fd[fd].send(piece)
        poll.close()

    def _piece(self, direction: Direction) -> bytes:
        if direction == "down" or self._transport == "tcp":
            return bytes(PIECE)
        return masked_frame(bytes(FRAME)) * (PIECE // FRAME)

    def _connect(self) -> client.StreamExchange:
        sock = client.stream_socket((self._server.udp[0], self._server.port(self._transport)), tls=False)
        return WebSocketExchange(sock) if self._transport == "ws" else client.StreamExchange(sock)

    def _add(self) -> None:
        control = self._connect()
        self._controls.append(control.sock)
        allocation = client.Allocation(control, self._server.username, self._server.password)
        allocation.allocate(client.TCP)
        number = allocation.connect(self._peer)
        accepted, _ = self._listening.accept()
        self.peers.append(accepted)
        data = self._connect()
        self.clients.append(data.sock)
        allocation.bind_connection(data, number)
        for each in (accepted, data.sock):
            each.setblocking(False)

    def _close(self) -> None:
        for each in (*self._controls, *self.clients, *self.peers, self._listening):
            each.close()
