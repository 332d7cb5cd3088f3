"""`StreamForwarding`: local TCP ports whose connections reach a peer through a relay. Nothing is said here to people:
that is up to a `StreamAudience`.

A relay has one connection at a time between an allocation and a peer's port, so that each local connection uses an
allocation that has none to its peer. The first one is made at the beginning and shows that it can be done. Others come
with connections that find none free, a lost one included, and go when nothing used them for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall

from relayd.address import TransportAddress
from relayd.client.forward.pairs import Pairs, Side
from relayd.client.tcp import TcpAllocation
from relayd.client.transports.streams import silent_factory
from relayd.errors import ConfigurationError, RelaydError, RemoteError, ServerUnavailable
from relayd.turn.outputs import PeerTls

IDLE_TIMEOUT = 60.0  # seconds that an allocation without connections is kept: browsers come back sooner
SWEEP = 10.0  # seconds between two looks for those
_ALREADY_EXISTS = 446


class StreamRoute(NamedTuple):
    """A local port and its peer, with whom the relay speaks TLS or not. `port` may be 0: any that is free."""

    interface: str
    port: int
    peer: TransportAddress
    tls: PeerTls | None = None


class TcpAllocator(Protocol):
    """Makes TCP allocations, as `TurnClient` does."""

    def allocate_tcp(self) -> Deferred[TcpAllocation]: ...


class StreamAudience:
    """Told how a forwarding of TCP fares. Does nothing by itself."""

    def port_opened(self, local: TransportAddress, peer: TransportAddress, tls: PeerTls | None) -> None:
        """Who connects to this local port is connected with that peer from now on."""

    def tcp_allocated(self, allocation: TcpAllocation) -> None:
        """There is an allocation where there was none."""

    def tcp_lost(self, error: RelaydError) -> None:
        """The relay ended an allocation, and its connections with it."""

    def connection_refused(self, peer: TransportAddress, error: RelaydError) -> None:
        """There is no connection with this peer for a local one, which is reset."""

    def connections_crowded(self) -> None:
        """There are as many connections as there may be, and another one, which is reset."""


class _Shared:
    """An allocation, and the peers to which it has a connection or is about to."""

    def __init__(self, allocation: TcpAllocation, now: float) -> None:
        self.allocation = allocation
        self.peers: set[TransportAddress] = set()
        self.used_at = now


class StreamForwarding:
    """`serve` it, `stop` it. `pairs` are the connections."""

    def __init__(self, reactor: Any, client: TcpAllocator, audience: StreamAudience) -> None:
        self.pairs = Pairs(reactor, audience.connections_crowded)
        self._reactor = reactor
        self._client = client
        self._audience = audience
        self._ports: list[Any] = []
        self._pool: list[_Shared] = []
        self._sweeping: IDelayedCall | None = None
        self._is_stopping = False
        self._stopped: Deferred[None] = Deferred()

    async def serve(self, routes: Sequence[StreamRoute]) -> RelaydError | None:
        """Forward until it is stopped, of which it gives None. `stop` has to follow.

        Raises ConfigurationError for a local port that cannot be used, and what `allocate_tcp` fails with where there
        is no first allocation.
        """
        for route in routes:
            self._audience.port_opened(self._open(route), route.peer, route.tls)
        self._sweeping = self._reactor.callLater(SWEEP, self._sweep)
        first = self.pairs.work(self._allocate())
        try:
            await first
        except (CancelledError, RelaydError):
            if self._is_stopping:
                return None
            raise
        await self._stopped
        return None

    async def stop(self) -> None:
        """Close the local ports, cut all connections, delete the allocations; back when that is done."""
        self._is_stopping = True
        if not self._stopped.called:
            self._stopped.callback(None)
        if self._sweeping is not None and self._sweeping.active():
            self._sweeping.cancel()
        self.pairs.stop()
        ports, self._ports = self._ports, []
        pool, self._pool = self._pool, []
        closing = [maybeDeferred(port.stopListening) for port in ports]
        await gatherResults([*closing, *(shared.allocation.close() for shared in pool)])
        await self.pairs.emptied()

    # --- local connections ----------------------------------------------------------------------------------------

    def _open(self, route: StreamRoute) -> TransportAddress:
        factory = silent_factory(
            lambda: self.pairs.coming(
                lambda: self._reach(route), lambda error: self._audience.connection_refused(route.peer, error)
            )
        )
        try:
            port = self._reactor.listenTCP(route.port, factory, interface=route.interface)
        except CannotListenError as error:
            reason = getattr(error.socketError, "strerror", None) or error.socketError
            raise ConfigurationError(f"cannot listen on {route.interface}, TCP port {route.port}: {reason}") from None
        self._ports.append(port)
        return TransportAddress.parse(route.interface, port.getHost().port)

    # --- peers ----------------------------------------------------------------------------------------------------

    async def _reach(self, route: StreamRoute) -> Side:
        """A connection with the peer, from whichever allocation has none yet."""
        tried: set[_Shared] = set()
        while True:
            free = (each for each in self._pool if each not in tried and route.peer not in each.peers)
            shared = next(free, None)
            is_new = shared is None
            if shared is None:
                shared = await self._allocate()
            try:
                return await self._connect(shared, route)
            except RemoteError as error:
                # The relay has not noticed yet that the connection before this one is over.
                if error.code != _ALREADY_EXISTS or is_new:
                    raise
                tried.add(shared)

    async def _connect(self, shared: _Shared, route: StreamRoute) -> Side:
        peer = route.peer

        def release() -> None:
            shared.peers.discard(peer)
            shared.used_at = self._reactor.seconds()

        made: list[Side] = []

        def build() -> Side:
            made.append(self.pairs.other(release))
            return made[-1]

        shared.peers.add(peer)
        try:
            remote: Side = await shared.allocation.connect(peer, route.tls, silent_factory(build))
        except BaseException:
            if not made:
                shared.peers.discard(peer)
            raise
        return remote

    async def _allocate(self) -> _Shared:
        allocation = await self._client.allocate_tcp()
        if not self._pool:
            self._audience.tcp_allocated(allocation)
        shared = _Shared(allocation, self._reactor.seconds())
        self._pool.append(shared)
        allocation.when_ended().addCallback(self._ended, shared)
        return shared

    def _ended(self, error: RelaydError | None, shared: _Shared) -> None:
        if shared in self._pool:
            self._pool.remove(shared)
            if not self._pool:
                self._audience.tcp_lost(error or ServerUnavailable("the relay ended it"))

    def _sweep(self) -> None:
        """Give back what nobody used lately, but for one."""
        now = self._reactor.seconds()
        for shared in self._pool[1:]:
            if not shared.peers and now - shared.used_at >= IDLE_TIMEOUT:
                self._pool.remove(shared)
                self.pairs.work(shared.allocation.close())
        self._sweeping = self._reactor.callLater(SWEEP, self._sweep)
