"""Promises of relayd.listeners.websocket: messages, close codes, limits, pings, backpressure, nothing left."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher
from zope.interface import implementer
from zope.interface.verify import verifyObject

from relayd.address import AppConnection, TransportAddress
from relayd.dataplane.flow import Flow
from relayd.interfaces import IClientPath, IListener
from relayd.listeners.connection import CLOSE_GRACE, MAX_OWED, REQUESTS_PER_TURN
from relayd.listeners.websocket import MAX_LINGERING, PING_INTERVAL, PONG_TIMEOUT
from relayd.stun.message import MAX_MESSAGE
from relayd.turn.peer_rules import parse_cidr
from tests.unit.listeners.fakes import FakeRelay
from tests.unit.listeners.test_connection import BINDING, INDICATION, PEER, RESPONSE, stun
from tests.unit.listeners.web_bench import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WebBench,
    close_code,
    frame,
    handshake,
    sent,
)

NORMAL = (1000).to_bytes(2)


def test_a_client_is_described() -> None:
    """The path is the 5-tuple with TCP's protocol number, and `ws`; over TLS it is `wss`."""
    bench = WebBench()
    client, transport = bench.open()
    assert verifyObject(IClientPath, client)
    assert verifyObject(IListener, bench.listener)
    assert client.path.client == TransportAddress.parse("198.51.100.7", 50000)
    assert client.path.five_tuple.transport == 6
    assert client.path.app_connection is AppConnection.WS
    assert transport.no_delay
    assert bench.open(tls=True)[0].path.app_connection is AppConnection.WSS
    assert (bench.listener.kind, bench.listener.app_connection) == ("web", "ws")
    assert WebBench("ssl:443").listener.app_connection == "wss"
    assert bench.listener.acceptableProtocols() == [b"http/1.1"]


def test_the_handshake_is_answered() -> None:
    """The answer of RFC 6455 section 1.3, with the subprotocol that was offered and with no extension."""
    bench = WebBench()
    client, transport = bench.connect()
    offers = ("Sec-WebSocket-Protocol: chat, turn", "Sec-WebSocket-Extensions: permessage-deflate")
    client.dataReceived(handshake(*offers))
    (answer,) = transport.writes
    lines = answer.decode().lower().split("\r\n")
    assert lines[0] == "http/1.1 101 switching protocols"
    assert sorted(filter(None, lines[1:])) == [
        "connection: upgrade",
        "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=",
        "sec-websocket-protocol: turn",
        "upgrade: websocket",
    ]


@pytest.mark.parametrize("path", ["/turn", "/turn?x=1", "/"])
def test_paths(path: str) -> None:
    """`/turn` it is, and `/` as well, which is where one client goes unless it is told otherwise."""
    client, transport = WebBench().connect()
    client.dataReceived(handshake(path=path))
    assert transport.writes[0].startswith(b"HTTP/1.1 101 ")


def test_messages_reach_the_service() -> None:
    """A binary message is one message, or several that are padded; ChannelData arrives without padding."""
    bench = WebBench()
    client, _ = bench.open()
    client.dataReceived(frame(BINARY, BINDING))
    client.dataReceived(frame(BINARY, b"\x40\x00\x00\x03abc") + frame(BINARY, b"\x40\x00\x00\x03abc\0"))
    client.dataReceived(frame(BINARY, INDICATION + b"\x40\x01\x00\x01x\0\0\0" + BINDING))
    data = b"\x40\x00\x00\x03abc"
    assert bench.service.received == [
        (client, message) for message in (BINDING, data, data, INDICATION, b"\x40\x01\x00\x01x", BINDING)
    ]


