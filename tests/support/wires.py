"""How a test client's messages reach a relay in the same process: each way in, on the shared reactor."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from OpenSSL import SSL
from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.internet.ssl import Certificate as TrustRoot
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from relayd.address import AppConnection, TransportAddress
from relayd.dtls import MTU, split_flight
from relayd.stun.framing import StreamSplitter
from tests.support.certificate import Certificate

PATIENCE = 5.0  # seconds after which something that ought to arrive is missing

reactor: Any = the_reactor


class Wire(Protocol):
    """How a client reaches the relay. Whole messages go up to `received`."""

    received: Callable[[bytes], None]
    closed: Deferred[None]
    local: TransportAddress

    def write(self, data: bytes) -> None: ...

    def close(self) -> Any: ...


class Raw(StreamProtocol):
    """A connection of bytes, to whatever the relay speaks there."""

    def __init__(self) -> None:
        self.heard = b""
        self.closed: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.closed.callback(None)

    def write(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]

    def close(self) -> Deferred[None]:
        self.transport.loseConnection()  # type: ignore[union-attr]
        return self.closed


class UdpWire(DatagramProtocol):
    """A UDP socket, on any port or a certain one. It never hears of its end."""

    def __init__(self, server: TransportAddress, port: int = 0) -> None:
        self.received: Callable[[bytes], None] = lambda data: None
        self.closed: Deferred[None] = Deferred()
        self._server = (server.host, server.port)
        self._port: Any = reactor.listenUDP(port, self, interface=server.host, maxPacketSize=65_535)
        self._port.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self.local = TransportAddress.parse(server.host, self._port.getHost().port)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.received(datagram)

    def write(self, data: bytes) -> None:
        self._port.write(data, self._server)

    def close(self) -> Any:
        return self._port.stopListening()


_BIND_GRANTED = b"\x01\x0b"  # RFC 6062 section 6.1


class StreamWire(StreamProtocol):
    """A TCP or TLS connection. `raw` gets what comes behind a granted ConnectionBind."""

    def __init__(self) -> None:
        self.received: Callable[[bytes], None] = lambda data: None
        self.closed: Deferred[None] = Deferred()
        self.raw: bytes | None = None
        self.end = ""  # as `Conversation.end`
        self._splitter = StreamSplitter()

    @property
    def local(self) -> TransportAddress:
        host: Any = self.transport.getHost()  # type: ignore[union-attr]
        return TransportAddress.parse(host.host, host.port)

    def dataReceived(self, data: bytes) -> None:
        if self.raw is not None:
            self.raw += data
            return
        for at in range(len(data)):  # one by one, because what is behind that answer is no TURN
            for message in self._splitter.receive(data[at : at + 1]):
                self.received(message)
                if message.startswith(_BIND_GRANTED):
                    self.raw = data[at + 1 :]
                    return

    def connectionLost(self, reason: Failure | None = None) -> None:
        assert reason is not None
        self.end = "closed" if reason.check(ConnectionDone) else "reset"
        self.closed.callback(None)

    def say_all(self) -> None:
        """End our direction."""
        self.transport.loseWriteConnection()  # type: ignore[union-attr]

    def abort(self) -> None:
        """Reset the connection."""
        self.transport.abortConnection()  # type: ignore[union-attr]

    def write(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]

    def close(self) -> Any:
        self.transport.loseConnection()  # type: ignore[union-attr]
        return self.closed


class DtlsWire:
    """A DTLS association over a UDP socket. Loopback loses nothing, so no flight is sent twice."""

    def __init__(self, server: TransportAddress, port: int = 0) -> None:
        self.received: Callable[[bytes], None] = lambda data: None
        self.closed: Deferred[None] = Deferred()
        self.established: Deferred[None] = Deferred()
        self._below = UdpWire(server, port)
        self.local = self._below.local
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        context.set_options(SSL.OP_NO_QUERY_MTU)
        self._connection = SSL.Connection(context, None)
        self._connection.set_connect_state()
        self._connection.set_ciphertext_mtu(MTU)
        self._below.received = self._datagram_received
        self._proceed()

    def write(self, data: bytes) -> None:
        if data:
            self._connection.send(data)
        self._flush()

    def close(self) -> Any:
        if not self.closed.called:
            self._connection.shutdown()
            self._flush()
            self.closed.callback(None)
        return self._below.close()

    def vanish(self) -> Any:
        """Close the socket without a word to the relay."""
        self.closed.callback(None)
        return self._below.close()

    def _datagram_received(self, datagram: bytes) -> None:
        self._connection.bio_write(datagram)
        self._proceed()

    def _proceed(self) -> None:
        try:
            if not self.established.called:
                self._connection.do_handshake()
                self._flush()
                self.established.callback(None)
            while True:
                self.received(self._connection.recv(65_536))
        except SSL.WantReadError:
            self._flush()
        except SSL.ZeroReturnError:
            if not self.closed.called:
                self.closed.callback(None)

    def _flush(self) -> None:
        try:
            flight = self._connection.bio_read(65_536)
        except SSL.WantReadError:
            return
        for datagram in split_flight(flight):
            self._below.write(datagram)


class WebSocketWire(WebSocketClientProtocol):  # type: ignore[misc]  # Autobahn is not typed
    """A WebSocket, over TCP or TLS. `code` is the code of the Close frame that came, if one did."""

    def __init__(self) -> None:
        super().__init__()
        self.received: Callable[[bytes], None] = lambda data: None
        self.closed: Deferred[None] = Deferred()
        self.opened: Deferred[None] = Deferred()
        self.code: int | None = None
        self.outer: TransportAddress | None = None
        self.raw: bytes | None = None
        self._reader: Callable[[bytes], None] | None = None
        self.end = ""

    @property
    def local(self) -> TransportAddress:
        """Where it connects from, or, where that has been set, the `outer` address that a proxy gave it."""
        if self.outer is not None:
            return self.outer
        host: Any = self.transport.getHost()
        return TransportAddress.parse(host.host, host.port)

    def onOpen(self) -> None:
        self.opened.callback(None)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        assert isBinary
        if self._reader is not None:
            self._reader(payload)
            return
        if self.raw is not None:
            self.raw += payload
            return
        self.received(payload)
        if payload.startswith(_BIND_GRANTED):
            self.raw = b""

    def read_by(self, reader: Callable[[bytes], None]) -> None:
        """From now on it gets what comes behind a granted ConnectionBind, first what has come already."""
        self._reader = reader
        raw, self.raw = self.raw, b""
        if raw:
            reader(raw)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.code = code
        self.end = "closed" if wasClean else "reset"
        if not self.opened.called:
            self.opened.errback(ConnectionError(reason))
        self.closed.callback(None)

    def write(self, data: bytes) -> None:
        if not self.closed.called:
            self.sendMessage(data, isBinary=True)

    def close(self) -> Any:
        if not self.closed.called:
            self.sendClose()
        return self.closed

    def abort(self) -> None:
        """Reset the connection."""
        self.transport.abortConnection()


class WebSocketWireFactory(WebSocketClientFactory):  # type: ignore[misc]
    """Makes them; `settings` go to Autobahn's factory."""

    protocol = WebSocketWire
    noisy = False

    def __init__(self, path: str = "/turn", **settings: Any) -> None:
        super().__init__(f"ws://localhost{path}", reactor=reactor, **settings)
        # No timers: they would be left behind in the reactor. `patiently` has one.
        self.setProtocolOptions(openHandshakeTimeout=0, closeHandshakeTimeout=0, serverConnectionDropTimeout=0)


