"""One of the two connections of a relayed TCP connection (RFC 6062), whichever it is, on a transport of Twisted's.

Theory of operation. Until it is joined nothing is read, so that what comes waits in the kernel's buffer, and is lost
neither when the other end takes its time nor when this one closes meanwhile. Joined, each end is the other's producer:
whoever does not read makes the other wait, with at most one buffer of Twisted's transport between them each way.

An end that has said all is half-closed on the other side too, where the transport can. One that closes has what it sent
delivered first: the other side is told behind it, and what that one still says is read and dropped until it closes as
well. For a socket that is closed with unread bytes resets its connection, and takes along what is under way. However
slowly that is taken, it is not cut as long as it is taken at all.

What an end did after it had said all cannot take back what it said: a reset that comes then, as from a program that
closed its socket and is written to, is the end of the connection and no more.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.interfaces import IByteStream
from relayd.pipe.unsent import unsent
from relayd.pipe.valve import Valve

MAX_BUFFERED = 196_608
"""Bytes that are kept for an end that does not take them, however fast the other one sends: Twisted's transports pause
their producer beyond 65,536, which may have read as much again by then; TLS has a buffer of its own above.
"""

CLOSE_GRACE = 10.0  # seconds after which a connection that closes, and neither takes anything nor closes too, is reset
SLOWEST = 1_000  # bytes a second: who takes less is given up, so that nobody keeps for long what nobody uses any more


@implementer(IByteStream)
class StreamEnd:
    """The end of which `transport` is the connection. Its protocol calls `received`, `heard_all` and `lost`."""

    def __init__(self, transport: Any, clock: IReactorTime, half_closes: bool) -> None:
        """`half_closes`: whether the transport can end one direction alone. Nothing is read from it from now on."""
        self.valve = Valve(transport, clock)
        self._transport = transport
        self._clock = clock
        self._half_closes = half_closes
        self._other: IByteStream | None = None
        self._early = b""
        self._heard_all = False
        self._said_all = False
        self._closing = self._lost = False
        self._in_order = True  # how it was lost
        self._deadline: IDelayedCall | None = None
        self._unsent = 0  # bytes, when that was last looked at
        transport.pauseProducing()

    @property
    def closing(self) -> bool:
        """Whether nothing that comes matters any more."""
        return self._closing or self._lost

    @property
    def has_early(self) -> bool:
        """Whether bytes came that wait for `join`. They do so also when the connection is gone, until it is closed."""
        return bool(self._early)

    # --- what the protocol calls ---

    def received(self, data: bytes) -> None:
        """Bytes that came."""
        if self._other is not None:
            self._other.write(data)
        elif not self.closing:
            self._early += data  # TLS had them already

    def heard_all(self) -> None:
        """No more will come."""
        self._heard_all = True
        had_said_all = self._said_all
        if self._other is not None:
            self._pass_on_end(self._other)
        if had_said_all:
            self._drop()

    def lost(self, reason: Failure | None) -> None:
        """The connection is gone."""
        self._lost = True
        self.valve.finish()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._in_order = self._heard_all or reason is None or reason.check(ConnectionDone) is not None
        other, self._other = self._other, None
        if other is not None:
            self._tell_of_end(other)

    # --- IByteStream ---

    def join(self, other: IByteStream) -> None:
        """See `IByteStream.join`."""
        if self._closing:
            other.close()
            return
        early, self._early = self._early, b""
        if self._lost:
            if early:
                other.write(early)
            self._tell_of_end(other)
            return
        self._other = other
        self._transport.registerProducer(other.valve, True)
        self.valve.resumeProducing()  # before `other` may have us wait
        if early:
            other.write(early)
        if self._heard_all:
            self._pass_on_end(other)

    def write(self, data: bytes) -> None:
        """See `IByteStream.write`."""
        if not self._said_all and not self._lost:
            self._transport.write(data)

    def finish(self) -> None:
        """See `IByteStream.finish`."""
        if self._said_all or self._lost:
            return
        if not self._half_closes:
            self.close()
            return
        self._said_all = True
        if self._heard_all:
            self._drop()
        else:
            self._transport.unregisterProducer()
            self._transport.loseWriteConnection()

    def close(self) -> None:
        """See `IByteStream.close`."""
        self._early = b""
        if self.closing:
            return
        self._closing = True
        other, self._other = self._other, None
        if other is not None:
            other.close()
        self._deadline = self._clock.callLater(CLOSE_GRACE, self._look)
        if self._half_closes:
            self.finish()
        else:
            self._said_all = True
            self._drop()
        self._unsent = unsent(self._transport)
        self.valve.finish()
        if not self._lost and not (self._half_closes and self._heard_all):
            self._transport.resumeProducing()  # TLS and WebSocket have a goodbye of their own

    def abort(self) -> None:
        """See `IByteStream.abort`."""
        self._early = b""
        self._closing = True
        other, self._other = self._other, None
        if other is not None:
            other.abort()
        if not self._lost:
            self._transport.abortConnection()

    # --- within ---

    def _pass_on_end(self, other: IByteStream) -> None:
        """No more will come here."""
        if self._half_closes:
            other.finish()
        else:
            self.close()  # as its transport does

    def _tell_of_end(self, other: IByteStream) -> None:
        """End the other one as this one was lost."""
        if self._in_order:
            other.close()
        else:
            other.abort()

    def _drop(self) -> None:
        """Close the transport behind what was written."""
        self._transport.unregisterProducer()
        self._transport.loseConnection()

    def _look(self) -> None:
        """Reset what nobody takes, or nobody closes."""
        self._deadline = None
        before, self._unsent = self._unsent, unsent(self._transport)
        if before - self._unsent < SLOWEST * CLOSE_GRACE:
            self.abort()
        else:
            self._deadline = self._clock.callLater(CLOSE_GRACE, self._look)
