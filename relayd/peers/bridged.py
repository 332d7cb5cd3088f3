"""A connection between two relayed TCP addresses of this relay that meet inside it, without a trip through the kernel
(draft-chenxin-behave-turn-websocket section 3.3).

Theory of operation. It has two halves, one for each allocation, and each is to its client what a connection with a peer
would be: it may be bound late or never, it ends in the same ways, and what one client sent before the other's end is
there waits, with that client held back, and is not lost though it closes meanwhile. Joined, the clients' connections
write to each other, and each is held back by the other.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IPushProducer, IReactorTime
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.interfaces import IByteStream, IPeerConnection, ITcpRelayReceiver
from relayd.peers.connection import RelayedAddress


@implementer(IPushProducer)
class FarClient:
    """The other client as a source of bytes: what our client's transport pauses and resumes."""

    def __init__(self) -> None:
        self.end: IByteStream | None = None

    def pauseProducing(self) -> None:
        if self.end is not None:
            self.end.valve.pauseProducing()

    def resumeProducing(self) -> None:
        if self.end is not None:
            self.end.valve.resumeProducing()

    def stopProducing(self) -> None:
        """Our client is gone; its end says so."""


@implementer(IPeerConnection)
class BridgedConnection:
    """One half. `peer` is the relayed address of the other; `bridge` makes both."""

    protocol = None
    twin: BridgedConnection

    def __init__(
        self, relay: RelayedAddress, receiver: ITcpRelayReceiver, peer: TransportAddress, clock: IReactorTime
    ) -> None:
        self.peer = peer
        self.valve: Any = FarClient()
        self._relay = relay
        self._receiver = receiver
        self._clock = clock
        self._client: IByteStream | None = None
        self._early = b""  # what our client sent before the other one's end was there
        self._said_all = False  # our client has
        self._ended = False
        relay.connections.add(self)

    # --- IByteStream ---

    def join(self, other: IByteStream) -> None:
        """See `IByteStream.join`."""
        twin = self.twin
        if self._ended:
            other.close()
            return
        self._client = twin.valve.end = other
        early, twin._early = twin._early, b""
        if early:
            other.write(early)
        if twin._ended:
            self._end()
            other.close()
            return
        if twin._said_all:
            other.finish()
        if twin._client is not None:
            twin._client.valve.resumeProducing()

    def write(self, data: bytes) -> None:
        """See `IByteStream.write`."""
        if self._ended or self._said_all:
            return
        ours, theirs = self._relay.counters, self.twin._relay.counters
        ours.sent_packets += 1
        ours.sent_bytes += len(data)
        ours.bridged += 1
        theirs.received_packets += 1
        theirs.received_bytes += len(data)
        far = self.twin._client
        if far is not None:
            far.write(data)
        else:
            self._early += data
            if self._client is not None:
                self._client.valve.pauseProducing()
        self._pay(len(data))

    def finish(self) -> None:
        """See `IByteStream.finish`."""
        if self._ended or self._said_all:
            return
        self._said_all = True
        if self.twin._client is not None:
            self.twin._client.finish()

    def close(self) -> None:
        """See `IByteStream.close`."""
        if self._ended:
            return
        client, twin = self._client, self.twin
        self._end()
        if client is not None:
            client.close()
        if twin._client is not None:  # else it ends when it is joined and has heard all, or is given up
            twin.close()

    def abort(self) -> None:
        """See `IByteStream.abort`."""
        if self._ended:
            return
        client, twin = self._client, self.twin
        self._end()
        self._early = b""
        if client is not None:
            client.abort()
        twin.abort()

    # --- within ---

    def _end(self) -> None:
        self._ended = True
        self._client = None
        self._receiver.peer_connection_lost(self)
        self._relay.lost(self)

    def _pay(self, size: int) -> None:
        now = self._clock.seconds()
        limits = {limit for relay in (self._relay, self.twin._relay) if (limit := relay.limit) is not None}
        owed = max((limit.owe(size, now) for limit in limits), default=0.0)
        if owed > 0 and self._client is not None:
            self._client.valve.rest(owed)


def bridge(
    caller: RelayedAddress, called: RelayedAddress, receiver: ITcpRelayReceiver, clock: IReactorTime
) -> tuple[BridgedConnection, BridgedConnection]:
    """A connection between two relayed addresses: the halves of the one that called, and of the one that was called."""
    ours = BridgedConnection(caller, receiver, called.address, clock)
    theirs = BridgedConnection(called, receiver, caller.address, clock)
    ours.twin, theirs.twin = theirs, ours
    return ours, theirs
