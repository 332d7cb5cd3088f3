"""The client's end of DTLS, against our own server's in memory: whom it believes, and how it may end.

Nothing here waits: no flight is lost on the way, and the shell's clock is stepped.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from OpenSSL import SSL, crypto
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock

from relayd.address import AppConnection
from relayd.client.transports.dtls import HANDSHAKE_TIMEOUT, DtlsConnection, connect_dtls
from relayd.client.transports.server import Server
from relayd.dtls import MAX_PLAINTEXT, Deliver, DtlsContext, DtlsServer, DtlsSession, Ended, Established, Transmit
from relayd.dtls_client import DtlsClientContext, DtlsClientSession
from relayd.errors import ConfigurationError, ServerUnavailable
from tests.support.certificate import make_certificate

CLIENT = b"the client's address"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Certificate and key, for localhost, 127.0.0.1 and ::1."""
    made = make_certificate(tmp_path_factory.mktemp("tls"))
    return made.certificate.read_bytes(), made.key.read_bytes()


@pytest.fixture
def trust(pem: tuple[bytes, bytes]) -> Callable[[SSL.Context], None]:
    """Makes a context trust that certificate."""
    certificate = crypto.load_certificate(crypto.FILETYPE_PEM, pem[0])

    def put(context: SSL.Context) -> None:
        store = context.get_cert_store()
        assert store is not None
        store.add_cert(certificate)

    return put


class Remote:
    """A DTLS server, and its session with the one client."""

    def __init__(self, pem: tuple[bytes, bytes]) -> None:
        self._server = DtlsServer(DtlsContext(*pem), random.Random(1).randbytes)
        self.session: DtlsSession | None = None
        self.received: list[Any] = []

    def take(self, datagram: bytes) -> list[bytes]:
        """What it answers to a datagram."""
        if self.session is None:
            answer = self._server.receive(CLIENT, datagram, 0.0)
            if isinstance(answer, Transmit):
                return [answer.datagram]
            self.session = answer
        else:
            self.session.receive(datagram, 0.0)
        return self.flush()

    def flush(self) -> list[bytes]:
        datagrams = []
        while self.session is not None and (output := self.session.next_output()) is not None:
            if isinstance(output, Transmit):
                datagrams.append(output.datagram)
            else:
                self.received.append(output)
        return datagrams


