"""Promises of relayd.dtls, kept against an OpenSSL client in memory. Nothing here waits: no flight is ever lost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from relayd.dtls import (
    ALPN,
    MAX_PLAINTEXT,
    MTU,
    Deliver,
    DtlsContext,
    DtlsServer,
    DtlsSession,
    Ended,
    Established,
    Output,
    Transmit,
    is_client_hello,
    split_flight,
)
from relayd.errors import ConfigurationError
from tests.support.certificate import make_certificate, serial_number

ALICE, BOB = b"alice's address", b"bob's address"


class Client:
    """A DTLS client over memory BIOs."""

    def __init__(self, protocols: Sequence[bytes] = ()) -> None:
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        context.set_options(SSL.OP_NO_QUERY_MTU)
        self.connection = SSL.Connection(context, None)
        self.connection.set_connect_state()
        self.connection.set_ciphertext_mtu(MTU)
        if protocols:
            self.connection.set_alpn_protos(list(protocols))

    def take(self, *datagrams: bytes) -> list[bytes]:
        """Give it datagrams; what it answers."""
        for datagram in datagrams:
            self.connection.bio_write(datagram)
        try:
            self.connection.do_handshake()
        except SSL.WantReadError:
            pass
        return self.flush()

    def flush(self) -> list[bytes]:
        try:
            return split_flight(self.connection.bio_read(65536))
        except SSL.WantReadError:
            return []

    def encrypt(self, data: bytes) -> bytes:
        self.connection.send(data)
        return self.connection.bio_read(65536)

    def decrypt(self, datagram: bytes) -> bytes:
        self.connection.bio_write(datagram)
        return self.connection.recv(65536)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Certificate and key in PEM."""
    made = make_certificate(tmp_path_factory.mktemp("tls"))
    return made.certificate.read_bytes(), made.key.read_bytes()


@pytest.fixture
def server(pem: tuple[bytes, bytes]) -> DtlsServer:
    """A server with seeded entropy."""
    return DtlsServer(DtlsContext(*pem), random.Random(1).randbytes)


def outputs(session: DtlsSession) -> list[Output]:
    found = []
    while (output := session.next_output()) is not None:
        found.append(output)
    return found


def hello_with_cookie(server: DtlsServer, client: Client, address: bytes, now: float = 0.0) -> bytes:
    (first,) = client.take()
    answer = server.receive(address, first, now)
    assert isinstance(answer, Transmit)
    (second,) = client.take(answer.datagram)
    return second


def handshake(server: DtlsServer, client: Client, address: bytes = ALICE) -> tuple[DtlsSession, list[Output]]:
    """All the way; the session and every output after the server's first flight."""
    session = server.receive(address, hello_with_cookie(server, client, address), 0.0)
    assert isinstance(session, DtlsSession)
    rest: list[Output] = []
    for _ in range(4):
        found = outputs(session)
        rest += found
        for datagram in client.take(*[output.datagram for output in found if isinstance(output, Transmit)]):
            session.receive(datagram, 0.0)
    return session, rest


def test_nothing_is_kept_for_a_hello_without_a_cookie(server: DtlsServer) -> None:
    """Any number of ClientHellos is answered statelessly, with less than it brought."""
    listening = server._listening
    for number in range(100):
        (hello,) = Client().take()
        answer = server.receive(b"spoofed %d" % number, hello, 0.0)
        assert isinstance(answer, Transmit)
        assert len(answer.datagram) < len(hello)
    assert server._listening is listening


def test_handshake_and_data(server: DtlsServer) -> None:
    """Cookie, handshake, ALPN, and then datagrams in both directions, one record each; no timer is left."""
    client = Client(ALPN)
    session, found = handshake(server, client)
    assert Established(b"stun.turn") in found
    assert session.established
    session.receive(client.encrypt(b"ping"), 1.0)
    assert outputs(session) == [Deliver(b"ping")]
    assert session.send(b"pong")
    (reply,) = outputs(session)
    assert isinstance(reply, Transmit)
    assert client.decrypt(reply.datagram) == b"pong"
    assert session.next_timer() is None


def test_the_version_is_dtls_1_2(server: DtlsServer) -> None:
    """Nothing older is spoken."""
    client = Client()
    handshake(server, client)
    assert client.connection.get_protocol_version_name() == "DTLSv1.2"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((b"stun.nat-discovery",), b"stun.nat-discovery"),
        ((b"h2", b"stun.turn"), b"stun.turn"),
        ((b"h2",), b""),
        ((), b""),
    ],
)
def test_alpn(server: DtlsServer, offered: Sequence[bytes], chosen: bytes) -> None:
    """RFC 7443's protocols are chosen where offered; a client that offers others only, or none, is served as well."""
    session, found = handshake(server, Client(offered))
    assert session.established
    assert Established(chosen) in found