def test_frames_may_come_in_any_pieces() -> None:
    """Fragments, pings in between, and a byte at a time make the same messages."""
    stream = (
        frame(BINARY, BINDING[:5], fin=False)
        + frame(PING, b"?")
        + frame(CONTINUATION, b"", fin=False)
        + frame(CONTINUATION, BINDING[5:])
        + frame(BINARY, b"\x40\x00\xff\xff" + bytes(65535))
    )
    for size in (1, 7, 4096, len(stream)):
        bench = WebBench()
        client, transport = bench.open()
        for at in range(0, len(stream), size):
            client.dataReceived(stream[at : at + size])
        assert bench.service.messages == [BINDING, b"\x40\x00\xff\xff" + bytes(65535)]
        assert sent(transport) == [(PONG, b"?")]


def test_frames_behind_the_handshake_are_not_lost() -> None:
    """A client that does not wait for the answer to its handshake is heard all the same."""
    bench = WebBench()
    client, _ = bench.connect()
    client.dataReceived(handshake() + frame(BINARY, BINDING) + frame(BINARY, INDICATION)[:9])
    client.dataReceived(frame(BINARY, INDICATION)[9:])
    assert bench.service.messages == [BINDING, INDICATION]


def test_channel_data_with_a_flow_does_not_reach_the_service() -> None:
    """The payload of an installed channel goes straight to its relay; other channels go up."""
    bench = WebBench()
    client, _ = bench.open()
    relay: Any = FakeRelay()
    client.flows[0x4001] = Flow(client, 0x4001, relay, PEER)
    client.dataReceived(frame(BINARY, b"\x40\x01\x00\x05hello") + frame(BINARY, b"\x40\x02\x00\x02up"))
    client.dataReceived(frame(BINARY, b"\x40\x01\x00\x01a\0\0\0" + b"\x40\x01\x00\x00"))
    assert relay.sent == [(PEER, b"hello"), (PEER, b"a"), (PEER, b"")]
    assert bench.service.messages == [b"\x40\x02\x00\x02up"]


def test_one_client_has_its_turn_and_no_more() -> None:
    """Of many requests at once some are served in one turn of the reactor, the rest after it, and in order."""
    bench = WebBench()
    client, transport = bench.open()
    requests = [stun(0x0001, number.to_bytes(4)) for number in range(3 * REQUESTS_PER_TURN)]
    client.dataReceived(b"".join(frame(BINARY, request) for request in requests))
    states = [transport.producerState]
    assert bench.service.messages == requests[:REQUESTS_PER_TURN]
    bench.clock.advance(0)
    assert bench.service.messages == requests
    assert [*states, transport.producerState] == ["paused", "producing"]


@pytest.mark.parametrize("size", [0, 121, 122, 65_531, 65_532, 65_535])
def test_what_is_sent_is_one_frame(size: int) -> None:
    """Each message is a binary frame of its own, ChannelData without padding, whatever its length."""
    bench = WebBench()
    client, transport = bench.open()
    assert client.send(RESPONSE)
    assert client.send_channel_data(0x4001, bytes(size))
    bench.clock.advance(0)
    assert len(transport.writes) <= 2
    data = b"\x40\x01" + size.to_bytes(2) + bytes(size)
    assert sent(transport) == [(BINARY, RESPONSE), (BINARY, data)]


