"""A client's data connection (RFC 6062 section 4.3): it is bound to a CONNECTION-ID, and then is a peer's.

The connection to the server, of whatever kind, feeds `DataConnection`, which is the transport of the application's
protocol. `can_half_close` is whether one direction can end alone: over TCP it can, over TLS and WebSocket it cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import NoProtocol
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    ITCPTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.errors import RelaydError, ServerUnavailable
from relayd.pump import Pump
from relayd.turn.client_connections import Bound, ConnectionBind, NotBound
from relayd.twisted_address import TwistedAddress, to_twisted


class Carrier(Protocol):
    """The connection to the server, as a stream of bytes whatever it is made of."""

    can_half_close: bool
    largest_write: int  # bytes

    @property
    def stream(self) -> Any:
        """The transport below, for reading and producers."""

    def write(self, data: bytes) -> None:
        """Send at most `largest_write` bytes."""

    def leave(self) -> None:
        """Close it behind what was written."""


@implementer(ITCPTransport, IConsumer, IPushProducer)
class DataConnection:
    """Binds, and then is the transport of what `factory` builds. `opened` fires with that protocol.

    It fails with RemoteError where the server refuses, with what the factory or its protocol raised (NoProtocol where
    there was none), and with ServerUnavailable else; cancelling closes it.
    """

    _log = Logger()

    disconnecting = False

    def __init__(
        self,
        clock: Any,
        core: ConnectionBind,
        factory: IProtocolFactory,
        peer: TransportAddress,
        relayed: TransportAddress,
        protocol: bytes | None,
        ended: Callable[[DataConnection], None],
    ) -> None:
        """`protocol` is what the peer chose by ALPN. `ended` is called once it is gone, if it was ever there, and the
        application has been told so.
        """
        self.negotiatedProtocol = protocol  # where Twisted's TLS connections have it
        self.opened: Deferred[Any] = Deferred(lambda _: self.abortConnection())
        self._clock = clock
        self._core = core
        self._pump: Pump[Any] = Pump(core, clock, self._perform)
        self._factory: Any = factory
        self.peer = peer
        self._relayed = relayed
        self._ended = ended
        self._carrier: Carrier | None = None
        self._protocol: Any = None
        self._is_started = False
        self._bound: Bound | None = None
        self._producer: Any = None  # that of the application
        self._is_paused = False
        self._held = b""  # what came while nobody wanted it
        self._delivery: IDelayedCall | None = None

    # --- what the carrier calls -----------------------------------------------------------------------------------

    def carried_by(self, carrier: Carrier) -> None:
        """There is a connection to the server."""
        self._carrier = carrier
        self._core.begin(self._clock.seconds())
        self._pump.run()

    @property
    def is_carried(self) -> bool:
        """Whether there is, or was, a connection to the server."""
        return self._carrier is not None

    def received(self, data: bytes) -> None:
        """Bytes from the server."""
        if self._bound is None:
            self._core.receive(data, self._clock.seconds())
            self._pump.run()
            self._begin()
        elif self._is_paused or self._held:
            self._held += data
        else:
            self._hand_over(data)

    def heard_all(self) -> None:
        """The other end has said all. A protocol that does not know of such a thing is closed behind what it wrote, and
        its producer is stopped: as far as it can tell, nobody is there any more.
        """
        self._deliver()
        if IHalfCloseableProtocol.providedBy(self._protocol):
            self._tell(self._protocol.readConnectionLost)
            return
        self.loseConnection()
        if self._producer is not None:
            self._tell(self._producer.stopProducing)
            self.unregisterProducer()

    def said_all(self) -> None:
        """The other end has taken our end of it."""
        if IHalfCloseableProtocol.providedBy(self._protocol):
            self._tell(self._protocol.writeConnectionLost)

    def lost(self, reason: Failure, words: str) -> None:
        """The connection is gone."""
        self._pump.stop()
        self._deliver()
        protocol, self._protocol = self._protocol, None
        self._fail(ServerUnavailable(words))
        if protocol is not None:
            try:
                protocol.connectionLost(reason)
            except Exception:
                self._log.failure("a protocol failed at the end of its connection")
        if self._is_started:
            self._is_started = False
            self._factory.doStop()
        self._ended(self)

    # --- ITCPTransport --------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """See `ITransport.write`."""
        carrier = self._carrier
        if carrier is None:
            return
        if len(data) <= carrier.largest_write:
            if data:
                carrier.write(data)
            return
        for at in range(0, len(data), carrier.largest_write):
            carrier.write(data[at : at + carrier.largest_write])

    def writeSequence(self, data: Any) -> None:
        """See `ITransport.writeSequence`."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close it behind what was written, and behind what a producer has still to write."""
        if not self.disconnecting:
            self.disconnecting = True
            self._leave_in_time()

    def loseWriteConnection(self) -> None:
        """End our direction alone; where that cannot be, close both behind what was written."""
        carrier = self._carrier
        if carrier is not None and carrier.can_half_close:
            carrier.stream.loseWriteConnection()
        else:
            self.loseConnection()

    @property
    def transport(self) -> Any:
        """The one below."""
        return None if self._carrier is None else self._carrier.stream

    @property
    def can_half_close(self) -> bool:
        """Whether one direction can end alone."""
        return self._carrier is not None and self._carrier.can_half_close

    def abortConnection(self) -> None:
        """Reset it: nothing that was written has to arrive."""
        self.disconnecting = True
        if self._carrier is not None:
            self._carrier.stream.abortConnection()

    def getPeer(self) -> TwistedAddress:
        """The peer."""
        return to_twisted(self.peer)

    def getHost(self) -> TwistedAddress:
        """The relayed address, from which the peer is reached."""
        return to_twisted(self._relayed)

    def getTcpNoDelay(self) -> bool:
        """As the three below: of the connection to the relay. The relay's own to the peer has it, too."""
        return bool(self._carried.stream.getTcpNoDelay())

    def setTcpNoDelay(self, enabled: bool) -> None:
        """See `ITCPTransport.setTcpNoDelay`."""
        self._carried.stream.setTcpNoDelay(enabled)

    def getTcpKeepAlive(self) -> bool:
        """See `ITCPTransport.getTcpKeepAlive`."""
        return bool(self._carried.stream.getTcpKeepAlive())

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """See `ITCPTransport.setTcpKeepAlive`."""
        self._carried.stream.setTcpKeepAlive(enabled)

    # --- IConsumer and IPushProducer --------------------------------------------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See `IConsumer.registerProducer`."""
        self._carried.stream.registerProducer(producer, streaming)
        self._producer = producer

    def unregisterProducer(self) -> None:
        """See `IConsumer.unregisterProducer`."""
        if self._producer is not None:
            self._producer = None
            self._carried.stream.unregisterProducer()
            if self.disconnecting:
                self._leave_in_time()

    def pauseProducing(self) -> None:
        """Read no more for the time being: the peer is made to wait. What has been read already is kept."""
        self._is_paused = True
        self._carried.stream.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again."""
        self._is_paused = False
        if not self._held:
            self._carried.stream.resumeProducing()
        elif self._delivery is None:  # in another turn: nobody expects data in the middle of this call
            self._delivery = self._clock.callLater(0, self._resume)

    def stopProducing(self) -> None:
        """See `IProducer.stopProducing`."""
        self.loseConnection()

    # --- within ---------------------------------------------------------------------------------------------------

    @property
    def _carried(self) -> Carrier:
        assert self._carrier is not None  # no protocol has this transport before
        return self._carrier

    def _perform(self, output: Any) -> None:
        if isinstance(output, Bound):
            self._pump.stop()
            self._bound = output
        elif isinstance(output, NotBound):
            self._pump.stop()
            self._fail(output.error)
            self.loseConnection()
        else:
            self.write(output.data)

    def _begin(self) -> None:
        if self._bound is None:
            return
        self._held = self._bound.early
        self._factory.doStart()
        self._is_started = True
        try:
            protocol: IProtocol | None = self._factory.buildProtocol(self.getPeer())
            if protocol is None:
                raise NoProtocol
            self._protocol = protocol
            protocol.makeConnection(self)
        except Exception:
            self._protocol = None
            self._held = b""
            failure = Failure()
            self.abortConnection()
            if not self.opened.called:
                self.opened.errback(failure)
            return
        if not self.opened.called:
            self.opened.callback(protocol)
        if not self._is_paused and self._delivery is None:
            self._deliver()

    def _resume(self) -> None:
        self._delivery = None
        if not self._is_paused:
            self._deliver()
        if not self._is_paused:
            self._carried.stream.resumeProducing()

    def _deliver(self) -> None:
        """Hand over what was held."""
        if self._delivery is not None:
            self._delivery.cancel()
            self._delivery = None
        held, self._held = self._held, b""
        if held:
            self._hand_over(held)

    def _hand_over(self, data: bytes) -> None:
        if self._protocol is not None and not self.disconnecting:  # as a socket: who hangs up hears no more
            self._tell(self._protocol.dataReceived, data)

    def _leave_in_time(self) -> None:
        if self._carrier is not None and self._producer is None:
            self._carrier.leave()

    def _fail(self, error: RelaydError) -> None:
        if not self.opened.called:
            self.opened.errback(error)

    def _tell(self, listener: Callable[..., Any], *arguments: Any) -> None:
        try:
            listener(*arguments)
        except Exception:
            self._log.failure("a protocol failed at what it received")
            self.abortConnection()
