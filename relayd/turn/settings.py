"""What the operator decides about the TURN core, as one frozen value. Times are seconds, quotas are allocations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from relayd.address import Family, TransportAddress
from relayd.stun.attributes import ALGORITHMS_OFFERED
from relayd.stun.integrity import PasswordAlgorithm

TCP = 6  # IP protocol numbers, as in REQUESTED-TRANSPORT
UDP = 17


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """Everything about a `TurnServer` that does not change while it runs."""

    realm: str
    software: str | None = None  # SOFTWARE tells an attacker what to look up, so it is off unless asked for
    transports: Mapping[int, tuple[Family, ...]] = field(default_factory=lambda: {UDP: (Family.IPV4,)})
    """For each REQUESTED-TRANSPORT that is relayed, the families it can be relayed in."""
    accepts_tls: bool = False  # whether connections of peers can be taken as TLS
    default_lifetime: int = 600
    max_lifetime: int = 3600
    permission_lifetime: int = 300
    channel_lifetime: int = 600
    reservation_lifetime: int = 30
    nonce_lifetime: int = 3600
    user_quota: int = 0  # for each user name; 0: unlimited
    total_quota: int = 0  # 0: unlimited
    supports_userhash: bool = False
    password_algorithms: tuple[PasswordAlgorithm, ...] = ALGORITHMS_OFFERED  # the best first
    alternates: Mapping[TransportAddress, TransportAddress] = field(default_factory=dict)
    """NAT behaviour discovery: for each address we listen on, the one where both address and port are the other ones.
    """
    unauthenticated_rate: float = 100.0  # answers a second to one source that may be forged; see `throttle`
    unauthenticated_burst: float = 200.0  # answers at once

    def granted_lifetime(self, requested: int | None) -> int:
        """The lifetime in seconds for a LIFETIME of `requested` (None: absent), RFC 8656 section 7.2: between the
        default and the maximum.
        """
        default = min(self.default_lifetime, self.max_lifetime)
        return default if requested is None else max(default, min(requested, self.max_lifetime))
