"""Promises of relayd.listeners.websocket to clients behind proxies: cut it anywhere, and it never looks idle."""

from __future__ import annotations

from typing import Any

from relayd.dataplane.flow import Flow
from relayd.listeners.stream import SWEEP_INTERVAL
from relayd.listeners.websocket import PING_INTERVAL
from tests.unit.listeners.fakes import FakeRelay
from tests.unit.listeners.test_connection import BINDING, PEER, RESPONSE
from tests.unit.listeners.web_bench import BINARY, CONTINUATION, PING, PONG, WebBench, frame, frames_in, handshake, sent

IDLE_LIMIT = 60.0  # seconds that nginx and Apache allow a server to be silent, unless told otherwise
DATA = b"\x40\x01\x00\x05hello"

SESSION = (
    handshake("Sec-WebSocket-Protocol: turn"),
    frame(BINARY, BINDING),
    frame(BINARY, DATA) + frame(BINARY, DATA),
    frame(PING, b"are you there?"),
    frame(BINARY, BINDING[:7], fin=False) + frame(PONG) + frame(CONTINUATION, BINDING[7:]),
    frame(BINARY, b"\x40\x01\x00\xc8" + bytes(200)),
)


def test_a_cut_at_every_boundary() -> None:
    """Wherever a proxy cuts a session in two, and in whatever it joins what comes after, the same is served."""
    stream = b"".join(SESSION)
    bench = WebBench(max_connections_per_source=len(stream))
    bench.service.answer = RESPONSE
    for at in range(1, len(stream)):
        bench.service.received.clear()
        client, transport = bench.connect()
        relay: Any = FakeRelay()
        client.flows[0x4001] = Flow(client, 0x4001, relay, PEER)
        client.dataReceived(stream[:at])
        client.dataReceived(stream[at:])
        assert bench.service.messages == [BINDING, BINDING], at
        assert relay.sent == [(PEER, b"hello"), (PEER, b"hello"), (PEER, bytes(200))], at
        answer, _, frames = b"".join(transport.writes).partition(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert frames_in(frames) == [(BINARY, RESPONSE), (PONG, b"are you there?"), (BINARY, RESPONSE)], at


def test_nothing_looks_idle() -> None:
    """From the handshake on the relay is never silent for half as long as web proxies allow; a client that only answers
    pings keeps its allocation for as long as it likes.
    """
    bench = WebBench()
    client, transport = bench.open()
    bench.service.allocated.add(client)
    silence = longest = 0.0
    for _ in range(20 * 60):
        bench.seconds(1)
        silence += 1
        for opcode, payload in sent(transport):
            silence = 0.0
            assert opcode == PING
            client.dataReceived(frame(PONG, payload))
        longest = max(longest, silence)
    assert 0 < longest <= PING_INTERVAL + SWEEP_INTERVAL < IDLE_LIMIT / 2
    assert bench.service.closed == []
    assert not transport.disconnecting
