"""One TCP connection between a relayed address and a peer (RFC 6062: a peer data connection), whoever opened it.

It counts what passes, and keeps it within the bandwidth of its allocation by not reading for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.interfaces import Counters, IByteStream, IPeerConnection, ITcpRelayReceiver
from relayd.pipe.stream_end import StreamEnd
from relayd.pipe.valve import Valve
from relayd.rate import TokenBucket


class RelayedAddress(Protocol):
    """What a connection needs of the relayed address that it belongs to."""

    address: TransportAddress
    counters: Counters
    limit: TokenBucket | None
    connections: set[IPeerConnection]

    def lost(self, connection: IPeerConnection) -> None:
        """A connection is gone."""


@implementer(IPeerConnection, IHalfCloseableProtocol)
class PeerConnection(TwistedProtocol):
    """`opened` is called with it once, when it is there."""

    def __init__(
        self,
        relay: RelayedAddress,
        receiver: ITcpRelayReceiver,
        peer: TransportAddress,
        clock: IReactorTime,
        opened: Callable[[PeerConnection], Any],
    ) -> None:
        self.peer = peer
        self.protocol: bytes | None = None  # that was agreed on by ALPN
        self._relay = relay
        self._receiver = receiver
        self._clock = clock
        self._opened = opened
        self._other: IByteStream | None = None
        self._end: StreamEnd | None = None  # with the connection
        self._outlived = False  # by what it sent, which waits to be joined

    # --- what the transport calls ---

    def connectionMade(self) -> None:
        self._relay.connections.add(self)
        self._begin(half_closes=True)

    def dataReceived(self, data: bytes) -> None:
        end = self._made
        if end.closing:
            return
        counters = self._relay.counters
        counters.received_packets += 1
        counters.received_bytes += len(data)
        end.received(data)
        self._pay(len(data), end.valve)

    def readConnectionLost(self) -> None:
        """The peer has said all."""
        self._made.heard_all()

    def writeConnectionLost(self) -> None:
        """It was told that we have."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._other = None
        self._made.lost(reason)
        if self._made.has_early:
            self._outlived = True
        else:
            self._gone()

    # --- IPeerConnection ---

    @property
    def valve(self) -> Valve:
        """See `IByteStream.valve`."""
        return self._made.valve

    def join(self, other: IByteStream) -> None:
        """See `IByteStream.join`."""
        if not self._outlived:
            self._other = other
        self._made.join(other)
        self._forget_outlived()

    def write(self, data: bytes) -> None:
        """See `IByteStream.write`."""
        counters = self._relay.counters
        counters.sent_packets += 1
        counters.sent_bytes += len(data)
        self._made.write(data)
        if self._other is not None:
            self._pay(len(data), self._other.valve)

    def finish(self) -> None:
        """See `IByteStream.finish`."""
        self._made.finish()

    def close(self) -> None:
        """See `IByteStream.close`."""
        self._made.close()
        self._forget_outlived()

    def abort(self) -> None:
        """See `IByteStream.abort`."""
        self._made.abort()
        self._forget_outlived()

    # --- within ---

    def _begin(self, half_closes: bool) -> None:
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        self._end = StreamEnd(transport, self._clock, half_closes)
        self._opened(self)

    def _forget_outlived(self) -> None:
        if self._outlived:
            self._outlived = False
            self._gone()

    def _gone(self) -> None:
        self._receiver.peer_connection_lost(self)
        self._relay.lost(self)  # last: perhaps we are what the end of everything waits for

    @property
    def _is_made(self) -> bool:
        return self._end is not None

    @property
    def _made(self) -> StreamEnd:
        assert self._end is not None  # nobody has us before we are connected
        return self._end

    def _pay(self, size: int, source: Valve) -> None:
        limit = self._relay.limit
        if limit is not None:
            owed = limit.owe(size, self._clock.seconds())
            if owed > 0:
                source.rest(owed)
