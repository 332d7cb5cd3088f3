"""A network made of a seed: it loses, duplicates and reorders datagrams, the same way every time. Time is simulated."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any, NamedTuple

BEGINNING = 1000.0  # seconds; when simulated time begins


class Weather(NamedTuple):
    """Probabilities for each datagram; each copy takes up to `delay` seconds."""

    loss: float = 0.0
    duplication: float = 0.0
    delay: float = 0.0


class World:
    """Simulated time: what is to happen when, in order."""

    def __init__(self, seed: int) -> None:
        self.now = BEGINNING
        self.random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def after(self, delay: float, happen: Callable[[], None]) -> None:
        """Let it happen that many seconds from now."""
        self._sequence += 1
        heapq.heappush(self._events, (self.now + delay, self._sequence, happen))

    def next(self) -> float | None:
        """When something happens next."""
        return self._events[0][0] if self._events else None

    def step(self) -> None:
        """Go to the next thing that happens, and let it."""
        self.now, _, happen = heapq.heappop(self._events)
        happen()


class Network:
    """Carries datagrams between the parties. `trace` is all that was handed over, for comparing two runs."""

    def __init__(self, world: World, weather: Weather) -> None:
        self._world = world
        self._weather = weather
        self.trace: list[tuple[float, bytes]] = []
        self.lost = 0

    def carry(self, deliver: Callable[..., Any], *arguments: Any, data: bytes) -> None:
        """Bring `data` to `deliver(*arguments, data)`: once, twice, or not at all."""
        chance = self._world.random
        copies = 2 if chance.random() < self._weather.duplication else 1
        for _ in range(copies):
            if chance.random() < self._weather.loss:
                self.lost += 1
                continue
            self._world.after(chance.random() * self._weather.delay, lambda: self._arrive(deliver, arguments, data))

    def _arrive(self, deliver: Callable[..., Any], arguments: tuple[Any, ...], data: bytes) -> None:
        self.trace.append((self._world.now, data))
        deliver(*arguments, data)