class Below:
    """The UDP socket: straight to the remote, one datagram after the other, unless the line is cut."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.receiver: Any = None
        self.is_cut = False
        self.closed = 0
        self.dropped = 0
        self._waiting: list[bytes] = []
        self._is_busy = False

    def write(self, data: bytes) -> None:
        if not self.is_cut:
            self.deliver(self.remote.take(data))

    write_data = write

    def deliver(self, datagrams: list[bytes]) -> None:
        """To the client, after what is on its way to it already."""
        self._waiting += datagrams
        if self._is_busy:
            return
        self._is_busy = True
        while self._waiting:
            self.receiver.message_received(self._waiting.pop(0))
        self._is_busy = False

    def close(self) -> Deferred[None]:
        self.closed += 1
        return succeed(None)


class Case:
    """A client that wants a session with the server of that name."""

    def __init__(self, pem: tuple[bytes, bytes], trust: Any, name: str = "localhost", *, is_cut: bool = False) -> None:
        self.clock = Clock()
        self.remote = Remote(pem)
        self.below = Below(self.remote)
        self.below.is_cut = is_cut
        self.messages: list[bytes] = []
        self.doubts: list[str] = []
        self.errors: list[str] = []
        session = DtlsClientSession(DtlsClientContext(trust), name, self.clock.seconds())
        self.connection = DtlsConnection(self.clock, self, session)
        self.below.receiver = self.connection
        self.results: list[Any] = []
        self.opening = self.connection.start(self.below).addBoth(self.results.append)

    def message_received(self, data: bytes) -> None:
        self.messages.append(data)

    def connection_doubtful(self, error: ServerUnavailable) -> None:
        self.doubts.append(str(error))

    def connection_lost(self, error: ServerUnavailable) -> None:
        self.errors.append(str(error))

    def failure(self) -> str:
        """What opening failed with, once and for all."""
        (failure,) = self.results
        assert isinstance(failure.value, ServerUnavailable)
        assert self.below.closed >= 1
        assert self.clock.getDelayedCalls() == []
        assert self.errors == []
        return str(failure.value)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_a_session(pem: tuple[bytes, bytes], trust: Any, name: str) -> None:
    """A handshake with a server that proves its name or address; then datagrams both ways; nothing left behind."""
    case = Case(pem, trust, name)
    assert case.results == [case.connection]
    assert case.remote.received == [Established(b"stun.turn")]
    assert case.clock.getDelayedCalls() == []
    case.connection.write(b"request")
    case.connection.write_data(b"data")
    assert case.remote.received[1:] == [Deliver(b"request"), Deliver(b"data")]
    assert case.remote.session is not None
    case.remote.session.send(b"answer")
    case.below.deliver(case.remote.flush())
    assert case.messages == [b"answer"]
    case.connection.close()
    assert case.remote.received[3:] == [Ended("closed")]
    assert (case.below.closed, case.errors) == (1, [])


def test_what_no_record_can_carry(pem: tuple[bytes, bytes], trust: Any) -> None:
    """A datagram that is too long is dropped and counted; the session goes on."""
    case = Case(pem, trust)
    case.connection.write_data(bytes(MAX_PLAINTEXT + 1))
    case.connection.write_data(b"short")
    assert case.connection.dropped == 1
    assert case.remote.received[1:] == [Deliver(b"short")]


def test_another_name(pem: tuple[bytes, bytes], trust: Any) -> None:
    """A trusted certificate for somebody else is refused, and nothing but the alert is sent."""
    for name in ("relay.example.org", "192.0.2.1", "example.localhost"):
        case = Case(pem, trust, name)
        assert case.failure() == f"DTLS: the certificate is not for {name}"
        assert not any(isinstance(output, Established | Deliver) for output in case.remote.received)


def test_an_unknown_authority(pem: tuple[bytes, bytes]) -> None:
    """A certificate that nobody trusted vouches for is refused, be it for the right name."""
    assert Case(pem, lambda context: None).failure() == "DTLS: certificate verify failed"


def test_no_answer(pem: tuple[bytes, bytes], trust: Any) -> None:
    """A server that does not answer the handshake is given up."""
    case = Case(pem, trust, is_cut=True)
    case.clock.advance(HANDSHAKE_TIMEOUT)
    assert case.failure() == "no answer to the DTLS handshake within 10 seconds"


def test_icmp(pem: tuple[bytes, bytes], trust: Any) -> None:
    """That nothing listens there ends a handshake, and is only a doubt about a session."""
    case = Case(pem, trust, is_cut=True)
    case.connection.connection_doubtful(ServerUnavailable("nothing listens"))
    assert case.failure() == "nothing listens"
    case = Case(pem, trust)
    case.connection.connection_doubtful(ServerUnavailable("nothing listens"))
    assert (case.doubts, case.errors) == (["nothing listens"], [])


def test_cancelled(pem: tuple[bytes, bytes], trust: Any) -> None:
    """Who does not want to wait closes the socket at once."""
    case = Case(pem, trust, is_cut=True)
    case.opening.cancel()
    assert case.results[0].check(CancelledError)
    assert case.below.closed == 1
    assert case.clock.getDelayedCalls() == []


def test_the_server_closes(pem: tuple[bytes, bytes], trust: Any) -> None:
    """The end of the session is told, once; what is written after it goes nowhere."""
    case = Case(pem, trust)
    assert case.remote.session is not None
    case.remote.session.close()
    case.below.deliver(case.remote.flush())
    assert case.errors == ["the server closed the DTLS session"]
    case.connection.write(b"too late")
    case.connection.close()
    assert case.errors == ["the server closed the DTLS session"]


@pytest.mark.parametrize("garbage", [b"", b"\x00", b"\x16\xfe\xfd" + bytes(30), bytes(2000)])
def test_garbage(pem: tuple[bytes, bytes], trust: Any, garbage: bytes) -> None:
    """What did not come from the server is dropped, before and after the handshake."""
    early = Case(pem, trust, is_cut=True)
    early.connection.message_received(garbage)
    assert early.results == []
    early.connection.close()
    case = Case(pem, trust)
    case.connection.message_received(garbage)
    case.connection.write(b"request")
    assert case.remote.received[1:] == [Deliver(b"request")]


def test_a_name_that_no_certificate_can_be_for() -> None:
    """It is an error before anything is opened."""
    with pytest.raises(ConfigurationError):
        connect_dtls(Clock(), Server("192.0.2.1", 1, AppConnection.DTLS, "a" * 64 + ".example"), None, object())  # type: ignore[arg-type]