def test_answers_leave_with_the_bytes_that_caused_them() -> None:
    """Answers to all that one segment brought, pongs among them, are one write in their order."""
    bench = WebBench()
    bench.service.answer = RESPONSE
    client, transport = bench.open()
    client.dataReceived(frame(BINARY, BINDING) + frame(PING, b"x") + frame(BINARY, BINDING))
    assert len(transport.writes) == 1
    assert sent(transport) == [(BINARY, RESPONSE), (PONG, b"x"), (BINARY, RESPONSE)]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"hello"), 1003),
        (frame(TEXT, b"\xff\xfe"), 1003),
        (frame(TEXT, b"hel", fin=False), 1003),
        (frame(BINARY, b""), 1007),
        (frame(BINARY, BINDING[:-1]), 1007),
        (frame(BINARY, BINDING + BINDING[:7]), 1007),
        (frame(BINARY, b"\x40\x00\x00\x09short"), 1007),
        (frame(BINARY, b"\x80" * 20), 1007),
        (frame(BINARY, b"GET / HTTP/1.1\r\n"), 1007),
        (frame(BINARY, bytes(MAX_MESSAGE + 1)), 1009),
        (frame(BINARY, bytes(MAX_MESSAGE), fin=False) + frame(CONTINUATION, b"x"), 1009),
        (frame(BINARY, bytes(MAX_MESSAGE + 1))[:14], 1009),
        (b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff" + bytes(4), 1009),
        (frame(BINARY, BINDING, masked=False), 1002),
        (frame(BINARY, BINDING, rsv=4), 1002),
        (frame(0x3, BINDING), 1002),
        (frame(0xB, b""), 1002),
        (frame(PING, b"", fin=False), 1002),
        (frame(PING, bytes(126)), 1002),
        (frame(CLOSE, b"x"), 1002),
        (frame(CLOSE, (1005).to_bytes(2)), 1002),
        (frame(CLOSE, NORMAL + b"\xff"), 1007),
        (frame(CONTINUATION, BINDING), 1002),
        (frame(BINARY, BINDING, fin=False) + frame(BINARY, BINDING), 1002),
        (b"\x82\xfe\x00\x05" + bytes(9), 1002),
    ],
    ids=lambda value: f"{value[:10].hex()}-{len(value)}" if isinstance(value, bytes) else str(value),
)
def test_close_codes(data: bytes, code: int) -> None:
    """Text, oversized, half and garbage messages, and frames against the rules, are answered with the right code."""
    bench = WebBench()
    client, transport = bench.open()
    client.dataReceived(frame(BINARY, INDICATION))
    client.dataReceived(data)
    assert close_code(transport) == code
    client.dataReceived(frame(BINARY, BINDING))
    assert bench.service.messages == [INDICATION]
    bench.seconds(CLOSE_GRACE + 1.5)
    assert bench.service.closed == [client]
    assert transport.writes == []
    bench.check_nothing_is_left()


def test_all_or_none_of_a_message() -> None:
    """Of a message that ends in garbage nothing is taken."""
    bench = WebBench()
    client, transport = bench.open()
    client.dataReceived(frame(BINARY, BINDING + b"\xff" * 8))
    assert bench.service.messages == []
    assert close_code(transport) == 1007


def test_whoever_breaks_the_rules_may_finish() -> None:
    """After the Close frame a client may finish its message and answer; then the connection closes, and gracefully."""
    bench = WebBench()
    client, transport = bench.open()
    huge = frame(BINARY, bytes(100_000))
    client.dataReceived(huge[:5000])
    client.dataReceived(huge[5000:])
    assert close_code(transport) == 1009
    assert not transport.disconnecting
    client.dataReceived(frame(CLOSE, (1009).to_bytes(2)))
    assert transport.disconnecting
    assert not transport.aborted


@pytest.mark.parametrize("start", [frame(BINARY, bytes(1 << 20))[:14], b"\x89\xff" + (1 << 40).to_bytes(8) + b"mask"])
def test_lingering_is_bounded(start: bytes) -> None:
    """What a client sends after its Close frame was due is dropped, and when it is too much the connection is cut."""
    bench = WebBench()
    client, transport = bench.open()
    client.dataReceived(start)
    count = 0
    while not transport.aborted:
        client.dataReceived(bytes(4096))
        count += 4096
        assert count <= MAX_LINGERING + 4096
    bench.clock.advance(0)
    bench.check_nothing_is_left()


def test_a_message_of_crumbs_takes_no_more_than_its_bytes() -> None:
    """However many frames and segments a message comes in, what is held is its bytes; empty frames are nothing."""
    bench = WebBench()
    client, transport = bench.open()
    client.dataReceived(frame(BINARY, b"", fin=False))
    client.dataReceived(frame(CONTINUATION, b"", fin=False) * 5000)
    for _ in range(1000):
        client.dataReceived(frame(CONTINUATION, b"ab", fin=False))
    frames = client._frames
    assert len(frames._message) == 2000
    assert frames.message_data == []
    assert frames.data == b""
    assert transport.writes == []


