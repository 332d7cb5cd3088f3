"""What the operator configured, as values. The command line and the TOML file are read in `relayd.tap`; nothing is opened here."""

from __future__ import annotations

from dataclasses import dataclass, field

from relayd.address import Family, TransportAddress


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """One local IP address to relay from. `advertised` differs from `bound` behind a cloud's one-to-one NAT. Ports are 0."""

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


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """For listeners: what a connection may cost us before it has earned anything."""

    first_message_timeout: float = 10.0  # seconds for the (D)TLS handshake and the first whole message
    idle_timeout: float = 60.0  # seconds without a whole message while there is no allocation
    max_connections: int = 10_000  # per listener
    max_connections_per_source: int = 200  # per IPv4 address or IPv6 /64; a NAT's users share it, and one user may hold 50
    trusted_proxies: tuple[str, ...] = field(default=())  # CIDRs whose word on the client's address is taken
