"""TURN over WebSocket through proxies that cut, join, hold back and hang up: every promise holds all the same."""

from __future__ import annotations

from typing import Any

from relayd.address import AppConnection
from relayd.listeners.websocket import PING_INTERVAL, PONG_TIMEOUT
from tests.behaviour.house.suite import NUMBER, HouseCase, HouseSuite, certificate
from tests.support.byte_proxy import ByteProxy, Passage, at_once, held_back, in_pieces
from tests.support.house import USERS
from tests.support.turn_client import TurnClient, code_of, eventually, pause
from tests.support.wires import connect, patiently

ODD = (1, 1, 2, 3, 5, 1, 8, 13, 1, 400)  # bytes: within every header of HTTP, WebSocket and STUN, and within messages
IDLE_LIMIT = 60.0  # seconds: what nginx and Apache allow a server to be silent unless they are told otherwise


class ProxiedCase(HouseCase):
    """Clients reach the relay through a proxy, one for each way in."""

    kind = AppConnection.WS

    def passage(self) -> Passage:
        return at_once()

    def setUp(self) -> None:
        super().setUp()
        self.proxies: dict[Any, ByteProxy] = {}
        self.addCleanup(self.close_proxies)

    async def close_proxies(self) -> None:
        for proxy in self.proxies.values():
            await proxy.close()

    def proxy(self, kind: AppConnection, host: str) -> ByteProxy:
        if (kind, host) not in self.proxies:
            self.proxies[kind, host] = ByteProxy(self.house.address(kind, host), self.passage, self.house.reactor)
        return self.proxies[kind, host]

    async def client(
        self, username: str = "alice", kind: AppConnection | None = None, host: str | None = None
    ) -> TurnClient:
        kind, host = kind or self.kind, host or self.host
        proxy = self.proxy(kind, host)
        wire = await connect(kind, proxy.address, certificate())
        wire.outer = proxy.outer(wire.local)
        made = TurnClient(wire, kind, username, USERS.get(username, "wrong"))
        self.addCleanup(made.close)
        return made


class CutWsTests(HouseSuite, ProxiedCase):
    """A proxy that splits what it passes on at odd places."""

    def passage(self) -> Passage:
        return in_pieces(ODD)


class CutBatchedWsTests(CutWsTests):
    data_plane = "batched"


class CutWssTests(CutWsTests):
    kind = AppConnection.WSS


class HeldBackWsTests(HouseSuite, ProxiedCase):
    """One that keeps what comes for a while, and passes it on in one piece."""

    def passage(self) -> Passage:
        return held_back(turns=20, most=16_384)


class HeldBackBatchedWsTests(HeldBackWsTests):
    data_plane = "batched"


class StalledTests(ProxiedCase):
    """One that passes nothing on for a while, as a phone in a tunnel has it, and then everything."""

    def passage(self) -> Passage:
        return lambda waiting: 0 if self.is_stalled else waiting

    def setUp(self) -> None:
        self.is_stalled = False
        super().setUp()

    async def stall(self, seconds: int) -> None:
        self.is_stalled = True
        for _ in range(seconds):
            self.house.reactor.advance(1)
            await pause(0.002)

    async def test_a_stall_is_survived(self) -> None:
        """What was under way when a proxy stalled arrives once it goes on, in order, and the session is as it was."""
        peer = self.peer()
        client, relayed = await self.bound(peer)
        self.is_stalled = True
        for number in range(5):
            client.channel_data(NUMBER, b"up %d" % number)
            peer.write(b"down %d" % number, relayed)
        await self.stall(int(PONG_TIMEOUT) - 2)
        self.is_stalled = False
        for number in range(5):
            assert await peer.next() == (b"up %d" % number, relayed)
            assert await client.next_data() == (NUMBER, b"down %d" % number)
        assert code_of(await client.refresh(600)) == 0
        assert self.house.end_reasons == []

    async def test_a_stall_without_end(self) -> None:
        """Where it never goes on the session is over once a ping stays without an answer, and nothing is kept of it."""
        client, _ = await self.bound(self.peer())
        await self.stall(int(PING_INTERVAL + PONG_TIMEOUT) + 2)
        assert self.house.end_reasons == ["connection-closed"]
        self.house.assert_holds_nothing()
        self.is_stalled = False
        await patiently(client.wire.closed)


class IdleTests(ProxiedCase):
    """One that gives up connections on which nothing comes from the relay for too long."""

    async def live(self, seconds: float, limit: float) -> None:
        for _ in range(int(seconds)):
            self.house.reactor.advance(1)
            await pause(0.002)
            self.proxy(self.kind, self.host).drop_idle(limit)

    async def test_a_quiet_session_stays(self) -> None:
        """A client that has nothing to say keeps its allocation behind a proxy that allows 60 s of silence."""
        peer = self.peer()
        client, relayed = await self.bound(peer)
        await self.live(500, IDLE_LIMIT)
        peer.write(b"still there", relayed)
        assert (await client.next_data())[1] == b"still there"
        assert code_of(await client.refresh(600)) == 0
        assert self.house.end_reasons == []

    async def test_a_proxy_that_allows_less(self) -> None:
        """Where less is allowed than our pings need, the proxy ends the session; the relay keeps nothing of it, and the
        client can come again.
        """
        client, _ = await self.bound(self.peer())
        await self.live(PING_INTERVAL, PING_INTERVAL / 2)
        await patiently(client.wire.closed)
        await eventually(lambda: self.house.sessions() == 0)
        assert self.house.end_reasons == ["connection-closed"]
        self.house.assert_holds_nothing()
        again = await self.client()
        assert code_of(await again.allocate()) == 0
