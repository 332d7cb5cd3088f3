"""What the tests of authentication watch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer


@implementer(ILogObserver)
class _Collector:
    def __init__(self, events: list[LogEvent]) -> None:
        self._events = events

    def __call__(self, event: LogEvent) -> None:
        self._events.append(event)


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    """What was logged since the test began."""
    events: list[LogEvent] = []
    collector = _Collector(events)
    globalLogPublisher.addObserver(collector)
    yield events
    globalLogPublisher.removeObserver(collector)
