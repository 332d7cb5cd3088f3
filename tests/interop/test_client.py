"""relayd's own client with coturn's server: every way in, both families, data both ways, errors."""

from __future__ import annotations

import atexit
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from twisted.internet.ssl import Certificate as TrustRoot
from twisted.internet.ssl import trustRootFromCertificates
from twisted.trial.unittest import TestCase

from relayd.address import AppConnection, Family
from relayd.client import TurnClient, TurnUri
from relayd.client.ping import ping
from relayd.errors import RemoteError
from tests.behaviour.house.test_client import Collector, failure_of
from tests.support.certificate import make_certificate
from tests.support.servers import PASSWORD, USER, TurnServer, start_coturn
from tests.support.tools import require
from tests.support.turn_client import Peer
from tests.support.wires import patiently, reactor


@cache
def coturn() -> TurnServer:
    """One for all tests here; killed when they are over."""
    require("turnserver")
    directory = tempfile.TemporaryDirectory(prefix="relayd-tests-")
    started = start_coturn(Path(directory.name), make_certificate(Path(directory.name)))
    atexit.register(directory.cleanup)
    atexit.register(started.process.kill)
    return started


class CoturnUdpTests(TestCase):
    """What is asked of every way in."""

    kind = AppConnection.UDP
    host = "127.0.0.1"

    def client(self, password: str = PASSWORD, *, trusts: bool = True) -> TurnClient:
        server = coturn()
        port = server.secure if self.kind in (AppConnection.TLS, AppConnection.DTLS) else server.plain
        trusted = TrustRoot.loadPEM(server.certificate.certificate.read_bytes())
        family = Family.IPV4 if self.host == "127.0.0.1" else Family.IPV6
        return TurnClient(
            reactor,
            TurnUri(self.host, port, self.kind),
            USER,
            password,
            families=(family,),
            trust_root=trustRootFromCertificates([trusted] if trusts else []),
        )

    async def test_whole_life(self) -> None:
        """Allocate, indications and a channel both ways, and deletion, which coturn confirms."""
        peer = Peer(self.host)
        self.addCleanup(peer.close)
        collector = Collector()
        port: Any = await patiently(self.client().allocate(collector))
        (relayed,) = port.relayed_addresses
        for size in (1, 3, 1200):
            port.write(bytes(size), (self.host, peer.address.port))
            assert await peer.next() == (bytes(size), relayed)
            peer.write(b"back", relayed)
            assert await patiently(collector.received.get()) == (b"back", (self.host, peer.address.port))
            await patiently(port.bind(self.host, peer.address.port))
        await patiently(port.stopListening())
        assert collector.is_stopped

    async def test_wrong_password(self) -> None:
        """coturn's 401 is told as such."""
        error = await failure_of(self.client("wrong").allocate(Collector()))
        assert isinstance(error, RemoteError)
        assert error.code == 401

    async def test_ping(self) -> None:
        """The diagnostic finds this way to work."""
        outcome = await ping(reactor, self.client(), 3, 5.0)
        assert outcome.error is None
        assert len(outcome.echoes) == 3


class CoturnUdp6Tests(CoturnUdpTests):
    host = "::1"


class CoturnTcpTests(CoturnUdpTests):
    kind = AppConnection.TCP


class CoturnTcp6Tests(CoturnTcpTests):
    host = "::1"


class CoturnTlsTests(CoturnUdpTests):
    kind = AppConnection.TLS


class CoturnTls6Tests(CoturnTlsTests):
    host = "::1"


class CoturnDtlsTests(CoturnUdpTests):
    kind = AppConnection.DTLS

    async def test_another_certificate(self) -> None:
        """coturn is refused where nobody trusts its certificate."""
        error = await failure_of(self.client(trusts=False).allocate(Collector()))
        assert "certificate verify failed" in str(error)


class CoturnDtls6Tests(CoturnDtlsTests):
    host = "::1"
