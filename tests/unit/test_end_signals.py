"""Of the signals that end a process the first counts, and those that come with it or behind it do not."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from relayd import end_signals
from relayd.end_signals import ENDING, heed_the_first


class Reactor:
    """One that runs already."""

    def callWhenRunning(self, begin: Any) -> None:
        begin()


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """The signals that a reactor's own handlers, here of all but SIGHUP, are told of."""
    told: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    heed_the_first(Reactor())
    yield told
    for number, each in before.items():
        signal.signal(number, each)


def test_one_after_the_other(ended: list[int]) -> None:
    """A second one, whichever it is, ends nothing again."""
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert ended == [signal.SIGTERM]


def test_one_within_the_other(ended: list[int]) -> None:
    """Nor does one that comes while the first is being dealt with."""

    def strike(frame: FrameType, event: str, _: Any) -> None:
        if frame.f_code.co_filename == end_signals.__file__:
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGTERM)

    sys.setprofile(strike)
    os.kill(os.getpid(), signal.SIGINT)
    sys.setprofile(None)
    assert len(ended) == 1


def test_what_is_ignored_stays_so(ended: list[int]) -> None:
    """As nohup has it."""
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert ended == []
