"""Has a process heed the first signal that ends it, and no further one while it ends.

An end in order takes moments: allocations are deleted, and what was written leaves. Twisted's reactor takes another
signal in that time, such as that of an impatient second Ctrl-C, for another end, and complains at length that it has
ended already.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heed_the_first(reactor: Any) -> None:
    """From when the reactor runs, and so has its handlers. What is ignored, or left to the system, stays so."""
    reactor.callWhenRunning(_take_over)


def _take_over() -> None:
    for number in ENDING:
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, partial(_end, handler))


def _end(handler: Callable[[int, FrameType | None], object], number: int, frame: FrameType | None) -> None:
    for each in ENDING:
        signal.signal(each, _ended_already)  # Python complains where SIG_IGN is set and the signal has just come
    handler(number, frame)


def _ended_already(number: int, frame: FrameType | None) -> None:
    """Whoever sent it has what he wants."""
