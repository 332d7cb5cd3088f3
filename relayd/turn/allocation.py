"""An allocation and what hangs on it: relayed addresses, permissions, channel bindings, and until when (RFC 8656
section 3.2).

It keeps facts and their lifetimes. It sends nothing, checks no credentials and asks no policy.
"""

from __future__ import annotations

from relayd.address import Family, Path, TransportAddress
from relayd.errors import RemoteError
from relayd.turn.authentication import Credentials
from relayd.turn.outputs import Relay

# For one allocation: about 100 bytes each, and a session with every candidate of many peers needs dozens.
MAX_PERMISSIONS = 512
MAX_CHANNELS = 512  # for one allocation, about 500 bytes each with their flow

RelayedAddress = tuple[Relay, TransportAddress]


class ChannelBinding:
    """A channel number that stands for a peer until `expires`."""

    __slots__ = ("number", "peer", "relay", "expires")

    def __init__(self, number: int, peer: TransportAddress, relay: Relay, expires: float) -> None:
        self.number = number
        self.peer = peer
        self.relay = relay
        self.expires = expires


class Allocation:
    """One client's hold on one relayed transport address, or on one of each family. Outsiders read it, the core
    changes it.
    """

    __slots__ = (
        "session_id",
        "path",
        "credentials",
        "transport",
        "relays",
        "closed_relays",
        "failed",
        "created",
        "expires",
        "transaction_id",
        "token",
        "tls",
        "permissions",
        "channels",
        "_channel_to",
    )

    def __init__(
        self,
        session_id: str,
        path: Path,
        credentials: Credentials,
        transport: int,
        relays: tuple[RelayedAddress, ...],
        transaction_id: bytes,
        created: float,
        expires: float,
    ) -> None:
        self.session_id = session_id
        self.path = path
        self.credentials = credentials
        self.transport = transport
        self.relays = relays
        self.closed_relays: tuple[RelayedAddress, ...] = ()  # the half of a dual allocation that was deleted
        self.failed: tuple[Family, int] | None = None  # for ADDRESS-ERROR-CODE
        self.created = created
        self.expires = expires
        self.transaction_id = transaction_id  # of the Allocate, to know it again
        self.token: bytes | None = None  # the RESERVATION-TOKEN that came with it
        self.tls = False  # whether peers that call speak TLS
        self.permissions: dict[bytes, float] = {}  # IP address -> until when
        self.channels: dict[int, ChannelBinding] = {}
        self._channel_to: dict[TransportAddress, ChannelBinding] = {}

    @property
    def username(self) -> str:
        """The owner, prepared by OpaqueString."""
        return self.credentials.username

    def relay_for(self, peer: TransportAddress) -> Relay | None:
        """The relay from which that peer can be reached: the one of its family."""
        size = len(peer.ip)
        for relay, address in self.relays:
            if len(address.ip) == size:
                return relay
        return None

    def close_half(self, half: RelayedAddress) -> None:
        """Go on without one of two relayed addresses."""
        self.relays = tuple(kept for kept in self.relays if kept != half)
        self.closed_relays += (half,)
        size = len(half[1].ip)
        for ip in [ip for ip in self.permissions if len(ip) == size]:
            del self.permissions[ip]

    # --- permissions ----------------------------------------------------------------------------------------------

    def permits(self, ip: bytes, now: float) -> bool:
        """Whether there is a permission for that address."""
        return self.permissions.get(ip, now) > now

    def permit(self, addresses: list[bytes], now: float, until: float) -> list[bytes]:
        """Install or renew permissions for distinct addresses, all or none, and tell which are new. A renewal never
        shortens. Raises RemoteError 508.
        """
        permissions = self.permissions
        fresh = [ip for ip in addresses if permissions.get(ip, now) <= now]
        if len(permissions) + len(fresh) > MAX_PERMISSIONS:
            self._forget_expired_permissions(now)
            if len(permissions) + len(fresh) > MAX_PERMISSIONS:
                raise RemoteError(508)
        for ip in addresses:
            permissions[ip] = max(until, permissions.get(ip, until))
        return fresh

    def _forget_expired_permissions(self, now: float) -> None:
        for ip in [ip for ip, until in self.permissions.items() if until <= now]:
            del self.permissions[ip]

    # --- channels -------------------------------------------------------------------------------------------------

    def channel(self, number: int, now: float) -> ChannelBinding | None:
        """The binding of a channel number."""
        binding = self.channels.get(number)
        return binding if binding is not None and binding.expires > now else None

    def channel_to(self, peer: TransportAddress, now: float) -> ChannelBinding | None:
        """The binding for a peer."""
        binding = self._channel_to.get(peer)
        return binding if binding is not None and binding.expires > now else None

    def check_binding(self, number: int, peer: TransportAddress) -> None:
        """Whether the number may be bound to the peer. Raises RemoteError (400, 508)."""
        binding = self.channels.get(number)
        # RFC 8656 section 12.2: neither the number to another peer, nor the peer to another number
        if self._channel_to.get(peer) is not binding:
            raise RemoteError(400)
        if binding is None and len(self.channels) >= MAX_CHANNELS:
            raise RemoteError(508)

    def bind(self, number: int, peer: TransportAddress, relay: Relay, until: float) -> ChannelBinding | None:
        """Bind or renew, after `check_binding`. Gives the binding if it is new: its flow is to be installed next."""
        binding = self.channels.get(number)
        if binding is not None:
            binding.expires = until
            return None
        binding = self.channels[number] = self._channel_to[peer] = ChannelBinding(number, peer, relay, until)
        return binding

    def unbind(self, binding: ChannelBinding) -> None:
        """Forget a binding: its flow is to be removed next."""
        del self.channels[binding.number], self._channel_to[binding.peer]

    def expired_channels(self, now: float) -> list[ChannelBinding]:
        """The bindings whose time is over and that are to be unbound."""
        return [binding for binding in self.channels.values() if binding.expires <= now]

    def next_deadline(self) -> float:
        """When the allocation, or the first of its channels, expires. Permissions expire by being looked at."""
        expires = self.expires
        for binding in self.channels.values():
            expires = min(expires, binding.expires)
        return expires
