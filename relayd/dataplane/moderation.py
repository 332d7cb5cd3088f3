"""Decides when datagrams are left to gather before they are read, as network cards moderate their interrupts.

To wake up for one datagram costs more than to forward it. At a high rate of datagrams that come one by one, most of the
processor goes into waking up, and soon there is none left for more of them. A pause that is short beside what any
network path takes lets several come, and then a batch is read. Below that rate nothing waits.

This only counts and decides; whoever reads does the pausing.
"""

from __future__ import annotations

PAUSE = 20e-6
"""Seconds. Linux makes it some 70 microseconds, because it wakes nobody up more exactly than to 50 unless asked to."""

RATE = 33_000
"""Datagrams a second from which on it pays. One every 30 microseconds is about what a wake-up and a datagram take."""

TURNS = 64
"""Turns that are looked at together: no longer than 2 ms at that rate, so that it is soon right again."""

FEW = 4
"""Datagrams a turn; more of them gather by themselves, because the process is busy."""

MANY = 16
"""The same while pausing. More than that would not come in a pause: something else takes the time."""


class Moderation:
    """Told of every turn that served datagrams, and says whether to pause before the next."""

    def __init__(self, now: float) -> None:
        self.pauses = False
        self._since = now
        self._turns = 0
        self._datagrams = 0

    def served(self, datagrams: int) -> bool:
        """Count a turn; True when `judge` is due."""
        self._datagrams += datagrams
        self._turns += 1
        return self._turns == TURNS

    def judge(self, now: float) -> None:
        """Look at the turns since the last time. `now` is in seconds."""
        fast = self._datagrams > RATE * (now - self._since)
        self.pauses = fast and self._datagrams < TURNS * (MANY if self.pauses else FEW)
        self._since = now
        self._turns = self._datagrams = 0
