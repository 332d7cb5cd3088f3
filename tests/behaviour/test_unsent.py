"""Promises of relayd.pipe.unsent on real sockets: what is still under way is told, wherever it waits."""

from __future__ import annotations

from types import SimpleNamespace

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import TestCase

from relayd.pipe.unsent import unsent
from tests.support.tcp_peer import Conversation, TcpPeer, call
from tests.support.turn_client import eventually

MUCH = 16 << 20  # bytes; more than the system takes for two sockets


class UnsentTests(TestCase):
    async def pair(self) -> tuple[Conversation, Conversation]:
        """One that writes, and one that does not read yet."""
        peer = TcpPeer("127.0.0.1")
        self.addCleanup(peer.close)
        ours, theirs = await call(peer.address), await peer.next()
        self.addCleanup(ours.reset)
        theirs.transport.pauseProducing()  # type: ignore[union-attr]
        return ours, theirs

    async def test_in_both_buffers(self) -> None:
        """Twisted's and the system's: it becomes less as the other side reads, and nothing in the end."""
        ours, theirs = await self.pair()
        ours.say(bytes(MUCH))
        assert unsent(ours.transport) == MUCH
        await eventually(lambda: 0 < unsent(ours.transport) < MUCH)
        theirs.transport.resumeProducing()  # type: ignore[union-attr]
        await eventually(lambda: len(theirs.heard) == MUCH, turns=2000)
        await eventually(lambda: unsent(ours.transport) == 0)

    async def test_in_the_systems_buffer_alone(self) -> None:
        """What Twisted has got rid of has not arrived for that."""
        ours, theirs = await self.pair()
        ours.say(bytes(MUCH // 2))
        below = ours.transport
        await eventually(lambda: 0 < unsent(below) < MUCH // 2)
        waiting = len(below.dataBuffer) - below.offset + below._tempDataLen  # type: ignore[union-attr]
        assert unsent(below) > waiting
        theirs.transport.resumeProducing()  # type: ignore[union-attr]
        await eventually(lambda: unsent(below) == 0, turns=2000)

    async def test_below_other_transports(self) -> None:
        """As TLS has one below it; where there is none that could be asked, and when it is gone, there is nothing."""
        ours, _ = await self.pair()
        ours.say(b"words")
        assert unsent(SimpleNamespace(transport=SimpleNamespace(transport=ours.transport))) == len(b"words")
        transport = ours.transport
        ours.reset()
        await ours.gone
        assert unsent(transport) == 0
        assert unsent(StringTransport()) == 0
        assert unsent(SimpleNamespace(transport=None)) == 0
