"""Every seam of relayd, told once.

The story. A listener (`IListenerFactory` made it) hears a client. It describes the client as an `IClientPath` and
hands every whole STUN message, and every ChannelData that no flow takes, to `IRelayService.receive`. The service
feeds the TURN core. When the core asks who that is, the service asks a cred portal for an `ITurnUser`. When the core
wants a relayed address, the service asks each `IPolicy`, then an `IPeerTransport`, which opens an `IRelay` through
the `IDataPlane`. When the core binds a channel the service installs a flow in the data plane, which from then on
moves those packets without anyone above it knowing. Whatever happens to an allocation is told to each
`IAllocationObserver`.

Listeners and peer transports never import the service, and it never imports them. Third parties plug in by dropping
a module into `twisted/plugins` that provides one of the factories; the kinds of strcred (`--help-auth`) are the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import ICredentials
from zope.interface import Attribute, Interface

from relayd.address import Family, Path, TransportAddress


class Counters:
    """What went through one relay, in datagrams and payload bytes. `sent` is client to peer, `received` is peer to
    client.

    `dropped` counts datagrams that were permitted and yet not passed on: bandwidth, a paused client, a full socket.
    `bridged` counts those of `sent_packets` that went to another allocation of this relay, and so did not leave it.
    """

    __slots__ = ("sent_packets", "sent_bytes", "received_packets", "received_bytes", "dropped", "bridged")

    def __init__(self) -> None:
        self.sent_packets = self.sent_bytes = 0
        self.received_packets = self.received_bytes = 0
        self.dropped = self.bridged = 0

    def add(self, more: Counters) -> None:
        """Count what `more` has counted, too."""
        self.sent_packets += more.sent_packets
        self.sent_bytes += more.sent_bytes
        self.received_packets += more.received_packets
        self.received_bytes += more.received_bytes
        self.dropped += more.dropped
        self.bridged += more.bridged


# --- client side ----------------------------------------------------------------------------------------------------


class IByteStream(Interface):
    """One of the two connections of a relayed TCP connection (RFC 6062): a client data connection, or a peer data
    connection. What comes from one goes to the other as it is. Neither reads faster than the other takes it.
    """

    valve: Any = Attribute("A `relayd.pipe.valve.Valve`: whether this end may be read.")

    def join(other: Any) -> None:
        """From now on what comes from here goes to the `IByteStream` `other`, what came already first. Called once."""

    def write(data: bytes) -> None:
        """Send bytes. Whoever writes heeds `valve` of its own end, which is shut while there is too much under way."""

    def finish() -> None:
        """The other end has said all that it had to say, and still listens: tell it behind what was written. Where the
        transport cannot (TLS, WebSocket), this closes.
        """

    def close() -> None:
        """End it, once all that was written is sent. Idempotent."""

    def abort() -> None:
        """End it at once, and let it be seen that it was not in order. Idempotent."""


class IClientPath(Interface):
    """One client, as its listener reaches it. Lives as long as the connection, or, over UDP, as long as someone
    holds it.
    """

    path: Path = Attribute("The `relayd.address.Path` that identifies it; never changes.")
    flows: dict[int, Any] = Attribute(
        "Installed `relayd.dataplane.flow.Flow`s by channel number, kept by the data plane and looked up by the "
        "listener for each ChannelData. A path that belongs to a data plane's own port (UDP) need not keep it current."
    )

    def send(data: bytes) -> bool:
        """Send one whole STUN message or ChannelData (already padded where the path is a stream).

        Never blocks and never queues without bound. False: dropped, because the client does not keep up.
        """

    def send_channel_data(number: int, payload: bytes) -> bool:
        """Frame `payload` (0 to 65,535 bytes) as ChannelData the way this path wants it, and send it. False:
        dropped.
        """

    def send_channel_data_run(number: int, payloads: Sequence[bytes]) -> int:
        """The same for several payloads at once, all of one size and at most 65,000 bytes together: a burst from one
        peer costs little more than one datagram. How many were sent, the first ones; the others are dropped.
        """

    def send_from(source: TransportAddress, destination: TransportAddress, data: bytes) -> bool:
        """Send from another local address, or to another port of the client (RFC 5780). False where that cannot be
        done.
        """

    def close() -> None:
        """End the connection, if there is one. The listener then calls `IRelayService.path_closed`. Idempotent."""


class IStreamPath(IClientPath):
    """A client on a connection: what carries TURN may come to carry a peer's bytes instead."""

    def data_connection() -> Any:
        """Become a client data connection (RFC 6062 section 5.4), and give it as an `IByteStream`: from now on nothing
        that comes is TURN. Called right after the answer to ConnectionBind was sent.
        """


