"""`Forwarding`: local UDP ports whose datagrams reach a peer through a relay. An application that knows nothing of TURN
works over it. Nothing is said here to people: that is up to an `Audience`.

The first relayed address is there from the beginning to the end, and serves one sender to each peer. Others come with
senders that find none free for their peer, and go with the last of their mappings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from relayd.address import TransportAddress
from relayd.client.forward.mappings import MAX_WAITING, LocalPort, Mapping, RelayedAddress, Sender
from relayd.client.lasting import Allocator, LastingPort, Observer
from relayd.client.relayed import RelayedPort
from relayd.core import Entropy
from relayd.errors import ConfigurationError, RelaydError, RemoteError, ServerUnavailable

IDLE_TIMEOUT = 120.0  # seconds without a datagram until a mapping ends (RFC 4787 section 4.3: no less)
MAX_SENDERS = 64  # at a time, of all ports together: each may cost an allocation, which relays count
# Seconds of silence after which a mapping has to make room for a new sender, where there are as many as there may be: a
# resolver that asks from another port each time has its answer long before.
RECYCLE_AFTER = 10.0
SWEEP = 10.0  # seconds between two looks for mappings that have ended


class Route(NamedTuple):
    """A local port and its peer. `port` may be 0: any that is free."""

    interface: str
    port: int
    peer: TransportAddress


class Audience:
    """Told how a forwarding fares. Does nothing by itself."""

    def opened(self, local: TransportAddress, peer: TransportAddress) -> None:
        """What comes to this local port goes to that peer from now on."""

    def allocated(self, port: RelayedPort) -> None:
        """The first relayed address is there, or another one in its place."""

    def waiting(self, error: RelaydError, pause: float) -> None:
        """The first relayed address is lost, or still is; the next attempt is in `pause` seconds."""

    def sender_refused(self, error: RelaydError) -> None:
        """There is no relayed address for another sender."""

    def crowded(self) -> None:
        """There are as many senders as there may be, and another one. Told of every datagram."""

    def peer_refused(self, peer: TransportAddress, error: RelaydError) -> None:
        """The relay no longer lets us reach this peer."""


class _First(Observer):
    """Passes on how the first relayed address fares."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience

    def allocated(self, port: RelayedPort) -> None:
        self._audience.allocated(port)

    def waiting(self, error: RelaydError, pause: float) -> None:
        self._audience.waiting(error, pause)