async def connect(kind: AppConnection, server: TransportAddress, certificate: Certificate) -> Any:
    """A `Wire` of that kind to the relay, ready for messages. TLS trusts that certificate and no other."""
    if kind is AppConnection.UDP:
        return UdpWire(server)
    if kind is AppConnection.DTLS:
        wire = DtlsWire(server)
        await patiently(wire.established)
        return wire
    kind_of_endpoint = TCP4ClientEndpoint if len(server.ip) == 4 else TCP6ClientEndpoint
    endpoint: Any = kind_of_endpoint(reactor, server.host, server.port)
    if kind in (AppConnection.TLS, AppConnection.WSS):
        trusted = TrustRoot.loadPEM(certificate.certificate.read_bytes())
        endpoint = wrapClientTLS(optionsForClientTLS("localhost", trustRoot=trusted), endpoint)
    if kind in (AppConnection.WS, AppConnection.WSS):
        websocket: Any = await endpoint.connect(WebSocketWireFactory())
        await patiently(websocket.opened)
        return websocket
    return await connectProtocol(endpoint, StreamWire())


def patiently(waiting: Deferred[Any]) -> Deferred[Any]:
    """The same, or a TimeoutError after `PATIENCE`."""
    return waiting.addTimeout(PATIENCE, reactor)
