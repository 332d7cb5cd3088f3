"""GuessThrottle: guessing gets slow, neighbours do not notice, memory stays."""

from __future__ import annotations

from relayd.address import TransportAddress
from relayd.auth.throttle import GuessThrottle

KEY = bytes(range(32))
SOURCE = bytes([192, 0, 2, 1])


def _ip(host: str) -> bytes:
    return TransportAddress.parse(host, 0).ip


def _fail(throttle: GuessThrottle, ip: bytes, times: int, now: float) -> None:
    for _ in range(times):
        throttle.failed(ip, now)


def test_blocks_at_the_limit_and_not_before() -> None:
    """The last attempt below the limit is still asked about; the next is not."""
    throttle = GuessThrottle(KEY, limit=10)
    _fail(throttle, SOURCE, 9, 100.0)
    assert not throttle.blocked(SOURCE, 100.0)
    throttle.failed(SOURCE, 100.0)
    assert throttle.blocked(SOURCE, 100.0)


def test_opens_again_with_time() -> None:
    """A blocked source gets one attempt back per 60/limit seconds, and all after a minute, however often it failed."""
    throttle = GuessThrottle(KEY, limit=10)
    _fail(throttle, SOURCE, 1000, 100.0)
    assert throttle.blocked(SOURCE, 105.9)
    assert not throttle.blocked(SOURCE, 106.1)
    _fail(throttle, SOURCE, 1, 106.1)
    assert throttle.blocked(SOURCE, 106.1)
    _fail(throttle, SOURCE, 9, 170.0)
    assert not throttle.blocked(SOURCE, 170.0)


def test_clock_that_steps_back_opens_nothing_and_raises_nothing() -> None:
    """A corrected wall clock neither unblocks a guesser nor breaks the count."""
    throttle = GuessThrottle(KEY, limit=10)
    _fail(throttle, SOURCE, 10, 1000.0)
    assert throttle.blocked(SOURCE, 10.0)


def test_ipv6_customers_are_one_source() -> None:
    """Changing the address inside one's own /64 gives no new attempts; the next /64 is another source."""
    throttle = GuessThrottle(KEY, limit=10)
    for number in range(10):
        throttle.failed(_ip(f"2001:db8::{number:x}"), 0.0)
    assert throttle.blocked(_ip("2001:db8::ffff:1"), 0.0)
    assert not throttle.blocked(_ip("2001:db8:0:1::1"), 0.0)


def test_neighbours_are_not_harmed() -> None:
    """One guesser blocks nobody else: two sources would have to share both of their cells."""
    throttle = GuessThrottle(KEY, limit=10)
    _fail(throttle, SOURCE, 100, 0.0)
    others = [_ip(f"198.51.{high}.{low}") for high in range(4) for low in range(250)]
    assert not [other for other in others if throttle.blocked(other, 0.0)]


def test_memory_does_not_grow_with_sources() -> None:
    """The sketch is as large after ten thousand sources as before the first."""
    throttle = GuessThrottle(KEY, cells=64)
    size = len(throttle._levels), len(throttle._since)
    for number in range(10_000):
        throttle.failed(number.to_bytes(4, "big"), float(number))
    assert (len(throttle._levels), len(throttle._since)) == size == (128, 128)
