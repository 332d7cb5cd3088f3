"""Promises of relayd.rate: a bucket lets its rate pass, a burst at once, and never more."""

from __future__ import annotations

import random

import pytest

from relayd.rate import SMALLEST_COST, TokenBucket, datagram_cost


def test_burst_then_rate() -> None:
    """A full bucket gives its burst at once, then as much as time brings."""
    bucket = TokenBucket(rate=10, burst=30, now=100.0)
    assert bucket.take(30, 100.0)
    assert not bucket.take(1, 100.0)
    assert bucket.take(5, 100.5)
    assert not bucket.take(0.1, 100.5)


def test_refused_takes_nothing() -> None:
    """What is refused costs nothing: a smaller amount still passes."""
    bucket = TokenBucket(rate=1, burst=10, now=0.0)
    assert not bucket.take(11, 0.0)
    assert bucket.take(10, 0.0)


def test_never_more_than_a_burst() -> None:
    """However long nothing was taken, a burst is all that passes at once."""
    bucket = TokenBucket(rate=10, burst=30, now=0.0)
    assert bucket.take(30, 1e9)
    assert not bucket.take(1, 1e9)


@pytest.mark.parametrize("now", [5.0, 0.0, -1e9])
def test_clock_that_is_set_back(now: float) -> None:
    """A clock that steps back neither fills the bucket nor empties it, and filling goes on from there."""
    bucket = TokenBucket(rate=10, burst=20, now=5.0)
    assert bucket.take(10, 5.0)
    assert bucket.take(10, now)
    assert not bucket.take(1, now)
    assert bucket.take(10, now + 1)
    assert not bucket.take(1, now + 1)


def test_a_small_datagram_is_not_free() -> None:
    """Empty datagrams draw on a limit too, or nothing would bound their number; larger ones cost what they are."""
    assert datagram_cost(0) == datagram_cost(SMALLEST_COST) == SMALLEST_COST > 0
    assert datagram_cost(1200) == 1200


def test_rate_holds_over_time() -> None:
    """Over any stretch, no more than rate times seconds plus one burst passes, and a busy sender gets nearly that."""
    bucket = TokenBucket(rate=1000, burst=2000, now=0.0)
    entropy = random.Random(1)
    now, passed = 0.0, 0
    while now < 60:
        now += entropy.expovariate(50)
        size = entropy.randrange(1, 200)
        passed += size if bucket.take(size, now) else 0
        assert passed <= 2000 + 1000 * now + 1e-6
    assert passed >= 60 * 1000
