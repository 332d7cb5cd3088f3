"""Promises of relayd.listeners.proxied: who comes through a trusted proxy is the client, and nobody else gets in."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.logger import capturedLogs

from relayd.address import AppConnection, TransportAddress
from relayd.listeners.proxied import ProxiedFactory
from relayd.turn.peer_rules import parse_cidr
from tests.unit.listeners.test_connection import BINDING, RESPONSE, Bench, Transport
from tests.unit.listeners.test_proxy_header import IPV4, SSL, binary
from tests.unit.listeners.web_bench import WebBench, handshake

PROXY = IPv4Address("TCP", "10.0.0.1", 1234)
TRUSTED: dict[str, Any] = {"trusted_proxies": (parse_cidr("10.0.0.0/8"),)}
CLIENT = TransportAddress.parse("198.51.100.7", 50000)
HEADERS = [b"PROXY TCP4 198.51.100.7 192.0.2.9 50000 3478\r\n", binary(0x11, IPV4)]


def through(bench: Bench, peer: Any = PROXY, host: Any = None) -> tuple[Any, Any, Transport]:
    """A connection as its transport sees it, the client's own protocol, and the transport."""
    factory: Any = ProxiedFactory(bench.listener, bench.listener)
    transport = bench.transport_class(bench.clock, peer, *([] if host is None else [host]))
    outer = transport.client = factory.buildProtocol(peer)
    inner = outer.wrappedProtocol
    outer.makeConnection(transport)
    return outer, inner, transport


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_in_any_pieces(header: bytes) -> None:
    """However the header is cut, the client is known by it, and what stands behind it is not lost."""
    stream = header + BINDING * 2
    for size in (1, 2, 5, 15, 17, len(header), len(header) + 3, len(stream)):
        bench = Bench("haproxy:tcp:3478", **TRUSTED)
        outer, inner, transport = through(bench)
        for at in range(0, len(stream), size):
            outer.dataReceived(stream[at : at + size])
        assert bench.service.received == [(inner, BINDING)] * 2
        assert inner.path.client == CLIENT
        assert inner.path.app_connection is AppConnection.TCP
        inner.send(RESPONSE)
        bench.clock.advance(0)
        assert transport.writes == [RESPONSE]
        inner.close()
        bench.clock.advance(0)
        assert bench.service.closed == [inner]
        bench.check_nothing_is_left()


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", binary(0x00, command=0x20), binary(0x31, bytes(216))])
def test_a_proxy_that_names_nobody(header: bytes) -> None:
    """The proxy itself is the client then; such connections have no limit per source, for they are not of one."""
    bench = Bench("haproxy:tcp:3478", max_connections_per_source=1, **TRUSTED)
    for port in (1, 2, 3):
        outer, inner, _ = through(bench, IPv4Address("TCP", "10.0.0.1", port))
        outer.dataReceived(header + BINDING)
        assert inner.path.client == TransportAddress.parse("10.0.0.1", port)
    assert len(bench.service.received) == 3


def test_limits_are_per_client() -> None:
    """It is the client behind the proxy that has a limited number of connections."""
    bench = Bench("haproxy:tcp:3478", max_connections_per_source=1, **TRUSTED)
    made = [through(bench) for _ in range(3)]
    for host, (outer, _, _) in zip(("198.51.100.7", "198.51.100.8", "198.51.100.8"), made, strict=True):
        outer.dataReceived(b"PROXY TCP4 %s 192.0.2.9 50000 3478\r\n" % host.encode() + BINDING)
    assert [transport.aborted for _, _, transport in made] == [False, False, True]


def test_tls_that_ended_at_the_proxy() -> None:
    """Version 2 can say that the client came over TLS: then it did."""
    bench = Bench("haproxy:tcp:3478", **TRUSTED)
    outer, inner, _ = through(bench)
    outer.dataReceived(binary(0x11, IPV4 + SSL) + BINDING)
    assert inner.path.app_connection is AppConnection.TLS
    web = WebBench("haproxy:tcp:8080", **TRUSTED)
    outer, inner, _ = through(web)
    outer.dataReceived(binary(0x11, IPV4 + SSL) + handshake())
    assert inner.path.app_connection is AppConnection.WSS
    assert inner.path.client == CLIENT


