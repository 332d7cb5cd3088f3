"""Promises of relayd.listeners.mixed: each connection becomes what it says, by its first byte, and is counted once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from zope.interface.verify import verifyObject

from relayd.address import AppConnection, TransportAddress
from relayd.config import ListenerSettings
from relayd.interfaces import IListener
from relayd.listeners.mixed import AnyListener, Undecided
from relayd.listeners.websocket import PING_INTERVAL
from relayd.turn.peer_rules import parse_cidr
from relayd.web.pages import make_pages
from tests.unit.listeners.test_connection import BINDING, CLIENT, RESPONSE, SERVER
from tests.unit.listeners.test_proxied import HEADERS, PROXY, through
from tests.unit.listeners.web_bench import BINARY, PING, WebBench, frame, frames_in, handshake, sent

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: relay.example.org\r\n\r\n"


class MixedBench(WebBench):
    """Connections to an `any` listener; `connect` with `tls` gives one inside TLS, with that ALPN protocol."""

    def __init__(self, description: str = "tcp:443", address: Any = SERVER, **settings: Any) -> None:
        super().__init__(description, address, **settings)
        service: Any = self.service
        port: Any = self.port
        chosen = ListenerSettings(**settings)
        self.listener = AnyListener(description, self.clock, service, chosen, make_pages(chosen))
        self.listener.listening(port)

    def encrypted(self, protocol: bytes | None) -> tuple[Any, Any]:
        transport: Any
        client, transport = self.connect(tls=True)
        transport.negotiatedProtocol = protocol
        return client, transport

    def beside_tls(self) -> tuple[Any, Any]:
        """One that has not begun with TLS yet, on a port where it might."""
        transport = self.transport_class(self.clock)
        tls: Any = object()
        client: Any = Undecided(self.listener, tls)
        transport.client = client
        client.makeConnection(transport)
        return client, transport


def test_the_listener() -> None:
    """It says what it takes, and offers the protocols of both kinds by ALPN, TURN's first."""
    bench = MixedBench()
    assert verifyObject(IListener, bench.listener)
    assert (bench.listener.kind, bench.listener.app_connection) == ("any", "tcp")
    assert bench.listener.description == "tcp/ws 192.0.2.1:3478"
    assert MixedBench("ssl:443").listener.description == "tls/wss 192.0.2.1:3478"
    assert bench.listener.acceptableProtocols() == [b"stun.turn", b"stun.nat-discovery", b"http/1.1"]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(("tls", "kinds"), [(False, ("tcp", "ws")), (True, ("tls", "wss"))])
def test_each_is_what_it_says(tls: bool, kinds: tuple[str, str], size: int) -> None:
    """TURN and WebSocket side by side, however their bytes are cut, each with its own app_connection and framing."""
    bench = MixedBench()
    bench.service.answer = RESPONSE
    for stream, kind in ((BINDING * 2, kinds[0]), (handshake() + frame(BINARY, BINDING) * 2, kinds[1])):
        client, transport = bench.connect(tls=tls)
        for at in range(0, len(stream), size):
            client.dataReceived(stream[at : at + size])
        paths = [path for path, _ in bench.service.received[-2:]]
        assert paths[0] is paths[1]
        assert paths[0].path.app_connection == kind
        assert paths[0].path.client == TransportAddress.parse("198.51.100.7", 50000)
        written = b"".join(transport.writes)
        if "w" in kind:
            assert written.startswith(b"HTTP/1.1 101 ")
            assert frames_in(written.partition(b"\r\n\r\n")[2]) == [(BINARY, RESPONSE)] * 2
        else:
            assert written == RESPONSE * 2
    assert bench.service.messages == [BINDING] * 4
    assert bench.listener.admission.total == len(bench.listener._clients) == 2