def test_datagrams_for_a_paused_client_are_dropped() -> None:
    """ChannelData and indications are refused while the client does not read; responses still pass, to a bound."""
    bench = WebBench()
    client, transport = bench.open()
    client.pauseProducing()
    assert not client.send_channel_data(0x4000, b"x")
    assert not client.send(INDICATION)
    assert client.send(RESPONSE)
    client.resumeProducing()
    assert client.send_channel_data(0x4000, b"x")
    client.pauseProducing()
    total = 0
    while client.send(RESPONSE):
        total += len(RESPONSE)
        assert total <= MAX_OWED
    assert transport.aborted


def test_pings_that_nobody_reads_the_answers_to() -> None:
    """A ping is answered, and a flood of them from a client that does not read is not."""
    bench = WebBench()
    client, transport = bench.open()
    client.dataReceived(frame(PING, b"1"))
    client.pauseProducing()
    client.dataReceived(frame(PING, b"2") * 1000)
    client.resumeProducing()
    client.dataReceived(frame(PING, b"3"))
    assert sent(transport) == [(PONG, b"1"), (PONG, b"3")]


def test_a_silent_connection_is_closed() -> None:
    """Saying nothing, in HTTP or after it, ends after the first-message timeout; pings are no message."""
    bench = WebBench(first_message_timeout=10.0)
    _, mute = bench.connect()
    client, opened = bench.open()
    for _ in range(9):
        client.dataReceived(frame(PING))
        bench.seconds(1)
    endings = [mute.disconnecting]
    assert sent(opened) == [(PONG, b"")] * 9
    bench.seconds(2)
    assert [*endings, mute.disconnecting] == [False, True]
    assert close_code(opened) == 1001
    bench.seconds(CLOSE_GRACE + 1)
    assert opened.aborted
    assert bench.service.closed == [client]
    bench.check_nothing_is_left()


