"""Promises of relayd.web.access: the operator's pages are for those that were let in, whatever the request claims."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from relayd.config import LOOPBACK
from relayd.turn.peer_rules import parse_cidr
from tests.unit.web.site import HERE, Site

PAGES = ("/", "/status.json", "/metrics")
STRANGER = IPv4Address("TCP", "198.51.100.7", 40000)


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize(
    "client",
    [HERE, IPv4Address("TCP", "127.8.9.1", 1), IPv6Address("TCP", "::1", 1), IPv6Address("TCP", "::ffff:127.0.0.1", 1)],
    ids=str,
)
def test_this_host_is_let_in(path: str, client: Any) -> None:
    """Without any configuration, from loopback in either family."""
    assert Site().ask(path, client=client).status == 200


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize(
    "client", [STRANGER, IPv6Address("TCP", "2001:db8::1", 1), IPv6Address("TCP", "::127.0.0.1", 1)], ids=str
)
def test_strangers_are_told_why_not(path: str, client: Any) -> None:
    """They get 403 and the option that would let them in; whether a page is there does not matter."""
    answer = Site().ask(path, client=client)
    assert answer.status == 403
    assert answer.headers["content-type"].startswith("text/plain")
    assert f"--status-from {client.host}".encode() in answer.body or client.host.startswith("::127")
    assert b"relayd_" not in answer.body


def test_what_is_for_everybody() -> None:
    """`/healthz` is, and what the page is made of; WebSockets open for strangers at `/` and `/turn`."""
    site = Site()
    for path in ("/healthz", "/status.js", "/plot.js", "/svg.js", "/status.css", "/favicon.svg"):
        assert site.ask(path, client=STRANGER).status == 200
    site.bench.open(peer=STRANGER)


@pytest.mark.parametrize(
    "headers",
    [
        ["X-Forwarded-For: 127.0.0.1"],
        ["X-Forwarded-For: unknown"],
        ["Forwarded: for=127.0.0.1"],
        ["Via: 1.1 proxy"],
        ["X-Real-IP: 127.0.0.1"],
        ["X-Forwarded-For:"],
    ],
    ids=str,
)
@pytest.mark.parametrize("path", PAGES)
def test_a_proxy_is_not_its_client(path: str, headers: list[str]) -> None:
    """What a proxy on this host passes on is not taken for this host's, trusted or not, even if it says just that."""
    for trusted in ((), LOOPBACK):
        assert Site(trusted_proxies=trusted).ask(path, *headers).status in (400, 403)


def test_a_trusted_proxy_tells_its_client() -> None:
    """The client is judged as if it had come itself; what it claims to have come through does not count."""
    networks = (parse_cidr("198.51.100.0/24"),)
    site = Site(status_from=networks)
    for forwarded in ("198.51.100.7", "192.0.2.9, 198.51.100.7", "127.0.0.1, 198.51.100.7"):
        assert site.ask("/metrics", f"X-Forwarded-For: {forwarded}", host="relay.example.org").status == 200
    for forwarded in ("192.0.2.9", "198.51.100.7, 192.0.2.9"):
        assert site.ask("/metrics", f"X-Forwarded-For: {forwarded}").status == 403
    stranger = Site(status_from=networks, trusted_proxies=())
    assert stranger.ask("/metrics", "X-Forwarded-For: 198.51.100.7").status == 403


def test_a_proxy_that_says_nothing() -> None:
    """nginx speaks HTTP/1.0 to its upstreams unless told otherwise, and then gives away nobody's numbers."""
    assert Site().ask("/metrics", version="1.0").status == 403


def test_a_proxy_that_names_nobody() -> None:
    """PROXY UNKNOWN leaves the proxy's own address: that is not who asks. A client that it names is."""
    site = Site("haproxy:tcp:8080", status_from=(*LOOPBACK, parse_cidr("198.51.100.0/24")))
    assert site.ask("/metrics").status == 403
    assert site.ask("/metrics", client=STRANGER).status == 200


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8080", "localhost", "LocalHost:80", "[::1]:8080", "a.localhost"]
)
def test_names_of_this_host(host: str) -> None:
    """Whatever a browser on this host calls it."""
    assert Site().ask("/status.json", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost@evil.example",
        "127.0.0.1:8080\r\nHost: evil.example",
        "192.0.2.1",
        "0.0.0.0",
        "",
        None,
    ],
)
def test_a_name_that_was_bound_to_this_host(host: str | None) -> None:
    """A page of the web that has its own name point to 127.0.0.1 reads nothing in the browser of somebody here."""
    answer = Site().ask("/status.json", host=host)
    assert answer.status in (400, 403)
    assert b"evil" not in answer.body
    assert b"version" not in answer.body


def test_configured_networks() -> None:
    """`--status-from` replaces the default: its networks are let in under any name, and this host no longer is."""
    site = Site(status_from=(parse_cidr("198.51.100.0/24"), parse_cidr("2001:db8::/32")))
    assert site.ask("/metrics", client=STRANGER, host="relay.example.org").status == 200
    assert site.ask("/metrics", client=IPv6Address("TCP", "2001:db8::9", 1)).status == 200
    assert site.ask("/metrics").status == 403


def test_nobody() -> None:
    """Where nobody is let in, there is no such page."""
    site = Site(status_from=())
    for path in (*PAGES, "/status.js"):
        assert site.ask(path).status == 404


def test_a_unix_socket_has_no_address() -> None:
    """What comes over one is somebody's proxy: nobody knows for whom it asks."""
    site = Site()
    connection, transport = site.bench.connect(UNIXAddress(b""), UNIXAddress(b"/run/relayd.sock"))
    connection.dataReceived(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert transport.writes[0].startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_read(path: str) -> None:
    """HEAD has no body; other methods are 405, and there is nothing below a page."""
    site = Site()
    head = site.ask(path, method="HEAD")
    assert head.status == 200
    assert head.body == b""
    assert site.ask(path, method="POST").status == 405
    assert site.ask(path.rstrip("/") + "/x").status == 404
