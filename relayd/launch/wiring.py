"""Joins the parts: from settings to a daemon that has yet to be started. Listens to nobody."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.cred.checkers import ICredentialsChecker

from relayd.address import AppConnection, Family, TransportAddress
from relayd.auth.realm import Authenticator
from relayd.config import LOOPBACK, ListenerSettings, RelayAddress, RelaySettings, Settings
from relayd.dataplane.hairpin import Hairpin
from relayd.errors import CannotRelay, ConfigurationError
from relayd.interfaces import (
    IAllocationObserver,
    IAllocationObserverFactory,
    IDataPlane,
    IDataPlaneFactory,
    IListener,
    IListenerFactory,
    IPeerTransport,
    IPeerTransportFactory,
    IPolicy,
    IPolicyFactory,
)
from relayd.launch.announcement import announcement
from relayd.launch.daemon import Console, RelayDaemon
from relayd.launch.defaults import (
    OneUser,
    default_relay_addresses,
    default_ways_in,
    interface_of,
    is_confined_to_loopback,
)
from relayd.launch.plugins import all_plugins, find_plugin
from relayd.launch.status import RelayStatus
from relayd.local_addresses import own_endpoints
from relayd.policies.guard import AllOf
from relayd.policies.peers import PeerGuard
from relayd.service import RelayService
from relayd.tls.certificates import Certificates
from relayd.turn.peer_rules import Network
from relayd.turn.server import TurnServer
from relayd.turn.settings import TurnSettings

_JSON_ON_STDOUT = ("json", "-")


@dataclass
class _Opening:
    """What has to wait until the listeners are open, because only then their addresses are known."""

    relays: tuple[RelayAddress, ...]
    data_plane_name: str
    guard: PeerGuard
    on_loopback: bool
    one_user: OneUser | None
    status: RelayStatus
    status_from: Sequence[Network]
    alternates: dict[TransportAddress, TransportAddress] = field(default_factory=dict)

    def opened(self, listeners: Sequence[IListener]) -> list[str]:
        """Tell the peer rules, the status page and NAT behaviour discovery; give the lines to print."""
        endpoints = own_endpoints([each for listener in listeners for each in listener.addresses])
        self.guard.listening_on(endpoints | seen_from_outside(endpoints, self.relays))
        for listener in listeners:
            self.alternates.update(alternates_of(listener))
        self.status.listeners = tuple(listeners)
        return announcement(
            listeners, self.relays, self.data_plane_name, self.on_loopback, self.one_user, self.status_from
        )


def build_daemon(
    settings: Settings, checkers: Sequence[ICredentialsChecker], reactor: Any, is_daemon: bool
) -> RelayDaemon:
    """All parts, joined. Raises ConfigurationError for what can be known to be wrong before anything listens."""
    chosen = settings.listen or default_ways_in()
    ways_in = [(find_plugin(IListenerFactory, "kind", kind, "listen"), endpoint) for kind, endpoint in chosen]
    interfaces = [interface_of(endpoint) for _, endpoint in chosen]
    relays = settings.relay_address or default_relay_addresses(interfaces)
    on_loopback = not (settings.allow_peer or settings.deny_peer) and is_confined_to_loopback(interfaces, relays)
    one_user = None if checkers else make_one_user()
    plane_factory = choose_data_plane(settings.data_plane)
    guard = PeerGuard(LOOPBACK if on_loopback else settings.allow_peer, settings.deny_peer)
    certificates = Certificates()
    status = RelayStatus(reactor, plane_factory.name, relays, certificates)
    opening = _Opening(relays, plane_factory.name, guard, on_loopback, one_user, status, settings.status_from)
    policies = make_policies(settings.policy, reactor)
    observers = [*make_observers(settings, reactor, is_daemon), status.statistics]
    authenticator = Authenticator([one_user.checker()] if one_user else checkers, reactor)
    data_plane = plane_factory.make(reactor)
    try:
        transports = make_peer_transports(reactor, data_plane, relay_settings(settings, relays, certificates))
    except ConfigurationError as why:
        data_plane.close()
        if settings.relay_address or not isinstance(why, CannotRelay):
            raise
        raise ConfigurationError(f"{why} (this one was taken from --listen)") from None
    core = TurnServer(
        turn_settings(settings, transports, authenticator, opening.alternates),
        secrets.token_bytes,
        AllOf([guard, *policies]),
    )
    return RelayDaemon(
        reactor,
        ways_in,
        RelayService(
            reactor,
            core,
            data_plane,
            transports,
            authenticator,
            policies,
            observers,
            settings.max_bandwidth or None,
            Hairpin(relays),
            Hairpin(relays),
        ),
        transports,
        data_plane,
        listener_settings(settings, status, certificates),
        opening.opened,
        Console(sys.stdout, sys.stderr),
        is_daemon,
    )


def relay_settings(settings: Settings, relays: tuple[RelayAddress, ...], certificates: Certificates) -> RelaySettings:
    """The part of the settings that peer transports keep to."""
    lowest, highest = settings.relay_ports
    return RelaySettings(
        relays,
        lowest_port=lowest,
        highest_port=highest,
        peer_ca=settings.peer_ca,
        peer_certificate=settings.peer_certificate,
        peer_key=settings.peer_key,
        certificates=certificates,
    )


def listener_settings(settings: Settings, status: RelayStatus, certificates: Certificates) -> ListenerSettings:
    """The part of the settings that listeners keep to."""
    return ListenerSettings(
        max_connections=settings.max_connections,
        max_connections_per_source=settings.max_connections_per_source,
        trusted_proxies=settings.trust_proxy,
        web_origins=settings.web_origin,
        status_from=settings.status_from,
        status=status,
        certificates=certificates,
    )


def turn_settings(
    settings: Settings,
    transports: Iterable[IPeerTransport],
    authenticator: Authenticator,
    alternates: dict[TransportAddress, TransportAddress],
) -> TurnSettings:
    """The part of the settings that the TURN core keeps to."""
    return TurnSettings(
        realm=settings.realm,
        transports={transport.transport: _families(transport) for transport in transports},
        accepts_tls=any(getattr(transport, "accepts_tls", False) for transport in transports),
        default_lifetime=settings.default_lifetime,
        max_lifetime=settings.max_lifetime,
        user_quota=settings.user_quota,
        total_quota=settings.total_quota,
        supports_userhash=authenticator.supports_userhash,
        password_algorithms=authenticator.algorithms,
        alternates=alternates,
    )


def seen_from_outside(endpoints: Iterable[TransportAddress], relays: Iterable[RelayAddress]) -> set[TransportAddress]:
    """Where a 1:1 NAT in front of us leads back to our own listeners: its public addresses, with their ports."""
    public = {relay.advertised for relay in relays if relay.advertised != relay.bound}
    return {address.with_port(endpoint.port) for address in public for endpoint in endpoints}


def alternates_of(listener: IListener) -> dict[TransportAddress, TransportAddress]:
    """For each address of NAT behaviour discovery the one where host and port differ (RFC 5780 section 6)."""
    addresses = listener.addresses if listener.app_connection == AppConnection.UDP else []
    return {one: other for one in addresses for other in addresses if one.ip != other.ip and one.port != other.port}


def _families(transport: IPeerTransport) -> tuple[Family, ...]:
    default = transport.default_family
    return (default, *sorted(transport.families - {default}))


def make_one_user() -> OneUser:
    """Raises ConfigurationError where the password would be kept in the system's journal."""
    if _is_journal(1):
        raise ConfigurationError(
            "no --auth: the password of a user made for this run would end up in the journal: "
            "give --auth, such as --auth sqlite:PATH (see --help-auth)"
        )
    return OneUser()


