"""Promises of relayd.tls.stream: an end is told at once, and who has nothing to say keeps nobody waiting."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from relayd.tls.stream import TlsFactory
from tests.support.certificate import make_certificate


@implementer(IHalfCloseableProtocol)
class Above(Protocol):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[bytes | str] = []

    def dataReceived(self, data: bytes) -> None:
        self.told.append(data)

    def readConnectionLost(self) -> None:
        self.told.append("all")

    def writeConnectionLost(self) -> None:
        raise AssertionError("TLS cannot end one direction alone")


class Producer:
    """Is never asked for anything here."""

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None: ...


class Ends:
    """A server, and an OpenSSL client, with nothing but memory between them."""

    def __init__(self, directory: Path) -> None:
        made: Any = make_certificate(directory)
        pem = Path(made.certificate).read_bytes() + Path(made.key).read_bytes()
        options: Any = PrivateCertificate.loadPEM(pem).options()
        self.above = Above()
        factory: Any = TlsFactory(options, False, Factory.forProtocol(lambda: self.above), Clock())
        self.server: Any = factory.buildProtocol(None)
        self.below: Any = StringTransport()
        self.server.makeConnection(self.below)
        self.client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))
        self.client.set_connect_state()
        for _ in range(2):  # its hello, and its last flight
            with contextlib.suppress(SSL.WantReadError):
                self.client.do_handshake()
            self.carry()
            self.client.bio_write(self.below.value())
            self.below.clear()

    def carry(self) -> None:
        """What the client has written goes to the server."""
        self.server.dataReceived(self.client.bio_read(65_536))


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    return Ends(tmp_path)


def test_the_end_is_told_behind_what_was_said(ends: Ends) -> None:
    """Once, though what was written may never be taken; the producer, for which Twisted would wait, is let go."""
    ends.server.registerProducer(Producer(), True)
    ends.client.send(b"last")
    ends.client.shutdown()
    ends.carry()
    assert ends.above.told == [b"last", "all"]
    assert ends.below.disconnecting
    assert ends.below.producer is None


def test_no_end_is_told_without_a_goodbye(ends: Ends) -> None:
    """Nonsense in place of a record ends the connection, and is not taken for an orderly end."""
    ends.server.registerProducer(Producer(), True)
    ends.client.send(b"last")
    ends.carry()
    ends.server.dataReceived(b"nonsense" * 10)
    assert ends.above.told == [b"last"]
    assert ends.below.disconnecting
    assert ends.below.producer is None
