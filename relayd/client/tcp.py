"""A TCP allocation (RFC 6062): TCP connections to peers as stream endpoints of Twisted, and from peers to a factory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.error import NoProtocol
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.client.carriers import open_data_connection
from relayd.client.data_connection import DataConnection
from relayd.client.relayed import peer_address
from relayd.client.session import Owner, Session
from relayd.client.transports.uri import TurnUri
from relayd.errors import ConfigurationError, RelaydError, RemoteError, ServerUnavailable
from relayd.identity import ReferenceIdentity
from relayd.tls.client import Trust
from relayd.turn.client_outputs import Allocated
from relayd.turn.outputs import PeerTls
from relayd.twisted_address import TwistedAddress, to_twisted

_ALREADY_EXISTS = 446  # RFC 6062 section 6.3
FORGETTING = 31.0
"""Seconds for a relay to forget a connection of ours that is over. It may wait for the peer to close too, and keeps
what is never bound, because who had asked for it was cancelled, for 30 (RFC 6062 section 5.2).
"""
FIRST_PAUSE = 0.05  # seconds before it is asked again; doubled each time
LONGEST_PAUSE = 1.0  # seconds


class TcpAllocation(Owner):
    """What `TurnClient.allocate_tcp` gives. It is renewed until `close`, and its end is that of all connections.

    A relay has one connection at a time between an allocation and a peer's port, and refuses another with 446.
    """

    _log = Logger()

    def __init__(self, reactor: Any, session: Session, allocated: Allocated, uri: TurnUri, trust_root: Any) -> None:
        self.uri = uri  # of the server that was asked
        self._reactor = reactor
        self._session = session
        self._allocated = allocated
        self._trust_root = Trust(trust_root)  # for all data connections, where TLS leads to the server
        self._callers: IProtocolFactory | None = None
        self._caller_failed: Callable[[TransportAddress, RelaydError], None] | None = None
        self._connections: set[DataConnection] = set()
        self._openings: set[Deferred[Any]] = set()
        self._is_over = False
        self._error: RelaydError | None = None
        self._ended: list[Deferred[RelaydError | None]] = []
        self._emptied: list[Deferred[None]] = []

    def start(self) -> None:
        """Begin. `TurnClient` has done so."""
        self._session.owner = self

    # --- addresses ------------------------------------------------------------------------------------------------

    @property
    def relayed_addresses(self) -> tuple[TransportAddress, ...]:
        """Where peers reach us: one address, or one of each family."""
        return self._allocated.relayed

    @property
    def mapped_address(self) -> TransportAddress | None:
        """Our own address as the server sees it, if it said so."""
        return self._allocated.mapped

    def getHost(self) -> TwistedAddress:
        """The (first) relayed address."""
        return to_twisted(self._allocated.relayed[0])

    # --- peers ----------------------------------------------------------------------------------------------------

    def endpoint(self, host: str, port: int, tls: PeerTls | None = None) -> PeerEndpoint:
        """Where a peer listens: `host` is an IP address in text. With `tls` the relay, not we, speaks TLS with it;
        relays that know nothing of that answer 420. Raises ValueError, as for names that no certificate can be for.
        """
        if tls is not None:
            if not all(0 < len(each) < 256 for each in tls.protocols):  # RFC 7301 section 3.1
                raise ValueError("the name of a protocol has 1 to 255 bytes")
            try:
                tls = PeerTls(ReferenceIdentity(tls.server_name).name, tls.protocols)
            except ValueError:
                raise ValueError(f"{tls.server_name!r}: no certificate can be for such a name") from None
        return PeerEndpoint(self, peer_address(host, port), tls)

    def permit(self, host: str) -> Deferred[None]:
        """Let in connections from `host`. Fails with RemoteError where the server refuses."""
        return self._session.permit(peer_address(host, 1))

    def listen(
        self, factory: IProtocolFactory, failed: Callable[[TransportAddress, RelaydError], None] | None = None
    ) -> None:
        """Have `factory` build a protocol for each peer that connects to the relayed address, if it is permitted. What
        keeps such a connection from us is told to `failed`, or else logged.

        Raises RuntimeError where there is such a factory already. Without one, callers wait and are hung up on.
        """
        if self._callers is not None:
            raise RuntimeError("one factory takes all connections to a relayed address")
        self._callers = factory
        self._caller_failed = failed

    async def connect(self, peer: TransportAddress, tls: PeerTls | None, factory: IProtocolFactory) -> Any:
        """As `PeerEndpoint.connect`, and fails with 446 even if that connection is on its way out."""
        try:
            connected = await self._session.connect_to_peer(peer, tls)
            return await self._open(peer, connected.number, factory, connected.protocol)
        except CancelledError:
            if self._is_over:
                raise ServerUnavailable("the allocation ended") from None
            raise

    async def connect_in_turn(self, peer: TransportAddress, tls: PeerTls | None, factory: IProtocolFactory) -> Any:
        """See `PeerEndpoint.connect`."""
        deadline = self._reactor.seconds() + FORGETTING
        pause = FIRST_PAUSE
        while True:
            try:
                return await self.connect(peer, tls, factory)
            except RemoteError as error:
                is_ours = any(data.peer == peer for data in self._connections)
                if error.code != _ALREADY_EXISTS or is_ours or self._reactor.seconds() > deadline:
                    raise
            await self._rest(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    # --- the end --------------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many there are, those included that are being opened or closed."""
        return len(self._connections)

    def when_ended(self) -> Deferred[RelaydError | None]:
        """Fires when the allocation is gone: with what went wrong, or None where it was closed."""
        if self._is_over:
            return succeed(self._error)
        waiting: Deferred[RelaydError | None] = Deferred()
        self._ended.append(waiting)
        return waiting

    async def _close(self) -> None:
        await self._session.close()
        if self._connections:
            emptied: Deferred[None] = Deferred()
            self._emptied.append(emptied)
            await emptied

    def close(self) -> Deferred[None]:
        """Delete the allocation, and with it cut all connections; fires when nothing is left."""
        return Deferred.fromCoroutine(self._close())

    # --- what the session tells -------------------------------------------------------------------------------------

    def connection_attempted(self, peer: TransportAddress, number: int) -> None:
        if self._callers is None:
            self._log.info("nobody takes the connection of {peer}", peer=peer)
            return

        def failed(failure: Failure) -> None:
            error: Any = failure.value
            if failure.check(CancelledError, NoProtocol):
                return  # the allocation is over, or the factory does not want this one
            if not failure.check(RelaydError):
                self._log.failure("an application failed at a connection of {peer}", failure, peer=peer)
            elif self._caller_failed is not None:
                self._caller_failed(peer, error)
            else:
                self._log.warn("no connection with {peer}: {error}", peer=peer, error=error)

        maybeDeferred(self._open, peer, number, self._callers, None).addErrback(failed)

    def session_ended(self, error: RelaydError | None) -> None:
        self._is_over = True
        self._error = error
        for opening in list(self._openings):
            opening.cancel()
        for data in list(self._connections):
            data.abortConnection()
        ended, self._ended = self._ended, []
        for each in ended:
            each.callback(error)

    # --- within ---------------------------------------------------------------------------------------------------

    def _open(
        self, peer: TransportAddress, number: int, factory: IProtocolFactory, protocol: bytes | None
    ) -> Deferred[Any]:
        relayed = self._allocated.relayed
        ours = next((each for each in relayed if each.family is peer.family), relayed[0])
        core = self._session.connection_bind(number)
        data = DataConnection(self._reactor, core, factory, peer, ours, protocol, self._gone)
        self._connections.add(data)
        try:
            opening = open_data_connection(self._reactor, self._session.server, self._trust_root, data)
        except ConfigurationError:
            self._gone(data)
            raise
        self._openings.add(opening)

        def settled(result: Any) -> Any:
            self._openings.discard(opening)
            if isinstance(result, Failure) and not data.is_carried:
                self._gone(data)
            return result

        return opening.addBoth(settled)

    async def _rest(self, seconds: float) -> None:
        resting: Deferred[None] = deferLater(self._reactor, seconds)
        self._openings.add(resting)
        try:
            await resting
        except CancelledError:
            if self._is_over:
                raise ServerUnavailable("the allocation ended") from None
            raise
        finally:
            self._openings.discard(resting)

    def _gone(self, data: DataConnection) -> None:
        self._connections.discard(data)
        if not self._connections:
            emptied, self._emptied = self._emptied, []
            for each in emptied:
                each.callback(None)


@implementer(IStreamClientEndpoint)
class PeerEndpoint:
    """A peer's port, as it is reached through a TCP allocation."""

    def __init__(self, allocation: TcpAllocation, peer: TransportAddress, tls: PeerTls | None) -> None:
        self._allocation = allocation
        self._peer = peer
        self._tls = tls

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """See `IStreamClientEndpoint.connect`. The transport is a `DataConnection`.

        Fails with RemoteError: 403 where the relay does not let us reach the peer, 446 where the allocation has a
        connection to it, 447 where it does not answer or refuses, 460 where its certificate is not good. Fails with
        ServerUnavailable where the relay is lost. One that follows another which was closed or cancelled waits for the
        relay to forget that, up to `FORGETTING`.
        """
        return Deferred.fromCoroutine(self._allocation.connect_in_turn(self._peer, self._tls, protocolFactory))