def test_the_site_is_there() -> None:
    """Pages are served as on a web listener."""
    client, transport = MixedBench().connect()
    client.dataReceived(HEALTH)
    assert b"".join(transport.writes).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "beginning", [b"\x16\x03\x01\x00\xa5", b"\x80\x2e\x01\0\x02", b"\x40\0\0\x04", b"\r\n", b"\xff"]
)
def test_what_is_nothing_of_that(beginning: bytes) -> None:
    """It gets no answer and no second chance; that is also what TLS gets where there is no certificate."""
    for tls in (False, True):
        bench = MixedBench()
        client, transport = bench.connect(tls=tls)
        client.dataReceived(beginning)
        assert transport.aborted
        assert transport.writes == []
        client.dataReceived(BINDING)
        bench.clock.advance(0)
        assert bench.service.received == bench.service.closed == []
        bench.check_nothing_is_left()


@pytest.mark.parametrize(
    ("protocol", "data", "taken"),
    [
        (b"stun.turn", BINDING, True),
        (b"stun.nat-discovery", BINDING, True),
        (b"http/1.1", HEALTH, True),
        (b"http/1.1", BINDING, False),
        (b"stun.turn", HEALTH, False),
        (b"stun.nat-discovery", HEALTH, False),
    ],
)
def test_what_alpn_agreed_on_is_spoken(protocol: bytes, data: bytes, taken: bool) -> None:
    """A browser that was made to connect, and asked for HTTP, does not reach TURN; nor the other way round."""
    bench = MixedBench()
    client, transport = bench.encrypted(protocol)
    client.dataReceived(data)
    assert transport.aborted is not taken
    bench.clock.advance(0)
    assert bool(bench.service.received or transport.writes) is taken


_PIECES = st.one_of(
    st.binary(max_size=60), st.sampled_from([BINDING, HEALTH, handshake(), frame(BINARY, BINDING), b"\x16"])
)


@given(st.lists(_PIECES, max_size=8), st.booleans())
def test_no_bytes_raise_or_pile_up(pieces: list[bytes], tls: bool) -> None:
    """Whatever arrives, in whatever pieces: no exception, and all is over at the end."""
    bench = MixedBench(first_message_timeout=2.0, idle_timeout=2.0)
    client, _ = bench.connect(tls=tls)
    for piece in pieces:
        client.dataReceived(piece)
    bench.seconds(8)
    bench.check_nothing_is_left()


