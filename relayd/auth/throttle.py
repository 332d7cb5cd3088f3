"""Slows password guessing from one source, in fixed memory. Decides nothing but that; the caller brings the time."""

from __future__ import annotations

from array import array
from hashlib import blake2b

from relayd.address import source_of

FAILURES_PER_MINUTE = 300
"""What one source may fail. A whole company behind one NAT may try expired credentials in the same minute."""

CELLS = 4096  # per row; two rows of two doubles: 128 KiB for good, whoever comes
_ROWS = 2


class GuessThrottle:
    """Counts failures by source in a sketch: each source has one cell in each of two rows, which it may share with
    others.

    A cell is a leaky bucket: a failure adds one, and it drains by `limit` a minute. A source is blocked while all of
    its cells are full, so that sharing a single cell with a guesser harms nobody. The places of the cells come from a
    keyed hash: nobody can aim at another's.
    """

    def __init__(self, key: bytes, limit: int = FAILURES_PER_MINUTE, cells: int = CELLS) -> None:
        """`key`: 16 to 64 unpredictable bytes. `limit`: failures a minute, and at once."""
        self._key = key
        self._limit = limit
        self._cells = cells
        self._levels = array("d", bytes(8 * cells * _ROWS))
        self._since = array("d", bytes(8 * cells * _ROWS))
        self._quiet = True  # nothing is above zero: spares the hash where nobody ever fails
        self._last_failure = 0.0

    def blocked(self, ip: bytes, now: float) -> bool:
        """Whether attempts from this address (4 or 16 bytes) are to fail unseen. `now` in seconds, on one clock for
        all calls.
        """
        if self._quiet:
            return False
        if now - self._last_failure > 60:
            self._quiet = True  # every cell has drained since
            return False
        return all(self._level(cell, now) > self._limit - 1 for cell in self._places(ip))

    def failed(self, ip: bytes, now: float) -> None:
        """An attempt from this address failed."""
        for cell in self._places(ip):
            self._levels[cell] = min(self._level(cell, now) + 1, self._limit)
            self._since[cell] = now
        self._quiet = False
        self._last_failure = now

    def _level(self, cell: int, now: float) -> float:
        drained = (now - self._since[cell]) * self._limit / 60
        return max(0.0, self._levels[cell] - max(0.0, drained))

    def _places(self, ip: bytes) -> list[int]:
        digest = blake2b(source_of(ip), digest_size=4 * _ROWS, key=self._key).digest()
        return [
            row * self._cells + int.from_bytes(digest[4 * row : 4 * row + 4], "big") % self._cells
            for row in range(_ROWS)
        ]
