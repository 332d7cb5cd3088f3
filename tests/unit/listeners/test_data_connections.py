"""Promises of client data connections, whose clients come over TCP or WebSocket: how they begin, and how they end."""

from __future__ import annotations

from typing import Any

import pytest

from relayd.listeners.connection import CLOSE_GRACE
from relayd.listeners.websocket import MAX_LINGERING
from tests.unit.listeners.test_connection import Bench, stun
from tests.unit.listeners.web_bench import BINARY, CLOSE, PING, PONG, WebBench, frame, sent

BIND = stun(0x000B)
NORMAL = (1000).to_bytes(2)


class FakeEnd:
    """The peer's end of a pair: keeps what it is told."""

    def __init__(self) -> None:
        self.valve = self
        self.written = b""
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None: ...

    def write(self, data: bytes) -> None:
        self.written += data

    def finish(self) -> None:
        self.told.append("finish")

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")


def bound(bench: Any, client: Any) -> tuple[Any, FakeEnd]:
    """The end of a client's connection that was bound just now, joined with a peer's."""
    peer = FakeEnd()
    end = client.data_connection()
    end.join(peer)
    return end, peer


def test_a_message_that_began_before_its_bind_was_granted() -> None:
    """Its first bytes are not lost: it came behind a ConnectionBind, whose answer took a while."""
    bench = WebBench()
    client, _ = bench.open()
    late = frame(BINARY, b"0123456789")
    client.dataReceived(frame(BINARY, BIND) + frame(BINARY, b"whole ") + late[:9])
    _, peer = bound(bench, client)
    client.dataReceived(late[9:])
    assert peer.written == b"whole 0123456789"
    client.abort()
    bench.clock.advance(0)
    assert peer.told == ["abort"]
    bench.check_nothing_is_left()


def test_a_close_frame_is_the_end_whatever_comes_after() -> None:
    """The peer is told at once that all was said, also where the client does not take what was written to it."""
    bench = WebBench()
    client, transport = bench.open()
    _, peer = bound(bench, client)
    transport.stubborn = True
    client.dataReceived(frame(BINARY, b"last") + frame(CLOSE, NORMAL))
    assert (peer.written, peer.told) == (b"last", ["close"])
    assert sent(transport) == [(CLOSE, NORMAL)]
    transport._lost()
    assert peer.told == ["close"]
    bench.check_nothing_is_left()


def test_a_client_that_goes_on_after_its_close_frame() -> None:
    """Is not listened to, and none of it is kept, however much it is."""
    bench = WebBench()
    client, transport = bench.open()
    _, peer = bound(bench, client)
    transport.stubborn = True
    client.dataReceived(frame(CLOSE, NORMAL))
    for _ in range(10):
        client.dataReceived(frame(BINARY, bytes(MAX_LINGERING)))
    assert len(client._frames.data) < 100
    assert peer.written == b""
    transport._lost()
    bench.check_nothing_is_left()


@pytest.mark.parametrize("is_web", [False, True])
def test_what_a_client_has_not_taken_is_not_cut(is_web: bool) -> None:
    """It may go on taking, and speaking, for as long as the end of the pair allows; not while the relay stops."""
    bench: Any = WebBench() if is_web else Bench()
    client, transport = bench.open() if is_web else bench.connect()
    transport.stubborn = True
    end, peer = bound(bench, client)
    end.write(b"last")
    end.close()
    for _ in range(int(CLOSE_GRACE) + 2):
        bench.seconds(1)
        client.dataReceived(frame(BINARY, bytes(MAX_LINGERING // 2)) if is_web else bytes(MAX_LINGERING // 2))
    assert not transport.aborted
    assert peer.written == b""
    stopped: list[object] = []
    bench.listener.close().addCallback(stopped.append)
    bench.seconds(CLOSE_GRACE + 1)
    assert transport.aborted
    assert stopped == [None]
    bench.check_nothing_is_left()


def test_a_paused_client_gets_no_pongs() -> None:
    """And its peer waits until it takes again what is under way."""
    bench = WebBench()
    client, transport = bench.open()
    _, peer = bound(bench, client)
    transport.producer.pauseProducing()
    client.dataReceived(frame(PING, b"1"))
    transport.producer.resumeProducing()
    client.dataReceived(frame(PING, b"2"))
    assert sent(transport) == [(PONG, b"2")]
    assert peer.told == ["pause", "resume"]
