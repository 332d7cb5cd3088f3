"""When the batched data plane lets datagrams gather."""

from relayd.dataplane.moderation import FEW, MANY, RATE, TURNS, Moderation


def after(moderation: Moderation, start: float, rate: float, per_turn: int, windows: int = 1) -> float:
    """Serve `windows` times `TURNS` turns of `per_turn` datagrams at `rate` a second; gives the time then."""
    now = start
    for _ in range(windows * TURNS):
        now += per_turn / rate
        if moderation.served(per_turn):
            moderation.judge(now)
    return now


def test_ordinary_traffic_waits_for_nothing() -> None:
    """At two thirds of the rate, one by one, there is no pause."""
    moderation = Moderation(0.0)
    after(moderation, 0.0, RATE * 2 / 3, 1)
    assert not moderation.pauses


def test_many_lone_datagrams_are_left_to_gather() -> None:
    """Above the rate, one by one, there is, and it stays when they come several at a time because of it."""
    moderation = Moderation(0.0)
    now = after(moderation, 0.0, RATE * 1.5, 1)
    assert moderation.pauses
    after(moderation, now, RATE * 1.5, FEW + 1, windows=3)
    assert moderation.pauses


def test_what_comes_in_batches_by_itself_needs_no_pause() -> None:
    """At full rate the process is busy while datagrams gather: a pause would only waste time."""
    moderation = Moderation(0.0)
    after(moderation, 0.0, RATE * 5, FEW)
    assert not moderation.pauses


def test_the_pause_ends_when_something_else_takes_the_time() -> None:
    """Batches that are longer than a pause can explain mean that the process has other work, which shall not wait."""
    moderation = Moderation(0.0)
    now = after(moderation, 0.0, RATE * 1.5, 1)
    after(moderation, now, RATE * 1.5, MANY)
    assert not moderation.pauses


def test_the_pause_ends_when_traffic_slows_down() -> None:
    """One window of slow turns, and what comes is read at once again."""
    moderation = Moderation(0.0)
    now = after(moderation, 0.0, RATE * 1.5, 1)
    after(moderation, now, 1000, 1)
    assert not moderation.pauses
