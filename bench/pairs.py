"""Clients in pairs, each with a channel to the other's relayed address on one relay: topology 3 of draft-chenxin."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

from bench import client
from bench.errors import BenchError
from bench.fleet import CHUNK, Client, Fleet, Send, Transport, counted, runs
from bench.mmsg import Datagram, SendBatch

if TYPE_CHECKING:
    from bench.servers import Server

_PROOF_SECONDS = 1.0


class Pairs(Fleet):
    """An even number of clients; the peer of a fleet is there and has nothing to do."""

    @classmethod
    @contextlib.contextmanager
    def of(cls, server: Server, count: int, transport: Transport = "udp") -> Iterator[Self]:
        """Allocate, bind, prove that data passes from each to its partner; delete at the end. Raises BenchError."""
        pairs = cls(server, transport)
        try:
            for _ in range(count):
                pairs.add()
            for index, member in enumerate(pairs.clients):
                member.allocation.bind(pairs.partner(index).allocation.relayed)
            for index in range(count):
                pairs.prove_to_partner(index)
            yield pairs
            pairs.delete()
        finally:
            pairs.close()

    def add(self) -> None:
        """One more allocation."""
        sock, source, way = self._way(len(self.clients))
        allocation = client.Allocation(way, self.server.username, self.server.password)
        allocation.allocate()
        self.clients.append(Client(sock, source, allocation))

    def _way(self, index: int) -> tuple[socket.socket, str | None, client.Exchange]:
        if self.transport != "udp":
            return super()._way(index)
        # A socket for each: datagrams of a socket shared by source address cannot leave in one piece.
        sock = client.udp_socket()
        self._sockets.append(sock)
        return sock, None, client.DatagramExchange(sock, self.server.udp)

    def across(self, size: int, order: Sequence[int]) -> list[Send]:
        """Sends from clients to their partners, in this order. Over UDP each burst is in one piece that the kernel
        cuts: a relay that bridges would outrun the generator.
        """
        if self.transport != "udp":
            return self.up(size, order)
        frame = self.framed(client.random_payload(size))
        sends: list[Send] = []
        for run in runs(order, CHUNK):
            batch = SendBatch([Datagram(frame * len(run), self.server.udp, segment=len(frame))])
            sends.append(counted(batch, self.clients[run[0]].sock.fileno(), len(run)))
        return sends

    def partner(self, index: int) -> Client:
        """The other one of the pair."""
        return self.clients[index ^ 1]

    def prove_to_partner(self, index: int) -> None:
        """One packet from that client to its partner, with the right content. Raises BenchError."""
        member, partner = self.clients[index], self.partner(index)
        payload = client.random_payload(100)
        if isinstance(member.allocation.way, client.StreamExchange):
            member.sock.sendall(self.framed_up(payload))
        else:
            SendBatch([Datagram(self.framed(payload), self.server.udp, member.source)]).send(member.sock.fileno())
        partner.sock.settimeout(_PROOF_SECONDS)
        came = b""
        expected = self.framed(payload)
        with contextlib.suppress(TimeoutError):
            while len(came) < len(expected) and (piece := partner.sock.recv(2048)):
                came += piece
        if came != expected:
            raise BenchError(f"{self.server.name} does not relay from client to client over {self.transport}")
