"""TURN over WebSocket through proxies that cut, join, hold back and hang up: every promise holds all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relayd.address import AppConnection
from relayd.listeners.websocket import PING_INTERVAL
from tests.behaviour.house.suite import HouseCase, HouseSuite, certificate
from tests.support.byte_proxy import ByteProxy, Passage, at_once, held_back, in_pieces
from tests.support.house import USERS
from tests.support.turn_client import TurnClient, code_of, eventually, pause
from tests.support.wires import connect, patiently

ODD = (1, 1, 2, 3, 5, 1, 8, 13, 1, 400)  # bytes: within every header of HTTP, WebSocket and STUN, and within messages
IDLE_LIMIT = 60.0  # seconds: what nginx and Apache allow a server to be silent unless they are told otherwise


class ProxiedCase(HouseCase):
    """Clients reach the relay through a proxy, one for each way in."""

    kind = AppConnection.WS

    @staticmethod
    def passage() -> Passage:
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
            make: Callable[[], Passage] = self.passage
            self.proxies[kind, host] = ByteProxy(self.house.address(kind, host), make, self.house.reactor)
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

    @staticmethod
    def passage() -> Passage:
        return in_pieces(ODD)


class CutBatchedWsTests(CutWsTests):
    data_plane = "batched"


class CutWssTests(CutWsTests):
    kind = AppConnection.WSS


class HeldBackWsTests(HouseSuite, ProxiedCase):
    """One that keeps what comes for a while, and passes it on in one piece."""

    @staticmethod
    def passage() -> Passage:
        return held_back(turns=20, most=16_384)


class HeldBackBatchedWsTests(HeldBackWsTests):
    data_plane = "batched"


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
