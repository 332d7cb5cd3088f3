# mypy: disable-error-code="no-untyped-call"
"""Promises of relayd.listeners.direct_writes, on real sockets: at once, in order, whole, and paused as ever."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from relayd.listeners.direct_writes import write_now

reactor: Any = the_reactor
PATIENCE = 5.0  # seconds after which something that ought to arrive is missing


class Server(Protocol):
    """The end that writes; it is its own producer."""

    def __init__(self) -> None:
        self.paused = False
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)  # type: ignore[union-attr]
        self.factory.accepted.callback(self)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.lost.callback(None)

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        """The connection is lost."""


class DirectWrites(TestCase):
    @inlineCallbacks
    def setUp(self) -> Any:  # type: ignore[override]
        factory: Any = Factory.forProtocol(Server)
        factory.accepted = Deferred()
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.client = socket.create_connection(("127.0.0.1", port.getHost().port), PATIENCE)
        self.addCleanup(self.client.close)
        self.server = yield factory.accepted.addTimeout(PATIENCE, reactor)

    def read(self, size: int) -> Deferred[bytes]:
        """So many bytes, read while the reactor runs."""

        def reading() -> bytes:
            data = bytearray()
            while len(data) < size:
                piece = self.client.recv(65_536)
                assert piece, "the connection ended"
                data += piece
            return bytes(data)

        return deferToThread(reading)

    @inlineCallbacks
    def tearDown(self) -> Any:  # type: ignore[override]
        self.client.close()
        self.server.transport.loseConnection()
        self.server.transport.unregisterProducer()
        yield self.server.lost

    def test_at_once(self) -> None:
        """What is written is in the client's hands before the reactor has another turn."""
        write_now(self.server.transport, b"one")
        write_now(self.server.transport, b"two")
        self.assertEqual(self.client.recv(100), b"onetwo")
        self.assertFalse(self.server.paused)

    @inlineCallbacks
    def test_behind_what_waits(self) -> Any:
        """What the transport already holds goes first."""
        self.server.transport.write(b"first")
        write_now(self.server.transport, b"second")
        self.assertEqual((yield self.read(11)), b"firstsecond")

    @inlineCallbacks
    def test_more_than_the_socket_takes(self) -> Any:
        """The rest is the transport's: it pauses its producer, and all of it arrives in order when the client reads."""
        pieces: list[bytes] = []
        while not self.server.paused:
            pieces.append(bytes([len(pieces) % 251]) * 50_000)
            write_now(self.server.transport, pieces[-1])
        write_now(self.server.transport, b"end")
        expected = b"".join(pieces) + b"end"
        self.assertEqual((yield self.read(len(expected))), expected)
        self.assertFalse(self.server.paused)

    @inlineCallbacks
    def test_a_lost_connection(self) -> Any:
        """Writing to a client that reset its connection raises nothing; the reactor ends it as ever."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()
        for _ in range(3):
            write_now(self.server.transport, b"nobody reads this")
        yield self.server.lost.addTimeout(PATIENCE, reactor)
        write_now(self.server.transport, b"nor this")
        self.server.lost = Deferred()
        self.server.lost.callback(None)

    def test_after_starttls(self) -> None:
        """Where TLS was started on a connection nothing goes past it."""
        encrypted: list[bytes] = []
        self.server.write = encrypted.append
        self.server.transport.TLS = True
        write_now(self.server.transport, b"secret")
        self.server.transport.TLS = False
        self.assertEqual(encrypted, [b"secret"])
        self.client.setblocking(False)
        self.assertRaises(BlockingIOError, self.client.recv, 100)

    def test_other_transports(self) -> None:
        """What is no socket of Twisted's is written to as it wants."""
        transport = StringTransport()
        write_now(transport, b"data")
        self.assertEqual(transport.value(), b"data")
