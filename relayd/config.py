"""What the operator configured, as values: the settings, and the readers of their texts. Nothing is opened here.

The command line (`relayd.tap`) and the TOML file (`relayd.configfile`) give the same texts under the same names, so one
table reads both. A text that does not read raises `ConfigurationError` without saying where it stood: the caller knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relayd.address import Family, TransportAddress
from relayd.errors import ConfigurationError, DecodeError
from relayd.stun.text import opaque_string
from relayd.tls.certificates import Certificates
from relayd.turn.peer_rules import Network, parse_cidr

DEFAULT_PORT = 3478  # RFC 8656 section 5: TURN over UDP and TCP
MAX_REALM = 127  # characters; RFC 8489 section 14.9 asks for fewer than 128
NOBODY = "none"
LOG_FORMATS = ("human", "json")
LOOPBACK = (parse_cidr("127.0.0.0/8"), parse_cidr("::1"))
TRUSTED_PROXIES = LOOPBACK  # a proxy on this host

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """One local IP address to relay from; ports are 0. `advertised` differs from `bound` behind a cloud's 1:1 NAT."""

    bound: TransportAddress
    advertised: TransportAddress

    @property
    def family(self) -> Family:
        return self.bound.family


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """For peer transports: where relayed addresses come from. Ports are inclusive."""

    addresses: tuple[RelayAddress, ...]
    lowest_port: int = 49152  # RFC 8656 section 7.2: the dynamic range
    highest_port: int = 65535
    peer_ca: Path | None = None  # whom to trust about who peers are, in PEM; None: whom the system trusts
    peer_certificate: Path | None = None  # shown to peers that connect with TLS, in PEM, with its chain; and its key
    peer_key: Path | None = None
    certificates: Certificates = field(default_factory=Certificates, compare=False)  # which reads them


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """For listeners: what a connection may cost us before it has earned anything."""

    first_message_timeout: float = 10.0  # seconds for the (D)TLS handshake and the first whole message
    idle_timeout: float = 60.0  # seconds without a whole message while there is no allocation
    max_connections: int = 10_000  # per listener
    # Per IPv4 address or IPv6 /64: a NAT's users share it, and one user may hold 50.
    max_connections_per_source: int = 200
    trusted_proxies: tuple[Network, ...] = TRUSTED_PROXIES  # whose word on the client's address is taken
    web_origins: tuple[str, ...] = ()  # of pages that may open a WebSocket here, beside our own; "*": of any page
    status_from: tuple[Network, ...] = LOOPBACK  # who may read the pages for the operator
    status: Any = None  # the `relayd.interfaces.IRelayStatus` that those pages show; None: there are none
    certificates: Certificates = field(default_factory=Certificates, compare=False)  # reads what is shown to clients


@dataclass(frozen=True, slots=True)
class Settings:
    """All options, read. Fields carry the options' names; repeatable options are tuples, in the order given."""

    listen: tuple[tuple[str, str], ...] = ()  # (KIND, ENDPOINT)
    realm: str = "relayd"
    relay_address: tuple[RelayAddress, ...] = ()
    relay_ports: tuple[int, int] = (49152, 65535)  # RFC 8656 section 7.2: the dynamic range; inclusive
    peer_ca: Path | None = None
    peer_certificate: Path | None = None
    peer_key: Path | None = None
    allow_peer: tuple[Network, ...] = ()
    deny_peer: tuple[Network, ...] = ()
    user_quota: int = 100  # allocations; twice the 50 of a busy test client, since UDP clients leave theirs to expire
    total_quota: int = 0  # allocations; 0: as many as there are ports and descriptors
    max_bandwidth: int = 0  # bytes a second for each allocation, both ways together; 0: unlimited
    default_lifetime: int = 600  # seconds; RFC 8656 section 3.2, and libjuice relies on no less
    max_lifetime: int = 3600  # seconds; the hour that RFC 8656 section 7.2 recommends
    max_connections: int = 10_000
    max_connections_per_source: int = 200
    trust_proxy: tuple[Network, ...] = TRUSTED_PROXIES
    web_origin: tuple[str, ...] = ()
    status_from: tuple[Network, ...] = LOOPBACK
    policy: tuple[tuple[str, str], ...] = ()  # (TYPE, ARGS)
    observe: tuple[tuple[str, str], ...] = ()  # (TYPE, ARGS)
    data_plane: str | None = None  # None: the best one that this platform has
    log_format: str = "human"


def _whole_number(lowest: int, unit: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) or int(text) < lowest:
            raise ConfigurationError(f"not a number of {unit}: write a whole number from {lowest} up")
        return int(text)

    return read