class IRelayService(Interface):
    """The one allocation service, as listeners see it."""

    def receive(client: IClientPath, data: bytes) -> None:
        """A whole STUN message or ChannelData message from a client. Never raises for anything in `data`."""

    def path_closed(client: IClientPath) -> None:
        """The connection behind this path is gone, and with it its allocation. Not called for UDP."""

    def has_allocation(client: IClientPath) -> bool:
        """Whether an allocation hangs on this path: listeners time out connections that have none."""


class TurnedAway(StrEnum):
    """Why a connection or DTLS session did not come about."""

    TOTAL = "total"  # the listener had as many as it may have
    SOURCE = "source"  # its source had
    HANDSHAKES = "handshakes"  # its source began too many TLS or DTLS handshakes in too short a time


class IListener(Interface):
    """A way in that is open."""

    kind: str = Attribute("What is spoken: `turn`, `web`, `any`.")
    description: str = Attribute("For the operator: app_connection and address, such as `tls 192.0.2.1:5349`.")
    addresses: list[TransportAddress] = Attribute("What it occupies locally: no peer is reached there.")
    app_connection: str = Attribute("The app_connection that its clients get; for a mixed port the plain one.")
    behind_proxy: bool = Attribute("Whether only proxies can connect, and clients find it under the proxy's address.")

    turned_away: Any = Attribute("How many connections were, a `Counter` of `TurnedAway`. Empty where there are none.")

    def close() -> Any:
        """Stop accepting and end all connections. A Deferred that fires when no socket or delayed call is left."""


class IListenerFactory(Interface):
    """Plugin: makes listeners of one kind. In the manner of `twisted.cred.strcred.ICheckerFactory`."""

    kind: str = Attribute("The word before `=` in `--listen KIND=ENDPOINT`.")
    help: str = Attribute("A paragraph for `--help-listen`.")
    argument_format: str = Attribute("One line that shows the ENDPOINT grammar.")

    def listen(endpoint: str, reactor: Any, service: IRelayService, data_plane: IDataPlane, settings: Any) -> Any:
        """Open it. A Deferred of `IListener`; fails with `ConfigurationError` for a bad endpoint, certificate or
        used port.

        `settings` is a `relayd.config.ListenerSettings`.
        """


# --- peer side ------------------------------------------------------------------------------------------------------


class IRelay(Interface):
    """One relayed transport address that is open. Hashable by identity."""

    address: TransportAddress = Attribute("Where it is bound.")
    counters: Counters = Attribute("Kept by the data plane for flows and `send`; the service adds what it passed on.")
    limit: Any = Attribute("A `relayd.rate.TokenBucket` of payload bytes both ways, or None. The service sets it.")

    def send(peer: TransportAddress, data: bytes, dont_fragment: bool = False) -> bool:
        """Send a datagram to a peer. To another relay of this plane it goes inside (`relayd.dataplane.bridge`).

        False: dropped (and counted): over the limit, socket full, too long, unreachable.
        """

    def send_run(peer: TransportAddress, payloads: Sequence[bytes]) -> None:
        """Send several datagrams to one peer, in order: as `send` for each, where that can be had for less."""

    def close() -> None:
        """Give the address back. Nothing is delivered afterwards. Idempotent."""


class ITcpRelay(IRelay):
    """A relayed transport address for TCP. Nothing is sent from it but through its connections."""

    accepts_tls: bool = Attribute("Whether peers that connect have to speak TLS. The service sets it.")

    def connect(peer: TransportAddress, tls: Any = None) -> Any:
        """A Deferred of an `IPeerConnection`. `tls` is a `relayd.turn.outputs.PeerTls`, or None.

        Fails with `PeerUnreachable`, after 38 seconds at the latest, with `PeerNotAuthenticated`, or with
        `RelayUnavailable` where we ran out of descriptors or memory, so that the peer was not even tried.
        """


class IPeerConnection(IByteStream):
    """A peer data connection. It is not read before it is joined."""

    peer: TransportAddress = Attribute("The peer, as the kernel names it.")
    protocol: bytes | None = Attribute("What was agreed on by ALPN, if anything was.")


