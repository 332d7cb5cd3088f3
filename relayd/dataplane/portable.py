"""The data plane for any platform and any reactor that can watch descriptors: one reader per socket, no fast path.

A flow only saves the way up to the service and back: each datagram is read, looked up and sent by itself.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Hashable
from typing import Any

from twisted.internet.interfaces import IHalfCloseableDescriptor, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.dataplane.plane import CHANNEL_HEADER, DatagramPort, DataPlane, PlaneSocket, Relay
from relayd.dataplane.sockets import MAX_DATAGRAM, from_sockaddr, to_sockaddr
from relayd.interfaces import IDatagramReceiver, IRelayReceiver

DATAGRAMS_PER_TURN = 64
"""Datagrams read from one socket before the reactor turns to the others."""

_log = Logger()


@implementer(IReadDescriptor, IHalfCloseableDescriptor)
class _Reader:
    """What the reactor watches of one socket. Apart from it, so that the reactor sees nothing else."""

    def __init__(self, reactor: Any, opened: PlaneSocket, read: Callable[[], None]) -> None:
        self._reactor = reactor
        self._opened = opened
        self._read = read

    def fileno(self) -> int:
        return self._opened.fd

    def doRead(self) -> None:
        # Whatever left this method would make the reactor drop the socket.
        try:
            self._read()
        except Exception:
            _log.failure("Reading failed at {address}", address=str(self._opened.address))

    def readConnectionLost(self, reason: Failure) -> None:
        # An ICMP error waits. Reactors that poll take "error, nothing to read" for the end of a connection, and stop
        # watching.
        self.doRead()
        if not self._opened.closed:
            self._reactor.addReader(self)

    def writeConnectionLost(self, reason: Failure) -> None:
        """Nothing to do: writing never waits."""

    def connectionLost(self, reason: Failure) -> None:
        self._opened.close()

    def logPrefix(self) -> str:
        return "data plane"


class PortablePort(DatagramPort):
    """A client-side port that reads itself."""

    __slots__ = ()

    def read(self) -> None:
        for _ in range(DATAGRAMS_PER_TURN):
            if self.closed:
                return
            try:
                data, sockaddr = self.socket.recvfrom(MAX_DATAGRAM)
            except OSError:
                return
            if len(data) >= CHANNEL_HEADER.size and self.flows:
                number, size = CHANNEL_HEADER.unpack_from(data)
                flow = self.flows.get((sockaddr, number))
                if flow is not None:
                    # Some clients pad over UDP too, so the length field counts. One that lies is dropped.
                    if size + CHANNEL_HEADER.size <= len(data):
                        flow.relay.send(flow.peer, data[CHANNEL_HEADER.size : CHANNEL_HEADER.size + size])
                    continue
            self.hand_up(from_sockaddr(sockaddr), data)


class PortableRelay(Relay):
    """A relay that reads itself."""

    __slots__ = ()

    def read(self) -> None:
        for already_read in range(DATAGRAMS_PER_TURN):
            if self.closed:
                return
            try:
                data, sockaddr = self.socket.recvfrom(MAX_DATAGRAM)
            except OSError as error:
                self.receive_failed(error.errno or 0)
                if already_read:
                    return
                break  # woken with nothing to read: for the error queue
            self.failures = 0
            flow = self.flows.get(sockaddr)
            if flow is not None:
                self.pass_down(flow, data)
            else:
                self.hand_up(from_sockaddr(sockaddr), data)
        if not self.closed:
            self.read_errors()


class PortablePlane(DataPlane):
    """Plain UDP on the reactor. Flows are keyed by the addresses as the socket module gives them."""

    name = "portable"

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self._readers: dict[PlaneSocket, _Reader] = {}

    def make_port(self, opened: socket.socket, app_connection: str, receiver: IDatagramReceiver) -> PortablePort:
        return PortablePort(self, opened, app_connection, receiver)

    def make_relay(self, opened: socket.socket, receiver: IRelayReceiver) -> PortableRelay:
        return PortableRelay(self, opened, receiver)

    def watch(self, opened: PlaneSocket) -> None:
        assert isinstance(opened, PortablePort | PortableRelay)
        reader = self._readers[opened] = _Reader(self.reactor, opened, opened.read)
        self.reactor.addReader(reader)

    def unwatch(self, opened: PlaneSocket) -> None:
        reader = self._readers.pop(opened, None)
        if reader is not None:
            self.reactor.removeReader(reader)

    def client_key(self, client: TransportAddress, number: int) -> Hashable:
        return to_sockaddr(client), number

    def peer_key(self, peer: TransportAddress) -> Hashable:
        return to_sockaddr(peer)
