"""Promises of relayd.observers.history: all is counted in the second in which it came, in memory that does not grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relayd.observers.history import LENGTH, History


def test_seconds_are_counted_one_by_one() -> None:
    """A sample at each second gives what was counted in it, and the level at its end."""
    history = History([0, 0], 100.0)
    history.add(101.0, [10, 1], 3)
    history.add(102.0, [10, 5], 4)
    assert history.since(0) == ([[10, 0], [1, 4]], [3, 4])
    assert history.since(1) == ([[0], [4]], [4])
    assert history.since(2) == ([[], []], [])


def test_a_late_sample_shows_nowhere() -> None:
    """What was counted counts evenly for the time since the last sample, whenever that was."""
    history = History([0], 0.0)
    for at in (0.3, 1.1, 1.9, 3.05, 4.0):
        history.add(at, [round(1000 * at)], 1)
    assert history.since(0)[0] == [[1000, 1000, 1000, 1000]]


def test_silence_is_zero() -> None:
    """What came before a silence counts where it came, and the silence is seconds of nothing."""
    history = History([0], 0.0)
    history.add(0.5, [700], 1)
    history.add(4.0, [700], 0)
    assert history.since(0) == ([[700, 0, 0, 0]], [0, 0, 0, 0])


def test_memory_is_bounded() -> None:
    """After a day of silence, or a clock set a year forward, the last minutes are kept, and it is at once."""
    history = History([0], 0.0)
    for now in (86_400.0, 86_400.0 + 365 * 86_400):
        history.add(now, [5], 0)
        assert history.seconds == now
        counted, levels = history.since(0)
        assert len(counted[0]) == len(levels) == LENGTH


def test_a_clock_that_is_set_back() -> None:
    """The seconds go on from where they were: none is lost, and none comes twice."""
    history = History([0], 1000.0)
    history.add(1001.0, [10], 1)
    history.add(500.0, [15], 1)
    history.add(501.0, [25], 1)
    assert history.since(0)[0] == [[10, 15]]


@given(st.lists(st.tuples(st.floats(0.01, 3.0), st.integers(0, 10**9)), max_size=50))
def test_nothing_is_lost(steps: list[tuple[float, int]]) -> None:
    """Whenever samples come, all that was counted is in the seconds, but for rounding and the second that runs."""
    history, now, total = History([0], 0.0), 0.0, 0
    for elapsed, more in steps:
        now, total = now + elapsed, total + more
        history.add(now, [total], 0)
    history.add(now + 1.0, [total], 0)
    counted = history.since(0)[0][0]
    assert len(counted) == int(now + 1.0) == history.seconds
    assert abs(sum(counted) - total) <= len(counted) + total * 1e-9