def _is_journal(descriptor: int) -> bool:
    # systemd says by device and inode which stream it connected to its journal.
    try:
        status = os.fstat(descriptor)
    except OSError:  # closed: nobody reads it
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def choose_data_plane(name: str | None) -> Any:
    """The factory that was named, or the most preferred one that works here."""
    if name is not None:
        factory = find_plugin(IDataPlaneFactory, "name", name, "data-plane")
        reason = factory.unavailable()
        if reason is not None:
            raise ConfigurationError(f"--data-plane {name}: {reason}: leave it out to get the best one that works here")
        return factory
    usable = [factory for factory in all_plugins(IDataPlaneFactory) if factory.unavailable() is None]
    if not usable:
        raise ConfigurationError("no data plane works here: see --help-data-plane for the reasons")
    return max(usable, key=lambda factory: int(factory.preference))


def make_peer_transports(reactor: Any, data_plane: IDataPlane, settings: RelaySettings) -> list[IPeerTransport]:
    """One for each way out that is installed. Two for one transport would be a matter of luck: an error."""
    factories: dict[int, Any] = {}
    for factory in all_plugins(IPeerTransportFactory):
        rival = factories.setdefault(factory.transport, factory)
        if rival is not factory:
            raise ConfigurationError(
                f"plugins {rival.kind} and {factory.kind} both open transport {factory.transport}: uninstall one"
            )
    return [factory.make(reactor, data_plane, settings) for factory in factories.values()]


def make_policies(chosen: Iterable[tuple[str, str]], reactor: Any) -> list[IPolicy]:
    return [
        find_plugin(IPolicyFactory, "policy_type", kind, "policy").make(arguments, reactor)
        for kind, arguments in chosen
    ]


def make_observers(settings: Settings, reactor: Any, is_daemon: bool) -> list[IAllocationObserver]:
    """The allocation log first, in the wanted form; then those of --observe."""
    log = _JSON_ON_STDOUT if settings.log_format == "json" else ("log", "")
    if is_daemon and _JSON_ON_STDOUT in (log, *settings.observe):
        option = "--log-format json" if log == _JSON_ON_STDOUT else "--observe json:-"
        raise ConfigurationError(
            f"{option}: a daemon has no standard output: take --observe json:PATH, or run twistd --nodaemon"
        )
    return [
        find_plugin(IAllocationObserverFactory, "observer_type", kind, "observe").make(arguments, reactor)
        for kind, arguments in (log, *settings.observe)
    ]
