"""CONNECT: what a proxy is asked, each way in which it may refuse or fall silent, and a tunnel that hides nothing."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from relayd.client.transports.proxy import HttpProxy
from relayd.client.transports.tunnel import PROXY_TIMEOUT, TunnelEndpoint
from relayd.errors import ConfigurationError, ServerUnavailable

PROXY = HttpProxy("proxy.example", 3128)
OK = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Transport(StringTransport):
    """One whose end, when it is cut, has to be told as every other."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Below:
    """An endpoint by which the proxy is reached when a test says so."""

    def __init__(self) -> None:
        self.transport: Any = Transport()  # type: ignore[no-untyped-call]
        self.connected: Deferred[Any] = Deferred()

    def connect(self, factory: Any) -> Deferred[Any]:
        self.protocol = factory.buildProtocol(None)
        return self.connected

    def reach(self) -> None:
        self.protocol.makeConnection(self.transport)
        self.connected.callback(self.protocol)

    def lose(self, reason: Exception) -> None:
        self.protocol.connectionLost(Failure(reason))


class Inner(StreamProtocol):
    """What wants to be connected."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: list[Failure] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 (Twisted's)
        self.lost.append(reason)


class Case:
    """A connection that is being made."""

    def __init__(self, proxy: HttpProxy = PROXY, host: str = "relay.example") -> None:
        self.clock = Clock()
        self.below = Below()
        endpoint = TunnelEndpoint(self.clock, self.below, proxy, host, 443)
        self.connecting = endpoint.connect(Factory.forProtocol(Inner))
        self.results: list[Any] = []
        self.connecting.addBoth(self.results.append)

    def answer(self, data: bytes) -> None:
        self.below.reach()
        for each in data:
            self.below.protocol.dataReceived(bytes([each]))

    def error(self, reason: Exception | None = None) -> str:
        """What the connection fails with, once its transport is gone."""
        assert self.results == []
        self.below.lose(reason or ConnectionLost())
        (failure,) = self.results
        assert isinstance(failure.value, ServerUnavailable)
        assert self.clock.getDelayedCalls() == []
        return str(failure.value)


def test_a_tunnel() -> None:
    """The proxy is asked by name; then bytes pass both ways, those right behind its answer first, and the end too."""
    case = Case()
    case.answer(OK + b"first")
    assert case.below.transport.value() == b"CONNECT relay.example:443 HTTP/1.1\r\nHost: relay.example:443\r\n\r\n"
    (inner,) = case.results
    assert isinstance(inner, Inner)
    case.below.protocol.dataReceived(b", second")
    assert inner.received == b"first, second"
    case.below.transport.clear()
    inner.transport.write(b"out")  # type: ignore[union-attr]
    assert case.below.transport.value() == b"out"
    case.below.lose(ConnectionDone())
    assert [failure.type for failure in inner.lost] == [ConnectionDone]
    assert case.clock.getDelayedCalls() == []


def test_rest_in_one_piece() -> None:
    """What comes in one segment with the proxy's answer is not lost."""
    case = Case()
    case.below.reach()
    case.below.protocol.dataReceived(OK + b"rest")
    assert case.results[0].received == b"rest"


def test_ipv6() -> None:
    """An IPv6 address is in brackets in the request."""
    case = Case(host="2001:db8::1")
    case.below.reach()
    assert case.below.transport.value().startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n")


def test_basic_authentication() -> None:
    """User and password go with the request, in UTF-8 (RFC 7617)."""
    case = Case(HttpProxy("proxy.example", 3128, "alïce", "se:same"))
    case.below.reach()
    credentials = base64.b64encode("alïce:se:same".encode())
    assert b"\r\nProxy-Authorization: Basic " + credentials + b"\r\n" in case.below.transport.value()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("403 Forbidden", "403 Forbidden: it does not let us to that server or port; many allow port 443 only"),
        ("405 No\x1b[1m", "405 No[1m: it is a web server rather than a proxy"),
        ("502 Bad Gateway", "502 Bad Gateway: it does not reach the server"),
        ("504", "504: the server does not answer it"),
        ("302 Found\r\nLocation: http://captive.portal/", "302 Found: it makes no connection"),
        ("407 Who\r\nProxy-Authenticate: Basic realm=x", "407: it wants to know who we are"),
        ("407 Who\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: basic", "407: it wants to know who we are"),
        ("407 Who", "407: it wants to know who we are"),
        (
            '407 Who\r\nProxy-Authenticate: Digest realm="x", qop="auth", stale=false, NTLM',
            "407: it asks for Digest or NTLM authentication, and this client knows Basic only",
        ),
    ],
)
def test_refusals(answer: str, words: str) -> None:
    """Each refusal says what the proxy said and what may help, and cuts the connection."""
    case = Case()
    case.answer(f"HTTP/1.1 {answer}\r\n\r\n".encode())
    assert case.below.transport.aborted
    assert case.error().startswith(f"the proxy http://proxy.example:3128: {words}")


def test_a_wrong_password() -> None:
    """A proxy that was told who we are and still asks refuses us; the password is not repeated."""
    case = Case(HttpProxy("proxy.example", 3128, "alice", "sesame"))
    case.answer(b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm=x\r\n\r\n")
    error = case.error()
    assert "refuses the user name or the password" in error
    assert "sesame" not in error


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH_9\r\n", b"\x00", b"HTTP/1.1 200 OK\r\nX: " + bytes(40_000)])
def test_garbage(garbage: bytes) -> None:
    """What does not speak HTTP, or does not stop, is named and cut."""
    case = Case()
    case.below.reach()
    case.below.protocol.dataReceived(garbage)
    assert case.below.transport.aborted
    case.below.protocol.dataReceived(OK)
    assert "no HTTP proxy" in case.error()


@pytest.mark.parametrize("reason", [ConnectionDone(), ConnectionLost()])
def test_half_an_answer(reason: Exception) -> None:
    """A proxy that closes in the middle of its answer, or is cut off, is said to have done so."""
    case = Case()
    case.answer(OK[:20])
    assert case.error(reason).endswith("closed the connection without an answer")


def test_silence() -> None:
    """A proxy that says nothing is waited for just so long."""
    case = Case()
    case.answer(OK[:20])
    case.clock.advance(PROXY_TIMEOUT)
    assert case.below.transport.aborted
    assert "no answer to CONNECT within 30 seconds" in case.error()


def test_nobody_there() -> None:
    """A proxy that cannot be reached is told from a server that cannot be."""
    case = Case()
    case.below.connected.errback(ConnectError(osError=111))
    (failure,) = case.results
    assert str(failure.value).startswith("the proxy http://proxy.example:3128: Connection refused")


def test_cancelled() -> None:
    """Who does not want to wait cuts the connection at once, and nothing is left."""
    case = Case()
    case.below.reach()
    case.connecting.cancel()
    assert case.below.transport.aborted
    assert case.results[0].check(CancelledError)
    case.below.lose(ConnectionLost())
    assert case.clock.getDelayedCalls() == []


def test_a_host_that_cannot_be_named() -> None:
    """What is no host name is refused before anything is opened."""
    with pytest.raises(ConfigurationError):
        TunnelEndpoint(Clock(), Below(), PROXY, "a\x00b", 443)
