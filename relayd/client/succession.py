"""`Succession`: allocations one after the other, of any kind. When one ends, the next one is made.

How an allocation ends is never the reason to give up: a server that restarted, or whose credentials expired, is asked
once more, and what it says then counts. Pauses double with each failure, and all of their length is at random, so that
the clients of a relay that restarts do not come back in the same moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from relayd.core import Entropy
from relayd.errors import ConfigurationError, RelaydError, RemoteError

FIRST_PAUSE = 1.0  # seconds at most, before the first attempt
LONGEST_PAUSE = 60.0  # seconds at most: a relay that is back is found within a minute
STEADY = 60.0  # seconds that an allocation has to last for the pauses to be short again

# Refusals that another attempt does not change, because they are about who asks and for what (RFC 8656 sections 7.2 and
# 19). Others pass: a quota that the lost allocation holds until it expires (486), a full server (508), ...
_PERMANENT = frozenset((400, 401, 403, 420, 440, 441, 442))

_RANDOM_SIZE = 4  # bytes


class Ending(Protocol):
    """An allocation, as `RelayedPort` and `TcpAllocation` are."""

    def when_ended(self) -> Deferred[RelaydError | None]: ...


A = TypeVar("A", bound=Ending)


def is_permanent(error: BaseException) -> bool:
    """Whether it is of no use to try again."""
    return isinstance(error, ConfigurationError) or (isinstance(error, RemoteError) and error.code in _PERMANENT)


def pause_before(failures: int, entropy: Entropy) -> float:
    """Seconds to wait for the attempt that follows that many failed ones."""
    longest = min(FIRST_PAUSE * 2.0 ** min(failures, 32), LONGEST_PAUSE)
    return longest * (int.from_bytes(entropy(_RANDOM_SIZE)) / 2.0 ** (8 * _RANDOM_SIZE))


class Succession(Generic[A]):
    """Allocations by `allocate`. `ended` is called with each one that is over, and `waiting` with the error and the
    pause, in seconds, before each attempt to make another.
    """

    def __init__(
        self,
        clock: Any,
        allocate: Callable[[], Deferred[A]],
        ended: Callable[[A], None],
        waiting: Callable[[RelaydError, float], None],
        entropy: Entropy,
    ) -> None:
        self._clock = clock
        self._allocate = allocate
        self._ended = ended
        self._waiting = waiting
        self._entropy = entropy
        self._living: Deferred[RelaydError | None] | None = None
        self._is_stopping = False

    def begin(self, first: A) -> Deferred[RelaydError | None]:
        """Go on from this one. Fires with why there will be no other: a refusal for good, or None where one was closed
        or `stop` was called. Fails with what only a bug raises.
        """
        self._living = Deferred.fromCoroutine(self._live(first))
        return self._living.addErrback(self._stopped)

    def stop(self) -> None:
        """Make no other, and give up what is under way. The one that there is, if there is one, is not touched."""
        self._is_stopping = True
        if self._living is not None:
            self._living.cancel()

    async def _live(self, current: A) -> RelaydError | None:
        failures = 0
        while True:
            began = self._clock.seconds()
            error = await current.when_ended()
            self._ended(current)
            if error is None:
                return None
            if self._clock.seconds() - began >= STEADY:
                failures = 0
            while True:
                pause = pause_before(failures, self._entropy)
                failures += 1
                self._waiting(error, pause)
                await deferLater(self._clock, pause)
                try:
                    current = await self._allocate()
                    break
                except RelaydError as refusal:
                    if self._is_stopping:  # not every attempt fails with CancelledError when it is cancelled
                        return None
                    if is_permanent(refusal):
                        return refusal
                    error = refusal

    def _stopped(self, failure: Failure) -> None:
        failure.trap(CancelledError)
