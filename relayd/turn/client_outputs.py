"""What the TURN client core asks its shell to do, and what it tells. Nothing here waits for an answer."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.address import TransportAddress
from relayd.errors import RelaydError
from relayd.stun.attributes import Icmp

# --- does -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Transmit:
    """Send this STUN message to the server."""

    data: bytes


@dataclass(slots=True)
class TransmitData:
    """Send this Send indication or ChannelData to the server.

    Apart from `Transmit` because it may be dropped, as any datagram, where the way to the server is congested.
    """

    data: bytes


# --- tells ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Allocated:
    """The server relays for us, at one address for each family that it could open."""

    relayed: tuple[TransportAddress, ...]
    mapped: TransportAddress | None  # our own address as the server sees it
    lifetime: int  # seconds


@dataclass(slots=True)
class Redirected:
    """The server names another one (300, RFC 8489 section 10). This core has ended.

    `domain` is the name that the other one's certificate has to be for; None: the name of this one.
    """

    server: TransportAddress
    domain: str | None


@dataclass(slots=True)
class Answered:
    """What became of the `permit`, `bind` or `connect` that gave this id; `error` is None where it succeeded."""

    id: int
    error: RelaydError | None


@dataclass(slots=True)
class PeerConnected:
    """What became of the `connect` that gave this id, where it succeeded; `Answered` tells of the others.

    `number` is the CONNECTION-ID, to be bound within 30 seconds. `protocol` is what a peer with TLS chose by ALPN.
    """

    id: int
    number: int
    protocol: bytes | None


@dataclass(slots=True)
class ConnectionAttempted:
    """A peer opened a TCP connection to the relayed address; `number` is to be bound within 30 seconds."""

    peer: TransportAddress
    number: int


@dataclass(slots=True)
class DataReceived:
    """A datagram, perhaps empty, from a peer."""

    peer: TransportAddress
    data: bytes


@dataclass(slots=True)
class IcmpReceived:
    """An ICMP error about a datagram that went to a peer (RFC 8656 section 11.5)."""

    peer: TransportAddress
    icmp: Icmp


@dataclass(slots=True)
class PermissionLost:
    """Nothing comes from this address any more, or ever did: the permission was refused or not renewed."""

    ip: bytes
    error: RelaydError


@dataclass(slots=True)
class ChannelLost:
    """The channel to this peer was not renewed. Data goes on in Send indications."""

    peer: TransportAddress
    error: RelaydError


@dataclass(slots=True)
class Ended:
    """The allocation is gone, or did not come to be. `error` is None where `close` was asked for. The last output."""

    error: RelaydError | None
