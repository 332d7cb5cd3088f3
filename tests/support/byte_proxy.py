"""A TCP proxy that passes bytes on as awkwardly as it is told, and nothing else. It knows no protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ClientFactory, ServerFactory
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.python.failure import Failure

from relayd.address import TransportAddress
from tests.support.wires import reactor

Passage = Callable[[int], int]
"""How bytes pass in one direction: called in every turn of the reactor with how many wait, it says how many go on."""


def at_once() -> Passage:
    """All of them."""
    return lambda waiting: waiting


def in_pieces(sizes: Iterable[int]) -> Passage:
    """Pieces of these sizes over and over, one in each turn, so that cuts fall everywhere."""
    endless = cycle(sizes)
    return lambda waiting: next(endless)


def held_back(turns: int, most: int) -> Passage:
    """Nothing for so many turns or until `most` wait, and then all of them in one piece."""
    left = turns

    def passage(waiting: int) -> int:
        nonlocal left
        left -= 1
        if left and waiting < most:
            return 0
        left = turns
        return waiting

    return passage


class _End(StreamProtocol):
    """One of two connections, and what came on it and has not gone out on the other one yet."""

    def __init__(self, proxy: ByteProxy, other: _End | None) -> None:
        """Without `other` it is the first of the two, and brings the second one about."""
        self.other = other
        self.gone: Deferred[None] = Deferred()
        self.heard_at = proxy.clock.seconds()
        self._proxy = proxy
        self._passage = proxy.make_passage()
        self._waiting = bytearray()
        self._turn: IDelayedCall | None = None

    @property
    def address(self) -> TransportAddress:
        """Of the proxy, on this connection."""
        host: Any = self.transport.getHost()  # type: ignore[union-attr]
        return TransportAddress.parse(host.host, host.port)

    @property
    def remote(self) -> TransportAddress:
        peer: Any = self.transport.getPeer()  # type: ignore[union-attr]
        return TransportAddress.parse(peer.host, peer.port)

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)  # type: ignore[union-attr]
        self._proxy.ends.add(self)
        if self.other is None:
            self._proxy.connect(self)
        else:
            self.other.other = self
            self.other.proceed()

    def dataReceived(self, data: bytes) -> None:
        self.heard_at = self._proxy.clock.seconds()
        self._waiting += data
        self.proceed()

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._proxy.ends.discard(self)
        self.gone.callback(None)
        self.proceed()

    def proceed(self) -> None:
        """What waits goes on from turn to turn, and then the end of this connection, if it has come."""
        if self._turn is None and self.other is not None and (self._waiting or self.gone.called):
            self._turn = reactor.callLater(0, self._next_turn)

    def abort(self) -> Deferred[None]:
        """End this connection, and drop what it brought."""
        self._waiting.clear()
        self.transport.abortConnection()  # type: ignore[union-attr]
        return self.gone

    def _next_turn(self) -> None:
        self._turn = None
        assert self.other is not None  # or there would be no turn
        if self.other.gone.called:
            return
        beyond: Any = self.other.transport
        if not self._waiting:
            beyond.loseConnection()
            return
        count = self._passage(len(self._waiting))
        beyond.write(bytes(self._waiting[:count]))
        del self._waiting[:count]
        self.proceed()


class ByteProxy:
    """Listens at `address`, on the host of `target`, to which it connects once for each connection that comes."""

    def __init__(self, target: TransportAddress, make_passage: Callable[[], Passage], clock: Any = reactor) -> None:
        """There is a passage for each direction of each connection; `clock` is what `drop_idle` goes by."""
        self.make_passage = make_passage
        self.clock = clock
        self.ends: set[_End] = set()
        self._target = target
        factory: Any = ServerFactory()
        factory.buildProtocol = lambda _: _End(self, None)
        factory.noisy = False
        self._port: Any = reactor.listenTCP(0, factory, interface=target.host)
        self.address = target.with_port(self._port.getHost().port)

    def connect(self, first: _End) -> None:
        """Make the second connection for one that came."""
        factory: Any = ClientFactory()
        factory.buildProtocol = lambda _: _End(self, first)
        factory.clientConnectionFailed = lambda *_: first.abort()
        factory.noisy = False
        reactor.connectTCP(self._target.host, self._target.port, factory)

    def outer(self, client: TransportAddress) -> TransportAddress:
        """How the target knows that client: where its connection comes from."""
        (first,) = [end for end in self.ends if end.remote == client]
        assert first.other is not None
        return first.other.address

    def drop_idle(self, limit: float) -> None:
        """Break every connection on which the target has said nothing for so many seconds, as web proxies do."""
        for end in list(self.ends):
            if end.remote == self._target and self.clock.seconds() - end.heard_at > limit:
                end.abort()

    async def close(self) -> None:
        """Stop listening, and break what is left."""
        await self._port.stopListening()
        await DeferredList([end.abort() for end in list(self.ends)])
