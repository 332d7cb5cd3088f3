"""A WebSocket that carries a peer's bytes: how long it lives, and how its end is told."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from relayd.client.carriers import CLOSE_GRACE, MOST_UNSENT, WebSocketCarrier
from relayd.client.transports.websocket import PING_INTERVAL
from tests.unit.client.transports.test_websocket import SERVER, Case, make_transport


class Peer:
    """In place of a `DataConnection`: keeps what it is told."""

    def __init__(self) -> None:
        self.heard = b""
        self.carrier: Any = None
        self.reasons: list[Failure] = []

    def carried_by(self, carrier: Any) -> None:
        self.carrier = carrier

    def received(self, data: bytes) -> None:
        self.heard += data

    def heard_all(self) -> None:
        """There is no more to come."""

    def unregisterProducer(self) -> None:
        """There is none."""

    def lost(self, reason: Failure, words: str) -> None:
        self.reasons.append(reason)


class Carried(Case):
    """An open WebSocket that carries bytes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.transport = make_transport()
        self.opened: list[Any] = []
        self.peer = Peer()
        data: Any = self.peer
        carrier = WebSocketCarrier(self.clock, SERVER, data)
        self.connection = self.carrier = carrier
        carrier.opened.addBoth(self.opened.append)
        carrier.makeConnection(self.transport)  # type: ignore[no-untyped-call]
        self.request = self.transport.value().decode("ascii")
        self.transport.clear()
        self.open()
        carrier.begin()

    def reason(self) -> type:
        (reason,) = self.peer.reasons
        return type(reason.value)


def test_messages_are_but_bytes() -> None:
    """Whatever is in them is the peer's, and no fault: there is no TURN in it."""
    case = Carried()
    assert case.peer.carrier is case.carrier
    for payload in (b"GET / HTTP/1.1", b"\xff", b""):
        case.connection.dataReceived(bytes((0x82, len(payload))) + payload)
    assert case.peer.heard == b"GET / HTTP/1.1\xff"
    case.carrier.write(b"answer")
    assert case.sent() == [(0x82, b"answer")]
    case.lose()


def test_a_peer_that_is_made_to_wait() -> None:
    """A connection on which nothing comes for minutes, because nobody reads it, is pinged, and not given up."""
    case = Carried()
    case.clock.pump([1.0] * int(10 * PING_INTERVAL))
    assert not case.transport.aborted
    pings = [frame for frame in case.sent() if frame[0] == 0x89]
    assert 9 <= len(pings) <= 10
    case.lose()


def test_a_close_frame_is_an_orderly_end() -> None:
    """With the code of one, and no end at all is a reset (as docs/protocol.rst has it)."""
    for frame, expected in [
        (b"\x88\x02" + (1000).to_bytes(2), ConnectionDone),
        (b"\x88\x02" + (1011).to_bytes(2), ConnectionLost),
        (b"", ConnectionLost),
    ]:
        case = Carried()
        case.connection.dataReceived(frame)
        case.lose(ConnectionDone())
        assert case.reason() is expected


def test_what_was_written_is_never_cut() -> None:
    """Leaving says so behind all that waits, and closes after a while, without a reset, if nobody answers."""
    case = Carried()
    case.carrier.write(b"last")
    case.carrier.leave()
    assert [payload[:4] for _, payload in case.sent()] == [b"last", (1000).to_bytes(2)]
    case.clock.advance(CLOSE_GRACE)
    assert case.transport.disconnecting
    assert not case.transport.aborted
    case.lose(ConnectionDone())
    assert case.reason() is ConnectionDone


def test_a_reset_while_we_leave_is_one() -> None:
    """What was written may not have arrived: that we meant to end in order is not enough."""
    case = Carried()
    case.carrier.write(b"last")
    case.carrier.leave()
    case.lose(ConnectionLost())
    assert case.reason() is ConnectionLost


def test_a_server_that_closes_and_takes_nothing_is_cut() -> None:
    """Whether it says goodbye or breaks the rules: nobody waits for it longer than `CLOSE_GRACE`."""
    for frame in (b"\x88\x02" + (1000).to_bytes(2), b"\x81\x04text"):
        case = Carried()
        case.connection.dataReceived(frame)
        case.clock.advance(CLOSE_GRACE - 0.1)
        assert not case.transport.aborted
        case.clock.advance(0.1)
        assert case.transport.aborted
        case.lose(ConnectionLost())


def test_pings_of_a_server_that_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Are answered while it takes what we send, and not when a lot of that waits already."""
    case = Carried()
    for waiting, answers in [(0, [(0x8A, b"1")]), (MOST_UNSENT + 1, [])]:
        monkeypatch.setattr("relayd.client.carriers.unsent", lambda transport, waiting=waiting: waiting)
        case.connection.dataReceived(b"\x89\x011")
        assert case.sent() == answers
    case.lose()
