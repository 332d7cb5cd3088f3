"""The kind `any`: TURN, HTTP and WebSocket on one port, with and without TLS, told apart by ALPN and first byte.

A connection begins as an `Undecided`. With its first byte it is handed on: to TLS, within which another `Undecided`
begins, to a `StreamClient` or to a `WebClient`. From then on the transport calls that one without a stop here.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import ServerFactory
from twisted.internet.tcp import Connection
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOFactory

from relayd.address import AppConnection
from relayd.config import ListenerSettings
from relayd.dtls import ALPN
from relayd.interfaces import IRelayService
from relayd.listeners.connection import ClientConnection, StreamClient
from relayd.listeners.first_byte import HTTP_ALPN, Spoken, spoken_from, spoken_within_tls
from relayd.listeners.http import TlsOnlySite
from relayd.listeners.web import WebListener
from relayd.listeners.websocket import WebClient, WebHost


class MixedHost(WebHost, Protocol):
    """What a connection to a mixed port needs of the listener that accepted it."""

    tls_only: TlsOnlySite


class Undecided(ClientConnection):
    """One connection that has said nothing yet. Never a path."""

    plain = AppConnection.TCP
    secure = AppConnection.TLS

    def __init__(self, listener: MixedHost, tls: TLSMemoryBIOFactory | None = None) -> None:
        """`tls` is what a handshake is handed on to; None where TLS is not spoken, or is already."""
        super().__init__(listener)
        self._host = listener
        self._tls = tls

    def dataReceived(self, data: bytes) -> None:
        if not data or not self._ready():
            return
        transport: Any = self.transport
        within_tls = ISSLTransport.providedBy(transport)
        if within_tls:
            spoken = spoken_within_tls(data[0], getattr(transport, "negotiatedProtocol", None))
        else:
            spoken = spoken_from(data[0])
        if spoken is Spoken.TURN:
            self._hand_on(StreamClient(self._host), data)
        elif spoken is Spoken.HTTP:
            # Where TLS can be had HTTP without it is not served: it only comes about by mistake, or by an attack.
            site = self._host.site if self._tls is None else self._host.tls_only
            self._hand_on(WebClient(self._host, site), data)
        elif spoken is Spoken.TLS and self._tls is not None:
            self._hand_on_to_tls(self._tls, data)
        else:
            self.abort()

    def _hand_on_to_tls(self, tls: TLSMemoryBIOFactory, data: bytes) -> None:
        transport: Any = self.transport
        above: Any = tls.buildProtocol(transport.getPeer())
        if above is None:
            self.abort()
            return
        self._hand_on(above.wrappedProtocol, data, below=above)

    def _hand_on(self, successor: ClientConnection, data: bytes, below: Any = None) -> None:
        """Give everything to the next one, whose time began with ours. `below` is its TLS, if that begins here."""
        called = successor if below is None else below
        transport: Any = self.transport
        transport.unregisterProducer()
        self._leave()  # first, for the place that we had is the one that it takes
        self.dataReceived = called.dataReceived  # type: ignore[method-assign]
        self.connectionLost = called.connectionLost  # type: ignore[method-assign]
        if isinstance(transport, Connection):
            transport.protocol = called  # which may come to take a half-closed connection
        elif isinstance(transport, ProtocolWrapper):
            transport.wrappedProtocol = called  # likewise
        successor.inherit(self)
        called.makeConnection(transport)
        self._listener.disconnected(self)
        called.dataReceived(data)

    def _welcome(self) -> bool:
        return self._claim_remote()

    def _is_path(self) -> bool:
        return False


class Entrance(ServerFactory):
    """Accepts on a port where TLS is spoken beside other things."""

    noisy = False

    def __init__(self, listener: MixedHost, tls: TLSMemoryBIOFactory) -> None:
        self._listener = listener
        self._tls = tls

    def logPrefix(self) -> str:
        return str(self._tls.logPrefix())

    def buildProtocol(self, addr: Any) -> Undecided:
        return Undecided(self._listener, self._tls)


class AnyListener(WebListener):
    """One mixed port, and its connections."""

    kind = "any"
    connection = Undecided
    alpn = (*ALPN, HTTP_ALPN)

    def __init__(
        self, description: str, clock: Any, service: IRelayService, settings: ListenerSettings, pages: Any
    ) -> None:
        """`pages` as for `WebListener`."""
        super().__init__(description, clock, service, settings, pages)
        self.tls_only = TlsOnlySite(clock)
        self._takes_plain_too = False

    @property
    def spoken(self) -> str:
        if self.app_connection == AppConnection.TCP:
            return "tcp/ws"
        return "tls/wss/tcp" if self._takes_plain_too else "tls/wss"

    def over_tls(self, tls: TLSMemoryBIOFactory) -> Any:
        self._takes_plain_too = True
        return Entrance(self, tls)
