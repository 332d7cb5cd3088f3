"""nginx that gives up connections on which the relay is silent: our pings are what it wants to hear.

nginx goes by real time and the relay by a clock that is set forward, so a minute can be as short as both like.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from relayd.address import AppConnection, TransportAddress
from relayd.listeners.websocket import PING_INTERVAL
from tests.behaviour.house.suite import HouseCase, certificate
from tests.support.house import USERS
from tests.support.reverse_proxies import Upstream, start_nginx
from tests.support.turn_client import TurnClient, code_of, eventually, pause
from tests.support.wires import connect, patiently

READ_TIMEOUT = 2.0  # seconds that nginx waits for a byte from the relay
PINGS = 7
PACE = 0.4  # seconds between two pings: nginx hears each in good time, and all of them take longer than it waits


class NginxTests(HouseCase):
    kind = AppConnection.WS

    async def through_nginx(self) -> TurnClient:
        """A client with an allocation, over TLS to an nginx that is short of patience."""
        directory = tempfile.TemporaryDirectory(prefix="relayd-tests-")
        self.addCleanup(directory.cleanup)
        plain = self.house.address(AppConnection.WS, "127.0.0.1").port
        nginx = start_nginx(
            Path(directory.name),
            Upstream(plain, 0, certificate()),
            {"proxy_read_timeout 90s": f"proxy_read_timeout {int(READ_TIMEOUT)}s"},
        )
        self.addCleanup(nginx.process.kill)
        wire = await connect(AppConnection.WSS, TransportAddress.parse("127.0.0.1", nginx.port), certificate())
        client = TurnClient(wire, AppConnection.WSS, "alice", USERS["alice"])
        self.addCleanup(client.close)
        assert code_of(await client.allocate()) == 0
        return client

    async def test_pings_are_heard(self) -> None:
        """A session on which nothing is said but pings goes on, for longer than nginx waits."""
        client = await self.through_nginx()
        for _ in range(PINGS):
            self.house.reactor.advance(PING_INTERVAL)
            await pause(PACE)
        assert not client.wire.closed.called
        assert code_of(await client.refresh(600)) == 0
        assert self.house.end_reasons == []

    async def test_silence_is_not(self) -> None:
        """Without them nginx does hang up, and the relay ends the allocation at once."""
        client = await self.through_nginx()
        await patiently(client.wire.closed)
        await eventually(lambda: self.house.sessions() == 0)
        assert self.house.end_reasons == ["connection-closed"]
