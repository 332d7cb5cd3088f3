"""Counts connections and handshakes, in total and for each source, and says when there are enough."""

from __future__ import annotations

from collections import Counter

from relayd.config import ListenerSettings
from relayd.interfaces import TurnedAway


class Admission:
    """The connections of one listener. Keeps nothing about sources that have left.

    `enter` and `leave` as connections come and go; `claim` and `release` once their source is known. `handshakes` are
    those of TLS or DTLS.
    """

    def __init__(self, settings: ListenerSettings) -> None:
        self._most = settings.max_connections
        self._most_per_source = settings.max_connections_per_source
        self._by_source: dict[bytes, int] = {}
        self.total = 0
        self.turned_away: Counter[TurnedAway] = Counter()
        # As many as may last that long, so this refuses nobody who goes on with what he begins.
        self.handshakes = Handshakes(
            settings.max_connections_per_source, settings.first_message_timeout, self.turned_away
        )

    def enter(self) -> bool:
        """Count one connection; False, and not counted, if there are too many."""
        if self.total >= self._most:
            self.turned_away[TurnedAway.TOTAL] += 1
            return False
        self.total += 1
        return True

    def leave(self) -> None:
        """Take back one `enter`."""
        self.total -= 1

    def claim(self, source: bytes) -> bool:
        """Count one connection of that source; False, and not counted, if it has too many."""
        count = self._by_source.get(source, 0)
        if count >= self._most_per_source:
            self.turned_away[TurnedAway.SOURCE] += 1
            return False
        self._by_source[source] = count + 1
        return True

    def release(self, source: bytes) -> None:
        """Take back one `claim`."""
        count = self._by_source[source] - 1
        if count:
            self._by_source[source] = count
        else:
            del self._by_source[source]


class Handshakes:
    """How many handshakes each source began in this period. Keeps nothing about the periods before.

    `Admission` alone cannot bound these: who breaks a handshake off makes room for the next one, and each costs a
    signature. Only sources that have proved their address may be counted, or anyone could use up what is another's.
    """

    def __init__(self, most: int, period: float, turned_away: Counter[TurnedAway]) -> None:
        """`most` for each source in `period` seconds."""
        self._most = most
        self._period = period
        self._turned_away = turned_away
        self._since = 0.0
        self._by_source: dict[bytes, int] = {}

    def has_room(self, source: bytes, now: float) -> bool:
        """Whether that source may begin another one."""
        if not 0 <= now - self._since < self._period:
            self._since = now
            self._by_source.clear()
        if self._by_source.get(source, 0) < self._most:
            return True
        self._turned_away[TurnedAway.HANDSHAKES] += 1
        return False

    def count(self, source: bytes) -> None:
        """That source began one."""
        self._by_source[source] = self._by_source.get(source, 0) + 1
