"""One TCP connection between a relayed address and a peer (RFC 6062: a peer data connection), whoever opened it.

Theory of operation. Until it is joined nothing is read: what the peer sends waits in the kernel's buffer, and is lost
neither when the client takes its time nor when the peer closes meanwhile. Joined, each end is the other's producer:
whoever does not read makes the other wait, with at most one buffer of Twisted's transport between them each way.

An end that has said all is half-closed on the other side too. One that closes has what it sent delivered first: the
peer is told behind it, and what the peer still says is read and dropped until it closes as well, for a socket that is
closed with unread bytes resets the connection, and takes what is under way with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.interfaces import Counters, IByteStream, IPeerConnection, ITcpRelayReceiver
from relayd.rate import TokenBucket
from relayd.valve import Valve

CLOSE_GRACE = 10.0  # seconds for a peer to take what was sent to it, and to close too


class RelayedAddress(Protocol):
    """What a connection needs of the relayed address that it belongs to."""

    counters: Counters
    limit: TokenBucket | None
    connections: set[PeerConnection]

    def lost(self, connection: PeerConnection) -> None:
        """A connection is gone."""


@implementer(IPeerConnection, IHalfCloseableProtocol)
class PeerConnection(TwistedProtocol):
    """See the theory of operation. `opened` is called with it once, when it is there."""

    valve: Valve

    def __init__(
        self,
        relay: RelayedAddress,
        receiver: ITcpRelayReceiver,
        peer: TransportAddress,
        clock: IReactorTime,
        opened: Callable[[PeerConnection], Any],
    ) -> None:
        self.peer = peer
        self._opened = opened
        self._relay = relay
        self._receiver = receiver
        self._clock = clock
        self._other: IByteStream | None = None
        self._heard_all = False  # from the peer
        self._said_all = False  # to it
        self._closing = self._lost = False
        self._deadline: IDelayedCall | None = None

    # --- what the transport calls ---

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        transport.pauseProducing()
        self.valve = Valve(transport, self._clock)
        self._relay.connections.add(self)
        self._opened(self)

    def dataReceived(self, data: bytes) -> None:
        if self._other is None:
            return  # it closes, and nobody wants to hear it any more
        counters = self._relay.counters
        counters.received_packets += 1
        counters.received_bytes += len(data)
        self._other.write(data)
        self._pay(len(data), self.valve)

    def readConnectionLost(self) -> None:
        """The peer has said all."""
        self._heard_all = True
        if self._other is not None:
            self._other.finish()
        if self._closing or self._said_all:
            self._drop()

    def writeConnectionLost(self) -> None:
        """It was told that we have."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._lost = True
        self.valve.finish()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        other, self._other = self._other, None
        self._relay.lost(self)
        self._receiver.peer_connection_lost(self)
        if other is None:
            return
        if reason is None or reason.check(ConnectionDone):
            other.close()
        else:
            other.abort()

    # --- IByteStream ---

    def join(self, other: IByteStream) -> None:
        """See `IByteStream.join`."""
        if self._closing or self._lost:
            other.close()
            return
        self._other = other
        transport: Any = self.transport
        transport.registerProducer(other.valve, True)
        self.valve.resumeProducing()

    def write(self, data: bytes) -> None:
        """See `IByteStream.write`."""
        if self._said_all or self._lost:
            return
        counters = self._relay.counters
        counters.sent_packets += 1
        counters.sent_bytes += len(data)
        transport: Any = self.transport
        transport.write(data)
        if self._other is not None:
            self._pay(len(data), self._other.valve)

    def finish(self) -> None:
        """See `IByteStream.finish`."""
        if self._said_all or self._lost:
            return
        self._said_all = True
        if self._heard_all:
            self._drop()
            return
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseWriteConnection()

    def close(self) -> None:
        """See `IByteStream.close`."""
        if self._closing or self._lost:
            return
        self._closing = True
        other, self._other = self._other, None
        if other is not None:
            other.close()
        self._deadline = self._clock.callLater(CLOSE_GRACE, self._give_up)
        self.finish()
        if not self._heard_all:
            self.valve.finish()
            transport: Any = self.transport
            transport.resumeProducing()

    def abort(self) -> None:
        """See `IByteStream.abort`."""
        self._closing = True
        other, self._other = self._other, None
        if other is not None:
            other.abort()
        if not self._lost:
            transport: Any = self.transport
            transport.abortConnection()

    # --- within ---

    def _drop(self) -> None:
        """Both have said all."""
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()

    def _give_up(self) -> None:
        self._deadline = None
        self.abort()

    def _pay(self, size: int, source: Valve) -> None:
        limit = self._relay.limit
        if limit is not None:
            owed = limit.owe(size, self._clock.seconds())
            if owed > 0:
                source.rest(owed)