def test_turn_inside_a_request_goes_nowhere() -> None:
    """What a page can make its browser send is a request, whose body is forgotten, and what follows it is another."""
    bench = MixedBench()
    client, _ = bench.connect()
    allocate = BINDING * 50
    client.dataReceived(b"POST /turn HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(allocate) + allocate)
    client.dataReceived(allocate)
    bench.clock.advance(0)
    assert bench.service.received == []


def test_plain_http_where_tls_is_spoken() -> None:
    """It is told to come with TLS, for every page and for WebSocket; plain TURN is served there."""
    bench = MixedBench()
    for request in (HEALTH, handshake(), b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"):
        client, transport = bench.beside_tls()
        client.dataReceived(request)
        answer = b"".join(transport.writes)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"https://" in answer
        assert transport.disconnecting
    client, _ = bench.beside_tls()
    client.dataReceived(BINDING)
    assert bench.service.received[0][0].path.app_connection is AppConnection.TCP


def test_silence() -> None:
    """Who says nothing, or only begins, is sent away in the time that every connection has, counted from its start."""
    bench = MixedBench(first_message_timeout=10.0)
    silent, late_turn, late_http = (bench.connect() for _ in range(3))
    bench.seconds(8)
    late_turn[0].dataReceived(BINDING[:1])
    late_http[0].dataReceived(b"G")
    for _ in range(3):
        bench.seconds(1)
        late_turn[0].dataReceived(BINDING[1:2])
    assert [each[1].disconnecting for each in (silent, late_turn, late_http)] == [True] * 3
    assert bench.service.received == []
    bench.check_nothing_is_left()


def test_each_is_counted_once() -> None:
    """Becoming something takes no second place, in total or for its source, and its end gives the one back."""
    bench = MixedBench(max_connections=2, max_connections_per_source=2)
    first: Any = bench.connect()
    second: Any = bench.connect()
    assert bench.connect()[1].aborted
    bench.clock.advance(0)
    first[0].dataReceived(BINDING)
    second[0].dataReceived(handshake())
    assert bench.connect()[1].aborted
    bench.clock.advance(0)
    first[1].loseConnection = lambda: None
    first[1]._lost()
    third = bench.connect()
    assert not third[1].aborted
    assert len(bench.service.closed) == 1
    for _, transport in (second, third):
        transport._lost()
    bench.clock.advance(2)
    bench.check_nothing_is_left()


def test_limits_per_source() -> None:
    """They hold before it is known what a connection will be, and after."""
    bench = MixedBench(max_connections_per_source=2)
    bench.connect()[0].dataReceived(BINDING)
    bench.connect()
    assert bench.connect()[1].aborted
    assert not bench.connect(IPv4Address("TCP", "198.51.100.8", 1))[1].aborted


def test_behind_a_proxy() -> None:
    """The PROXY header comes first, then the first byte that counts; a proxy may also speak HTTP for its clients."""
    trusted: Any = {"trusted_proxies": (parse_cidr("10.0.0.0/8"),), "max_connections_per_source": 1}
    for header in HEADERS:
        bench = MixedBench("haproxy:tcp:443", **trusted)
        outer, _, _ = through(bench)
        for byte in header + BINDING:
            outer.dataReceived(bytes([byte]))
        (client, _), *_ = bench.service.received
        assert client.path.client == TransportAddress.parse("198.51.100.7", 50000)
    bench = MixedBench(**trusted)
    for host in ("203.0.113.9", "203.0.113.10"):
        connected, _ = bench.connect(PROXY)
        connected.dataReceived(handshake(f"X-Forwarded-For: {host}") + frame(BINARY, BINDING))
        assert bench.service.received[-1][0].path.client.host == host


def test_a_unix_socket() -> None:
    """Clients without an address are told apart, whatever they speak; a proxy may name them."""
    bench = MixedBench("unix:/run/any", UNIXAddress("/run/any"))
    assert bench.listener.description == "tcp/ws unix:/run/any"
    for stream in (BINDING, handshake() + frame(BINARY, BINDING), handshake("X-Forwarded-For: 203.0.113.9"), BINDING):
        bench.connect(UNIXAddress(None), UNIXAddress("/run/any"))[0].dataReceived(stream)
    paths = {client.path for client in bench.listener._clients}
    assert len(paths) == 4
    assert {path.client.host for path in paths} == {"100::1", "100::2", "100::3", "203.0.113.9"}


def test_a_websocket_lives_on() -> None:
    """Pings, answers and the end of what came through a mixed port are those of any WebSocket."""
    bench = MixedBench()
    client, transport = bench.connect()
    client.dataReceived(handshake() + frame(BINARY, BINDING))
    path = bench.service.received[0][0]
    bench.service.allocated.add(path)
    transport.writes.clear()
    bench.seconds(PING_INTERVAL + 1)
    assert sent(transport) == [(PING, b"")]
    bench.listener.close()
    bench.seconds(5)
    assert bench.service.closed == [path]
    bench.check_nothing_is_left()


def test_the_listener_closes_what_has_said_nothing() -> None:
    """Connections that never became anything do not hold up a stop, and become nothing any more."""
    bench = MixedBench()
    client, transport = bench.connect(CLIENT)
    transport.stubborn = True
    done: list[object] = []
    bench.listener.close().addCallback(done.append)
    client.dataReceived(BINDING)
    bench.seconds(4)
    assert done == [None]
    assert bench.service.received == []
    bench.check_nothing_is_left()
