"""A relayed address as a UDP port of Twisted: any `DatagramProtocol` runs on it as it would on a socket."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IUDPTransport
from twisted.internet.protocol import AbstractDatagramProtocol
from twisted.logger import Logger
from zope.interface import implementer

from relayd.address import Family, TransportAddress
from relayd.client.session import Owner, Session
from relayd.client.transports.uri import TurnUri
from relayd.errors import DecodeError, RelaydError, ServerUnavailable
from relayd.stun.attributes import Icmp
from relayd.turn.client_outputs import Allocated
from relayd.twisted_address import TwistedAddress, to_twisted

_PORT_UNREACHABLE = {Family.IPV4: (3, 3), Family.IPV6: (1, 4)}  # ICMP type and code


class NoBroadcast:
    """What sockets have, in IUDPTransport, and relays do not."""

    def getBroadcastAllowed(self) -> bool:
        """Never."""
        return False

    def setBroadcastAllowed(self, enabled: Any) -> None:
        """Raises ServerUnavailable if `enabled`: no relay sends to everybody."""
        if enabled:
            raise ServerUnavailable("a relay does not broadcast")


@implementer(IUDPTransport)
class RelayedPort(NoBroadcast, Owner):
    """What `TurnClient.allocate` gives. Peers are (host, port) with the host an IP address in text.

    A permission is asked for when a datagram is first sent to a peer; one who only listens calls `permit`. `bind`
    makes every datagram to and from one peer smaller. All of it is renewed until `stopListening`.
    """

    _log = Logger()

    def __init__(
        self, session: Session, allocated: Allocated, protocol: AbstractDatagramProtocol, uri: TurnUri
    ) -> None:
        self.uri = uri  # of the server that was asked; the way to it is the way to the relay
        self._session = session
        self._allocated = allocated
        self._protocol = protocol
        self._connected: TransportAddress | None = None
        self._is_started = False
        self._is_over = False
        self._error: RelaydError | None = None
        self._waiting: list[Deferred[RelaydError | None]] = []

    def start(self) -> None:
        """Begin to deliver to the protocol. `TurnClient` has done so."""
        self._session.owner = self
        self._protocol.makeConnection(self)
        self._is_started = True

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
        return to_twisted(self._allocated.relayed[0], "UDP")

    # --- peers ----------------------------------------------------------------------------------------------------

    def permit(self, host: str) -> Deferred[None]:
        """Let in what comes from `host`, from any port. Fails with RemoteError where the server refuses."""
        return self._session.permit(peer_address(host, 1))

    def bind(self, host: str, port: int) -> Deferred[None]:
        """Bind a channel, which includes the permission. Fails with RemoteError where the server refuses."""
        return self._session.bind(peer_address(host, port))

    def write(self, packet: bytes, addr: tuple[str, int] | None = None) -> None:
        """Send one datagram, at most 65,460 bytes; like any datagram it may be lost. Raises ValueError."""
        peer = self._connected if addr is None else peer_address(*addr)
        if peer is None:
            raise ValueError("to whom? Give an address, or connect first")
        self._session.send(peer, packet)

    def connect(self, host: str, port: int) -> None:
        """Have but one peer from now on, in both directions."""
        self._connected = peer_address(host, port)

    @property
    def dropped(self) -> int:
        """How many datagrams were not sent because the way to the relay was congested."""
        return self._session.dropped

    # --- the end --------------------------------------------------------------------------------------------------

    def when_ended(self) -> Deferred[RelaydError | None]:
        """Fires when the allocation is gone: with what went wrong, or None where it was stopped."""
        if self._is_over:
            return succeed(self._error)
        waiting: Deferred[RelaydError | None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def stopListening(self) -> Deferred[None]:
        """Delete the allocation and leave the server; fires when that is done."""
        return self._session.close()

    def session_ended(self, error: RelaydError | None) -> None:
        self._is_over = True
        self._error = error
        waiting, self._waiting = self._waiting, []
        try:
            if self._is_started:  # or it failed at its beginning, and knows
                self._protocol.doStop()
        except Exception:
            self._log.failure("a protocol failed at its end")
        for each in waiting:
            each.callback(error)

    # --- what comes in --------------------------------------------------------------------------------------------

    def data_received(self, peer: TransportAddress, data: bytes) -> None:
        if self._connected is not None and peer != self._connected:
            return
        try:
            self._protocol.datagramReceived(data, (peer.host, peer.port))
        except Exception:
            self._log.failure("a protocol failed at a datagram")

    def icmp_received(self, peer: TransportAddress, icmp: Icmp) -> None:
        # As a socket does, a port that is connected says that nobody listens there.
        if peer == self._connected and icmp[:2] == _PORT_UNREACHABLE[peer.family]:
            refused = getattr(self._protocol, "connectionRefused", None)
            if refused is not None:
                refused()


def peer_address(host: str, port: int) -> TransportAddress:
    """Where a peer is. Raises ValueError."""
    try:
        peer = TransportAddress.parse(host, port)
    except DecodeError as error:
        raise ValueError(str(error)) from None
    if port == 0:
        raise ValueError("no peer has port 0")
    return peer