def test_the_proxy_in_front_of_a_web_proxy() -> None:
    """Where the header names a trusted proxy, that one may name the client in HTTP; a client may not name another."""
    bench = WebBench("haproxy:tcp:8080", **TRUSTED)
    outer, inner, _ = through(bench)
    outer.dataReceived(b"PROXY TCP4 10.0.0.2 192.0.2.9 5 80\r\n" + handshake("X-Forwarded-For: 203.0.113.9"))
    assert inner.path.client == TransportAddress.parse("203.0.113.9", 5)
    outer, inner, _ = through(bench)
    outer.dataReceived(HEADERS[0] + handshake("X-Forwarded-For: 203.0.113.9"))
    assert inner.path.client == CLIENT


def test_an_untrusted_proxy_is_refused() -> None:
    """Only a trusted proxy may say who its client is: by default one on this host. Others cannot even connect."""
    bench = Bench("haproxy:tcp:3478")

    def connect(address: Any) -> bool:
        outer, _, transport = through(bench, address)
        outer.dataReceived(HEADERS[0] + BINDING)
        return not transport.aborted

    hosts = ["198.51.100.7", "10.0.0.1", "127.0.0.1", "2001:db8::1", "::1"]
    found = [connect((IPv6Address if ":" in host else IPv4Address)("TCP", host, 5)) for host in hosts]
    assert found == [False, False, True, False, True]
    assert connect(UNIXAddress(None))
    assert len(bench.service.received) == 3
    for client in list(bench.listener._clients):
        client.abort()
    bench.clock.advance(0)
    bench.check_nothing_is_left()


def test_untrusted_proxies_are_logged_once() -> None:
    """The operator is told which address was refused, and nobody can fill the log with it."""
    bench = Bench("haproxy:tcp:3478")
    with capturedLogs() as events:
        for _ in range(3):
            through(bench, IPv4Address("TCP", "198.51.100.7", 5))
    (event,) = events
    assert "198.51.100.7" in event["text"]
    assert "--trust-proxy" in event["text"]


@pytest.mark.parametrize(
    "beginning", [BINDING, b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"PROXY TCP4 somewhere 192.0.2.1 1 2\r\n", b"Q"]
)
def test_what_is_no_header(beginning: bytes) -> None:
    """A connection of a trusted proxy that begins with anything else is dropped, and the log says so once."""
    bench = Bench("haproxy:tcp:3478", **TRUSTED)
    with capturedLogs() as events:
        for _ in range(2):
            outer, _, transport = through(bench)
            outer.dataReceived(beginning)
            outer.dataReceived(HEADERS[0] + BINDING)
            assert transport.aborted
    assert len(events) == 1
    bench.clock.advance(0)
    assert bench.service.received == bench.service.closed == []
    bench.check_nothing_is_left()


def test_a_header_that_never_ends() -> None:
    """Its bytes are no sign of life, however they drip, and its connection counts as one while it lasts."""
    bench = Bench("haproxy:tcp:3478", first_message_timeout=10.0, max_connections=1, **TRUSTED)
    outer, _, transport = through(bench)
    for byte in HEADERS[0][:12]:
        outer.dataReceived(bytes([byte]))
        bench.seconds(1)
    assert transport.disconnecting
    assert bench.service.closed == []
    bench.check_nothing_is_left()


def test_a_listener_closes_what_waits_for_a_header() -> None:
    """Such connections do not hold up a stop."""
    bench = Bench("haproxy:tcp:3478", **TRUSTED)
    through(bench)[0].dataReceived(b"PRO")
    done: list[object] = []
    bench.listener.close().addCallback(done.append)
    bench.clock.advance(0)
    assert done == [None]
    bench.check_nothing_is_left()
