"""How relayed TCP connections end where one side is slow, rude or gone: what was said before arrives."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any

from twisted.internet.tcp import Connection

from relayd.address import AppConnection
from relayd.config import ListenerSettings
from relayd.listeners.mixed import AnyListener
from relayd.listeners.stream import listen_stream, open_stream
from relayd.pipe.stream_end import CLOSE_GRACE, MAX_BUFFERED
from relayd.stun import attributes as a
from relayd.stun.message import Method
from relayd.web.pages import make_pages
from tests.support.house import USERS
from tests.support.tcp_peer import Conversation
from tests.support.turn_client import TurnClient, code_of, eventually, pause
from tests.support.wires import connect

from .suite import certificate
from .test_tcp_allocations import MEGABYTE, TcpAllocationCase

SMALL = 16_384  # bytes that the system is to keep for a socket, which it doubles
WORDS = os.urandom(MEGABYTE)


def below(transport: Any) -> Any:
    """The TCP transport under another one."""
    while not isinstance(transport, Connection):
        transport = transport.transport
    return transport


class EndsSuite(TcpAllocationCase):
    """The promises. Subclasses say over which connections."""

    __test__ = False

    async def tight_pair(self) -> tuple[TurnClient, Any, Conversation]:
        """As `pair`, with small buffers on every socket, so that little makes everybody wait."""
        for listener in self.house.daemon.listeners:
            port: Any = getattr(listener, "_port", None)
            if isinstance(getattr(port, "socket", None), socket.socket):
                self.shrink(port)  # what it accepts takes after it
        client, wire, conversation = await self.pair()
        (connection,) = self.peer_connections()
        for transport in (wire.transport, conversation.transport, connection.transport):
            self.shrink(below(transport))
        return client, wire, conversation

    def shrink(self, transport: Any) -> None:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            transport.socket.setsockopt(socket.SOL_SOCKET, option, SMALL)

    def peer_connections(self) -> list[Any]:
        relays: list[Any] = [relay for each in self.house.core.sessions() for relay, _ in each.relays]
        return [connection for relay in relays for connection in relay.connections]

    async def until_stalled(self) -> None:
        """Until the relay reads no more of the peer, because the client takes nothing."""
        (connection,) = self.peer_connections()
        await eventually(lambda: not connection.valve._wanted)

    async def test_a_client_may_take_its_time_to_the_last_byte(self) -> None:
        """A peer says a lot and closes; the client takes it over many times the grace, and gets it all."""
        _, wire, conversation = await self.tight_pair()
        wire.transport.pauseProducing()
        conversation.say(WORDS[: 2 * MAX_BUFFERED])
        conversation.close()
        await pause(0.1)
        for _ in range(40):
            wire.transport.resumeProducing()
            await pause(0.005)
            wire.transport.pauseProducing()
            for _ in range(3):
                self.house.reactor.advance(CLOSE_GRACE / 4)
                await pause()
        wire.transport.resumeProducing()
        await eventually(lambda: wire.end != "")
        assert wire.end == "closed"
        assert wire.raw == WORDS[: 2 * MAX_BUFFERED]

    async def test_a_peer_that_closes_while_the_client_speaks(self) -> None:
        """It had said all; what the client is just saying, however much, costs it nothing of that."""
        _, wire, conversation = await self.tight_pair()
        conversation.transport.pauseProducing()  # type: ignore[union-attr]
        wire.transport.pauseProducing()
        conversation.say(WORDS[:200_000])
        conversation.say_all()
        wire.write(WORDS)
        for _ in range(2):
            await pause(0.05)
            self.house.reactor.advance(3.0)
        wire.transport.resumeProducing()
        await eventually(lambda: len(wire.raw) == 200_000)
        assert wire.raw == WORDS[:200_000]
        wire.close()
        await eventually(lambda: wire.end != "")
        conversation.transport.resumeProducing()  # type: ignore[union-attr]
        await conversation.close()

    async def test_a_client_that_is_gone_when_the_peer_answers(self) -> None:
        """It said all and closed in order. That it cannot be written to any more takes back nothing."""
        _, wire, conversation = await self.tight_pair()
        conversation.transport.pauseProducing()  # type: ignore[union-attr]
        wire.write(WORDS[:60_000])
        counters = next(iter(self.house.core.sessions())).relays[0][0].counters  # type: ignore[attr-defined]
        await eventually(lambda: counters.sent_bytes == 60_000)
        self.leave_rudely(wire)
        await pause(0.05)
        for _ in range(5):
            conversation.say(WORDS[:10_000])
            await pause(0.01)
        conversation.transport.resumeProducing()  # type: ignore[union-attr]
        await eventually(lambda: conversation.end != "")
        assert conversation.heard == WORDS[:60_000]
        assert conversation.end == "all"
        await conversation.close()

    def leave_rudely(self, wire: Any) -> None:
        """End in order and be gone at once, without waiting for whatever the relay has to say to it."""
        wire.transport.loseConnection()

    async def test_a_client_that_leaves_and_does_not_listen(self) -> None:
        """The peer hears of its end at once, and not only when everything is taken that the client does not take."""
        _, wire, conversation = await self.tight_pair()
        below(wire.transport).pauseProducing()
        conversation.say(WORDS)
        await self.until_stalled()
        wire.write(b"goodbye")
        wire.close()
        await eventually(lambda: conversation.end != "")
        assert conversation.heard == b"goodbye"
        assert conversation.end == "all"
        conversation.reset()
        below(wire.transport).resumeProducing()
        wire.abort()


class TcpEndsTest(EndsSuite):
    """Over TCP."""

    __test__ = True
    kind = AppConnection.TCP

    async def test_a_client_that_leaves_and_does_not_listen(self) -> None:
        """As elsewhere, but it ends its own direction alone."""
        _, wire, conversation = await self.tight_pair()
        wire.transport.pauseProducing()
        conversation.say(WORDS)
        await self.until_stalled()
        wire.write(b"goodbye")
        wire.say_all()
        await eventually(lambda: conversation.end == "all")
        assert conversation.heard == b"goodbye"
        wire.transport.resumeProducing()
        await eventually(lambda: len(wire.raw) == len(WORDS))
        await conversation.close()
        await eventually(lambda: wire.end == "closed")


class TlsEndsTest(EndsSuite):
    """Over TLS."""

    __test__ = True
    kind = AppConnection.TLS

    def leave_rudely(self, wire: Any) -> None:
        wire.transport.loseConnection()
        wire.transport.transport.loseConnection()


class MixedTlsEndsTest(TlsEndsTest):
    """Over TLS, on a port that takes several protocols."""

    mixed = True


class ProxiedTest(TcpAllocationCase):
    """Over TCP, through a proxy that speaks the PROXY protocol."""

    kind = AppConnection.TCP

    async def through_proxy(self, listen: Any, endpoint: str) -> TurnClient:
        """A client whose connection a proxy has passed on."""
        listener: Any = await listen(
            endpoint,
            self.house.reactor,
            self.house.service,
            ListenerSettings(trusted_proxies=(ipaddress.ip_network("127.0.0.0/8"),)),
        )
        self.addCleanup(listener.close)
        wire = await connect(AppConnection.TCP, listener.addresses[0], certificate())
        self.addCleanup(wire.close)
        wire.write(b"PROXY TCP4 198.51.100.7 192.0.2.1 %d 3478\r\n" % wire.local.port)
        return TurnClient(wire, AppConnection.TCP, "alice", USERS["alice"])

    async def test_one_direction_ends_alone(self) -> None:
        """As it does without the proxy, on either kind of port."""
        control, _ = await self.tcp_client()
        for listen in (listen_stream, self.listen_any):
            client = await self.through_proxy(listen, "haproxy:tcp:0:interface=127.0.0.1")
            peer = self.tcp_peer()
            number = await self.connect(control, peer.address)
            await client.greet()
            assert code_of(await client.ask(Method.CONNECTION_BIND, [(a.CONNECTION_ID, number)])) == 0
            conversation = await peer.next()
            client.wire.write(b"question")
            client.wire.say_all()
            await eventually(lambda: conversation.end == "all")  # noqa: B023 (it is over before the next one)
            assert conversation.heard == b"question"
            conversation.say(b"answer")
            await conversation.close()
            await eventually(lambda: client.wire.end == "closed")  # noqa: B023
            assert client.wire.raw == b"answer"

    async def listen_any(self, endpoint: str, clock: Any, service: Any, settings: Any) -> Any:
        return await open_stream(AnyListener(endpoint, clock, service, settings, make_pages(settings)), endpoint, clock)


class WsEndsTest(EndsSuite):
    """Over WebSocket."""

    __test__ = True
    kind = AppConnection.WS

    def leave_rudely(self, wire: Any) -> None:
        wire.sendClose(1000)
        wire.transport.loseConnection()

    async def test_pings_that_nobody_reads_the_answers_to(self) -> None:
        """Are not answered while what was to be said before them is not taken: nothing piles up."""
        _, wire, conversation = await self.tight_pair()
        wire.transport.pauseProducing()
        conversation.say(WORDS[: 2 * MAX_BUFFERED])
        await self.until_stalled()
        (client,) = [
            client
            for listener in self.house.daemon.listeners
            for client in getattr(listener, "_clients", ())
            if client._data is not None
        ]
        for _ in range(40):
            for _ in range(200):
                wire.sendPing(bytes(125))
            await pause(0.005)
        transport = below(client.transport)
        assert len(transport.dataBuffer) - transport.offset + transport._tempDataLen <= MAX_BUFFERED
        wire.transport.resumeProducing()
        await eventually(lambda: len(wire.raw) == 2 * MAX_BUFFERED)

    async def test_a_text_message_is_no_orderly_end(self) -> None:
        """The client hears 1003; the peer, who may miss something, sees a reset."""
        _, wire, conversation = await self.pair()
        wire.sendMessage(b"text", isBinary=False)
        await eventually(lambda: wire.end != "")
        assert wire.code == 1003
        await eventually(lambda: conversation.end == "reset")


class WssEndsTest(WsEndsTest):
    """Over WebSocket on TLS."""

    __test__ = True
    kind = AppConnection.WSS