def _listen(text: str) -> tuple[str, str]:
    kind, separator, endpoint = text.partition("=")
    # A colon before the equals sign: an endpoint with an argument of its own, and its KIND forgotten.
    if not (kind and separator and endpoint) or ":" in kind:
        raise ConfigurationError("not KIND=ENDPOINT: write turn=udp:3478:interface=192.0.2.1, or see --help-listen")
    return kind, endpoint


def _plugin(text: str) -> tuple[str, str]:
    kind, _, arguments = text.partition(":")
    if not kind:
        raise ConfigurationError("not TYPE:ARGS: the type comes first, before any colon")
    return kind, arguments


def _ip(text: str) -> TransportAddress:
    try:
        address = TransportAddress.parse(text, 0)
    except DecodeError:
        raise ConfigurationError(f"{text!r} is not an IP address: write it in digits, such as 192.0.2.1") from None
    if address.is_wildcard:
        raise ConfigurationError(f"{text} is every address: name the one that peers are to see")
    return address


def _relay_address(text: str) -> RelayAddress:
    local, separator, public = text.partition("=")
    bound = _ip(local.strip())
    advertised = _ip(public.strip()) if separator else bound
    if bound.family is not advertised.family:
        raise ConfigurationError("one address is IPv4 and the other IPv6: both must be of one family")
    return RelayAddress(bound, advertised)


def _ports(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text, re.ASCII)
    lowest, highest = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1024 <= lowest <= highest <= 65535:
        raise ConfigurationError("not a range of ports: write LO-HI within 1024-65535, such as 49152-65535")
    return lowest, highest


def _realm(text: str) -> str:
    if not 0 < len(text) <= MAX_REALM or not text.isprintable() or '"' in text:
        raise ConfigurationError(f"not a realm: write 1 to {MAX_REALM} printable characters, such as a domain")
    try:
        return opaque_string(text)  # as relayd-user prepares the realm of a key
    except DecodeError as why:
        raise ConfigurationError(f"not a realm ({why}): write a domain, for example") from None


def _origin(text: str) -> str:
    match = re.fullmatch(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", text.lower(), re.ASCII)
    if text != "*" and match is None:
        raise ConfigurationError(
            "not an origin: write scheme, host and any port of its own, such as https://app.example.org, or * for all"
        )
    # As browsers write it (RFC 6454 section 6.1): without the scheme's own port.
    return text.lower().removesuffix(_DEFAULT_PORTS[match[1]]) if match else text


def _network_or_nobody(text: str) -> Network | None:
    return None if text == NOBODY else parse_cidr(text)


def _log_format(text: str) -> str:
    if text not in LOG_FORMATS:
        raise ConfigurationError(f"not a log format: one of {', '.join(LOG_FORMATS)}")
    return text


REPEATABLE: dict[str, Callable[[str], Any]] = {
    "listen": _listen,
    "relay-address": _relay_address,
    "allow-peer": parse_cidr,
    "deny-peer": parse_cidr,
    "trust-proxy": _network_or_nobody,
    "web-origin": _origin,
    "status-from": _network_or_nobody,
    "policy": _plugin,
    "observe": _plugin,
}
"""Options that may be given several times, and what reads each text."""

NUMBERS: dict[str, Callable[[str], int]] = {
    "user-quota": _whole_number(0, "allocations"),
    "total-quota": _whole_number(0, "allocations"),
    "max-bandwidth": _whole_number(0, "bytes a second"),
    "default-lifetime": _whole_number(1, "seconds"),
    "max-lifetime": _whole_number(1, "seconds"),
    "max-connections": _whole_number(1, "connections"),
    "max-connections-per-source": _whole_number(1, "connections"),
}
"""Options that are given once, with a whole number, and what reads each text."""

SINGLE: dict[str, Callable[[str], Any]] = {
    "realm": _realm,
    "relay-ports": _ports,
    "peer-ca": Path,
    "peer-certificate": Path,
    "peer-key": Path,
    "data-plane": str,
    "log-format": _log_format,
    **NUMBERS,
}
"""Options that are given once, and what reads each text."""


def make_settings(read: dict[str, Any]) -> Settings:
    """From read values by option name; what is missing keeps its default. ConfigurationError for a contradiction."""
    for name in ("trust-proxy", "status-from"):
        if None in read.get(name, ()):
            if len(read[name]) > 1:
                raise ConfigurationError(f"--{name} {NOBODY} stands beside others: give it alone, or leave it out")
            read = {**read, name: ()}
    settings = Settings(**{name.replace("-", "_"): value for name, value in read.items()})
    if settings.default_lifetime > settings.max_lifetime:
        raise ConfigurationError(
            f"--default-lifetime {settings.default_lifetime} is longer than --max-lifetime {settings.max_lifetime}: "
            "lower the one or raise the other"
        )
    return settings