def test_a_cookie_is_bound_to_its_client(server: DtlsServer) -> None:
    """Alice's cookie from Bob's address gets Bob a cookie of his own, and nothing is kept."""
    second = hello_with_cookie(server, Client(), ALICE)
    assert isinstance(server.receive(BOB, second, 0.0), Transmit)
    assert isinstance(server.receive(ALICE, second, 0.0), DtlsSession)


def test_a_cookie_grows_old(server: DtlsServer) -> None:
    """A cookie holds for a minute at least and two at most."""
    second = hello_with_cookie(server, Client(), ALICE, now=59.0)
    assert isinstance(server.receive(ALICE, second, 119.0), DtlsSession)
    assert isinstance(server.receive(ALICE, second, 121.0), Transmit)


def test_another_servers_cookie_is_worth_nothing(pem: tuple[bytes, bytes], server: DtlsServer) -> None:
    """The cookie depends on the secret."""
    other = DtlsServer(DtlsContext(*pem), random.Random(2).randbytes)
    second = hello_with_cookie(other, Client(), ALICE)
    assert isinstance(server.receive(ALICE, second, 0.0), Transmit)


def test_a_flight_leaves_in_datagrams(server: DtlsServer) -> None:
    """No datagram of the handshake exceeds the MTU, though OpenSSL gives the flight in one piece."""
    _, found = handshake(server, Client())
    assert all(len(output.datagram) <= MTU for output in found if isinstance(output, Transmit))


def test_split_flight() -> None:
    """Cuts lie between records, as few as possible, and nothing is lost."""

    def record(size: int) -> bytes:
        return b"\x16\xfe\xfd" + bytes(8) + size.to_bytes(2, "big") + b"x" * size

    flight = record(500) + record(500) + record(500) + record(100)
    assert split_flight(flight) == [record(500) * 2, record(500) + record(100)]
    assert split_flight(record(2000) + record(1)) == [record(2000), record(1)]
    assert split_flight(b"") == []


@given(st.binary(max_size=3000))
def test_split_flight_loses_nothing(flight: bytes) -> None:
    """Whatever the bytes are, the pieces joined are what came in, and none is empty."""
    pieces = split_flight(flight)
    assert b"".join(pieces) == flight
    assert all(pieces)


@given(st.binary(max_size=400), st.integers(0, 3))
def test_garbage_from_strangers(pem: tuple[bytes, bytes], garbage: bytes, shape: int) -> None:
    """No datagram from a stranger makes the server raise, keep a session, or fail the next client."""
    server = DtlsServer(DtlsContext(*pem), random.Random(1).randbytes)
    (hello,) = Client().take()
    cut = min(len(garbage), len(hello))
    shaped = [garbage, hello[:cut] + garbage, hello[:25] + garbage, hello[:60] + garbage][shape]
    assert not isinstance(server.receive(ALICE, shaped, 0.0), DtlsSession)
    assert isinstance(server.receive(ALICE, hello, 0.0), Transmit)


@given(st.lists(st.binary(max_size=200), max_size=5), st.booleans())
def test_garbage_within_a_session(pem: tuple[bytes, bytes], garbage: list[bytes], as_records: bool) -> None:
    """Unauthenticated datagrams are dropped; the session goes on (RFC 6347 section 4.1.2.7)."""
    server = DtlsServer(DtlsContext(*pem), random.Random(1).randbytes)
    client = Client()
    session, _ = handshake(server, client)
    for datagram in garbage:
        header = b"\x17\xfe\xfd\0\1" + bytes(6) + len(datagram).to_bytes(2, "big")
        session.receive(header + datagram if as_records else datagram, 1.0)
    assert not session.ended
    outputs(session)
    session.receive(client.encrypt(b"still here"), 1.0)
    assert outputs(session) == [Deliver(b"still here")]


def test_a_replayed_record_is_dropped(server: DtlsServer) -> None:
    """RFC 6347 section 4.1.2.6."""
    client = Client()
    session, _ = handshake(server, client)
    datagram = client.encrypt(b"once")
    session.receive(datagram, 0.0)
    session.receive(datagram, 0.0)
    assert outputs(session) == [Deliver(b"once")]


