"""A token bucket: how much may pass, at what sustained rate. Pure; the caller brings the time."""

from __future__ import annotations

SMALLEST_COST = 64  # bytes; what the network carries for the shortest datagram, with all headers


def datagram_cost(payload: int) -> int:
    """What a datagram of so many bytes of payload takes from a bandwidth limit: an empty one is not free."""
    return max(payload, SMALLEST_COST)


class TokenBucket:
    """Lets `rate` units a second pass, and up to `burst` at once."""

    __slots__ = ("rate", "burst", "_tokens", "_at")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def owe(self, amount: float, now: float) -> float:
        """Take `amount` whether it is there or not; gives the seconds until nothing is owed any more."""
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        self._tokens -= amount
        return max(0.0, -self._tokens / self.rate)

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
