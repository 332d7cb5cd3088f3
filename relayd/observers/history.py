"""The traffic of the last minutes, second by second, in fixed memory. Reads no clock and knows no allocation."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

LENGTH = 300  # seconds that are kept: five minutes, which a plot of a phone's width can still show one by one


class History:
    """What was counted in each of the last `LENGTH` whole seconds, for a fixed number of counters.

    Seconds are numbered from the start; `seconds` is how many are over, so also the number of the one that runs.
    """

    def __init__(self, totals: Sequence[int], now: float) -> None:
        """`totals` are where the counters stand at the start."""
        self.seconds = 0
        self.totals = totals  # as of the last `add`
        self._began = self._at = now
        self._running = [0.0] * len(totals)  # in the second that is not over yet
        self._counted: list[deque[int]] = [deque(maxlen=LENGTH) for _ in totals]
        self._levels: deque[int] = deque(maxlen=LENGTH)

    def add(self, now: float, totals: Sequence[int], level: int) -> None:
        """The counters stand at `totals`, which never fall, and the gauge beside them at `level`.

        What was counted since the last call is taken to have come evenly, so that a call that is late shows nowhere.
        """
        counted = [new - old for new, old in zip(totals, self.totals, strict=True)]
        self.totals = totals
        elapsed = now - self._at
        if elapsed <= 0:  # the clock was set back: the seconds go on from there
            self._began += elapsed
            self._at = now
            self._run(counted, 1.0)
            return
        over = int(now - self._began)
        if over - self.seconds > LENGTH:  # a long silence, or a clock that was set forward
            self.seconds = over - LENGTH
        while self.seconds < over:
            end = self._began + self.seconds + 1
            self._run(counted, max(0.0, min(1.0, end - self._at)) / elapsed)
            self._end_second(level)
            self._at = end
        self._run(counted, (now - self._at) / elapsed)
        self._at = now

    def since(self, second: int) -> tuple[list[list[int]], list[int]]:
        """What was counted, by counter, and the levels, in each second that is kept from number `second` on."""
        count = min(max(self.seconds - second, 0), len(self._levels))
        first = len(self._levels) - count
        return [list(each)[first:] for each in self._counted], list(self._levels)[first:]

    def _run(self, counted: Sequence[int], share: float) -> None:
        self._running = [running + new * share for running, new in zip(self._running, counted, strict=True)]

    def _end_second(self, level: int) -> None:
        for counted, running in zip(self._counted, self._running, strict=True):
            counted.append(round(running))
        self._running = [0.0] * len(self._running)
        self._levels.append(level)
        self.seconds += 1
