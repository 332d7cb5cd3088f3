"""Has a process heed the first signal that ends it, and no further one while it ends.

An end in order takes moments: allocations are deleted, and what was written leaves. Twisted's reactor takes another
signal in that time, such as that of an impatient second Ctrl-C, for another end, and complains at length that it has
ended already.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heed_the_first(reactor: Any) -> None:
    """From when the reactor runs, and so has its handlers. What is ignored, or left to the system, stays so."""
    reactor.callWhenRunning(_take_over)


def _take_over() -> None:
    handlers = {number: signal.getsignal(number) for number in ENDING}
    heard: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        # Not by replacing the handlers: two signals may have come at once, and within signal.signal() Python calls the
        # handler of the other one.
        heard.append(number)
        handler = handlers[signal.Signals(number)]
        if len(heard) == 1 and callable(handler):
            handler(number, frame)

    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, end)
