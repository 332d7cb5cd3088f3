"""Promises of relayd.pipe: nothing is lost, nobody is flooded, each end is carried across."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from relayd.interfaces import IByteStream
from relayd.pipe.stream_end import CLOSE_GRACE, SLOWEST, StreamEnd
from relayd.pipe.valve import Valve

DONE = Failure(ConnectionDone())
RESET = Failure(ConnectionLost())


class FakeTransport:
    """Keeps what is written, and what it is told, as a transport of Twisted's would take it."""

    def __init__(self) -> None:
        self.written = b""
        self.reads = True
        self.producer: object = None
        self.said: list[str] = []
        self.unsent = 0

    def write(self, data: bytes) -> None:
        assert not self.said, f"written to after {self.said}"
        self.written += data

    def pauseProducing(self) -> None:
        self.reads = False

    def resumeProducing(self) -> None:
        self.reads = True

    def registerProducer(self, producer: object, streaming: bool) -> None:
        assert streaming
        assert self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def loseWriteConnection(self) -> None:
        assert self.producer is None, "Twisted would wait for it"
        self.said.append("half")

    def loseConnection(self) -> None:
        assert self.producer is None, "Twisted would wait for it"
        self.said.append("close")

    def abortConnection(self) -> None:
        self.said.append("abort")


class Pair:
    """A client's end and a peer's, joined or not."""

    def __init__(self, client_half_closes: bool = True, joined: bool = True) -> None:
        self.clock = Clock()
        self.client_transport, self.peer_transport = FakeTransport(), FakeTransport()
        self.client = StreamEnd(self.client_transport, self.clock, client_half_closes)
        self.peer = StreamEnd(self.peer_transport, self.clock, True)
        if joined:
            self.join()

    def join(self) -> None:
        self.peer.join(self.client)
        self.client.join(self.peer)

    def assert_finished(self) -> None:
        """Both connections end, and no delayed call is left."""
        self.client.lost(DONE)
        self.peer.lost(DONE)
        assert self.clock.getDelayedCalls() == []


def test_it_is_what_it_claims() -> None:
    """The interface is whole."""
    verifyObject(IByteStream, Pair().client)


def test_nothing_is_read_before_it_is_joined() -> None:
    """So that what comes waits where it is bounded; then both are read, and each is the other's producer."""
    pair = Pair(joined=False)
    transports = [pair.client_transport, pair.peer_transport]
    assert [transport.reads for transport in transports] == [False, False]
    pair.join()
    assert [transport.reads for transport in transports] == [True, True]
    assert pair.client_transport.producer is pair.peer.valve
    assert pair.peer_transport.producer is pair.client.valve


def test_bytes_go_across_both_ways() -> None:
    """As they are, in order."""
    pair = Pair()
    pair.client.received(b"one ")
    pair.client.received(b"two")
    pair.peer.received(b"three")
    assert (pair.peer_transport.written, pair.client_transport.written) == (b"one two", b"three")


def test_what_came_early_is_not_lost() -> None:
    """TLS may have bytes already, and even the end of them, when nothing is read any more."""
    pair = Pair(joined=False)
    pair.client.received(b"early ")
    pair.client.heard_all()
    pair.join()
    assert pair.peer_transport.written == b"early "
    assert pair.peer_transport.said == ["half"]


@pytest.mark.parametrize(("reason", "said"), [(DONE, "close"), (RESET, "abort")])
def test_what_came_early_outlives_its_connection(reason: Failure, said: str) -> None:
    """It is handed over with the end behind it, whichever that was; and forgotten where the end is closed instead."""
    pair = Pair(client_half_closes=False, joined=False)
    for end in (pair.peer, pair.client):
        end.received(b"early")
        assert end.has_early
    pair.peer.lost(reason)
    pair.client.lost(DONE)
    other = Pair(client_half_closes=False, joined=False)
    pair.peer.join(other.client)
    assert (other.client_transport.written, other.client_transport.said) == (b"early", [said])
    pair.client.close()
    assert not pair.client.has_early


def test_who_cannot_take_what_came_early_is_not_sent_more() -> None:
    """It makes the one that it came from wait from the beginning."""
    pair = Pair(joined=False)
    pair.peer_transport.write = lambda data: pair.client.valve.pauseProducing()  # type: ignore[method-assign]
    pair.client.received(b"as much as fits")
    pair.join()
    assert not pair.client_transport.reads
    assert pair.peer_transport.reads
    pair.client.valve.resumeProducing()
    assert pair.client_transport.reads


def test_one_direction_ends_alone() -> None:
    """A half-close is carried across, the other direction goes on, and with its end both are closed."""
    pair = Pair()
    pair.client.received(b"question")
    pair.client.heard_all()
    assert pair.peer_transport.said == ["half"]
    assert pair.client_transport.said == []
    pair.peer.received(b"answer")
    pair.peer.heard_all()
    assert pair.client_transport.written == b"answer"
    assert pair.client_transport.said == ["close"]
    assert pair.peer_transport.said == ["half", "close"]
    pair.assert_finished()


def test_a_transport_that_cannot_half_close_is_closed() -> None:
    """Behind what the peer had sent; the peer is told too."""
    pair = Pair(client_half_closes=False)
    pair.peer.received(b"all")
    pair.peer.heard_all()
    assert pair.client_transport.written == b"all"
    assert pair.client_transport.said == ["close"]
    assert pair.peer_transport.said == ["close"]
    pair.assert_finished()


def test_a_close_lets_what_was_sent_arrive() -> None:
    """The peer hears it all and then the end; what it still says is read, dropped, and resets nothing."""
    pair = Pair()
    pair.client.received(b"last words")
    pair.client.lost(DONE)
    assert pair.peer_transport.written == b"last words"
    assert pair.peer_transport.said == ["half"]
    assert pair.peer_transport.reads
    pair.peer.received(b"too late")
    pair.peer.heard_all()
    assert pair.peer_transport.said == ["half", "close"]
    pair.assert_finished()


