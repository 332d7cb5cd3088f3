"""Promises of relayd.core: deadlines come due in order, each once, and forgotten ones take no room."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from relayd.core import Deadlines


def test_order_of_time() -> None:
    """What is due comes in order of time; what is not stays."""
    deadlines: Deadlines[str] = Deadlines()
    for key, when in (("c", 3.0), ("a", 1.0), ("d", 4.0), ("b", 2.0)):
        deadlines.set(key, when)
    assert deadlines.next() == 1.0
    assert list(deadlines.due(3.0)) == ["a", "b", "c"]
    assert deadlines.next() == 4.0
    assert len(deadlines) == 1
    assert "d" in deadlines
    assert "a" not in deadlines


def test_due_at_its_very_time() -> None:
    """A deadline is due at its time, and not before."""
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1.5)
    assert list(deadlines.due(1.4999)) == []
    assert list(deadlines.due(1.5)) == ["a"]
    assert list(deadlines.due(1.5)) == []
    assert deadlines.next() is None


def test_moved() -> None:
    """A deadline that is moved, later or earlier, comes due once, at its new time."""
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("later", 1.0)
    deadlines.set("later", 5.0)
    deadlines.set("earlier", 9.0)
    deadlines.set("earlier", 2.0)
    deadlines.set("to and fro", 9.0)
    deadlines.set("to and fro", 1.0)
    deadlines.set("to and fro", 9.0)
    assert deadlines.get("later") == 5.0
    assert list(deadlines.due(4.0)) == ["earlier"]
    assert list(deadlines.due(8.0)) == ["later"]
    assert list(deadlines.due(100.0)) == ["to and fro"]
    assert list(deadlines.due(100.0)) == []


def test_cancelled() -> None:
    """A cancelled deadline never comes due; cancelling what is not there is harmless; it can be set again."""
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.cancel("a")
    deadlines.cancel("never there")
    assert deadlines.next() is None
    assert deadlines.get("a") is None
    deadlines.set("a", 2.0)
    deadlines.cancel("a")
    deadlines.set("a", 3.0)
    assert list(deadlines.due(2.5)) == []
    assert list(deadlines.due(3.0)) == ["a"]


def test_changed_while_due() -> None:
    """Whoever takes what is due may set and cancel in between: what is cancelled does not come, what is set does."""
    deadlines: Deadlines[str] = Deadlines()
    for key in "abc":
        deadlines.set(key, float("abc".index(key)))
    taken = []
    for key in deadlines.due(10.0):
        taken.append(key)
        if key == "a":
            deadlines.cancel("b")
            deadlines.set("d", 5.0)
            deadlines.set("a", 20.0)
    assert taken == ["a", "c", "d"]
    assert deadlines.next() == 20.0


def test_keys_need_no_order() -> None:
    """Keys that cannot be compared may share a time."""
    deadlines: Deadlines[object] = Deadlines()
    keys = [object(), None, "text", 5, ("tuple",)]
    for key in keys:
        deadlines.set(key, 1.0)
    assert set(deadlines.due(1.0)) == set(keys)


def heap_size(deadlines: Deadlines[int]) -> int:
    return len(deadlines._heap)


def test_bounded_under_churn() -> None:
    """100,000 keys that come and go before their time leave no more than twice the living ones, and a constant."""
    deadlines: Deadlines[int] = Deadlines()
    for key in range(100_000):
        deadlines.set(key, key + 600.0)
        if key >= 10:
            deadlines.cancel(key - 10)
        assert heap_size(deadlines) <= 2 * 11 + 64
    assert len(deadlines) == 10


def test_nothing_left_of_cancelled_crowds() -> None:
    """When all of a crowd are cancelled, no more than a constant stays, though nothing is ever set again."""
    deadlines: Deadlines[int] = Deadlines()
    for key in range(1000):
        deadlines.set(key, 600.0)
    for key in range(1000):
        deadlines.cancel(key)
    assert heap_size(deadlines) <= 64
    assert deadlines.next() is None


def test_bounded_under_moves() -> None:
    """One key that is moved 10,000 times, always earlier or at random, fills nothing."""
    deadlines: Deadlines[int] = Deadlines()
    entropy = random.Random(5)
    for step in range(10_000):
        deadlines.set(0, 1e6 - step)
        deadlines.set(1, entropy.random())
        assert heap_size(deadlines) <= 2 * 2 + 64
    assert deadlines.get(0) == 1e6 - 9_999


class DeadlinesBesideDictionary(RuleBasedStateMachine):
    """Deadlines behave like a dictionary that is searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.deadlines: Deadlines[int] = Deadlines()
        self.model: dict[int, float] = {}
        self.now = 0.0

    keys = st.integers(0, 12)
    delays = st.integers(0, 40).map(lambda quarters: quarters / 4)

    @rule(key=keys, delay=delays)
    def set(self, key: int, delay: float) -> None:
        self.deadlines.set(key, self.now + delay)
        self.model[key] = self.now + delay

    @rule(key=keys)
    def cancel(self, key: int) -> None:
        self.deadlines.cancel(key)
        self.model.pop(key, None)

    @rule(rounds=st.integers(1, 60), delay=delays)
    def churn(self, rounds: int, delay: float) -> None:
        for number in range(rounds):
            self.deadlines.set(1000 + number, self.now + delay)
            self.deadlines.cancel(1000 + number)

    @rule()
    def look(self) -> None:
        assert self.deadlines.next() == min(self.model.values(), default=None)

    @rule(delay=delays)
    def wait(self, delay: float) -> None:
        self.now += delay
        taken = list(self.deadlines.due(self.now))
        times = [self.model[key] for key in taken]
        assert times == sorted(times)
        assert sorted(taken) == sorted(key for key, when in self.model.items() if when <= self.now)
        for key in taken:
            del self.model[key]

    @rule(delay=delays, again=delays.filter(bool))
    def wait_and_renew(self, delay: float, again: float) -> None:
        self.now += delay
        due = {key for key, when in self.model.items() if when <= self.now}
        for key in self.deadlines.due(self.now):
            due.remove(key)
            self.deadlines.set(key, self.now + again)
            self.model[key] = self.now + again
        assert due == set()

    @invariant()
    def same_keys(self) -> None:
        assert len(self.deadlines) == len(self.model)
        assert {key: self.deadlines.get(key) for key in self.model} == self.model


def test_beside_a_dictionary() -> None:
    """Whatever is set, moved, cancelled and waited for: the same keys come due as in a plain dictionary."""
    run_state_machine_as_test(
        DeadlinesBesideDictionary,
        settings=settings(max_examples=100, stateful_step_count=40, derandomize=True),
    )
