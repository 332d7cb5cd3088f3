"""A peer with TLS, made with openssl s_server, for a WebSocket client behind nginx: the relay verifies who it is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import Certificate as TrustRoot
from twisted.internet.ssl import trustRootFromCertificates
from twisted.trial.unittest import TestCase

from relayd.client import TurnClient
from relayd.errors import RemoteError
from relayd.turn.outputs import PeerTls
from tests.support.certificate import Certificate, make_certificate
from tests.support.ports import free_ports, is_listening
from tests.support.process import Process
from tests.support.reverse_proxies import Upstream, start_nginx
from tests.support.servers import PASSWORD, USER, assert_clean_end, start_relayd
from tests.support.tools import require
from tests.support.wires import patiently, reactor

HOST = "127.0.0.1"
PATIENCE = 20.0  # seconds


class Lines(Protocol):
    """Sends one line, and waits for one."""

    def __init__(self) -> None:
        self.line: Deferred[bytes] = Deferred()
        self._heard = b""

    def dataReceived(self, data: bytes) -> None:
        self._heard += data
        if self._heard.endswith(b"\n") and not self.line.called:
            self.line.callback(self._heard)


class TlsPeerTests(TestCase):
    """nginx ends the client's TLS, the relay begins the peer's."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory(prefix="relayd-tests-")
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.certificate = make_certificate(self.directory)

    def start(self, name: str) -> Path:
        directory = self.directory / name
        directory.mkdir()
        return directory

    def relay_behind_nginx(self) -> str:
        """The WebSocket URL of a relay that trusts the certificate of the tests for its peers."""
        port = free_ports()
        web = f"--listen=web=tcp:{port}:interface={HOST}"
        server = start_relayd(self.start("relay"), self.certificate, web, f"--peer-ca={self.certificate.certificate}")
        self.addCleanup(assert_clean_end, server)
        proxy = start_nginx(self.start("nginx"), Upstream(port, port, self.certificate))
        self.addCleanup(proxy.process.kill)
        return f"wss://localhost:{proxy.port}/turn"

    def s_server(self, certificate: Certificate) -> int:
        """The port of one that sends back each line, reversed."""
        port = free_ports()
        command = [require("openssl"), "s_server", "-accept", f"{HOST}:{port}", "-rev", "-alpn", "msrp"]
        command += ["-cert", str(certificate.certificate), "-key", str(certificate.key)]
        process = Process(command, self.start("peer"))
        self.addCleanup(process.kill)
        assert process.wait_until(lambda: is_listening(port), PATIENCE), process.output
        return port

    async def test_the_right_name_and_a_wrong_one(self) -> None:
        """Bytes go there and back under the name of the certificate; under another the client hears 460."""
        url, port = self.relay_behind_nginx(), self.s_server(self.certificate)
        trusted = trustRootFromCertificates([TrustRoot.loadPEM(self.certificate.certificate.read_bytes())])
        client = TurnClient(reactor, url, USER, PASSWORD, trust_root=trusted)
        allocation = await patiently(client.allocate_tcp())
        with pytest.raises(RemoteError) as refused:
            await patiently(allocation.endpoint(HOST, port, PeerTls("other.example")).connect(None))
        assert refused.value.code == 460
        endpoint: Any = allocation.endpoint(HOST, port, PeerTls("localhost", (b"msrp",)))
        lines = await patiently(connectProtocol(endpoint, Lines()))
        transport: Any = lines.transport
        assert transport.negotiatedProtocol == b"msrp"
        transport.write(b"relay me\n")
        assert await patiently(lines.line) == b"em yaler\n"
        transport.loseConnection()
        await patiently(allocation.close())
