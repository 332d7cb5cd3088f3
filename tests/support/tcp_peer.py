"""A TCP peer beyond the relay, and a client's data connections to it (RFC 6062)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredQueue, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import TransportAddress
from tests.support.certificate import Certificate
from tests.support.turn_client import eventually
from tests.support.wires import patiently, reactor


@implementer(IHalfCloseableProtocol)
class Conversation(Protocol):
    """A peer's end of one connection: what it heard, and how that ended: "", "all", "closed" or "reset"."""

    def __init__(self) -> None:
        self.heard = b""
        self.end = ""
        self._reader: Callable[[bytes], None] | None = None
        self.gone: Deferred[None] = Deferred()

    @property
    def remote(self) -> TransportAddress:
        peer: Any = self.transport.getPeer()  # type: ignore[union-attr]
        return TransportAddress.parse(peer.host, peer.port)

    @property
    def local(self) -> TransportAddress:
        host: Any = self.transport.getHost()  # type: ignore[union-attr]
        return TransportAddress.parse(host.host, host.port)

    def dataReceived(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader(data)
        else:
            self.heard += data

    def read_by(self, reader: Callable[[bytes], None]) -> None:
        """From now on it hears, first what has come already."""
        self._reader = reader
        heard, self.heard = self.heard, b""
        if heard:
            reader(heard)

    def readConnectionLost(self) -> None:
        self.end = "all"

    def writeConnectionLost(self) -> None:
        """We said all."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        assert reason is not None
        self.end = "closed" if reason.check(ConnectionDone) else "reset"
        self.gone.callback(None)

    def say(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]

    def say_all(self) -> None:
        """End our direction."""
        self.transport.loseWriteConnection()  # type: ignore[union-attr]

    def close(self) -> Deferred[None]:
        self.transport.loseConnection()  # type: ignore[union-attr]
        return self.gone

    def reset(self) -> None:
        self.transport.abortConnection()  # type: ignore[union-attr]

    async def hears(self, data: bytes) -> None:
        """Wait until that, and nothing else, has come."""
        await eventually(lambda: len(self.heard) >= len(data))
        assert self.heard == data


class Conversations(ServerFactory):
    """What a listening peer hears, connection by connection."""

    noisy = False

    def __init__(self) -> None:
        self.made: list[Conversation] = []
        self._queue: DeferredQueue[Conversation] = DeferredQueue()

    def buildProtocol(self, addr: Any) -> Conversation:
        made = Conversation()
        self.made.append(made)
        self._queue.put(made)
        return made

    def next(self) -> Deferred[Conversation]:
        return patiently(self._queue.get())


class TcpPeer(Conversations):
    """A peer that listens, with TLS where it has a certificate."""

    def __init__(self, host: str, certificate: Certificate | None = None) -> None:
        super().__init__()
        if certificate is None:
            self._port = reactor.listenTCP(0, self, interface=host)
        else:
            context = DefaultOpenSSLContextFactory(str(certificate.key), str(certificate.certificate))
            self._port = reactor.listenSSL(0, self, context, interface=host)
        bound: Any = self._port.getHost()
        self.address = TransportAddress.parse(host, bound.port)

    async def close(self) -> None:
        await maybeDeferred(self._port.stopListening)
        for conversation in self.made:
            if conversation.end not in ("closed", "reset"):
                await conversation.close()


async def call(relayed: TransportAddress, source: TransportAddress | None = None) -> Conversation:
    """A peer that opens a connection to a relayed address."""
    kind = TCP4ClientEndpoint if len(relayed.ip) == 4 else TCP6ClientEndpoint
    bind = (source.host, source.port) if source is not None else None
    endpoint: Any = kind(reactor, relayed.host, relayed.port, bindAddress=bind)
    connected: Conversation = await connectProtocol(endpoint, Conversation())
    return connected
