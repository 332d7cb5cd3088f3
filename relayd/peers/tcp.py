"""Opens relayed TCP addresses, and the connections of peers to them and from them (RFC 6062).

A relayed address is a listening socket, and every connection to a peer leaves from the same address and port.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.protocol import ClientFactory, ServerFactory
from twisted.plugin import IPlugin
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.accept_log import AcceptLog
from relayd.address import Family, TransportAddress
from relayd.config import RelaySettings
from relayd.core import Entropy
from relayd.errors import PeerNotAuthenticated, PeerUnreachable, RelaydError, RelayUnavailable
from relayd.interfaces import (
    Counters,
    IDataPlane,
    IPeerConnection,
    IPeerTransportFactory,
    IRelay,
    ITcpPeerTransport,
    ITcpRelay,
    ITcpRelayReceiver,
)
from relayd.peers.bridged import bridge
from relayd.peers.connection import PeerConnection
from relayd.peers.ports import RelayPorts, cannot_relay, check_settings, is_exhausted
from relayd.peers.relayed_port import RelayedConnector, RelayedPort, listening_socket
from relayd.peers.tls import PeerTlsOptions, TlsPeerConnection, over_tls
from relayd.rate import TokenBucket
from relayd.turn.outputs import PeerTls
from relayd.turn.peer_connections import MAX_CONNECTIONS

TCP = 6  # IP protocol number

CONNECT_TIMEOUT = 30.0  # seconds, RFC 6062 section 5.2: at least

MAX_OUTLIVING = 1_024
"""Connections whose allocation is over and that still deliver what was sent before, of all allocations together: no
quota counts them any more, and a peer may take its time. Each is a descriptor and its buffers.
"""

Opened = tuple[IRelay, TransportAddress]


@implementer(ITcpRelay)
class TcpRelay(ServerFactory):
    """A relayed transport address for TCP. `gone` is called with it when it is closed, and its last connection too."""

    noisy = False

    def __init__(
        self,
        reactor: Any,
        address: TransportAddress,
        receiver: ITcpRelayReceiver,
        tls: PeerTlsOptions,
        accept_log: AcceptLog,
        find: Callable[[TransportAddress], TcpRelay | None],
        closing: Callable[[TcpRelay], Any],
        gone: Callable[[TcpRelay], Any],
    ) -> None:
        """`find` gives the relayed address that is open at a place. `closing` is called when it closes, with what is
        left of its connections.
        """
        self.address = address
        self.accepts_tls = False
        self.counters = Counters()
        self.limit: TokenBucket | None = None
        self.connections: set[IPeerConnection] = set()
        self._reactor = reactor
        self._receiver = receiver
        self._tls = tls
        self._accept_log = accept_log
        self._find = find
        self._closing = closing
        self._gone = gone
        self._port: Any = None
        self._attempts: set[_Attempt] = set()
        self._closed = False

    def listen(self) -> None:
        """Bind and listen. Raises OSError."""
        listening = listening_socket(self.address)
        self.address = self.address.with_port(listening.getsockname()[1])
        self._port = RelayedPort(listening, self, self._reactor)
        self._accept_log.attach(self._port)
        self._port.startListening()

    def send(self, peer: TransportAddress, data: bytes, dont_fragment: bool = False) -> bool:
        """There are no datagrams here."""
        self.counters.dropped += 1
        return False

    def send_run(self, peer: TransportAddress, payloads: Sequence[bytes]) -> None:
        """Nor runs of them."""
        self.counters.dropped += len(payloads)

    def connect(self, peer: TransportAddress, tls: PeerTls | None = None) -> Deferred[IPeerConnection]:
        """See `ITcpRelay.connect`."""
        if self._closed:
            return fail(PeerUnreachable("the relayed address is closed"))
        neighbour = self._find(peer)
        if neighbour is self:
            # The system would take it for a simultaneous open (RFC 9293 section 3.5), whatever we listen for there.
            return fail(PeerUnreachable("the relayed address itself"))
        if tls is None and neighbour is not None and neighbour.awaits(self.address):
            ours, theirs = bridge(self, neighbour, self._receiver, self._reactor)
            neighbour._arrived(theirs)
            return succeed(ours)
        try:
            options = None if tls is None else self._tls.client(tls)
        except PeerNotAuthenticated as error:
            return fail(error)
        connected: Deferred[IPeerConnection] = Deferred()
        attempt = _Attempt(self, self._receiver, peer, self._reactor, options, connected)
        self._attempts.add(attempt)
        attempt.begin()
        return connected

    def close(self) -> None:
        """Stop listening, and give up what is being connected. Connections with peers end when they are closed."""
        if self._closed:
            return
        self._closed = True
        for attempt in list(self._attempts):
            attempt.give_up()
        self._closing(self)
        maybeDeferred(self._port.stopListening).addBoth(self._stopped)

    def abort(self) -> None:
        """Close, and end every connection with a peer at once."""
        self.close()
        for connection in list(self.connections):
            connection.abort()

    def awaits(self, peer: TransportAddress) -> bool:
        """Whether a connection of that peer's, in the clear, would be taken."""
        return not self._closed and not self.accepts_tls and self._receiver.awaits_peer(self, peer)

    # --- what Twisted, the connections and the attempts call ---

    def buildProtocol(self, addr: Any) -> Any:
        peer = TransportAddress.parse(addr.host, addr.port)
        # Asked here, so that strangers cost neither a protocol nor a handshake; Twisted then closes the connection.
        if self._closed or not self._receiver.awaits_peer(self, peer):
            return None
        if not self.accepts_tls:
            return PeerConnection(self, self._receiver, peer, self._reactor, self._arrived)
        if len(self.connections) >= MAX_CONNECTIONS:
            return None
        above = TlsPeerConnection(self, self._receiver, peer, self._reactor, self._arrived, lambda error: None)
        return over_tls(self._tls.server, False, above, self._reactor)

    def lost(self, connection: IPeerConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self._settle()

    def ended(self, attempt: _Attempt) -> None:
        """An attempt became a connection, or will not."""
        self._attempts.discard(attempt)
        self._settle()

    def _arrived(self, connection: IPeerConnection) -> None:
        self._receiver.peer_arrived(self, connection)

    def _stopped(self, _: Any) -> None:
        self._port = None
        self._settle()

    def _settle(self) -> None:
        if self._port is None and not self.connections and not self._attempts:
            self._gone(self)


class _Attempt(ClientFactory):
    """To reach a peer, once."""

    noisy = False

    def __init__(
        self,
        relay: TcpRelay,
        receiver: ITcpRelayReceiver,
        peer: TransportAddress,
        reactor: Any,
        tls: Any,
        connected: Deferred[IPeerConnection],
    ) -> None:
        """`tls`: the options of TLS, or None."""
        self._relay = relay
        self._peer = peer
        self._connected = connected
        if tls is None:
            self._protocol: Any = PeerConnection(relay, receiver, peer, reactor, self._opened)
        else:
            above = TlsPeerConnection(relay, receiver, peer, reactor, self._opened, self._failed)
            self._protocol = over_tls(tls, True, above, reactor)
        local = relay.address.host, relay.address.port
        self._connector: Any = RelayedConnector(peer.host, peer.port, self, CONNECT_TIMEOUT, local, reactor)

    def begin(self) -> None:
        self._connector.connect()

    def give_up(self) -> None:
        self._connector.stopConnecting()

    def buildProtocol(self, addr: Any) -> Any:
        self._relay.ended(self)  # from here on it is among the connections
        return self._protocol

    def clientConnectionFailed(  # noqa: N802
        self, connector: Any, reason: Failure
    ) -> None:
        self._relay.ended(self)
        said = f"{self._peer}: {reason.getErrorMessage()}"
        if is_exhausted(getattr(reason.value, "osError", None)):
            self._failed(RelayUnavailable(said, exhausted=True))
        else:
            self._failed(PeerUnreachable(said))

    def _opened(self, connection: PeerConnection) -> None:
        self._connected.callback(connection)

    def _failed(self, error: RelaydError) -> None:
        self._connected.errback(error)


@implementer(ITcpPeerTransport)
class TcpPeers:
    """Relayed TCP transport addresses. Its Deferreds have fired when they are returned."""

    transport = TCP

    def __init__(self, reactor: Any, settings: RelaySettings, entropy: Entropy = secrets.token_bytes) -> None:
        self._reactor: Any = reactor
        self._tls = PeerTlsOptions(settings)
        self._accept_log = AcceptLog("relayed TCP addresses", reactor)  # one, so that they say it once together
        self.accepts_tls = self._tls.server is not None
        self._ports = RelayPorts(settings, entropy)
        self.families = self._ports.families
        self.default_family = self._ports.default_family
        self._relays: set[TcpRelay] = set()  # with those that are closed and have connections left
        self._at: dict[TransportAddress, TcpRelay] = {}  # the last one at each place, open or not
        self._outlived: dict[TcpRelay, None] = {}  # those that are closed, the oldest first
        self._empty: Deferred[None] = Deferred()
        self._closed = False

    def open(
        self, family: Family, receiver: Any, even_port: bool = False, reserve_next: bool = False
    ) -> Deferred[tuple[IRelay, TransportAddress, Opened | None]]:
        """See `IPeerTransport.open`; `receiver` is an `ITcpRelayReceiver`. There are no even ports for TCP (RFC 6062
        section 5.1).
        """
        for address, port in self._ports.candidates(family):
            relay = TcpRelay(
                self._reactor,
                address.bound.with_port(port),
                receiver,
                self._tls,
                self._accept_log,
                self._at.get,
                self._outlive,
                self._forget,
            )
            try:
                relay.listen()
            except OSError as error:
                unavailable = cannot_relay(address, error)
                if unavailable is None:
                    continue
                return fail(unavailable)
            self._relays.add(relay)
            self._at[relay.address] = relay
            return succeed((relay, address.advertised.with_port(port), None))
        return fail(RelayUnavailable(f"no relayed {family.name} port is free for TCP"))

    def close(self) -> Deferred[None]:
        """See `IPeerTransport.close`."""
        if not self._closed:
            self._closed = True
            for relay in list(self._relays):
                relay.abort()
            self._settle()
        return self._empty

    def _outlive(self, relay: TcpRelay) -> None:
        """Leave its connections to themselves. Where that makes too many, the oldest ones are reset."""
        self._outlived[relay] = None
        while len(self._outlived) > 1 and sum(len(each.connections) for each in self._outlived) > MAX_OUTLIVING:
            oldest = next(iter(self._outlived))
            del self._outlived[oldest]
            oldest.abort()

    def _forget(self, relay: TcpRelay) -> None:
        self._relays.discard(relay)
        self._outlived.pop(relay, None)
        if self._at.get(relay.address) is relay:
            del self._at[relay.address]
        self._settle()

    def _settle(self) -> None:
        if self._closed and not self._relays and not self._empty.called:
            self._empty.callback(None)


@implementer(IPlugin, IPeerTransportFactory)
class TcpPeersFactory:
    """Makes `TcpPeers`."""

    kind = "tcp"
    transport = TCP
    help = "Relays TCP connections, to peers and from them. Addresses and ports are those of UDP."

    def make(self, reactor: Any, data_plane: IDataPlane, settings: RelaySettings) -> TcpPeers:
        """See `IPeerTransportFactory.make`."""
        check_settings(settings, _bind)
        return TcpPeers(reactor, settings)


def _bind(address: TransportAddress) -> None:
    family = socket.AF_INET if address.family is Family.IPV4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address.host, address.port))