def test_slow_headers_are_no_sign_of_life() -> None:
    """A request that drips in does not put the timeout off, nor does a body that never ends."""
    for request in (handshake(), b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\n"):
        bench = WebBench(first_message_timeout=10.0)
        client, transport = bench.connect()
        client.dataReceived(request[:-2] if request.startswith(b"GET") else request)
        for _ in range(12):
            client.dataReceived(b"x")
            bench.seconds(1)
        assert transport.disconnecting
        bench.seconds(CLOSE_GRACE + 1)
        bench.check_nothing_is_left()


def test_an_idle_connection_is_closed_unless_it_has_an_allocation() -> None:
    """The idle timeout counts from the last whole message, and not for allocations that answer pings."""
    bench = WebBench(first_message_timeout=5.0, idle_timeout=20.0)
    idle, idle_transport = bench.open()
    busy, busy_transport = bench.open()
    user, user_transport = bench.open()
    for client in (idle, user):
        client.dataReceived(frame(BINARY, BINDING))
    bench.service.allocated.add(user)
    for second in range(100):
        user.dataReceived(frame(PONG))
        if not second % 15:
            busy.dataReceived(frame(BINARY, BINDING))
        bench.seconds(1)
    assert bench.service.closed == [idle]
    assert not user_transport.disconnecting
    assert not busy_transport.disconnecting
    assert idle_transport.disconnecting


def test_pings_keep_a_connection_and_find_a_dead_one() -> None:
    """The server pings on, whether or not there is traffic; whoever sends nothing for long enough after one is gone."""
    bench = WebBench()
    alive, alive_transport = bench.open()
    dead, dead_transport = bench.open()
    bench.service.allocated |= {alive, dead}
    for _ in range(int(PING_INTERVAL + PONG_TIMEOUT) + 2):
        alive.dataReceived(frame(BINARY, INDICATION))
        bench.seconds(1)
    assert sent(alive_transport) == [(PING, b"")]
    assert dead_transport.aborted
    assert bench.service.closed == [dead]
    for _ in range(int(PING_INTERVAL)):
        alive.dataReceived(frame(BINARY, INDICATION))
        bench.seconds(1)
    assert sent(alive_transport) == [(PING, b"")]


def test_a_client_that_stalls_is_not_pinged_and_still_found() -> None:
    """With the connection stuck no ping is queued, and the silence counts all the same."""
    bench = WebBench()
    client, transport = bench.open()
    bench.service.allocated.add(client)
    client.pauseProducing()
    bench.seconds(PING_INTERVAL + PONG_TIMEOUT + 2)
    assert transport.aborted
    assert transport.writes == []


def test_there_is_one_sweep_for_all_connections() -> None:
    """Delayed calls do not grow with the connections: neither twisted.web nor Autobahn has one of its own."""
    bench = WebBench()
    for _ in range(20):
        bench.open()
        bench.connect()
    assert len(bench.clock.getDelayedCalls()) == 1


def test_connections_are_limited() -> None:
    """In total and per source, from the moment they connect."""
    bench = WebBench(max_connections=3, max_connections_per_source=2)
    bench.open()
    bench.connect()
    assert bench.connect()[1].aborted
    bench.clock.advance(0)
    assert not bench.connect(IPv4Address("TCP", "198.51.100.8", 1))[1].aborted
    assert bench.connect(IPv4Address("TCP", "198.51.100.9", 1))[1].aborted


def test_clients_of_a_unix_socket_get_unique_addresses() -> None:
    """A web proxy in front may use a Unix socket."""
    bench = WebBench("unix:/run/web", UNIXAddress("/run/web"))
    paths = set()
    for _ in range(3):
        client, _ = bench.connect(UNIXAddress(None), UNIXAddress("/run/web"))
        client.dataReceived(handshake())
        paths.add(client.path)
    assert len(paths) == 3


def test_http_alone_is_no_path() -> None:
    """The service hears nothing of connections that never became a WebSocket."""
    bench = WebBench()
    client, _ = bench.connect()
    client.dataReceived(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    client.close()
    bench.clock.advance(0)
    assert bench.service.closed == []
    bench.check_nothing_is_left()


@pytest.mark.parametrize(
    "header", ["X-Forwarded-For: 203.0.113.9", "Forwarded: for=203.0.113.9", "X-Real-IP: 203.0.113.9"]
)
def test_forged_forwarding_headers_change_nothing(header: str) -> None:
    """A client is where its connection comes from, whatever it says of that itself; so are the limits."""
    bench = WebBench(max_connections_per_source=1)
    client, _ = bench.open(header)
    assert client.path.client == TransportAddress.parse("198.51.100.7", 50000)
    assert bench.connect()[1].aborted


PROXY = IPv4Address("TCP", "10.0.0.1", 1234)
BEHIND_PROXY: dict[str, Any] = {"trusted_proxies": (parse_cidr("10.0.0.0/8"),), "max_connections_per_source": 2}


def test_behind_a_web_proxy_the_client_is_who_it_names() -> None:
    """A trusted proxy tells in HTTP who the client is: that address is in the path, and is what is limited."""
    bench = WebBench(**BEHIND_PROXY)
    clients = [bench.open("X-Forwarded-For: 203.0.113.9", peer=PROXY)[0] for _ in range(2)]
    assert {client.path.client.host for client in clients} == {"203.0.113.9"}
    _, refused = bench.connect(PROXY)
    refused.client.dataReceived(handshake("X-Forwarded-For: 203.0.113.9"))
    assert refused.writes[0].startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    refused.client.dataReceived(handshake("X-Forwarded-For: 203.0.113.10"))
    assert refused.writes[-1].startswith(b"HTTP/1.1 101 ")
    clients[0].abort()
    bench.clock.advance(0)
    bench.open("Forwarded: for=203.0.113.9", peer=PROXY)
    for client in list(bench.listener._clients):
        client.abort()
    bench.clock.advance(0)
    bench.check_nothing_is_left()


def test_clients_behind_a_web_proxy_have_paths_of_their_own() -> None:
    """The port that is not told is the one of the proxy's connection, or one near it that is free."""
    bench = WebBench(**BEHIND_PROXY)
    proxies = [IPv4Address("TCP", "10.0.0.1", 1234), IPv4Address("TCP", "10.0.0.2", 1234)]
    paths = [bench.open("X-Forwarded-For: 203.0.113.9", peer=proxy)[0].path for proxy in proxies]
    assert [path.client.port for path in paths] == [1234, 1235]
    told = bench.open("X-Forwarded-For: 203.0.113.10:4711", peer=PROXY)[0].path
    assert told.client == TransportAddress.parse("203.0.113.10", 4711)
    unix = WebBench("unix:/run/web", UNIXAddress("/run/web"))
    client, _ = unix.connect(UNIXAddress(None), UNIXAddress("/run/web"))
    client.dataReceived(handshake("X-Forwarded-For: 203.0.113.9"))
    assert client.path.client.host == "203.0.113.9"


@pytest.mark.parametrize(
    ("headers", "tls", "kind"),
    [
        (["X-Forwarded-Proto: https"], False, AppConnection.WSS),
        (["Forwarded: for=203.0.113.9;proto=https"], False, AppConnection.WSS),
        (["X-Forwarded-Proto: http"], True, AppConnection.WS),
        (["X-Forwarded-For: 203.0.113.9"], True, AppConnection.WSS),
        (["X-Forwarded-For: 203.0.113.9"], False, AppConnection.WS),
    ],
)
def test_a_web_proxy_that_ended_tls(headers: list[str], tls: bool, kind: AppConnection) -> None:
    """`ws` or `wss` is how the client came, if a trusted proxy says so; a stranger's word on it is nothing."""
    bench = WebBench(**BEHIND_PROXY)
    assert bench.open(*headers, peer=PROXY, tls=tls)[0].path.app_connection is kind
    assert bench.open(*headers, tls=tls)[0].path.app_connection is (AppConnection.WSS if tls else AppConnection.WS)


def test_a_web_proxy_that_names_nobody() -> None:
    """Its clients share its address, and so cannot be limited by it: only their total is."""
    bench = WebBench(**BEHIND_PROXY, max_connections=5)
    for port in range(5):
        client, transport = bench.open(peer=IPv4Address("TCP", "10.0.0.1", port + 1))
        assert client.path.client == TransportAddress.parse("10.0.0.1", port + 1)
        assert not transport.aborted
    assert bench.connect(PROXY)[1].aborted


def test_a_web_proxy_that_contradicts_itself() -> None:
    """Headers that cannot be read, or of which the client wrote one, are a 400; the operator hears of it once."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        lines.append(formatEvent(event))

    bench = WebBench(**BEHIND_PROXY)
    globalLogPublisher.addObserver(observe)
    try:
        for headers in (["X-Forwarded-For: \x7f"], ["X-Forwarded-For: 203.0.113.9", "Forwarded: for=203.0.113.8"]):
            client, transport = bench.connect(PROXY)
            client.dataReceived(handshake(*headers))
            assert b"".join(transport.writes).startswith(b"HTTP/1.1 400 Bad Request\r\n")
            client.dataReceived(handshake("X-Forwarded-For: 203.0.113.9"))
            assert transport.writes[-1].startswith(b"HTTP/1.1 101 ")
    finally:
        globalLogPublisher.removeObserver(observe)
    assert len(lines) == 1


@pytest.mark.parametrize("code", [b"", NORMAL, (1001).to_bytes(2) + b"bye"])
def test_the_client_closes(code: bytes) -> None:
    """Its Close frame is answered with one, the connection closes, and the service hears of it."""
    bench = WebBench()
    client, transport = bench.open()
    client.send(RESPONSE)
    client.dataReceived(frame(CLOSE, code) + frame(BINARY, BINDING))
    assert sent(transport) == [(BINARY, RESPONSE), (CLOSE, NORMAL)]
    assert not client.send(RESPONSE)
    bench.clock.advance(0)
    assert bench.service.closed == [client]
    assert bench.service.messages == []
    assert not transport.aborted
    bench.check_nothing_is_left()


def test_the_connection_breaks() -> None:
    """Without any Close frame the path is closed just so."""
    bench = WebBench()
    client, transport = bench.open()
    transport.loseConnection = lambda: None
    client.dataReceived(frame(BINARY, BINDING)[:7])
    transport._lost()
    assert bench.service.closed == [client]
    bench.check_nothing_is_left()


def test_close_says_goodbye() -> None:
    """What was sent before close is not lost, then comes 1001; the answer to that closes the connection."""
    bench = WebBench()
    client, transport = bench.open()
    client.send(RESPONSE)
    client.close()
    client.close()
    assert sent(transport) == [(BINARY, RESPONSE), (CLOSE, (1001).to_bytes(2))]
    assert not client.send(RESPONSE)
    client.dataReceived(frame(BINARY, BINDING))
    client.dataReceived(frame(CLOSE, (1001).to_bytes(2)))
    assert bench.service.messages == []
    assert transport.disconnecting
    assert not transport.aborted


def test_the_listener_closes_everything() -> None:
    """HTTP connections at once, WebSockets when they have answered or after the grace; no delayed call is left."""
    bench = WebBench()
    bench.connect()
    answering, _ = bench.open()
    bench.open()
    done: list[object] = []
    bench.listener.close().addCallback(done.append)
    answering.dataReceived(frame(CLOSE, (1001).to_bytes(2)))
    bench.clock.advance(0)
    assert len(bench.service.closed) == 1
    assert done == []
    bench.seconds(CLOSE_GRACE + 1.5)
    assert done == [None]
    assert len(bench.service.closed) == 2
    bench.check_nothing_is_left()


def test_a_client_closed_in_the_middle_hears_no_more() -> None:
    """If handling one message closes the connection, later ones in the same message or segment are not handled."""
    bench = WebBench()
    client, _ = bench.open()

    def receive(sender: Any, data: bytes) -> None:
        bench.service.received.append((sender, data))
        sender.close()

    client._service = type("Closing", (), {"receive": staticmethod(receive), "path_closed": bench.service.path_closed})
    client.dataReceived(frame(BINARY, BINDING + BINDING) + frame(BINARY, BINDING))
    assert bench.service.messages == [BINDING]


OPCODES = [CONTINUATION, TEXT, BINARY, 3, CLOSE, PING, PONG, 11]
FRAMES = st.builds(
    frame,
    st.sampled_from(OPCODES),
    st.one_of(st.binary(max_size=130), st.sampled_from([BINDING, BINDING * 2, b"\x40\0\0\1a", bytes(70_000)])),
    fin=st.booleans(),
    masked=st.sampled_from([True, True, True, False]),
    rsv=st.sampled_from([0, 0, 0, 4, 7]),
)


@given(st.booleans(), st.lists(st.one_of(FRAMES, st.binary(max_size=60), st.just(handshake()))))
def test_no_bytes_raise_or_pile_up(opened: bool, segments: list[bytes]) -> None:
    """Whatever arrives, before or after the handshake: no exception, little held back, and all is over at the end."""
    bench = WebBench(first_message_timeout=2.0, idle_timeout=2.0)
    client, transport = bench.open() if opened else bench.connect()
    for segment in segments:
        if transport.aborted:
            break
        client.dataReceived(segment)
        if client._frames is not None:
            assert len(client._frames._message) <= MAX_MESSAGE
    bench.seconds(8)
    assert bench.service.closed in ([client], [])
    bench.check_nothing_is_left()
