"""A connection through an HTTP proxy (CONNECT, RFC 9110 section 9.3.6), as a stream endpoint of Twisted.

A proxy has Basic authentication or none: its user and password go with the request, as the proxy is the one that was
named. Digest, Negotiate and NTLM are not spoken, and an error says which of them the proxy asks for.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from relayd.client.transports.http import Response, ResponseReader, authority, printable
from relayd.client.transports.proxy import HttpProxy
from relayd.client.transports.wording import explain
from relayd.errors import DecodeError, ServerUnavailable

PROXY_TIMEOUT = 30.0  # seconds for its answer: it has to find and reach the server first

_SCHEME = re.compile(r"(?:^|,)\s*([A-Za-z][A-Za-z0-9-]*)(?=\s|,|$)")  # RFC 9110 section 11.3; parameters have "="
_CAUSES = {
    400: "it did not understand",
    403: "it does not let us to that server or port; many allow port 443 only",
    404: "it is a web server rather than a proxy",
    405: "it is a web server rather than a proxy, or one without CONNECT",
    429: "it has had too many requests",
    500: "it failed",
    501: "it has no CONNECT",
    502: "it does not reach the server",
    503: "it does not reach the server",
    504: "the server does not answer it",
}


def connect_request(proxy: HttpProxy, host: str, port: int) -> bytes:
    """What asks `proxy` for a connection. Raises ConfigurationError for a host that cannot be named."""
    target = authority(host, port)
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.username is not None:
        credentials = f"{proxy.username}:{proxy.password}".encode()  # RFC 7617 section 2.1
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(credentials).decode()}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def refusal(proxy: HttpProxy, response: Response) -> str:
    """Why there is no connection, for the user: what the proxy said, and what may help."""
    if response.status == 407:
        schemes = [scheme for value in response.values("proxy-authenticate") for scheme in _SCHEME.findall(value)]
        if schemes and "basic" not in (scheme.lower() for scheme in schemes):
            wanted = printable(" or ".join(dict.fromkeys(schemes)))
            return f"407: it asks for {wanted} authentication, and this client knows Basic only"
        if proxy.username is None:
            return "407: it wants to know who we are; name a user, as in http://USER@HOST:PORT, and a password"
        return "407: it refuses the user name or the password"
    cause = _CAUSES.get(response.status, "it makes no connection")
    return f"{response}: {cause}"


@implementer(IHalfCloseableProtocol)
class _Tunnel(ProtocolWrapper):
    """Asks the proxy, and then is the transport of the protocol that wanted to be connected."""

    def __init__(self, clock: Any, proxy: HttpProxy, request: bytes, factory: Any) -> None:
        self.wrappedProtocol: Any = None  # until the proxy has connected us
        self.opened: Deferred[Any] = Deferred(lambda _: self._fail("cancelled"))
        self._clock = clock
        self._proxy = proxy
        self._request = request
        self._wrapped_factory = factory
        self._reader = ResponseReader()
        self._fault: str | None = None
        self._timeout: IDelayedCall | None = None

    @property
    def _transport(self) -> Any:
        return self.transport

    def makeConnection(self, transport: Any) -> None:
        # Not the wrapper's: what it wraps is to know of nothing yet.
        directlyProvides(self, providedBy(transport))
        StreamProtocol.makeConnection(self, transport)

    def connectionMade(self) -> None:
        reason = f"no answer to CONNECT within {PROXY_TIMEOUT:g} seconds"
        self._timeout = self._clock.callLater(PROXY_TIMEOUT, self._fail, reason)
        self._transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        if self.wrappedProtocol is not None:
            self.wrappedProtocol.dataReceived(data)
        elif self._fault is None:
            self._answered(data)

    def readConnectionLost(self) -> None:
        if IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
            self.wrappedProtocol.readConnectionLost()
        else:
            self._transport.loseConnection()

    def writeConnectionLost(self) -> None:
        if IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
            self.wrappedProtocol.writeConnectionLost()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 (Twisted's)
        self._stop_waiting()
        wrapped, self.wrappedProtocol = self.wrappedProtocol, None
        if wrapped is not None:
            wrapped.connectionLost(reason)
        elif not self.opened.called:
            words = self._fault or "it closed the connection without an answer"
            self.opened.errback(ServerUnavailable(f"the proxy {self._proxy}: {words}"))

    def _answered(self, data: bytes) -> None:
        try:
            answer = self._reader.receive(data)
        except DecodeError:
            self._fail("what answers there is no HTTP proxy")
            return
        if answer is None:
            return
        response, rest = answer
        if not 200 <= response.status < 300:
            self._fail(refusal(self._proxy, response))
            return
        self._stop_waiting()
        self.wrappedProtocol = self._wrapped_factory.buildProtocol(self._transport.getPeer())
        self.wrappedProtocol.makeConnection(self)
        self.opened.callback(self.wrappedProtocol)
        if rest and self.wrappedProtocol is not None:
            self.wrappedProtocol.dataReceived(rest)

    def _fail(self, fault: str) -> None:
        self._fault = fault
        self._stop_waiting()
        self._transport.abortConnection()

    def _stop_waiting(self) -> None:
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()


@implementer(IStreamClientEndpoint)
class TunnelEndpoint:
    """Connects to `host` and `port` through `proxy`, which `below` connects to."""

    def __init__(self, clock: Any, below: Any, proxy: HttpProxy, host: str, port: int) -> None:
        """Raises ConfigurationError for a host that no request can name."""
        self._clock = clock
        self._below = below
        self._proxy = proxy
        self._request = connect_request(proxy, host, port)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """See `IStreamClientEndpoint.connect`. Fails with ServerUnavailable for all that is the proxy's fault."""
        factory = Factory.forProtocol(lambda: _Tunnel(self._clock, self._proxy, self._request, protocolFactory))
        factory.noisy = False
        connecting: Deferred[Any] = self._below.connect(factory)
        return connecting.addCallback(lambda tunnel: tunnel.opened).addErrback(explain, f"the proxy {self._proxy}")
