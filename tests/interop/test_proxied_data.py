"""Data connections over WebSocket through nginx and HAProxy: whole and in order, slow readers, ends, and a reload."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.protocol import Factory

from relayd.address import AppConnection, Family
from relayd.client import TcpAllocation, TurnClient, TurnUri
from tests.behaviour.house.suite import certificate
from tests.behaviour.house.test_client import ClientCase
from tests.support.house import USERS
from tests.support.reverse_proxies import ReverseProxy, Upstream, start_haproxy, start_nginx
from tests.support.tcp_peer import Conversation, TcpPeer
from tests.support.turn_client import eventually, pause
from tests.support.wires import patiently, reactor

MUCH = 20 << 20  # bytes; more than all the buffers between the two ends
PIECE = 65_536
WORDS = os.urandom(MUCH)


class Reader:
    """Takes what comes to one end piece by piece, and checks it against `WORDS`."""

    def __init__(self, end: Conversation) -> None:
        self.heard = 0
        self.is_garbled = False
        self._end = end
        end.read_by(self._read)

    def _read(self, data: bytes) -> None:
        self.is_garbled |= WORDS[self.heard : self.heard + len(data)] != data
        self.heard += len(data)

    async def take_slowly(self, size: int) -> None:
        """Read for a moment, and not for another, until that much is there."""
        transport: Any = self._end.transport
        while self.heard < size:
            transport.resumeProducing()
            await pause(0.01)
            transport.pauseProducing()
            await pause(0.005)
        transport.resumeProducing()


class Speaker:
    """Says `WORDS` as fast as they are taken."""

    def __init__(self, end: Conversation) -> None:
        self.said = 0
        self._is_held = False
        transport: Any = end.transport
        self._transport = transport
        self._transport.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self._is_held = False
        reactor.callLater(0, self._go_on)

    def pauseProducing(self) -> None:
        self._is_held = True

    def stopProducing(self) -> None:
        self._is_held = True

    def _go_on(self) -> None:
        if self._is_held or self.said == MUCH:
            return
        self._transport.write(WORDS[self.said : self.said + PIECE])
        self.said += PIECE
        if self.said == MUCH:
            self._transport.unregisterProducer()
        else:
            reactor.callLater(0, self._go_on)


class ProxiedDataSuite(ClientCase):
    """The promises. Subclasses say through which proxy."""

    __test__ = False
    kind = AppConnection.WS

    def start(self, directory: Path, upstream: Upstream) -> ReverseProxy:
        raise AssertionError("subclasses have one")

    def reload(self) -> None:
        """Have it take its configuration again, as administrators do."""
        raise AssertionError("subclasses know how")

    async def pair(self) -> tuple[Conversation, Conversation]:
        """A client's end, and its peer's."""
        temporary = tempfile.TemporaryDirectory(prefix="relayd-tests-")
        self.addCleanup(temporary.cleanup)
        plain = self.house.address(AppConnection.WS, "127.0.0.1").port
        self.proxy = self.start(Path(temporary.name), Upstream(plain, 0, certificate()))
        self.addCleanup(self.proxy.process.kill)
        peer = TcpPeer("127.0.0.1")
        self.addCleanup(peer.close)
        uri = TurnUri("localhost", self.proxy.port, AppConnection.WSS)
        client = TurnClient(
            reactor, uri, "alice", USERS["alice"], trust_root=self.trust_root(), families=(Family.IPV4,)
        )
        allocation: TcpAllocation = await patiently(client.allocate_tcp())
        self.addCleanup(allocation.close)
        endpoint = allocation.endpoint("127.0.0.1", peer.address.port)
        ours: Conversation = await patiently(endpoint.connect(Factory.forProtocol(Conversation)))
        return ours, await peer.next()

    async def test_both_read_slowly(self) -> None:
        """All arrives both ways at once, each end having made the other wait; and with the client's end comes the
        peer's.
        """
        ours, theirs = await self.pair()
        readers = Reader(ours), Reader(theirs)
        for end in (ours, theirs):
            end.transport.pauseProducing()  # type: ignore[union-attr]
        speakers = Speaker(ours), Speaker(theirs)
        await pause(0.3)
        assert all(speaker.said < MUCH for speaker in speakers)
        for reader in readers:
            await reader.take_slowly(MUCH)
        assert [speaker.said for speaker in speakers] == [MUCH, MUCH]
        assert not any(reader.is_garbled for reader in readers)
        ours.transport.loseConnection()  # type: ignore[union-attr]
        await eventually(lambda: theirs.end != "")
        assert theirs.end == "all"
        await theirs.close()
        await eventually(lambda: ours.end == "closed")

    async def test_the_last_words_reach_a_slow_client(self) -> None:
        """The peer has long closed when they do."""
        ours, theirs = await self.pair()
        reader = Reader(ours)
        ours.transport.pauseProducing()  # type: ignore[union-attr]
        theirs.say(WORDS)
        theirs.close().addErrback(lambda _: None)
        await pause(0.5)
        for _ in range(3):
            self.house.reactor.advance(3.0)
            await pause(0.02)
        await reader.take_slowly(MUCH)
        await eventually(lambda: ours.end == "closed")
        assert reader.heard == MUCH
        assert not reader.is_garbled

    async def test_a_reload_in_the_middle(self) -> None:
        """Costs nothing: the process that has the connection serves it to its end."""
        ours, theirs = await self.pair()
        reader = Reader(theirs)
        speaker = Speaker(ours)
        await eventually(lambda: reader.heard > PIECE)
        theirs.transport.pauseProducing()  # type: ignore[union-attr]
        self.reload()
        await pause(0.5)
        await reader.take_slowly(MUCH)
        assert speaker.said == MUCH
        assert not reader.is_garbled
        theirs.say(b"got it")
        await ours.hears(b"got it")

    async def test_a_proxy_that_dies(self) -> None:
        """Resets both: neither takes what it has for all."""
        ours, theirs = await self.pair()
        ours.say(b"half a ")
        await theirs.hears(b"half a ")
        self.proxy.process.kill()
        await eventually(lambda: ours.end != "" and theirs.end != "")
        assert (ours.end, theirs.end) == ("reset", "reset")


class NginxTests(ProxiedDataSuite):
    """nginx."""

    __test__ = True

    def start(self, directory: Path, upstream: Upstream) -> ReverseProxy:
        directory.chmod(0o755)
        return start_nginx(directory, upstream)

    def reload(self) -> None:
        os.kill(self.proxy.process.pid, signal.SIGHUP)


class HaproxyTests(ProxiedDataSuite):
    """HAProxy, whose successor would be another process: what is left of the old one is what counts."""

    __test__ = True

    def start(self, directory: Path, upstream: Upstream) -> ReverseProxy:
        return start_haproxy(directory, upstream)

    def reload(self) -> None:
        os.kill(self.proxy.process.pid, signal.SIGUSR1)
