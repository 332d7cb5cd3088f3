"""Promises of relayd.launch.clock: time that only goes forward."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.base import ReactorBase
from twisted.internet.task import Clock

from relayd.launch.clock import PACE, ForwardClock, keep_time

HOUR = 3600.0  # seconds


class Machine:
    """A system's clock, which is set, and one that runs on."""

    def __init__(self) -> None:
        self.wall, self.steady = Clock(), Clock()
        self.wall.advance(1_700_000_000.0)
        self.clock = ForwardClock(self.wall.seconds, self.steady.seconds)

    def pass_(self, seconds: float) -> float:
        """Time that passes, and what the clock says then."""
        self.wall.advance(seconds)
        self.steady.advance(seconds)
        return self.clock()


def test_it_is_the_systems() -> None:
    """As long as nobody sets that, and when it is set forward."""
    machine = Machine()
    assert machine.clock() == machine.wall.seconds()
    assert machine.pass_(10.0) == machine.wall.seconds()
    machine.wall.advance(HOUR)
    assert machine.clock() == machine.wall.seconds()
    assert machine.pass_(10.0) == machine.wall.seconds()


def test_it_goes_on_when_the_systems_is_set_back() -> None:
    """Slower, so that it is the system's again in the end; never back, however often it is asked."""
    machine = Machine()
    before = machine.clock()
    machine.wall.rightNow -= HOUR
    assert machine.clock() == before
    assert machine.pass_(100.0) == pytest.approx(before + 100.0 * PACE)
    said = [machine.pass_(seconds) for seconds in (0.0, 0.001, 1.0, 0.0, 60.0)]
    assert said == sorted(said)
    machine.pass_(HOUR / (1 - PACE))
    assert machine.clock() == machine.wall.seconds()
    assert machine.pass_(1.0) == machine.wall.seconds()


class Reactor(ReactorBase):
    """What all of Twisted's reactors have in common."""

    def installWaker(self) -> None:
        """Nobody wakes it."""


def test_a_reactor_runs_on_it() -> None:
    """What is delayed is called by it: that is how Twisted's reactors ask for the time."""
    reactor: Any = Reactor()
    keep_time(reactor)
    assert isinstance(reactor.seconds, ForwardClock)
    machine = Machine()
    reactor.seconds = machine.clock
    called: list[str] = []
    reactor.callLater(30.0, called.append, "in time")
    machine.wall.rightNow -= HOUR
    reactor.runUntilCurrent()
    machine.pass_(30.0)
    reactor.runUntilCurrent()
    assert called == []
    machine.pass_(10.0)
    reactor.runUntilCurrent()
    assert called == ["in time"]