class IRelayReceiver(Interface):
    """Whoever opened a relay: hears of what no flow took."""

    def peer_datagram(relay: IRelay, peer: TransportAddress, data: bytes) -> None:
        """A datagram from a peer for which no flow is installed."""

    def peer_error(relay: IRelay, peer: TransportAddress, icmp_type: int, icmp_code: int, data: int) -> None:
        """An ICMP error about a datagram sent to that peer (RFC 8656 section 11.5); `data` is its 32-bit field (the
        MTU).
        """

    def relay_failed(relay: IRelay) -> None:
        """The relay broke and is closed."""


class ITcpRelayReceiver(IRelayReceiver):
    """Whoever opened a relay for TCP."""

    def awaits_peer(relay: ITcpRelay, peer: TransportAddress) -> bool:
        """Whether a connection of that peer's would be taken."""

    def peer_arrived(relay: ITcpRelay, connection: IPeerConnection) -> None:
        """A peer opened a TCP connection to the relayed address."""

    def peer_connection_lost(connection: IPeerConnection) -> None:
        """A connection with a peer, whoever opened it, is gone. Said once, also after `close` and `abort`."""


class IPeerTransport(Interface):
    """Opens relayed transport addresses for one REQUESTED-TRANSPORT."""

    transport: int = Attribute("IP protocol number: 17 or 6.")
    families: frozenset[Family] = Attribute("Address families for which relayed addresses are configured.")
    default_family: Family = Attribute("Listed first: IPv4 where there is any.")

    def open(family: Family, receiver: IRelayReceiver, even_port: bool = False, reserve_next: bool = False) -> Any:
        """Open one relayed address.

        Gives a Deferred of (IRelay, advertised TransportAddress, reserved): `reserved` is the (IRelay,
        TransportAddress) of the following port if `reserve_next`, else None. Fails with `RelayUnavailable`.
        """

    def close() -> Any:
        """Release everything still open, but for what the data plane opened: that closes it. None, or a Deferred that
        fires when no descriptor is left.
        """


class ITcpPeerTransport(IPeerTransport):
    """Opens `ITcpRelay`s."""

    accepts_tls: bool = Attribute("Whether there is a certificate to be shown to peers that connect.")


class IPeerTransportFactory(Interface):
    """Plugin: makes a way out."""

    kind: str = Attribute("`udp`, `tcp`.")
    transport: int = Attribute("IP protocol number.")
    help: str = Attribute("A paragraph for `--help-peers`.")

    def make(reactor: Any, data_plane: IDataPlane, settings: Any) -> IPeerTransport:
        """`settings` is a `relayd.config.RelaySettings`. Raises `ConfigurationError`."""


# --- between --------------------------------------------------------------------------------------------------------


class IDatagramReceiver(Interface):
    """Whoever opened a client-side port: hears of what no flow took."""

    def datagram_received(client: IClientPath, data: bytes) -> None:
        """A datagram. `client` is made for the occasion and may be kept (its `path` is equal for the same client)."""


class IDatagramPort(Interface):
    """A client-side UDP port that is open."""

    address: TransportAddress = Attribute("Where it is bound, with the real port.")
    app_connection: str = Attribute("Goes into the paths of its clients: `udp`, or `dtls`.")
    siblings: list[Any] = Attribute(
        "The four ports of NAT behaviour discovery (RFC 5780), itself among them, between which "
        "`IClientPath.send_from` can choose; empty where none is configured."
    )

    def send(destination: TransportAddress, data: bytes) -> bool:
        """False: dropped."""

    def close() -> None:
        """Idempotent."""


class IDataPlane(Interface):
    """Moves packets: holds flows, forwards what matches one, and hands everything else up. Never decides anything
    itself.
    """

    name: str = Attribute("`portable`, `batched`.")

    def open_port(address: TransportAddress, app_connection: str, receiver: IDatagramReceiver) -> IDatagramPort:
        """Open a client-side UDP port (port 0: any). Raises OSError as the system gave it."""

    def open_relay(address: TransportAddress, receiver: IRelayReceiver) -> IRelay:
        """Open a relayed UDP address (port 0: any). Raises OSError as the system gave it."""

    def install_flow(flow: Any) -> None:
        """Start forwarding a `relayd.dataplane.flow.Flow`; one already there with the same client and number is
        replaced.
        """

    def remove_flow(flow: Any) -> None:
        """Stop. Harmless if it is not installed."""

    def close() -> None:
        """Close every port and relay; leave no descriptor and no delayed call."""


