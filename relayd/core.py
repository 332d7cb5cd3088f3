"""The contract that every protocol core keeps, and the deadlines that cores count by.

Theory of operation. A core is a pure object. Something happens (bytes, an answer, a deadline): call the one verb
that says so with the present time; then drain `next_output` until it gives None; then arm one timer for
`next_timer`. Anything slow leaves as an output with an id and comes back through `answer`. Times are seconds on a
clock that the caller owns; entropy is handed in at construction. Importing a core loads no reactor.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, Protocol, TypeVar

Entropy = Callable[[int], bytes]
"""Gives that many unpredictable bytes: `secrets.token_bytes` in life, a seeded stream in tests."""

_SLACK = 64  # dead heap entries tolerated before a clean-up, so that small sets never pay for one

Output = TypeVar("Output", covariant=True)
Key = TypeVar("Key", bound=Hashable)


class Core(Protocol[Output]):
    """What a pump drives. Cores add their own verbs beside these: `receive`, and `answer` where something is slow."""

    def handle_timer(self, now: float) -> None:
        """Do all that is due at `now`. Harmless when called early."""

    def next_timer(self) -> float | None:
        """When `handle_timer` is wanted next, or None."""

    def next_output(self) -> Output | None:
        """The next thing for the shell to do, in order, or None when there is nothing left."""


class Deadlines(Generic[Key]):
    """At most one deadline per key: set, move, cancel, and take what is due in order of time.

    Moving a deadline later (a refresh) is the common case and costs one dictionary write: the heap keeps the older
    entry, which is re-filed when it surfaces. So every key has one heap entry that counts, the one in `_filed`, never
    later than its deadline; all others are dead.
    """

    def __init__(self) -> None:
        self._when: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._filed: dict[Key, float] = {}
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._when)

    def __contains__(self, key: Key) -> bool:
        return key in self._when

    def get(self, key: Key) -> float | None:
        return self._when.get(key)

    def set(self, key: Key, when: float) -> None:
        self._when[key] = when
        filed = self._filed.get(key)
        if filed is None or when < filed:
            self._file(key, when)
            self._limit_heap()

    def cancel(self, key: Key) -> None:
        self._when.pop(key, None)
        self._limit_heap()

    def next(self) -> float | None:
        """The earliest deadline, or None. Sheds entries that were moved or cancelled."""
        while self._heap:
            when, _, key = self._heap[0]
            wanted = self._when.get(key)
            if wanted == when:
                return when
            heapq.heappop(self._heap)
            if self._filed.get(key) == when:
                del self._filed[key]
                if wanted is not None:
                    self._file(key, wanted)
        return None

    def due(self, now: float) -> Iterator[Key]:
        """Remove and give each key whose deadline is at or before `now`. Keys may be set and cancelled in between."""
        while (when := self.next()) is not None and when <= now:
            key = heapq.heappop(self._heap)[2]
            del self._filed[key], self._when[key]
            yield key

    def _limit_heap(self) -> None:
        # Dead entries would otherwise stay until their time comes: 600 s of deleted allocations add up.
        if len(self._heap) <= 2 * len(self._when) + _SLACK:
            return
        self._filed.clear()
        self._heap.clear()
        for key, when in self._when.items():
            self._file(key, when)

    def _file(self, key: Key, when: float) -> None:
        self._sequence += 1
        self._filed[key] = when
        heapq.heappush(self._heap, (when, self._sequence, key))
