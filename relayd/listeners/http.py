"""HTTP on the connections of a `web` listener until they become WebSockets: twisted.web, with its edges taken off.

Twisted's site would time connections out with a delayed call each, keep a log of its own, and take request bodies of
any size into files. Here the listener sweeps, nobody logs, and bodies are read and forgotten.
"""

from __future__ import annotations

from http import HTTPStatus
from io import BytesIO
from typing import Any, Protocol

from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from relayd.address import TransportAddress
from relayd.errors import DecodeError
from relayd.listeners.forwarding import Forwarded
from relayd.listeners.handshake import Handshake, Refusal, RequestHeaders, is_upgrade, judge

TURN_PATH = b"turn"
MAX_HEADERS = 64  # per request; browsers send about fifteen, and proxies add a few
MAX_HEADER_SIZE = 16_384  # bytes of request line and headers together, cookies of a shared host name among them


# What proxies write into the requests that they pass on (RFC 7239, RFC 9110 section 7.6.3, and what was there before).
FORWARDING = (b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-real-ip")


class Upgradable(Protocol):
    """The connection below."""

    remote: TransportAddress | None  # who is connected; None for a Unix socket

    @property
    def is_proxy(self) -> bool:
        """Whether that is a proxy which did not say for whom it connected."""

    def heard(self) -> None:
        """A whole request has come."""

    def forwarded(self, headers: RequestHeaders) -> Forwarded | None:
        """What a trusted proxy says of the client of a request; None: who is connected is no such proxy.

        Raises DecodeError, after a word to the operator, where that cannot be told.
        """

    def admit(self, forwarded: Forwarded | None) -> bool:
        """Count a client that opens a WebSocket. False if it has too many."""

    def upgrade(self, handshake: Handshake) -> None:
        """From here on it is a WebSocket."""

    def early(self, data: bytes) -> None:
        """Bytes behind the request that upgraded."""

    def hang_up(self) -> None:
        """The last answer is written."""


class WebRequest(Request):
    """One request. Nothing here takes a body, so none is kept."""

    forwarded: Forwarded | None = None

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Forget it."""

    @property
    def client_address(self) -> TransportAddress | None:
        """Who asks; None where a proxy was on the way that does not say, or is not to be believed.

        A request of HTTP/1.0 counts as one through a proxy: nginx speaks that to its upstreams, and by default says
        nothing else that tells its requests from those of a client on its own host. A proxy's word that the client is
        on this host counts for nothing: it may only pass on what somebody far away wrote.
        """
        told = None if self.forwarded is None else self.forwarded.client
        if told is not None:
            return None if told.is_loopback else told
        headers = self.requestHeaders
        if self.clientproto == b"HTTP/1.0" or any(headers.hasHeader(name) for name in FORWARDING):
            return None
        channel: Any = self.channel
        connection: Upgradable = channel.connection
        return None if connection.is_proxy else connection.remote

    def process(self) -> None:
        channel: Any = self.channel
        connection: Upgradable = channel.connection
        connection.heard()
        try:
            self.forwarded = connection.forwarded(self.requestHeaders)
        except DecodeError:
            body = answer(self, Refusal(400, "The web proxy in front does not say clearly for whom it asks."))
            self.write(body)  # type: ignore[no-untyped-call]
            self.finish()  # type: ignore[no-untyped-call]
            return
        super().process()  # type: ignore[no-untyped-call]

    def render(self, resrc: Any) -> None:
        self.responseHeaders.removeHeader(b"server")
        self.setHeader(b"x-content-type-options", b"nosniff")  # type: ignore[no-untyped-call]
        super().render(resrc)  # type: ignore[no-untyped-call]


def answer(request: Any, refusal: Refusal) -> bytes:
    """Prepare the response, and give its body."""
    request.setResponseCode(refusal.status, HTTPStatus(refusal.status).phrase.encode("ascii"))
    request.setHeader(b"content-type", b"text/plain; charset=us-ascii")
    for name, value in refusal.headers:
        request.setHeader(name, value)
    body = f"{refusal.text}\n".encode("ascii")
    request.setHeader(b"content-length", b"%d" % len(body))
    return b"" if request.method == b"HEAD" else body  # twisted.web logs each body that it has to drop


class WebChannel(HTTPChannel):
    """The HTTP part of one connection."""

    requestFactory = WebRequest
    maxHeaders = MAX_HEADERS
    totalHeadersSize = MAX_HEADER_SIZE
    timeOut = None  # the listener sweeps

    def __init__(self, connection: Upgradable, site: Site) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.connection = connection
        self.site = self.factory = site
        self._upgraded = False

    def upgrade(self, handshake: Handshake) -> None:
        self._upgraded = True
        self.connection.upgrade(handshake)

    def pauseProducing(self) -> None:
        # Twisted's goes on with what it has read, and reads more if a response is being written: a client that asks
        # for a thousand pages at once, and takes none, would have all of them kept for it.
        super().pauseProducing()  # type: ignore[no-untyped-call]
        self.paused = True
        self._networkProducer.pauseProducing()

    def resumeProducing(self) -> None:
        super().resumeProducing()  # type: ignore[no-untyped-call]
        self.paused = False
        if not self._upgraded:
            super().dataReceived(b"")  # type: ignore[no-untyped-call]  # the requests that waited

    def loseConnection(self) -> None:
        self.connection.hang_up()

    def lineLengthExceeded(self, line: bytes) -> None:
        self.connection.hang_up()

    def rawDataReceived(self, data: bytes) -> None:
        if self._upgraded:
            self.connection.early(data)
        else:
            super().rawDataReceived(data)


class TurnResource(Resource):
    """Where a WebSocket to the relay opens."""

    isLeaf = True

    def __init__(self, origins: tuple[str, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._origins = origins

    def render(self, request: Any) -> Any:
        verdict: Handshake | Refusal
        if request.postpath:  # segments behind ours
            verdict = Refusal(404, "There is nothing here.")
        else:
            verdict = judge(request.method, request.clientproto, request.requestHeaders, self._origins)
        if isinstance(verdict, Handshake) and not request.channel.connection.admit(request.forwarded):
            verdict = Refusal(429, "Too many WebSockets are open from this address.")
        if isinstance(verdict, Refusal):
            return answer(request, verdict)
        request.channel.upgrade(verdict)
        return NOT_DONE_YET


class WebSite(Site):
    """The pages, and among them `/turn`. It is never listened with: a listener has its own connections."""

    def __init__(self, pages: Resource, origins: tuple[str, ...], clock: Any) -> None:
        super().__init__(pages, timeout=None, reactor=clock)  # type: ignore[no-untyped-call]
        self._turn = TurnResource(origins)
        pages.putChild(TURN_PATH, self._turn)

    def getResourceFor(self, request: Any) -> Any:
        # The one client of this protocol in the wild takes `/`, unless it is told otherwise.
        if request.path == b"/" and is_upgrade(request.requestHeaders):
            request.postpath = []
            return self._turn
        return super().getResourceFor(request)  # type: ignore[no-untyped-call]


class TlsOnlySite(Site):
    """What is said in plain HTTP on a port that speaks HTTPS: no page is shown, and no WebSocket opens."""

    def __init__(self, clock: Any) -> None:
        super().__init__(Resource(), timeout=None, reactor=clock)  # type: ignore[no-untyped-call]

    def getResourceFor(self, request: Any) -> Any:
        return _TlsOnly()  # type: ignore[no-untyped-call]


class _TlsOnly(Resource):
    isLeaf = True

    def render(self, request: Any) -> bytes:
        request.setHeader(b"connection", b"close")
        request.channel.persistent = False
        return answer(request, Refusal(400, "This port speaks HTTPS: the address begins with https:// or wss://."))
