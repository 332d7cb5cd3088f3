"""A source of bytes that is read only while all who have a say in it agree: its consumer, and the bandwidth limit.

Twisted's transports know one consumer, which pauses and resumes them at will; a second one would undo what it did.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer


@implementer(IPushProducer)
class Valve:
    """To be registered as the producer of the one consumer, in place of `transport`, which begins open."""

    def __init__(self, transport: Any, clock: IReactorTime) -> None:
        self._transport = transport
        self._clock = clock
        self._wanted = True
        self._rest: IDelayedCall | None = None
        self._finished = False

    def pauseProducing(self) -> None:
        self._wanted = False
        if self._rest is None and not self._finished:
            self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._wanted = True
        if self._rest is None and not self._finished:
            self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """The consumer is gone. What becomes of the source is for its owner to say."""

    def rest(self, seconds: float) -> None:
        """Read nothing for so long: more was read than may be."""
        if self._finished:
            return
        if self._rest is not None:
            self._rest.reset(seconds)
            return
        if self._wanted:
            self._transport.pauseProducing()
        self._rest = self._clock.callLater(seconds, self._rested)

    def finish(self) -> None:
        """The source is gone, or belongs to somebody else."""
        self._finished = True
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _rested(self) -> None:
        self._rest = None
        if self._wanted:
            self._transport.resumeProducing()
