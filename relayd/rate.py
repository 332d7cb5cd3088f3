"""A token bucket: how much may pass, at what sustained rate. Pure; the caller brings the time."""

from __future__ import annotations


class TokenBucket:
    """Lets `rate` units a second pass, and up to `burst` at once."""

    __slots__ = ("rate", "burst", "_tokens", "_at")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def take(self, amount: float, now: float) -> bool:
        """Take `amount` if it is there; False, and nothing taken, if not."""
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        # Also where the clock was set back: waiting for the time that it had would stop all traffic until then.
        self._at = now
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True
