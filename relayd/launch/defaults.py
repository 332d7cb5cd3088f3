"""What holds where the operator said nothing: ways in, addresses to relay from, a user. Opens nothing."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from twisted.cred.checkers import ICredentialsChecker, InMemoryUsernamePasswordDatabaseDontUse

from relayd.address import Family, TransportAddress
from relayd.config import DEFAULT_PORT, RelayAddress
from relayd.errors import ConfigurationError, DecodeError
from relayd.listeners.endpoint import split_arguments
from relayd.local_addresses import default_source, has_ipv6_loopback, is_free

# Endpoint types whose interface can be read off the description, with the one that they take when none is written.
_DEFAULT_INTERFACES = {"udp": "0.0.0.0", "dtls": "0.0.0.0", "tcp": "0.0.0.0", "ssl": "0.0.0.0", "tcp6": "::"}
WEB_PORT = 8080
_PASSWORD_BYTES = 16  # written in hexadecimal, so that no character means anything to a shell


def default_ways_in() -> tuple[tuple[str, str], ...]:
    """What is listened on without --listen: UDP, TCP and the web site on loopback, in each family that there is.

    The site's port is not known to clients beforehand, as TURN's is, and often taken: then it gets any that is free.
    """
    hosts = ["127.0.0.1", "::1"] if has_ipv6_loopback() else ["127.0.0.1"]
    web_port = WEB_PORT if all(is_free(host, WEB_PORT) for host in hosts) else 0
    ways = (("turn", f"udp:{DEFAULT_PORT}"), ("turn", f"tcp:{DEFAULT_PORT}"), ("web", f"tcp:{web_port}"))
    return tuple(
        (kind, f"{endpoint}:interface={host}".replace("::1", r"\:\:1")) for host in hosts for kind, endpoint in ways
    )


def interface_of(endpoint: str) -> TransportAddress | None:
    """The address (port 0) on which an endpoint listens, all zeros for a wildcard; None where the text does not tell.

    It does not tell for unix sockets, inherited ones, and endpoints of third parties, for example.
    """
    positional, options = split_arguments(endpoint)
    if positional[0] not in _DEFAULT_INTERFACES or len(positional) > 2:
        return None
    try:
        return TransportAddress.parse(options.get("interface") or _DEFAULT_INTERFACES[positional[0]], 0)
    except DecodeError:
        return None


def default_relay_addresses(interfaces: Sequence[TransportAddress | None]) -> tuple[RelayAddress, ...]:
    """Relay from where we listen; where that is every address, or unknown, from where packets to the outside leave."""
    found: dict[TransportAddress, RelayAddress] = {}
    for interface in interfaces:
        families = list(Family) if interface is None else [interface.family]
        for family in families:
            address = default_source(family) if interface is None or interface.is_wildcard else interface
            if address is not None:
                found[address] = RelayAddress(address, address)
    if not found:
        raise ConfigurationError(
            "no address to relay from: this host has no route to the outside: give --relay-address ADDRESS"
        )
    return tuple(found.values())


def is_confined_to_loopback(interfaces: Sequence[TransportAddress | None], relays: Sequence[RelayAddress]) -> bool:
    """Whether clients can only be on this host, and relayed addresses are of use on this host only.

    Both are asked: a web proxy in front makes a loopback listener public, and then relays from a public address.
    """
    hosts = [*interfaces, *(host for relay in relays for host in (relay.bound, relay.advertised))]
    return all(host is not None and host.is_loopback for host in hosts)


class OneUser:
    """A user for this run: an open relay must not come about by leaving something out."""

    def __init__(self) -> None:
        self.username = f"user-{secrets.token_hex(3)}"
        self.credential = secrets.token_hex(_PASSWORD_BYTES)

    def checker(self) -> ICredentialsChecker:
        checker = InMemoryUsernamePasswordDatabaseDontUse()
        # Text, as the memory: plugin does it, whatever the annotation says.
        checker.addUser(self.username, self.credential)  # type: ignore[arg-type]
        return checker
