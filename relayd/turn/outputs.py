"""What the TURN core asks its shell to do, what it tells, and the answers that it takes back.

`AuthenticateUser`, `OpenRelay` and `ConnectToPeer` carry an `id` and wait for `answer(id, ...)`; everything else is
fire and forget. An answer that brings something nobody waits for any more (the client has gone meanwhile) makes the
core ask for its `CloseRelay` or `ClosePeerConnection`. A `relay` is whatever handle the shell gave in `RelayOpened`,
a `connection` what it gave in `PeerConnected`: the core never looks inside, it only hands it back and uses it as a key.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum

from relayd.address import Family, Path, TransportAddress
from relayd.stun.integrity import IntegrityProof, PasswordAlgorithm

Relay = Hashable
Connection = Hashable


class EndReason(StrEnum):
    """Why an allocation ended: log field and metric label, so this list is closed and each allocation gets exactly
    one.
    """

    DELETED = "deleted"  # Refresh with LIFETIME 0
    EXPIRED = "expired"  # not refreshed in time
    CONNECTION_CLOSED = "connection-closed"  # the client's stream, DTLS session or WebSocket ended
    REVOKED = "revoked"  # the operator or a checker withdrew the user
    RELAY_FAILED = "relay-failed"  # the relayed socket broke
    SHUTDOWN = "shutdown"  # the service stops


# --- asks, answered through answer(id, ...) -------------------------------------------------------------------------


@dataclass(slots=True)
class AuthenticateUser:
    """Find the key of this user and check the proof with it. Answered with `Authenticated` or `NotAuthenticated`.

    Exactly one of `username` (prepared by OpaqueString) and `userhash` (32 bytes, RFC 8489 section 14.4) is set.
    """

    id: int
    path: Path
    realm: str
    algorithm: PasswordAlgorithm
    proof: IntegrityProof
    username: str | None = None
    userhash: bytes | None = None


@dataclass(slots=True)
class Authenticated:
    """The proof held. `key` is the long-term key that signs answers (RFC 8489 section 9.2.2)."""

    username: str
    key: bytes


@dataclass(slots=True)
class NotAuthenticated:
    """Unknown user, wrong password or expired credentials: deliberately not told apart."""


@dataclass(slots=True)
class OpenRelay:
    """Decide whether this user may allocate, and open the relayed transport addresses, one per family, in that order.

    Answered with `RelayOpened` or `RelayRefused`.
    """

    id: int
    path: Path
    username: str
    transport: int  # REQUESTED-TRANSPORT: 17 UDP, 6 TCP
    families: tuple[Family, ...]
    tls: bool = False  # accept connections from peers as a TLS server
    even_port: bool = False
    reserve_next: bool = False
    reservation: Relay | None = None  # a relay that an earlier RelayOpened.reserved gave: use it instead of opening one


@dataclass(slots=True)
class RelayOpened:
    """`relays` answers `families` in order, as (handle, advertised address).

    Where two families were asked for and only one could be opened, `relays` holds that one and `failed` says
    (family, code) of the other (ADDRESS-ERROR-CODE, RFC 8656 section 7.2). `reserved` is the handle of the port
    after an even one.
    """

    relays: tuple[tuple[Relay, TransportAddress], ...]
    failed: tuple[Family, int] | None = None
    reserved: Relay | None = None


@dataclass(slots=True)
class RelayRefused:
    """`code` as in RFC 8656 section 7.2 (300, 403, 440, 442, 486, 508). A 300 brings `alternate`, perhaps `domain`."""

    code: int
    alternate: TransportAddress | None = None
    domain: str | None = None


@dataclass(frozen=True, slots=True)
class PeerTls:
    """TLS with a peer: the name that its certificate has to be for, and what is offered by ALPN (may be empty)."""

    server_name: str
    protocols: tuple[bytes, ...] = ()


@dataclass(slots=True)
class ConnectToPeer:
    """Open a TCP connection from a relayed address to a peer (RFC 6062 section 5.2).

    Answered with `PeerConnected` or `PeerNotConnected`, within the 30 seconds that the client waits at least.
    """

    id: int
    path: Path
    relay: Relay
    peer: TransportAddress
    tls: PeerTls | None = None


@dataclass(slots=True)
class PeerConnected:
    """The peer is there. What it sends is kept, within bounds, until somebody gets it."""

    connection: Connection
    protocol: bytes | None = None  # that the peer chose by ALPN


@dataclass(slots=True)
class PeerNotConnected:
    """447: it refused, was not reachable, was silent or spoke no TLS, deliberately not told apart. 460: it did not
    prove by a certificate that it is who the client said. 508: it was not tried, for the relay has not what that takes.
    """

    code: int = 447


# --- does -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Send:
    """Send this STUN message, or ChannelData, to the client. ChannelData is padded on streams already.

    `source` and `destination` differ from the path's own only for NAT behaviour discovery (RFC 5780 section 6.1).
    """

    path: Path
    data: bytes
    source: TransportAddress | None = None
    destination: TransportAddress | None = None


@dataclass(slots=True)
class Deliver:
    """Send what a peer sent, `size` payload bytes of it, to the client: `data` is the Data indication or ChannelData
    around it.

    Apart from `Send` because the shell counts it against `relay`, and may drop it (bandwidth, a client that does not
    keep up).
    """

    path: Path
    relay: Relay
    data: bytes
    size: int


@dataclass(slots=True)
class SendToPeer:
    """Send one datagram from the relayed address to a peer; `data` may be empty."""

    relay: Relay
    peer: TransportAddress
    data: bytes
    dont_fragment: bool = False


@dataclass(slots=True)
class CloseRelay:
    """Close a relayed transport address, or give back a reserved one."""

    relay: Relay


@dataclass(slots=True)
class InstallFlow:
    """Forward by itself from now on: ChannelData with `number` on `path` <-> datagrams between `relay` and `peer`."""

    path: Path
    number: int
    relay: Relay
    peer: TransportAddress


@dataclass(slots=True)
class RemoveFlow:
    """Take back an installed flow: it expired, moved, was refused, or its allocation ended."""

    path: Path
    number: int
    relay: Relay
    peer: TransportAddress


@dataclass(slots=True)
class JoinConnections:
    """Carry bytes between a client data connection and a peer data connection from now on, in both directions, with
    what the peer sent already. The answer to the ConnectionBind comes before.
    """

    path: Path
    connection: Connection


@dataclass(slots=True)
class ClosePeerConnection:
    """Close a peer data connection, and the client data connection that it is joined with."""

    connection: Connection


# --- tells ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class AllocationCreated:
    session_id: str  # 12 lower-case hex digits: what logs and pages call this allocation by
    path: Path
    username: str
    relays: tuple[tuple[Relay, TransportAddress], ...]
    transport: int
    lifetime: int  # seconds


@dataclass(slots=True)
class AllocationRefreshed:
    session_id: str
    path: Path
    lifetime: int  # seconds


@dataclass(slots=True)
class PermissionInstalled:
    """A permission for one peer address that was not there before."""

    session_id: str
    peer: TransportAddress


@dataclass(slots=True)
class ChannelBound:
    """A channel binding that was not there before."""

    session_id: str
    number: int
    peer: TransportAddress


@dataclass(slots=True)
class PeerConnectionOpened:
    """A TCP connection with a peer, whoever opened it. `identity` is the name that its certificate proved, if it is
    TLS and the client asked for it.
    """

    session_id: str
    peer: TransportAddress
    identity: str | None = None


@dataclass(slots=True)
class PeerConnectionEnded:
    session_id: str
    peer: TransportAddress


@dataclass(slots=True)
class AllocationEnded:
    """The last word about an allocation; comes before its `CloseRelay`s, so that counters can still be read."""

    session_id: str
    path: Path
    username: str
    relays: tuple[tuple[Relay, TransportAddress], ...]
    reason: EndReason
    duration: float  # seconds


@dataclass(slots=True)
class RequestRefused:
    """An error answer was sent (`code`), or a message was dropped without one (`code` 0)."""

    path: Path
    method: int
    code: int
    username: str | None = None
    peer: TransportAddress | None = None
