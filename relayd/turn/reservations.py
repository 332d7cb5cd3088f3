"""Ports that EVEN-PORT set aside, waiting under a token for the Allocate that claims them (RFC 8656 section 7.2)."""

from __future__ import annotations

from collections.abc import Iterator

from relayd.address import Family
from relayd.core import Entropy
from relayd.turn.outputs import Relay

TOKEN_SIZE = 8  # bytes
MAX_RESERVATIONS_PER_USER = 64  # each holds an open port for half a minute that no quota counts


class Reservation:
    """One relayed address that nobody uses yet."""

    __slots__ = ("relay", "family", "transport", "username")

    def __init__(self, relay: Relay, family: Family, transport: int, username: str) -> None:
        self.relay = relay
        self.family = family
        self.transport = transport
        self.username = username


class Reservations:
    """Reservations by token. The caller counts their time."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._by_token: dict[bytes, Reservation] = {}
        self._held: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._by_token)

    def __contains__(self, token: bytes) -> bool:
        return token in self._by_token

    def has_room(self, username: str) -> bool:
        """Whether this user may hold one more."""
        return self._held.get(username, 0) < MAX_RESERVATIONS_PER_USER

    def add(self, reservation: Reservation) -> bytes:
        """Keep it; gives its token."""
        token = self._entropy(TOKEN_SIZE)
        self._by_token[token] = reservation
        self._held[reservation.username] = self._held.get(reservation.username, 0) + 1
        return token

    def find(self, token: bytes, username: str, transport: int) -> Reservation | None:
        """What the token stands for, if it was given to this user for this transport."""
        found = self._by_token.get(token)
        if found is None or found.username != username or found.transport != transport:
            return None
        return found

    def remove(self, token: bytes) -> Reservation | None:
        """Take it out: its relay is now the caller's to use or close."""
        reservation = self._by_token.pop(token, None)
        if reservation is not None:
            left = self._held[reservation.username] - 1
            if left:
                self._held[reservation.username] = left
            else:
                del self._held[reservation.username]
        return reservation

    def tokens(self) -> Iterator[bytes]:
        """Every token, also while they are removed."""
        return iter(list(self._by_token))

    def token_of(self, relay: Relay) -> bytes | None:
        """The token that stands for a relay. Slow: for when a relay breaks."""
        return next((token for token, kept in self._by_token.items() if kept.relay == relay), None)
