"""The time that everything runs on: the system's, but for what sets that back. Owns no timer.

Twisted's reactors call what is delayed by the system's clock. Set back by an hour, as a time server may do to a machine
that woke up in the wrong time zone, it leaves all of them waiting for that hour: nothing expires, nobody who is silent
is noticed, and what was to be written at the end of that turn is written then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PACE = 0.75
"""How fast the clock goes on while the system's is behind it. Pings, which are due every 25 seconds to come within the
minute that proxies wait, still do.
"""


class ForwardClock:
    """Seconds since the epoch that never go back: slower for a while instead, until the system's clock has caught up.

    Set forward, it follows at once: what is due by then is due.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        """`steady` is a clock that nobody sets."""
        self._wall = wall
        self._steady = steady
        self._now = wall()
        self._since: float | None = None  # on the steady clock, when `_now` was true; None while it is the system's

    def __call__(self) -> float:
        now = self._wall()
        if now < self._now:
            now = self._behind()
        else:
            self._since = None
        self._now = now
        return now

    def _behind(self) -> float:
        steady = self._steady()
        passed = 0.0 if self._since is None else steady - self._since
        self._since = steady
        return self._now + PACE * passed


def keep_time(reactor: Any) -> None:
    """Have the reactor run on such a clock. Before anybody asks it for the time."""
    reactor.seconds = ForwardClock()
