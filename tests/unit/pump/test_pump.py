"""Promises of relayd.pump: order, one timer, and no bug that stops the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs

from relayd.pump import Pump


class ScriptedCore:
    """Puts out what it is given, and has the deadline that it is given."""

    def __init__(self) -> None:
        self.outputs: deque[str] = deque()
        self.deadline: float | None = None
        self.fired: list[float] = []
        self.at_timer: Callable[[], None] = lambda: None

    def handle_timer(self, now: float) -> None:
        self.fired.append(now)
        if self.deadline is not None and now >= self.deadline:
            self.at_timer()
            self.deadline = None

    def next_timer(self) -> float | None:
        return self.deadline

    def next_output(self) -> str | None:
        return self.outputs.popleft() if self.outputs else None


def make() -> tuple[ScriptedCore, Clock, list[str], Pump[str]]:
    core, clock = ScriptedCore(), Clock()
    performed: list[str] = []
    return core, clock, performed, Pump(core, clock, performed.append)


def test_outputs_are_performed_in_order() -> None:
    """Everything the core puts out is performed, once, in its order."""
    core, _, performed, pump = make()
    core.outputs.extend("abc")
    pump.run()
    pump.run()
    assert performed == ["a", "b", "c"]


def test_an_answer_given_inside_perform_keeps_the_order() -> None:
    """A nested run does not overtake outputs that were there before it."""
    core, clock = ScriptedCore(), Clock()
    performed: list[str] = []

    def perform(output: str) -> None:
        if output == "ask":
            core.outputs.append("answered")
            pump.run()
        performed.append(output)

    pump = Pump(core, clock, perform)
    core.outputs.extend(["ask", "behind"])
    pump.run()
    assert performed == ["ask", "behind", "answered"]


def test_a_fault_in_perform_is_logged_and_stops_nothing() -> None:
    """An output that cannot be performed is logged with its traceback; the next ones are performed, the timer armed."""
    core, clock = ScriptedCore(), Clock()
    performed: list[str] = []

    def perform(output: str) -> None:
        if output == "bad":
            raise ZeroDivisionError
        performed.append(output)

    core.outputs.extend(["bad", "good"])
    core.deadline = 5.0
    with capturedLogs() as events:
        Pump(core, clock, perform).run()
    assert performed == ["good"]
    assert [event["log_level"] for event in events] == [LogLevel.critical]
    assert events[0]["log_failure"].check(ZeroDivisionError)
    assert len(clock.getDelayedCalls()) == 1


def test_there_is_one_delayed_call_at_the_deadline() -> None:
    """However often it runs, a pump holds one delayed call, and the core hears of its deadline when it is due."""
    core, clock, performed, pump = make()
    core.deadline = 10.0
    core.at_timer = lambda: core.outputs.append("late")
    for _ in range(3):
        pump.run()
    assert [call.getTime() for call in clock.getDelayedCalls()] == [10.0]
    clock.advance(10.0)
    assert (core.fired, performed) == ([10.0], ["late"])
    assert clock.getDelayedCalls() == []


def test_a_deadline_that_moves_earlier_is_kept() -> None:
    """The delayed call is brought forward."""
    core, clock, _, pump = make()
    core.deadline = 10.0
    pump.run()
    core.deadline = 3.0
    pump.run()
    clock.advance(3.0)
    assert core.fired == [3.0]
    assert clock.getDelayedCalls() == []


def test_a_deadline_that_moves_later_costs_no_rescheduling() -> None:
    """The call fires early, harmlessly, and is set for the new deadline then."""
    core, clock, _, pump = make()
    core.deadline = 10.0
    pump.run()
    core.deadline = 25.0
    pump.run()
    assert [call.getTime() for call in clock.getDelayedCalls()] == [10.0]
    clock.advance(10.0)
    assert [call.getTime() for call in clock.getDelayedCalls()] == [25.0]
    clock.advance(15.0)
    assert core.fired == [10.0, 25.0]


def test_a_deadline_in_the_past_is_due_at_once() -> None:
    """A deadline behind the clock is not an error: it is due with the next turn."""
    core, clock, _, pump = make()
    clock.advance(100.0)
    core.deadline = 50.0
    pump.run()
    clock.advance(0.0)
    assert core.fired == [100.0]


def test_a_core_without_a_deadline_leaves_nothing_behind() -> None:
    """No deadline, no delayed call."""
    core, clock, _, pump = make()
    core.deadline = 10.0
    pump.run()
    core.deadline = None
    pump.run()
    assert clock.getDelayedCalls() == []


def test_stop_cancels_and_still_drains() -> None:
    """After stop there is no delayed call any more, though the last outputs of a closing core are performed."""
    core, clock, performed, pump = make()
    core.deadline = 10.0
    pump.run()
    pump.stop()
    core.outputs.append("goodbye")
    pump.run()
    assert performed == ["goodbye"]
    assert clock.getDelayedCalls() == []


def test_a_core_that_fails_at_its_deadline_does_not_spin() -> None:
    """A bug in handle_timer is logged and tried again a second later, not in a tight loop."""
    core, clock, _, pump = make()

    def fail() -> None:
        raise ZeroDivisionError

    core.deadline = 1.0
    core.at_timer = fail
    with capturedLogs() as events:
        pump.run()
        clock.advance(1.25)  # a reactor is always a little late
        clock.advance(0.0)
        clock.advance(0.5)
        assert core.fired == [1.25]
        core.at_timer = lambda: None
        clock.advance(0.5)
    assert core.fired == [1.25, 2.25]
    assert len(events) == 1
    assert clock.getDelayedCalls() == []