class IDataPlaneFactory(Interface):
    """Plugin: a way to move packets."""

    name: str = Attribute("The word for `--data-plane`.")
    help: str = Attribute("A paragraph for `--help-data-plane`.")
    preference: int = Attribute("Among the available ones the highest is the default.")

    def unavailable() -> str | None:
        """Why it cannot be used on this platform, in one line; None if it can."""

    def make(reactor: Any) -> IDataPlane:
        """Raises `ConfigurationError` where `unavailable` says so."""


class ITurnUser(Interface):
    """The avatar that the portal gives: someone who may use the relay."""

    username: str = Attribute("Prepared by OpaqueString (RFC 8265).")
    expires: float | None = Attribute("When the credentials end, in seconds since the epoch, or None.")


class IStunCredentials(ICredentials):
    """What a client showed, for checkers that hold long-term keys (RFC 8489 section 9.2.2) and no passwords.

    Such a checker lists this in `credentialInterfaces`. Any checker may return an `ITurnUser` instead of a name as the
    avatar ID, and so say when the credentials end.
    """

    name: str = Attribute("The user name, prepared by OpaqueString (RFC 8265).")
    realm: str = Attribute("The realm of the key that is wanted.")
    algorithm: Any = Attribute("The `relayd.stun.integrity.PasswordAlgorithm` of the key that is wanted.")

    def check_key(key: bytes) -> bool:
        """Whether the client has this key; in constant time."""


class IUserHashChecker(ICredentialsChecker):
    """A checker that can also find a user by USERHASH (RFC 8489 section 9.2.4)."""

    def username_for(userhash: bytes, realm: str) -> Any:
        """The user name whose SHA-256(username ":" realm) that is, or None; or a Deferred of it."""


class IPolicy(Interface):
    """A say in who may allocate and reach whom. Built-in peer rules come first; every policy must agree."""

    def may_allocate(request: Any) -> Any:
        """May this allocation be made? `request` is a `relayd.turn.outputs.OpenRelay`.

        None: yes. A `relayd.turn.outputs.RelayRefused`: no, and what to answer. Or a Deferred of either.
        """

    def may_reach(username: str, peer: TransportAddress) -> bool:
        """May this user's allocation exchange packets with that peer? Asked on every permission, channel and TCP
        connection: must not block.
        """

    def bandwidth(username: str) -> int | None:
        """Bytes a second for each of this user's allocations; None: no opinion, the configured one holds. The least
        wins.
        """


class IPolicyFactory(Interface):
    """Plugin: a policy, as `--policy TYPE:ARGS`."""

    policy_type: str = Attribute("TYPE.")
    help: str = Attribute("A paragraph for `--help-policy`.")
    argument_format: str = Attribute("One line about ARGS.")

    def make(arguments: str, reactor: Any) -> IPolicy:
        """Raises `ConfigurationError`."""


# --- told -----------------------------------------------------------------------------------------------------------


class IAllocationObserver(Interface):
    """Told of every lifecycle event. Must return at once; an exception in it is logged and harms nobody.

    Events are the dataclasses under "tells" in `relayd.turn.outputs`; an observer ignores those that it does not know.
    The relays in them are `IRelay`s, so counters can be read from `AllocationEnded`.
    """

    def observe(event: Any) -> None:
        """Something happened."""


class IRelayStatus(Interface):
    """What the pages for the operator show. `launch` makes it; listeners only carry it to the pages of their site."""

    version: str = Attribute("Of relayd.")
    data_plane: str = Attribute("The name of the data plane.")
    started: float = Attribute("Seconds since 1970.")
    listeners: Any = Attribute("The `IListener`s that are open.")
    relay_addresses: Any = Attribute("The `relayd.config.RelayAddress`es that are relayed from.")
    certificates: Any = Attribute("The `relayd.tls.certificates.Certificates` of this relay.")
    statistics: Any = Attribute("The `relayd.observers.statistics.Statistics` of this relay.")

    def seconds() -> float:
        """The time, in seconds since 1970."""


class IAllocationObserverFactory(Interface):
    """Plugin: an observer, as `--observe TYPE:ARGS`."""

    observer_type: str = Attribute("TYPE.")
    help: str = Attribute("A paragraph for `--help-observe`.")
    argument_format: str = Attribute("One line about ARGS.")

    def make(arguments: str, reactor: Any) -> IAllocationObserver:
        """Raises `ConfigurationError`."""
