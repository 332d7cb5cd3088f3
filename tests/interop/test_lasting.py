"""relayd's own client and a coturn that restarts: how a stranger says that an allocation is no more."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from relayd.address import AppConnection
from relayd.client import TurnClient, TurnUri
from relayd.turn.client import SILENCE
from tests.behaviour.house.test_client import Collector
from tests.behaviour.house.test_lasting import Impatient
from tests.support.certificate import make_certificate
from tests.support.house import WarpedReactor
from tests.support.servers import PASSWORD, USER, TurnServer, start_coturn
from tests.support.tools import require
from tests.support.turn_client import Peer, eventually
from tests.support.wires import patiently


class CoturnUdpTests(TestCase):
    """What is asked of every way in."""

    kind = AppConnection.UDP

    def setUp(self) -> None:
        require("turnserver")
        directory = tempfile.TemporaryDirectory(prefix="relayd-tests-")
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.certificate = make_certificate(self.directory)

    def coturn(self, plain: int | None = None) -> TurnServer:
        started = start_coturn(self.directory, self.certificate, plain)
        self.addCleanup(started.process.kill)
        return started

    async def test_a_restart(self) -> None:
        """The client finds out, and has another relayed address and its permission there within about a minute."""
        clock, collector = WarpedReactor(), Collector()
        observer = Impatient(clock)
        peer = Peer("127.0.0.1")
        self.addCleanup(peer.close)
        first = self.coturn()
        client = TurnClient(clock, TurnUri("127.0.0.1", first.plain, self.kind), USER, PASSWORD)
        port: Any = await patiently(client.listen(collector, observer))
        self.addCleanup(port.stopListening)
        await patiently(port.permit("127.0.0.1"))
        first.process.kill()
        self.coturn(first.plain)
        clock.advance(SILENCE)
        await eventually(lambda: len(observer.relayed) == 2)
        await patiently(port.permit("127.0.0.1"))
        peer.write(b"found you", port.relayed_addresses[0])
        assert (await patiently(collector.received.get()))[0] == b"found you"


class CoturnTcpTests(CoturnUdpTests):
    kind = AppConnection.TCP