def test_a_failed_hello_leaves_no_error_for_others(pem: tuple[bytes, bytes], server: DtlsServer) -> None:
    """OpenSSL's error queue belongs to the thread: what a bad hello leaves there ends nobody else's session."""
    client = Client()
    session, _ = handshake(server, client)
    (hello,) = Client().take()
    server.receive(BOB, hello[:40], 0.0)
    session.receive(client.encrypt(b"unharmed"), 0.0)
    assert outputs(session) == [Deliver(b"unharmed")]


def test_sending_outside_a_session_is_refused(server: DtlsServer) -> None:
    """Before the handshake, after the end, empty or longer than a record: dropped, and said so."""
    client = Client()
    early = server.receive(ALICE, hello_with_cookie(server, client, ALICE), 0.0)
    assert isinstance(early, DtlsSession)
    assert not early.send(b"x")
    session, _ = handshake(server, Client())
    assert session.send(bytes(MAX_PLAINTEXT))
    assert not session.send(bytes(MAX_PLAINTEXT + 1))
    assert not session.send(b"")
    session.close()
    assert not session.send(b"x")


def test_close_says_close_notify(server: DtlsServer) -> None:
    """The client hears that the session is over; closing twice says it once."""
    client = Client()
    session, _ = handshake(server, client)
    session.close()
    session.close()
    alert, ended = outputs(session)
    assert isinstance(alert, Transmit)
    assert ended == Ended("closed")
    with pytest.raises(SSL.ZeroReturnError):
        client.decrypt(alert.datagram)


def test_the_clients_close_notify_ends_the_session(server: DtlsServer) -> None:
    """It is answered in kind."""
    client = Client()
    session, _ = handshake(server, client)
    client.connection.shutdown()
    for datagram in client.flush():
        session.receive(datagram, 1.0)
    assert [type(output) for output in outputs(session)] == [Transmit, Ended]
    assert session.ended


def test_a_handshake_has_a_timer_and_an_early_call_is_harmless(server: DtlsServer) -> None:
    """A flight on its way has a deadline about a second ahead."""
    session = server.receive(ALICE, hello_with_cookie(server, Client(), ALICE, 100.0), 100.0)
    assert isinstance(session, DtlsSession)
    outputs(session)
    deadline = session.next_timer()
    assert deadline is not None
    assert 100.0 < deadline <= 101.1
    session.handle_timer(100.5)
    session.handle_timer(deadline)
    assert not session.ended
    later = session.next_timer()
    assert later is not None
    assert later > deadline
    session.close()
    assert session.next_timer() is None


def test_a_retransmitted_hello_is_told_from_a_new_one(server: DtlsServer) -> None:
    """The client's random says whether a ClientHello belongs to the session that is there."""
    hello = hello_with_cookie(server, Client(), ALICE)
    session = server.receive(ALICE, hello, 0.0)
    assert isinstance(session, DtlsSession)
    (other,) = Client().take()
    assert is_client_hello(hello)
    assert session.began_with(hello)
    assert not session.began_with(other)


def test_unusable_material_is_explained(pem: tuple[bytes, bytes], tmp_path: Path) -> None:
    """No certificate, no key, an encrypted key or another certificate's key: one line each, without the key in it."""
    certificate, key = pem
    other = make_certificate(tmp_path).key.read_bytes()
    cases = [
        ((b"junk", key), "certificate"),
        ((certificate, b"junk"), "private key"),
        ((certificate, other), "does not belong"),
    ]
    for material, words in cases:
        with pytest.raises(ConfigurationError, match=words) as refusal:
            DtlsContext(*material)
        assert "\n" not in str(refusal.value)


def test_another_certificate(server: DtlsServer, tmp_path: Path) -> None:
    """It is shown from the next hello on, also to a client whose cookie is older; sessions that last keep theirs."""
    early, late = Client(), Client()
    session, _ = handshake(server, early)
    hello = hello_with_cookie(server, late, BOB)
    made = make_certificate(tmp_path)
    server.show(DtlsContext(made.certificate.read_bytes(), made.key.read_bytes()))
    begun = server.receive(BOB, hello, 0.0)
    assert isinstance(begun, DtlsSession)
    late.take(*[output.datagram for output in outputs(begun) if isinstance(output, Transmit)])
    serials = [client.connection.get_peer_certificate().get_serial_number() for client in (early, late)]  # type: ignore[union-attr]
    assert serials[1] == serial_number(made) != serials[0]
    session.receive(early.encrypt(b"hello"), 0.0)
    assert outputs(session) == [Deliver(b"hello")]
