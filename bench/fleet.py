"""A fleet of allocations with one channel each to one peer, ready to send both ways, and taken down afterwards.

Over UDP to a server on loopback all clients share one socket and differ by source address (127.0.1.1, ...), so that
even packets of 200 different clients leave in one system call; elsewhere each client has a socket, hence a port, of its
own.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from bench import client, wire
from bench.errors import BenchError
from bench.mmsg import Datagram, SendBatch
from bench.websocket import WebSocketExchange, masked_frame, plain_frame

if TYPE_CHECKING:
    from bench.servers import Server

Transport = Literal["udp", "tcp", "tls", "ws", "wss"]
TLS_TRANSPORTS = ("tls", "wss")
WEB_TRANSPORTS = ("ws", "wss")
Send = Callable[[], int]
"""Sends a few packets; how many went."""

CHUNK = 32
"""Packets to one system call at full rate, and the length of a burst."""
_PROOF_SECONDS = 1.0


class Client(NamedTuple):
    """One client: its socket, its address where it shares that socket, and what it allocated."""

    sock: socket.socket
    source: str | None
    allocation: client.Allocation


class Fleet:
    """Allocations on one server, and the peer to which all of them have a channel (number `client.CHANNEL`)."""

    def __init__(self, server: Server, transport: Transport = "udp") -> None:
        self.server = server
        self.transport = transport
        self.clients: list[Client] = []
        self._sockets: list[socket.socket] = []
        self.peer = client.udp_socket(client.local_address(server.udp))
        self.peer_address: tuple[str, int] = self.peer.getsockname()

    @classmethod
    @contextlib.contextmanager
    def of(cls, server: Server, count: int, transport: Transport = "udp") -> Iterator[Self]:
        """Allocate, bind, prove that data passes both ways; delete at the end. Raises BenchError."""
        fleet = cls(server, transport)
        try:
            for _ in range(count):
                fleet.add()
            for member in fleet.clients:
                fleet.prove(member)
            yield fleet
            fleet.delete()
        finally:
            fleet.close()

    def add(self) -> None:
        """One more allocation, with its permission and its channel."""
        sock, source, way = self._way(len(self.clients))
        allocation = client.Allocation(way, self.server.username, self.server.password)
        allocation.allocate()
        allocation.permit(self.peer_address)
        allocation.bind(self.peer_address)
        self.clients.append(Client(sock, source, allocation))

    def _way(self, index: int) -> tuple[socket.socket, str | None, client.Exchange]:
        source = client.loopback_source(index) if client.is_loopback(self.server.udp[0]) else None
        if self.transport != "udp":
            address = (self.server.udp[0], self.server.port(self.transport))
            sock = client.stream_socket(address, self.transport in TLS_TRANSPORTS, source)
            self._sockets.append(sock)
            exchange = WebSocketExchange if self.transport in WEB_TRANSPORTS else client.StreamExchange
            return sock, None, exchange(sock)
        if source is None or not self._sockets:
            self._sockets.append(client.udp_socket())
        sock = self._sockets[-1]
        return sock, source, client.DatagramExchange(sock, self.server.udp, source)

    def delete(self) -> None:
        """End the allocations. Those of streams end with their connections."""
        if self.transport == "udp":
            for member in self.clients:
                member.allocation.delete()

    def close(self) -> None:
        """Close all sockets."""
        for sock in (*self._sockets, self.peer):
            sock.close()

    def sockets(self) -> Sequence[socket.socket]:
        """The sockets on which clients hear what comes from the peer."""
        return self._sockets

    # --- what is sent -------------------------------------------------------------------------------------------------

    def framed(self, payload: bytes) -> bytes:
        """A payload as ChannelData, the way this transport brings it to a client."""
        if self.transport in WEB_TRANSPORTS:
            return plain_frame(wire.channel_data(client.CHANNEL, payload))
        return wire.channel_data(client.CHANNEL, payload, padded=self.transport != "udp")

    def framed_up(self, payload: bytes) -> bytes:
        """The same, the way a client sends it."""
        if self.transport in WEB_TRANSPORTS:
            return masked_frame(wire.channel_data(client.CHANNEL, payload))
        return self.framed(payload)

    def up(self, size: int, order: Sequence[int], chunk: int = CHUNK) -> list[Send]:
        """Sends from clients to the peer, in this order of clients, as few calls as the sockets and `chunk` allow."""
        payload = client.random_payload(size)
        if self.transport != "udp":
            frames = [self.framed_up(payload) for _ in range(chunk)]  # of WebSocket, each has a mask of its own
            return [_stream_send(self.clients[run[0]].sock, frames[: len(run)]) for run in runs(order, chunk)]
        frame = self.framed(payload)
        shared = len(self._sockets) == 1
        sends: list[Send] = []
        for run in _chunks(order, chunk) if shared else runs(order, chunk):
            members = [self.clients[index] for index in run]
            batch = SendBatch([Datagram(frame, self.server.udp, member.source) for member in members])
            sends.append(partial(batch.send, members[0].sock.fileno()))
        return sends

    def down(self, size: int, order: Sequence[int], chunk: int = CHUNK) -> list[Send]:
        """Sends from the peer to clients, in this order of clients."""
        payload = client.random_payload(size)
        sends: list[Send] = []
        for run in _chunks(order, chunk):
            batch = SendBatch([Datagram(payload, self.clients[index].allocation.relayed) for index in run])
            sends.append(partial(batch.send, self.peer.fileno()))
        return sends

    def down_segmented(self, size: int, order: Sequence[int]) -> list[Send]:
        """As `down`, each burst in one piece that the kernel cuts: for servers that would outrun it."""
        payload = client.random_payload(size)
        sends: list[Send] = []
        for run in runs(order, CHUNK):
            batch = SendBatch([Datagram(payload * len(run), self.clients[run[0]].allocation.relayed, segment=size)])
            sends.append(counted(batch, self.peer.fileno(), len(run)))
        return sends

    # --- whether it arrives -------------------------------------------------------------------------------------------

    def prove(self, member: Client) -> None:
        """One packet each way: right content, right addresses. Raises BenchError."""
        payload = client.random_payload(100)
        frame = self.framed(payload)
        if isinstance(member.allocation.way, client.StreamExchange):
            member.sock.sendall(self.framed_up(payload))
        else:
            control = SendBatch([Datagram(frame, self.server.udp, member.source)])
            control.send(member.sock.fileno())
        self.peer.settimeout(_PROOF_SECONDS)
        try:
            data, sender = self.peer.recvfrom(2048)
        except TimeoutError:
            raise BenchError(f"{self.server.name} does not relay from client to peer over {self.transport}") from None
        if data != payload or sender != member.allocation.relayed:
            raise BenchError(f"{self.server.name} relayed something else than was sent, over {self.transport}")
        self.peer.sendto(payload, sender)
        member.sock.settimeout(_PROOF_SECONDS)
        try:
            answer = member.sock.recv(2048)
        except TimeoutError:
            raise BenchError(f"{self.server.name} does not relay from peer to client over {self.transport}") from None
        if answer[: len(frame)] != frame:
            raise BenchError(f"{self.server.name} relayed something else back than was sent, over {self.transport}")


def _stream_send(sock: socket.socket, frames: Sequence[bytes]) -> Send:
    data = b"".join(frames)

    def send() -> int:
        sock.sendall(data)
        return len(frames)

    return send


def counted(batch: SendBatch, fd: int, packets: int) -> Send:
    return lambda: batch.send(fd) * packets


def bursts(clients: int) -> list[int]:
    """An order in which each client in turn sends a burst of `CHUNK`."""
    return [index for index in range(clients) for _ in range(CHUNK)]


def interleaved(clients: int) -> list[int]:
    """An order in which no two packets of one client follow each other; fills whole chunks."""
    return [index % clients for index in range(clients * CHUNK)]


def _chunks(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def runs(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Cut an order where the client changes, and after `size`."""
    start = 0
    for index in range(1, len(order) + 1):
        if index == len(order) or order[index] != order[start] or index - start == size:
            yield order[start:index]
            start = index


def readable(sockets: Sequence[socket.socket]) -> Callable[[], list[int]]:
    """A function that tells which of these sockets have something, by descriptor, without waiting."""
    if len(sockets) == 1:
        only = [sockets[0].fileno()]
        return lambda: only
    poll = select.epoll()
    for sock in sockets:
        poll.register(sock.fileno(), select.EPOLLIN)
    return lambda: [fd for fd, _ in poll.poll(0)]
