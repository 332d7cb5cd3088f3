"""The transport that an application has to a peer: it keeps Twisted's word about pauses, ends and failures."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionDone, NoProtocol
from twisted.internet.interfaces import IConsumer, IPushProducer, ITCPTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from relayd.address import TransportAddress
from relayd.client.carriers import StreamCarrier
from relayd.client.data_connection import DataConnection
from relayd.stun.message import TRANSACTION_ID_SIZE, Class, Method, encode
from relayd.turn.client_authentication import ClientAuthentication
from relayd.turn.client_connections import ConnectionBind

BOUND = encode(Method.CONNECTION_BIND, Class.SUCCESS, bytes(TRANSACTION_ID_SIZE))


class Transport(StringTransport):
    """One whose end has to be told by the test, and that hears of no delay."""

    aborted = False
    no_delay = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def getTcpNoDelay(self) -> bool:
        return self.no_delay

    def abortConnection(self) -> None:
        self.aborted = True


def make_transport() -> Any:
    return Transport()  # type: ignore[no-untyped-call]


class Application(Protocol):
    """What it heard, turn by turn; `at_first` is what it does when it is connected."""

    def __init__(self, at_first: str = "") -> None:
        self.heard: list[bytes] = []
        self.is_lost = False
        self._at_first = at_first

    def connectionMade(self) -> None:
        if self._at_first:
            getattr(self.transport, self._at_first)()

    def dataReceived(self, data: bytes) -> None:
        assert not self.is_lost
        self.heard.append(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.is_lost = True


class Producer:
    """A push producer that has nothing to say."""

    def __init__(self) -> None:
        self.is_stopped = False

    def pauseProducing(self) -> None:
        raise AssertionError("nothing was written")

    resumeProducing = pauseProducing

    def stopProducing(self) -> None:
        self.is_stopped = True


class Case:
    """A data connection that has asked to be bound, over a TCP connection unless it is said to be TLS."""

    def __init__(self, application: Any, *, tls: bool = False) -> None:
        self.clock = Clock()
        self._application = application
        self.transport: Any = make_transport()
        self.opened: list[Any] = []
        self.gone: list[DataConnection] = []
        core = ConnectionBind(1, ClientAuthentication("alice", "correct-horse"), bytes)
        peer, relayed = TransportAddress.parse("192.0.2.9", 80), TransportAddress.parse("192.0.2.1", 50_000)
        factory: Any = Factory()
        factory.buildProtocol = lambda _: application() if callable(application) else application
        factory.noisy = False
        self.data = DataConnection(self.clock, core, factory, peer, relayed, None, self._gone)
        self.data.opened.addBoth(self.opened.append)
        self.carrier = StreamCarrier(self.data, not tls)
        self.carrier.makeConnection(self.transport)  # type: ignore[no-untyped-call]
        self.transport.clear()

    def _gone(self, data: DataConnection) -> None:
        assert getattr(self._application, "is_lost", True), "who waits for the end finds the application unaware of it"
        self.gone.append(data)

    def hear(self, data: bytes) -> None:
        self.carrier.dataReceived(data)

    def lose(self) -> None:
        """The connection ends, and nothing is left to be done."""
        self.carrier.connectionLost(Failure(ConnectionDone()))
        assert self.gone == [self.data]
        assert self.clock.getDelayedCalls() == []


def test_it_is_a_tcp_transport() -> None:
    """With all that Twisted says one has: protocols ask for it and take its options for granted."""
    case = Case(Application())
    case.hear(BOUND)
    for interface in (ITCPTransport, IConsumer, IPushProducer):
        assert verifyObject(interface, case.data)
    case.data.setTcpNoDelay(True)
    assert case.transport.no_delay
    assert case.data.getTcpNoDelay()
    case.lose()


def test_paused_from_the_first() -> None:
    """What came behind the answer to ConnectionBind waits until the protocol wants it, and keeps its place."""
    application = Application("pauseProducing")
    case = Case(application)
    case.hear(BOUND + b"early ")
    case.hear(b"late ")
    case.clock.advance(1)
    assert application.heard == []
    assert case.transport.producerState == "paused"
    case.data.resumeProducing()
    assert application.heard == [], "data in the middle of a call of the application"
    case.hear(b"last")
    case.clock.advance(0)
    assert b"".join(application.heard) == b"early late last"
    assert case.transport.producerState == "producing"
    case.hear(b"now")
    assert application.heard[-1] == b"now"
    case.lose()


def test_paused_again_at_once() -> None:
    """Resuming and pausing within one turn is to be paused."""
    application = Application("pauseProducing")
    case = Case(application)
    case.hear(BOUND + b"early")
    case.data.resumeProducing()
    case.data.pauseProducing()
    case.clock.advance(0)
    assert application.heard == []
    assert case.transport.producerState == "paused"
    case.lose()


def test_the_end_does_not_take_what_waits() -> None:
    """A protocol that is paused, when the connection ends, hears the rest first."""
    application = Application("pauseProducing")
    case = Case(application)
    case.hear(BOUND + b"early")
    case.data.resumeProducing()
    case.lose()
    assert application.heard == [b"early"]
    assert application.is_lost


@pytest.mark.parametrize("how", ["loseConnection", "abortConnection"])
def test_who_hangs_up_hears_no_more(how: str) -> None:
    """Not even what came before."""
    application = Application(how)
    case = Case(application)
    case.hear(BOUND + b"early")
    case.hear(b"late")
    assert application.heard == []
    assert case.transport.disconnecting or case.transport.aborted
    case.lose()
    assert application.is_lost


def test_a_peer_that_leaves_stops_a_producer() -> None:
    """A protocol that knows of no half-close is told of the end, though its push producer is not done."""
    application = Application()
    case = Case(application)
    case.hear(BOUND)
    producer = Producer()
    case.data.registerProducer(producer, True)
    case.data.write(b"written")
    case.carrier.readConnectionLost()
    assert producer.is_stopped
    assert case.transport.producer is None
    assert case.transport.disconnecting
    assert case.transport.value() == b"written"
    case.lose()
    assert application.is_lost


def test_leaving_while_paused() -> None:
    """TLS is closed when the other side has answered that, so its answer is read."""
    application = Application("pauseProducing")
    case = Case(application, tls=True)
    case.hear(BOUND + b"early")
    case.data.loseConnection()
    assert case.transport.disconnecting
    assert case.transport.producerState == "producing"
    case.hear(b"late")
    case.lose()
    assert application.heard == []


class _Broken(Protocol):
    def connectionMade(self) -> None:
        raise RuntimeError("on purpose")


def _no_protocol() -> None:
    return


def _fails() -> None:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize(("application", "expected"), [(_no_protocol, NoProtocol), (_fails, RuntimeError)])
def test_a_factory_without_a_protocol(application: Any, expected: type) -> None:
    """It resets the connection, and its failure is told as it is: nothing is wrong with the relay."""
    case = Case(application)
    case.hear(BOUND + b"early")
    (failure,) = case.opened
    assert failure.check(expected)
    assert case.transport.aborted
    case.lose()


def test_a_protocol_that_fails_at_first() -> None:
    """The same; and it is told nothing more."""
    case = Case(_Broken())
    case.hear(BOUND + b"early")
    (failure,) = case.opened
    assert failure.check(RuntimeError)
    assert case.transport.aborted
    case.lose()
