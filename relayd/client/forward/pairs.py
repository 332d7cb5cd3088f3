"""`Pairs`: TCP connections that come in, each joined with another one that is made for it. `StreamForwarding` and
`Reception` say where they come in, and where the others lead.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, ITCPTransport
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.errors import RelaydError
from relayd.pipe.stream_end import StreamEnd

MAX_CONNECTIONS = (
    64  # pairs at a time: each may cost an allocation, which relays count, and the relay has this limit too
)


@implementer(IHalfCloseableProtocol)
class Side(StreamProtocol):
    """One of the two connections of a pair. `end` is its end of it."""

    end: StreamEnd

    def __init__(self, clock: Any, made: Callable[[Side], None], gone: Callable[[Side], None]) -> None:
        self._clock = clock
        self._made = made
        self._gone = gone

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        self.end = StreamEnd(transport, self._clock, getattr(transport, "can_half_close", True))
        self._made(self)

    def dataReceived(self, data: bytes) -> None:
        if not self.end.closing:
            self.end.received(data)

    def readConnectionLost(self) -> None:
        self.end.heard_all()

    def writeConnectionLost(self) -> None:
        """It was told that we have said all."""

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 (Twisted's)
        self.end.lost(reason)
        self._gone(self)


class Pairs:
    """All of one forwarding. `made` counts those that were joined."""

    def __init__(self, clock: Any, crowded: Callable[[], None]) -> None:
        """`crowded` is called for each connection that is reset because there are `MAX_CONNECTIONS`."""
        self.made = 0
        self._clock = clock
        self._crowded = crowded
        self._sides: set[Side] = set()  # those that came, and those that were made for them
        self._came: set[Side] = set()
        self._working: set[Deferred[Any]] = set()
        self._emptied: list[Deferred[None]] = []

    @property
    def connections(self) -> int:
        """How many came that are still there."""
        return len(self._came)

    def coming(self, reach: Callable[[], Coroutine[Any, Any, Side]], refused: Callable[[RelaydError], None]) -> Side:
        """The protocol of a connection that comes. `reach` makes the other one, with a protocol of `other`; where it
        fails this one is reset, and `refused` is called with the reason.
        """
        return Side(self._clock, lambda side: self._arrived(side, reach, refused), self._departed)

    def other(self, gone: Callable[[], None] = lambda: None) -> Side:
        """The protocol of a connection that is made for one that came. `gone` is called at its end."""

        def departed(side: Side) -> None:
            self._departed(side)
            gone()

        return Side(self._clock, self._sides.add, departed)

    def work(self, what: Coroutine[Any, Any, Any] | Deferred[Any]) -> Deferred[Any]:
        """What is under way, and cancelled by `stop`."""
        work: Deferred[Any] = what if isinstance(what, Deferred) else Deferred.fromCoroutine(what)
        self._working.add(work)

        def settled(result: Any) -> Any:
            self._working.discard(work)
            return result

        return work.addBoth(settled)

    def stop(self) -> None:
        """Cancel what is under way, and reset all connections."""
        for work in list(self._working):
            work.cancel()
        for side in list(self._sides):
            side.end.abort()

    async def emptied(self) -> None:
        """Back when there are no connections."""
        if self._sides:
            emptied: Deferred[None] = Deferred()
            self._emptied.append(emptied)
            await emptied

    def _arrived(
        self, side: Side, reach: Callable[[], Coroutine[Any, Any, Side]], refused: Callable[[RelaydError], None]
    ) -> None:
        self._sides.add(side)
        if len(self._came) >= MAX_CONNECTIONS:
            self._crowded()
            side.end.abort()
            return
        self._came.add(side)

        def failed(failure: Failure) -> None:
            side.end.abort()
            if failure.trap(CancelledError, RelaydError) is RelaydError:
                refused(failure.value)  # type: ignore[arg-type]

        self.work(self._join(side, reach)).addErrback(failed)

    async def _join(self, side: Side, reach: Callable[[], Coroutine[Any, Any, Side]]) -> None:
        other = await reach()
        self.made += 1
        side.end.join(other.end)
        other.end.join(side.end)

    def _departed(self, side: Side) -> None:
        self._sides.discard(side)
        self._came.discard(side)
        if not self._sides:
            emptied, self._emptied = self._emptied, []
            for each in emptied:
                each.callback(None)
