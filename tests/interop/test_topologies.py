"""The three topologies of draft-chenxin section 3 as users have them: relays are processes, one of them coturn, and
clients that are applications.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from relayd.client import TurnClient
from tests.behaviour.house.test_client import Collector
from tests.support.certificate import make_certificate
from tests.support.ports import free_ports
from tests.support.process import Process
from tests.support.servers import PASSWORD, USER, assert_clean_end, start_coturn, start_relayd
from tests.support.tools import require
from tests.support.wires import patiently, reactor

SIZES = (0, 1, 200, 1200)
HOST = "127.0.0.1"


class Application:
    """A datagram protocol on a relayed address."""

    def __init__(self, port: Any, collector: Collector) -> None:
        self.port = port
        self.collector = collector
        (address,) = port.relayed_addresses
        self.address = (address.host, address.port)

    @classmethod
    async def start(cls, uri: str) -> Application:
        collector = Collector()
        return cls(await patiently(TurnClient(reactor, uri, USER, PASSWORD).allocate(collector)), collector)

    async def next(self) -> Any:
        return await patiently(self.collector.received.get())


class TopologyTests(TestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory(prefix="relayd-tests-")
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.certificate = make_certificate(self.directory)

    def relay(self, name: str) -> tuple[str, str, Callable[[], dict[str, int]]]:
        """A relayd of its own: its WebSocket URL, its URI over UDP, and what ends it and tells from its log how many
        datagrams went to peers, were bridged, and were dropped.
        """
        directory = self.directory / name
        directory.mkdir()
        web, log = free_ports(1), directory / "allocations"
        listen = f"--listen=web=tcp:{web}:interface={HOST}"
        server = start_relayd(directory, self.certificate, listen, f"--observe=json:{log}")
        self.addCleanup(kill, server.process)

        def end() -> dict[str, int]:
            assert_clean_end(server)
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            ended = [line for line in lines if line["event"] == "allocation-ended"]
            return {word: sum(line[word] for line in ended) for word in ("sent_packets", "bridged", "dropped")}

        return f"ws://{HOST}:{web}/turn", f"turn:{HOST}:{server.plain}", end

    async def converse(self, alices: str, bobs: str) -> None:
        """Alice and Bob, each at their relay, permit and then bind each other, and every size passes both ways."""
        alice, bob = await Application.start(alices), await Application.start(bobs)
        for port, peer in ((alice.port, bob.address), (bob.port, alice.address)):
            await patiently(port.permit(peer[0]))
        for is_bound in (False, True):
            if is_bound:
                await patiently(alice.port.bind(*bob.address))
                await patiently(bob.port.bind(*alice.address))
            for size in SIZES:
                alice.port.write(bytes(size), bob.address)
                assert await bob.next() == (bytes(size), alice.address)
                bob.port.write(bytes(size), alice.address)
                assert await alice.next() == (bytes(size), bob.address)
        for application in (alice, bob):
            await patiently(application.port.stopListening())

    async def test_only_alice_needs_a_websocket(self) -> None:
        """Section 3.1: Bob comes to the same relay over UDP."""
        websocket, udp, end = self.relay("one")
        await self.converse(websocket, udp)
        assert end() == {"sent_packets": 16, "bridged": 16, "dropped": 0}

    async def test_only_alice_needs_a_websocket_and_bob_has_coturn(self) -> None:
        """Section 3.1, where Bob's relay is another one that speaks no WebSocket."""
        require("turnserver")
        directory = self.directory / "coturn"
        directory.mkdir()
        coturn = start_coturn(directory, self.certificate)
        self.addCleanup(kill, coturn.process)
        websocket, _, end = self.relay("one")
        await self.converse(websocket, f"turn:{HOST}:{coturn.plain}")
        assert end() == {"sent_packets": 8, "bridged": 0, "dropped": 0}

    async def test_each_has_a_relay(self) -> None:
        """Section 3.2: two relays reach each other as any other peer."""
        (alices, _, end_alices), (bobs, _, end_bobs) = self.relay("one"), self.relay("two")
        await self.converse(alices, bobs)
        assert end_alices() == end_bobs() == {"sent_packets": 8, "bridged": 0, "dropped": 0}

    async def test_both_have_the_same_relay(self) -> None:
        """Section 3.3: all that they send each other is bridged."""
        websocket, _, end = self.relay("one")
        await self.converse(websocket, websocket)
        assert end() == {"sent_packets": 16, "bridged": 16, "dropped": 0}


def kill(process: Process) -> None:
    if process.running():
        process.kill()
