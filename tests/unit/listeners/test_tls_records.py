"""Messages to a TLS client: each is a record, all of them arrive in order, and one turn takes few writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory

from relayd.listeners.tls_records import write_records
from tests.support.certificate import make_certificate


class CountingTransport(StringTransport):
    """Counts the writes that reach the connection below TLS."""

    writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        super().write(data)  # type: ignore[no-untyped-call]


class Ends:
    """A TLS server of Twisted's, and an OpenSSL client, with nothing but memory between them."""

    def __init__(self, directory: Path) -> None:
        made: Any = make_certificate(directory)
        pem = Path(made.certificate).read_bytes() + Path(made.key).read_bytes()
        options: Any = PrivateCertificate.loadPEM(pem).options()
        factory: Any = TLSMemoryBIOFactory(options, False, Factory.forProtocol(Protocol), Clock())
        self.server: Any = factory.buildProtocol(None)
        self.below: Any = CountingTransport()  # type: ignore[no-untyped-call]
        self.server.makeConnection(self.below)
        self.client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))
        self.client.set_connect_state()
        for _ in range(4):
            self._handshake()
        self.below.writes = 0

    def _handshake(self) -> None:
        try:
            self.client.do_handshake()
        except SSL.WantReadError:
            pass
        try:
            self.server.dataReceived(self.client.bio_read(65_536))
        except SSL.WantReadError:
            pass
        self._carry()

    def _carry(self) -> None:
        data = self.below.value()
        self.below.clear()
        if data:
            self.client.bio_write(data)

    def received(self) -> list[bytes]:
        """What each record brought: OpenSSL gives one at a time."""
        self._carry()
        records = []
        while True:
            try:
                records.append(self.client.recv(65_536))
            except (SSL.WantReadError, SSL.ZeroReturnError):
                return records


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    """A pair that has shaken hands."""
    return Ends(tmp_path)


@pytest.mark.parametrize(
    "sizes",
    [[1], [200] * 3, [200] * 100, [1200] * 300, [32_700, 5], [16_384, 16_384, 16_384], [5, 16_384, 5], [65_535, 1]],
)
def test_all_arrive_in_order(ends: Ends, sizes: Sequence[int]) -> None:
    """Whatever their sizes, messages arrive whole and in order, and nothing is left behind in OpenSSL."""
    messages = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    write_records(ends.server, messages)
    assert b"".join(ends.received()) == b"".join(messages)


def test_each_message_is_a_record(ends: Ends) -> None:
    """No two messages share a record, and those up to 16,384 bytes are not cut."""
    messages = [bytes([number]) * 1000 for number in range(50)] + [bytes(16_384)]
    write_records(ends.server, messages)
    assert ends.received() == messages


def test_one_turn_takes_few_writes(ends: Ends) -> None:
    """A hundred small messages leave in one write."""
    write_records(ends.server, [b"x" * 200] * 100)
    assert ends.below.writes == 1


def test_after_the_end_nothing_is_raised(ends: Ends) -> None:
    """Messages to a client that has gone are dropped."""
    ends.client.shutdown()
    ends.server.dataReceived(ends.client.bio_read(65_536))
    write_records(ends.server, [b"late"] * 3)
    assert b"late" not in b"".join(ends.received())


def test_a_client_that_said_goodbye_costs_no_other_its_connection(ends: Ends, tmp_path: Path) -> None:
    """What comes for a client that has ended TLS is dropped, and the connection of another goes on."""
    other = Ends(tmp_path)
    ends.client.shutdown()
    ends.server.dataReceived(ends.client.bio_read(65_536))
    write_records(ends.server, [b"too late", b"later still"])
    lib: Any = SSL._lib  # type: ignore[attr-defined]
    assert not lib.ERR_peek_error(), "older versions of OpenSSL would give that to the next connection"
    other.client.send(b"still here")
    other.server.dataReceived(other.client.bio_read(65_536))
    assert not other.below.disconnecting
    write_records(other.server, [b"so am I"])
    assert other.received() == [b"so am I"]