class Forwarding:
    """`serve` it, `stop` it. `sent` and `received` count the datagrams that were passed on to and from peers."""

    def __init__(self, reactor: Any, client: Allocator, audience: Audience, entropy: Entropy) -> None:
        self.sent = 0
        self.received = 0
        self._reactor = reactor
        self._client = client
        self._audience = audience
        self._entropy = entropy
        self._locals: list[LocalPort] = []
        self._first = RelayedAddress(self._from_peer)
        self._relayed = [self._first]
        self._mappings: dict[tuple[LocalPort, Sender], Mapping] = {}
        self._sweeping: IDelayedCall | None = None
        self._dropped = 0
        self._is_stopping = False

    @property
    def senders(self) -> int:
        """How many have a mapping."""
        return len(self._mappings)

    @property
    def dropped(self) -> int:
        """How many datagrams were not passed on, in either direction."""
        return self._dropped + sum(relayed.dropped for relayed in self._relayed)

    async def serve(self, routes: Sequence[Route]) -> RelaydError | None:
        """Forward until the end: gives what ended it, None where it was stopped. `stop` has to follow.

        Raises ConfigurationError for a local port or a peer that cannot be used, and what `allocate` fails with where
        there is no first allocation.
        """
        for route in routes:
            local = LocalPort(route.peer, self._from_sender)
            self._locals.append(local)
            self._audience.opened(local.open(self._reactor, route.interface, route.port), route.peer)
        self._sweeping = self._reactor.callLater(SWEEP, self._sweep)
        opening = self._first.opening = Deferred.fromCoroutine(self._open(self._first, _First(self._audience)))
        try:
            port: LastingPort = await opening
        except (CancelledError, RelaydError):
            if self._is_stopping:
                return None
            raise
        for route in routes:
            try:
                await port.bind(route.peer.host, route.peer.port)
            except RemoteError as error:
                raise ConfigurationError(f"the relay does not let us reach {route.peer}: {error}") from None
            except ServerUnavailable:
                break  # the allocation is gone already, and the next one is asked for the same
        return await port.when_ended()

    async def stop(self) -> None:
        """Close the local ports and delete the allocations; back when that is done."""
        self._is_stopping = True
        if self._sweeping is not None and self._sweeping.active():
            self._sweeping.cancel()
        locals_, self._locals = self._locals, []
        relayed, self._relayed = self._relayed, []
        self._mappings.clear()
        await gatherResults([*(each.close() for each in locals_), *(self._close(each) for each in relayed)])

    # --- datagrams ------------------------------------------------------------------------------------------------

    def _from_sender(self, local: LocalPort, sender: Sender, data: bytes) -> None:
        mapping = self._mappings.get((local, sender)) or self._map(local, sender)
        if mapping is None or mapping.relayed.is_refused:
            self._dropped += 1
            return
        mapping.used_at = self._reactor.seconds()
        port = mapping.relayed.port
        if port is not None:
            self._send(port, mapping, data)
        elif len(mapping.waiting) < MAX_WAITING:
            mapping.waiting.append(data)
        else:
            self._dropped += 1

    def _send(self, port: LastingPort, mapping: Mapping, data: bytes) -> None:
        peer = mapping.local.peer
        try:
            port.write(data, (peer.host, peer.port))
        except ValueError:  # too long for a relay
            self._dropped += 1
        else:
            self.sent += 1

    def _from_peer(self, relayed: RelayedAddress, peer: TransportAddress, data: bytes) -> None:
        mapping = relayed.mappings.get(peer)
        if mapping is None:
            self._dropped += 1
            return
        mapping.used_at = self._reactor.seconds()
        try:
            mapping.local.write(data, mapping.sender)
        except (OSError, MessageLengthError):
            self._dropped += 1
        else:
            self.received += 1

    # --- mappings -------------------------------------------------------------------------------------------------

    def _map(self, local: LocalPort, sender: Sender) -> Mapping | None:
        if len(self._mappings) >= MAX_SENDERS and not self._make_room():
            self._audience.crowded()
            return None
        free = next((relayed for relayed in self._relayed if relayed.is_free_for(local.peer)), None)
        relayed = free or RelayedAddress(self._from_peer)
        mapping = Mapping(local, sender, relayed, self._reactor.seconds())
        relayed.mappings[local.peer] = self._mappings[local, sender] = mapping
        if free is None:
            self._relayed.append(relayed)
            relayed.opening = Deferred.fromCoroutine(self._open(relayed, Observer()))
            relayed.opening.addErrback(self._refused, relayed)
        elif free.port is not None:
            self._bind(free.port, local.peer)
        return mapping

    def _make_room(self) -> bool:
        """End the mapping that is idle for longest. What its peer may still have to say reaches no other sender."""
        others = [mapping for mapping in self._mappings.values() if mapping.relayed is not self._first]
        longest = min(others, key=lambda mapping: mapping.used_at, default=None)
        if longest is None or self._reactor.seconds() - longest.used_at < RECYCLE_AFTER:
            return False
        longest.relayed.retired.add(longest.local.peer)
        self._end(longest)
        return True

    def _end(self, mapping: Mapping) -> None:
        relayed = mapping.relayed
        self._dropped += len(mapping.waiting)
        del self._mappings[mapping.local, mapping.sender], relayed.mappings[mapping.local.peer]
        if relayed is not self._first and not relayed.mappings:
            self._relayed.remove(relayed)
            self._close(relayed)

    def _sweep(self) -> None:
        now = self._reactor.seconds()
        for mapping in list(self._mappings.values()):
            if mapping.relayed.is_refused or now - mapping.used_at >= IDLE_TIMEOUT:
                self._end(mapping)
        self._sweeping = self._reactor.callLater(SWEEP, self._sweep)

    # --- relayed addresses ------------------------------------------------------------------------------------------

    async def _open(self, relayed: RelayedAddress, observer: Observer) -> LastingPort:
        port = LastingPort(self._reactor, self._client, relayed, observer, self._entropy)
        await port.start()
        relayed.port = port
        for mapping in relayed.mappings.values():
            self._bind(port, mapping.local.peer)
            while mapping.waiting:
                self._send(port, mapping, mapping.waiting.popleft())
        if relayed is not self._first:
            port.when_ended().addCallback(self._lost, relayed)
        return port

    def _close(self, relayed: RelayedAddress) -> Deferred[None]:
        self._dropped += relayed.dropped
        return relayed.close()

    def _bind(self, port: LastingPort, peer: TransportAddress) -> None:
        def refused(failure: Failure) -> None:
            # ServerUnavailable says that the allocation ended, and others tell of that.
            if isinstance(failure.value, RemoteError):
                self._audience.peer_refused(peer, failure.value)

        port.bind(peer.host, peer.port).addErrback(refused)

    def _refused(self, failure: Failure, relayed: RelayedAddress) -> None:
        if relayed in self._relayed and not failure.check(CancelledError):
            failure.trap(RelaydError)
            self._lost(failure.value, relayed)  # type: ignore[arg-type]

    def _lost(self, error: RelaydError | None, relayed: RelayedAddress) -> None:
        """There is none for this sender: what it sends is dropped until the next sweep, and then it may try again."""
        if error is not None:
            relayed.is_refused = True
            self._audience.sender_refused(error)
