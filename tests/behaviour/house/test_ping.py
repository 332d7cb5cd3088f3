"""The diagnostic against servers that accept and then say nothing: it gives up in time, and leaves nothing."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import DatagramProtocol, ServerFactory
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.trial.unittest import TestCase

from relayd.address import AppConnection
from relayd.client import HttpProxy, TurnClient, TurnUri
from relayd.client.ping import ping
from tests.support.house import WarpedReactor, descriptors
from tests.support.turn_client import eventually
from tests.support.wires import patiently, reactor

PATIENCE = 5.0  # seconds on a clock that is set forward: shorter than every timeout on the way


class SilentServerTests(TestCase):
    """One that takes whatever comes, over TCP and UDP on the same port, and never answers."""

    def setUp(self) -> None:
        self.descriptors = descriptors()
        self.accepted: list[Any] = []
        self.heard = self.is_deaf = False

        class Silent(StreamProtocol):
            def connectionMade(silent: Any) -> None:  # noqa: N805
                self.accepted.append(silent)

            def dataReceived(silent: Any, data: bytes) -> None:  # noqa: N805
                self.heard = True

        class SilentDatagrams(DatagramProtocol):
            noisy = False

            def datagramReceived(silent: Any, datagram: bytes, addr: Any) -> None:  # noqa: N805
                self.heard = True

        factory = ServerFactory.forProtocol(Silent)
        factory.noisy = False
        self.stream: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.port: int = self.stream.getHost().port
        self.datagrams: Any = reactor.listenUDP(self.port, SilentDatagrams(), interface="127.0.0.1")
        self.addCleanup(self.stop)

    async def stop(self) -> None:
        for port in (self.stream, self.datagrams):
            await maybeDeferred(port.stopListening)
        for each in self.accepted:
            each.transport.abortConnection()
        # The reactor keeps a pipe and a spare descriptor of its own.
        await eventually(
            lambda: (
                not [
                    each for each in descriptors() - self.descriptors if "pipe:" not in each and "/dev/null" not in each
                ]
            )
        )

    async def check(self, kind: AppConnection, stage: str, proxy: HttpProxy | None = None) -> None:
        self.heard = False
        before = len(descriptors())
        clock = WarpedReactor()
        client = TurnClient(clock, TurnUri("127.0.0.1", self.port, kind), "alice", "secret", proxy=proxy)
        trying = Deferred.fromCoroutine(ping(clock, client, 1, PATIENCE))
        await eventually(lambda: self.heard or (self.is_deaf and len(descriptors()) > before))
        clock.advance(PATIENCE)
        outcome = await patiently(trying)
        assert outcome.error == f"{stage} within {PATIENCE:g} seconds"
        # A goodbye to somebody who does not answer has its own few seconds, and then nothing is left.
        clock.advance(PATIENCE)
        await eventually(lambda: clock.pending() == [])

    async def test_udp(self) -> None:
        """Without a connection to make, it is the request that is not answered."""
        await self.check(AppConnection.UDP, "reached, but no answer")

    async def test_tcp(self) -> None:
        """A connection came about, and no TURN."""
        await self.check(AppConnection.TCP, "reached, but no answer")

    async def test_tls(self) -> None:
        """A TCP connection came about, and no TLS."""
        await self.check(AppConnection.TLS, "reached, but no answer")

    async def test_dtls(self) -> None:
        """There was no DTLS."""
        await self.check(AppConnection.DTLS, "not reached")

    async def test_ws(self) -> None:
        """There was no WebSocket."""
        await self.check(AppConnection.WS, "not reached")

    async def test_wss(self) -> None:
        """There was not even TLS."""
        await self.check(AppConnection.WSS, "not reached")

    async def test_not_even_a_connection(self) -> None:
        """Where packets for TCP vanish, as in a network that blocks it, nothing is reached; nor is a proxy."""
        await maybeDeferred(self.stream.stopListening)
        deaf = socket.socket()
        self.addCleanup(deaf.close)
        deaf.bind(("127.0.0.1", self.port))
        deaf.listen(0)
        for _ in range(2):  # more than its queue holds, and nobody accepts them: no other SYN is answered
            caller = socket.socket()
            self.addCleanup(caller.close)
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", self.port))
        self.is_deaf = True
        for proxy in (None, HttpProxy("127.0.0.1", self.port)):
            for kind in (AppConnection.TCP, AppConnection.TLS, AppConnection.WS, AppConnection.WSS):
                await self.check(kind, "not reached", proxy)

    async def test_through_a_proxy(self) -> None:
        """It is the proxy that does not answer."""
        for kind in (AppConnection.TCP, AppConnection.TLS, AppConnection.WS, AppConnection.WSS):
            await self.check(kind, "not reached", HttpProxy("127.0.0.1", self.port))
