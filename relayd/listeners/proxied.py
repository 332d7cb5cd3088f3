"""Connections through a proxy that speaks the PROXY protocol: what is above sees them as if the client had come itself.

Twisted's own wrapper drops a connection whose first segment is shorter than the header, and believes everybody.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import IHalfCloseableProtocol, ILoggingContext
from twisted.internet.protocol import ServerFactory
from twisted.internet.tcp import Connection
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from zope.interface import alsoProvides

from relayd.address import TransportAddress
from relayd.errors import DecodeError
from relayd.listeners.proxy_header import read_proxy_header
from relayd.twisted_address import from_twisted, to_twisted


class Judge(Protocol):
    """Who knows the proxies: the listener."""

    def trusts(self, proxy: TransportAddress | None) -> bool:
        """Whether a proxy is believed in who its clients are. None is a Unix socket."""

    def warn_once(self, topic: str, text: str) -> None:
        """Tell the operator of what may be a mistake of theirs, once for each topic."""


class ProxiedConnection(ProtocolWrapper):
    """Between the proxy's connection and the protocol of its client. `client_used_tls` if the proxy ended that."""

    factory: ProxiedFactory
    client_used_tls = False

    def __init__(self, factory: ProxiedFactory, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self._held: bytes | None = b""  # of the header; None once it is read
        self._client: TransportAddress | None = None
        self._server: TransportAddress | None = None
        self._trusted = False

    # --- what the transport calls ---

    def makeConnection(self, transport: Any) -> None:
        judge, proxy = self.factory.judge, from_twisted(transport.getPeer())
        self._trusted = judge.trusts(proxy)
        if self._trusted:
            super().makeConnection(transport)  # type: ignore[no-untyped-call]
            return
        judge.warn_once(
            "a stranger",
            f"refused {proxy.host if proxy else 'a Unix socket'}, which is no trusted proxy, and will refuse others "
            "without another word: if it is one, give --trust-proxy",
        )
        self.transport = transport
        _abort(transport)

    def dataReceived(self, data: bytes) -> None:
        if self._held is None:
            self.wrappedProtocol.dataReceived(data)
            return
        if not self._trusted:
            return
        self._held += data
        try:
            found = read_proxy_header(self._held)
        except DecodeError as why:
            self.factory.judge.warn_once(
                "a header",
                f"refused a connection of a trusted proxy ({why}), and will refuse others without another word: "
                "have it send the PROXY protocol, or leave out haproxy:",
            )
            self._held = b""
            self._trusted = False
            _abort(self.transport)
            return
        if found is None:
            return
        header, size = found
        self._client, self._server, self.client_used_tls = header
        rest, self._held = self._held[size:], None
        if rest:
            self.wrappedProtocol.dataReceived(rest)

    def readConnectionLost(self) -> None:
        """Called after `take_half_closes`."""
        above: Any = self.wrappedProtocol
        above.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Likewise. Who is above said so itself."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        # What is above was never told of a stranger's connection.
        if self in self.factory.protocols:
            super().connectionLost(reason)  # type: ignore[no-untyped-call]

    # --- what is above calls ---

    def take_half_closes(self) -> bool:
        """Whether one direction can end alone. If so, what is above is told of that from now on, instead of the end of
        both.
        """
        transport: Any = self.transport
        if not isinstance(transport, Connection):
            return False
        alsoProvides(self, IHalfCloseableProtocol)
        return True

    def getPeer(self) -> Any:
        return super().getPeer() if self._client is None else to_twisted(self._client)  # type: ignore[no-untyped-call]

    def getHost(self) -> Any:
        return super().getHost() if self._server is None else to_twisted(self._server)  # type: ignore[no-untyped-call]


class ProxiedFactory(WrappingFactory[ProxiedConnection]):
    """Wraps the factory of a listener, or of the TLS on it."""

    protocol = ProxiedConnection
    noisy = False

    def __init__(self, wrapped: ServerFactory, judge: Judge) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.judge = judge

    def logPrefix(self) -> str:
        wrapped: Any = self.wrappedFactory
        prefix = wrapped.logPrefix() if ILoggingContext.providedBy(wrapped) else type(wrapped).__name__
        return f"{prefix} (PROXY)"


def _abort(transport: Any) -> None:
    getattr(transport, "abortConnection", transport.loseConnection)()