def test_a_reset_is_seen_as_one() -> None:
    """What did not end in order does not look so on the other side, either way around."""
    pair = Pair()
    pair.peer.lost(RESET)
    assert pair.client_transport.said == ["abort"]
    pair = Pair()
    pair.client.lost(RESET)
    assert pair.peer_transport.said == ["abort"]
    pair.peer.lost(DONE)
    assert pair.clock.getDelayedCalls() == []


def test_a_reset_takes_back_nothing_that_was_whole() -> None:
    """Who said all and closed cannot be written to: that is no reason to lose what it had said."""
    pair = Pair()
    pair.client.received(b"all of it")
    pair.client.heard_all()
    pair.client.lost(RESET)
    assert pair.peer_transport.said == ["half"]
    pair.peer.received(b"too late")
    pair.peer.heard_all()
    assert pair.peer_transport.said == ["half", "close"]
    pair.peer.lost(DONE)
    assert pair.clock.getDelayedCalls() == []


def test_an_end_of_both_directions_is_told_at_once() -> None:
    """That of a transport that cannot half-close, which may never get rid of what was written to it."""
    pair = Pair(client_half_closes=False)
    pair.client.received(b"last")
    pair.client.heard_all()
    assert pair.peer_transport.written == b"last"
    assert pair.peer_transport.said == ["half"]
    assert pair.client_transport.said == ["close"]
    pair.client.lost(RESET)
    assert pair.peer_transport.said == ["half"]
    pair.assert_finished()


def test_goodbyes_are_read() -> None:
    """By a transport that cannot half-close, though it was made to wait when it was closed, whoever closed it."""
    close: Callable[[Pair], None]
    for close in (lambda pair: pair.peer.heard_all(), lambda pair: pair.client.heard_all()):
        pair = Pair(client_half_closes=False)
        pair.client.valve.pauseProducing()
        close(pair)
        assert pair.client_transport.said == ["close"]
        assert pair.client_transport.reads
        pair.assert_finished()


def test_what_is_taken_slowly_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection closes for as long as it takes what was sent, but not slower than `SLOWEST`."""
    monkeypatch.setattr("relayd.pipe.stream_end.unsent", lambda transport: transport.unsent)
    pair = Pair()
    least = int(SLOWEST * CLOSE_GRACE)
    pair.peer_transport.unsent = 5 * least
    pair.client.lost(DONE)
    for _ in range(4):
        pair.peer_transport.unsent -= least
        pair.clock.advance(CLOSE_GRACE)
        assert pair.peer_transport.said == ["half"]
    pair.peer_transport.unsent -= least - 1
    pair.clock.advance(CLOSE_GRACE)
    assert pair.peer_transport.said == ["half", "abort"]
    pair.peer.lost(RESET)
    assert pair.clock.getDelayedCalls() == []


def test_a_peer_that_never_closes_is_given_up() -> None:
    """Not before `CLOSE_GRACE`, and not much later."""
    pair = Pair()
    pair.client.lost(DONE)
    pair.clock.advance(CLOSE_GRACE - 0.1)
    assert pair.peer_transport.said == ["half"]
    pair.clock.advance(0.1)
    assert pair.peer_transport.said == ["half", "abort"]
    pair.peer.lost(RESET)
    assert pair.clock.getDelayedCalls() == []


def test_closing_one_closes_both_once() -> None:
    """From whichever end, however often."""
    first: Callable[[Pair], StreamEnd]
    for first in (lambda pair: pair.client, lambda pair: pair.peer):
        pair = Pair()
        first(pair).close()
        first(pair).close()
        assert pair.client_transport.said == pair.peer_transport.said == ["half"]
        pair.client.heard_all()
        pair.peer.heard_all()
        assert pair.client_transport.said == pair.peer_transport.said == ["half", "close"]
        pair.assert_finished()


def test_joining_what_is_gone_closes_the_other() -> None:
    """The peer may have gone while the client was about to bind it."""
    pair = Pair(joined=False)
    pair.peer.lost(DONE)
    pair.join()
    assert pair.client_transport.said == ["half"]
    pair.client.heard_all()
    pair.assert_finished()


def test_backpressure_reaches_the_source() -> None:
    """A consumer that is full stops the other end's reading, and only its own resuming starts it again."""
    pair = Pair()
    pair.client.valve.pauseProducing()
    assert not pair.client_transport.reads
    pair.client.valve.rest(1.0)
    pair.clock.advance(2.0)
    assert not pair.client_transport.reads
    pair.client.valve.resumeProducing()
    assert pair.client_transport.reads


def test_a_rest_outlasts_a_consumer_that_wants_more() -> None:
    """Whoever used up the bandwidth waits, however fast the other side takes it; a second rest begins anew."""
    transport, clock = FakeTransport(), Clock()
    valve = Valve(transport, clock)
    valve.rest(1.0)
    valve.pauseProducing()
    valve.resumeProducing()
    assert not transport.reads
    clock.advance(0.5)
    valve.rest(1.0)
    clock.advance(0.9)
    assert not transport.reads
    clock.advance(0.2)
    assert transport.reads


def test_a_finished_valve_leaves_the_transport_alone() -> None:
    """And no delayed call."""
    transport, clock = FakeTransport(), Clock()
    valve = Valve(transport, clock)
    valve.rest(1.0)
    valve.finish()
    transport.reads = True
    valve.pauseProducing()
    valve.rest(1.0)
    assert transport.reads
    assert clock.getDelayedCalls() == []
