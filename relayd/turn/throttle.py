"""How many unauthenticated answers one source gets over UDP, where sources can be forged. Fixed memory; decides
nothing else.

A 401 is longer than the request that asks for it, so a relay without this is a reflector. The table has one slot for
many sources, chosen by a keyed hash: an attacker cannot find out whom he shares a slot with, and the table never
grows.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

from relayd.address import AppConnection, Path, source_of
from relayd.core import Entropy

_SLOTS = 8192  # of 16 bytes: enough that the busy sources of a large server seldom share one


class AnswerThrottle:
    """A token bucket for each IPv4 address or IPv6 /64, in a table of fixed size."""

    def __init__(self, rate: float, burst: float, entropy: Entropy) -> None:
        self._rate = rate
        self._burst = burst
        self._key = entropy(16)
        self._spent = array("d", bytes(8 * _SLOTS))  # answers not yet paid back
        self._at = array("d", bytes(8 * _SLOTS))  # when `_spent` was true

    def allows(self, path: Path, now: float) -> bool:
        """Whether one more unauthenticated answer may go to this client; counts it if so."""
        if path.app_connection is not AppConnection.UDP:
            return True  # a handshake has proved the address
        client = path.client
        # Nothing from outside the host can claim to come from loopback, so nobody outside can be hit by the answers.
        if client.is_loopback:
            return True
        slot = int.from_bytes(blake2b(source_of(client.ip), digest_size=4, key=self._key).digest(), "big") % _SLOTS
        spent = max(0.0, self._spent[slot] - max(0.0, now - self._at[slot]) * self._rate)
        allowed = spent + 1.0 <= self._burst
        self._spent[slot] = spent + 1.0 if allowed else spent
        self._at[slot] = now
        return allowed
