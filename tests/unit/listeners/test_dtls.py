"""Promises of relayd.listeners.dtls: sessions come, are replaced and go, and nothing is kept that was not earned."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from relayd.address import AppConnection, FiveTuple, Path, TransportAddress
from relayd.config import ListenerSettings
from relayd.dataplane.flow import Flow
from relayd.dtls import DtlsContext, split_flight
from relayd.errors import ConfigurationError
from relayd.interfaces import IClientPath, IDatagramReceiver, IListener, TurnedAway
from relayd.listeners.dtls import DtlsListener, open_dtls
from relayd.tls.certificates import Current
from tests.support.certificate import Certificate, make_certificate
from tests.unit.listeners.fakes import FakeDataPlane, FakeRelay, FakeService

SERVER = TransportAddress.parse("192.0.2.1", 5349)
CLIENT = TransportAddress.parse("198.51.100.7", 50000)
PEER = TransportAddress.parse("203.0.113.5", 9)
BINDING = b"\0\1\0\0\x21\x12\xa4\x42transaction!"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Certificate and key in files."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def context(certificate: Certificate) -> DtlsContext:
    """What a listener speaks with."""
    return DtlsContext(certificate.certificate.read_bytes(), certificate.key.read_bytes())


class Below:
    """How the port reaches a client: datagrams wait here for the client to take them."""

    def __init__(self, client: TransportAddress) -> None:
        self.path = Path(FiveTuple(client, SERVER, 17), AppConnection.DTLS)
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> bool:
        self.sent.append(data)
        return True


class Client:
    """A DTLS client that is connected to a listener by calls. Each object is a new association."""

    def __init__(self, listener: DtlsListener, address: TransportAddress = CLIENT) -> None:
        self.listener = listener
        self.below: Any = Below(address)
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        context.set_options(SSL.OP_NO_QUERY_MTU)
        self.connection = SSL.Connection(context, None)
        self.connection.set_connect_state()
        self.connection.set_ciphertext_mtu(1200)

    def step(self) -> bool:
        """Take what has come, answer it; whether the handshake is complete on this side."""
        waiting, self.below.sent = self.below.sent, []
        for datagram in waiting:
            self.connection.bio_write(datagram)
        try:
            self.connection.do_handshake()
            done = True
        except SSL.WantReadError:
            done = False
        self.flush()
        return done

    def flush(self) -> None:
        try:
            flight = self.connection.bio_read(65536)
        except SSL.WantReadError:
            return
        for datagram in split_flight(flight):
            self.listener.datagram_received(self.below, datagram)

    def connect(self) -> Client:
        for _ in range(8):
            if self.step():
                return self
        raise AssertionError("the handshake did not come to an end")

    def send(self, data: bytes) -> None:
        self.connection.send(data)
        self.flush()

    def receive(self) -> Iterator[bytes]:
        """Everything that came since the last time; StopIteration at the end."""
        waiting, self.below.sent = self.below.sent, []
        for datagram in waiting:
            self.connection.bio_write(datagram)
            yield self.connection.recv(65536)


class Bench:
    """A listener on a simulated clock over a port that is none."""

    def __init__(self, context: DtlsContext, **settings: Any) -> None:
        self.clock = Clock()
        self.service = FakeService()
        self.plane = FakeDataPlane()
        service: Any = self.service
        self.listener = DtlsListener(
            Current(context), self.clock, service, ListenerSettings(**settings), random.Random(1).randbytes
        )
        plane: Any = self.plane
        self.listener.open(SERVER, plane)

    def seconds(self, count: float) -> None:
        """Let time pass, a quarter of a second at a time."""
        for _ in range(int(count * 4)):
            self.clock.advance(0.25)

    def check_nothing_is_left(self) -> None:
        assert self.clock.getDelayedCalls() == []
        assert self.listener.admission.total == 0
        assert not self.listener.admission._by_source
        assert not self.listener._clients
        assert not self.listener._handshakes


def test_a_message_comes_through_and_back(context: DtlsContext) -> None:
    """After the handshake the service hears plain messages on a `dtls` path, and its answers are encrypted."""
    bench = Bench(context)
    bench.service.answer = b"answer"
    client = Client(bench.listener).connect()
    client.send(BINDING)
    assert list(client.receive()) == [b"answer"]
    ((path, data),) = bench.service.received
    assert data == BINDING
    assert path.path == client.below.path
    assert verifyObject(IClientPath, path)
    assert verifyObject(IListener, bench.listener)
    assert verifyObject(IDatagramReceiver, bench.listener)
    assert bench.listener.description == "dtls 192.0.2.1:5349"


def test_channel_data_with_a_flow_goes_to_its_relay(context: DtlsContext) -> None:
    """The length field counts, not the size of the datagram; what has no flow goes up."""
    bench = Bench(context)
    client = Client(bench.listener).connect()
    client.send(b"\x40\x01\0\1x")
    path = bench.service.received[0][0]
    relay: Any = FakeRelay()
    path.flows[0x4001] = Flow(path, 0x4001, relay, PEER)
    for data in (b"\x40\x01\0\5hello\0\0\0", b"\x40\x01\0\x09lies", b"\x40\x02\0\2up"):
        client.send(data)
    assert relay.sent == [(PEER, b"hello")]
    assert bench.service.messages == [b"\x40\x01\0\1x", b"\x40\x02\0\2up"]
    assert path.send_channel_data(0x4001, b"abc")
    assert list(client.receive()) == [b"\x40\x01\0\3abc"]


def test_nothing_is_kept_for_hellos_without_a_cookie(context: DtlsContext) -> None:
    """A flood of ClientHellos from spoofed addresses leaves no session, no count and no delayed call."""
    bench = Bench(context)
    for port in range(1, 200):
        client = Client(bench.listener, CLIENT.with_port(port))
        client.step()
        assert len(client.below.sent) == 1
    bench.check_nothing_is_left()


def test_handshakes_are_limited_per_source(context: DtlsContext) -> None:
    """Breaking handshakes off makes no room for more than a source may have; others, and later ones, are served."""
    bench = Bench(context, max_connections_per_source=3, first_message_timeout=5.0)

    def begins(address: TransportAddress) -> bool:
        client = Client(bench.listener, address)
        client.step()
        client.step()
        began = list(bench.listener._handshakes.values())
        for handshake in began:
            handshake.close()
        return bool(began)

    assert [begins(CLIENT.with_port(port)) for port in range(1, 7)] == [True] * 3 + [False] * 3
    assert bench.listener.turned_away == {TurnedAway.HANDSHAKES: 3}
    assert begins(TransportAddress.parse("198.51.100.8", 1))
    bench.seconds(5)
    assert begins(CLIENT)
    bench.seconds(5)
    bench.check_nothing_is_left()


def test_an_unfinished_handshake_is_given_up(context: DtlsContext) -> None:
    """A client that proves its address and then falls silent is forgotten after the first-message timeout."""
    bench = Bench(context, first_message_timeout=5.0)
    client = Client(bench.listener)
    client.step()
    client.step()
    assert bench.listener.admission.total == 1
    bench.seconds(7)
    assert bench.service.closed == []
    bench.check_nothing_is_left()


def test_a_silent_session_is_closed(context: DtlsContext) -> None:
    """One that never says anything, or nothing for the idle timeout without an allocation, gets a close_notify."""
    bench = Bench(context, first_message_timeout=5.0, idle_timeout=20.0)
    silent = Client(bench.listener, CLIENT.with_port(1)).connect()
    idle = Client(bench.listener, CLIENT.with_port(2)).connect()
    user = Client(bench.listener, CLIENT.with_port(3)).connect()
    idle.send(BINDING)
    user.send(BINDING)
    bench.service.allocated.add(bench.service.received[1][0])
    bench.seconds(7)
    with pytest.raises(SSL.ZeroReturnError):
        list(silent.receive())
    bench.seconds(100)
    assert [path.path.client.port for path in bench.service.closed] == [1, 2]
    bench.service.allocated.clear()
    bench.seconds(2)
    bench.check_nothing_is_left()


def test_close_notify_ends_the_path(context: DtlsContext) -> None:
    """The service hears of it once."""
    bench = Bench(context)
    client = Client(bench.listener).connect()
    client.send(BINDING)
    client.connection.shutdown()
    client.flush()
    client.flush()
    assert bench.service.closed == [bench.service.received[0][0]]
    bench.seconds(2)
    bench.check_nothing_is_left()


def test_the_service_may_close_a_path(context: DtlsContext) -> None:
    """`close` is idempotent, and sending afterwards is refused."""
    bench = Bench(context)
    Client(bench.listener).connect().send(BINDING)
    path = bench.service.received[0][0]
    path.close()
    path.close()
    assert not path.send(b"x")
    assert not path.send_channel_data(0x4000, b"x")
    assert not path.send_from(PEER, PEER, b"x")
    assert bench.service.closed == [path]


def test_a_client_that_restarts_replaces_its_session(context: DtlsContext) -> None:
    """The old session serves until the new handshake is complete; then its path is closed, and the new one is heard."""
    bench = Bench(context)
    old = Client(bench.listener).connect()
    old.send(BINDING)
    new = Client(bench.listener)
    new.step()
    new.step()
    old.send(b"\x40\0\0\0")
    assert bench.service.messages == [BINDING, b"\x40\0\0\0"]
    assert bench.service.closed == []
    new.connect()
    assert bench.service.closed == [bench.service.received[0][0]]
    new.send(BINDING)
    old_path, _, new_path = (path for path, _ in bench.service.received)
    assert new_path is not old_path
    assert new_path.path == old_path.path
    assert bench.listener.admission.total == 1


def test_a_hello_alone_ends_no_session(context: DtlsContext) -> None:
    """Whoever can spoof the address, but not read what is sent there, changes nothing."""
    bench = Bench(context)
    client = Client(bench.listener).connect()
    client.send(BINDING)
    for _ in range(10):
        Client(bench.listener).step()
    client.send(BINDING)
    assert bench.service.messages == [BINDING, BINDING]
    assert bench.service.closed == []


def test_a_second_attempt_replaces_the_first(context: DtlsContext) -> None:
    """A client that gives up in the middle of the handshake and begins again occupies one place."""
    bench = Bench(context)
    first = Client(bench.listener)
    first.step()
    first.step()
    Client(bench.listener).connect().send(BINDING)
    assert bench.service.messages == [BINDING]
    assert bench.listener.admission.total == 1


def test_sessions_are_limited(context: DtlsContext) -> None:
    """In total and for each source; who is one too many is not answered, and keeps nothing."""
    bench = Bench(context, max_connections=3, max_connections_per_source=2)

    def connects(host: str, port: int) -> bool:
        client = Client(bench.listener, TransportAddress.parse(host, port))
        return any(client.step() for _ in range(8))

    assert connects("198.51.100.7", 1)
    assert connects("198.51.100.7", 2)
    assert not connects("198.51.100.7", 3)
    assert connects("198.51.100.8", 1)
    assert not connects("198.51.100.9", 1)
    assert bench.listener.admission.total == 3
    bench.listener.close()
    bench.check_nothing_is_left()


def test_close_says_goodbye_and_leaves_nothing(context: DtlsContext) -> None:
    """Every client gets its close_notify, the service hears of every path, and the port is closed."""
    bench = Bench(context)
    clients = [Client(bench.listener, CLIENT.with_port(port)).connect() for port in (1, 2)]
    half = Client(bench.listener, CLIENT.with_port(3))
    half.step()
    half.step()
    done: list[object] = []
    bench.listener.close().addCallback(done.append)
    assert done == [None]
    for client in clients:
        with pytest.raises(SSL.ZeroReturnError):
            list(client.receive())
    assert len(bench.service.closed) == 2
    assert not bench.plane.ports
    bench.check_nothing_is_left()
    late = Client(bench.listener)
    late.step()
    assert late.below.sent == []


def test_open_dtls(certificate: Certificate, tmp_path: FilePath) -> None:
    """The endpoint names the files; key, certificate and chain may share one."""
    plane: Any = FakeDataPlane()
    service: Any = FakeService()
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.certificate.read_bytes() + certificate.key.read_bytes())
    for files in (
        f"privateKey={certificate.key}:certKey={certificate.certificate}",
        f"privateKey={both}",
        f"privateKey={both}:extraCertChain={certificate.certificate}",
    ):
        listener = open_dtls(f"dtls:5349:interface=127.0.0.1:{files}", Clock(), service, plane, ListenerSettings())
        assert [port.app_connection for port in plane.ports.values()] == ["dtls"]
        assert listener.addresses == [TransportAddress.parse("127.0.0.1", 5349)]
        listener.close()
        assert not plane.ports


def test_what_cannot_work_is_explained(certificate: Certificate, tmp_path: FilePath) -> None:
    """A missing file, a file that is no PEM, a foreign key and a port in use: one line each, and no port left open."""
    plane: Any = FakeDataPlane()
    service: Any = FakeService()
    plane.taken.add(TransportAddress.parse("127.0.0.1", 443))
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    (tmp_path / "other").mkdir()
    other = make_certificate(tmp_path / "other").key
    good = f"privateKey={certificate.key}:certKey={certificate.certificate}"
    for arguments, words in (
        (f"5349:privateKey={certificate.key}:certKey=/nonexistent/certificate.pem", "No such file"),
        (f"5349:privateKey={tmp_path}", "Is a directory"),
        (f"5349:privateKey={certificate.key}:certKey={junk}", "no certificate"),
        (f"5349:privateKey={junk}:certKey={certificate.certificate}", "no private key"),
        (f"5349:privateKey={other}:certKey={certificate.certificate}", "does not belong"),
        (f"443:interface=127.0.0.1:{good}", "choose another port"),
        (f"x:{good}", "is not a port"),
        (f"5349:{good}:sertKey=x", "did you mean certKey=?"),
    ):
        with pytest.raises(ConfigurationError) as refusal:
            open_dtls(f"dtls:{arguments}", Clock(), service, plane, ListenerSettings())
        text = str(refusal.value)
        assert text.startswith("dtls:")
        assert words in text
        assert "\n" not in text
        assert not plane.ports
