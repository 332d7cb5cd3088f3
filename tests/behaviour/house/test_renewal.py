"""A certificate that is renewed while the relay runs, over every way in that shows one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from twisted.logger import capturedLogs, formatEvent

from relayd.address import AppConnection
from relayd.tls.certificates import LOOK_INTERVAL
from relayd.web.metrics import Metrics
from tests.behaviour.house.suite import NUMBER, HouseCase
from tests.support.certificate import Certificate, make_certificate, replace_certificate, serial_number
from tests.support.house import HOSTS
from tests.support.turn_client import code_of, pause

SHOWING = (AppConnection.TLS, AppConnection.DTLS, AppConnection.WSS)


def shown(wire: Any) -> int:
    """The serial number of the certificate that the relay showed on a wire."""
    connection = getattr(wire, "_connection", None) or wire.transport.getHandle()
    return int(connection.get_peer_certificate().get_serial_number())


class RenewalTests(HouseCase):
    """On ports of their own, and (below) on one for all."""

    def make_certificate(self) -> Certificate:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        return make_certificate(self.directory)

    def renew(self) -> None:
        self.certificate = replace_certificate(self.certificate, self.directory / "next")

    async def looks(self) -> None:
        """Let the relay look twice."""
        for _ in range(2):
            self.house.reactor.advance(LOOK_INTERVAL)
            await pause()
            await pause()

    async def test_sessions_go_on(self) -> None:
        """Each new handshake has the new certificate; who is there already keeps the old one, and relays."""
        before, peer = serial_number(self.certificate), self.peer()
        ways = [(kind, host) for kind in SHOWING for host in HOSTS]
        old = []
        for number, way in enumerate(ways, NUMBER):
            client = await self.client(kind=way[0], host=way[1])
            relayed = await client.relayed()
            assert code_of(await client.bind(number, peer.address)) == 0
            old.append((number, client, relayed))
        self.renew()
        with capturedLogs() as events:
            await self.looks()
        said = [str(formatEvent(event)) for event in events]
        assert len([line for line in said if line.startswith(f"{self.certificate.certificate}: renewed: ")]) == 1
        for kind, host in ways:
            client = await self.client(kind=kind, host=host)  # which trusts the new one alone, but over DTLS
            await client.relayed()
            assert shown(client.wire) == serial_number(self.certificate) != before
        for number, client, relayed in old:
            assert shown(client.wire) == before
            client.channel_data(number, b"still")
            assert await peer.next() == (b"still", relayed)
            peer.write(b"here", relayed)
            assert await client.next_data() == (number, b"here")

    async def test_half_of_it(self) -> None:
        """As long as certificate and key are no pair, new clients are served with the old ones."""
        before = serial_number(self.certificate)
        with self.certificate.certificate.open("rb") as kept:
            self.renew()
            os.truncate(self.certificate.key, 100)
            await self.looks()
            trusted = self.directory / "old.pem"
            trusted.write_bytes(kept.read())
        files, self.certificate = self.certificate, make_old(self.certificate, trusted)
        for kind in SHOWING:
            client = await self.client(kind=kind)
            await client.relayed()
            assert shown(client.wire) == before
        self.certificate = files
        self.renew()
        await self.looks()
        for kind in SHOWING:
            client = await self.client(kind=kind)
            await client.relayed()
            assert shown(client.wire) == serial_number(files) != before

    async def test_its_end_is_in_the_metrics(self) -> None:
        """That of the one in use, by the name of its file, once for all who show it."""
        self.renew()
        await self.looks()
        status: Any = self.house.daemon._listener_settings.status
        families = {family.name: family for family in Metrics(status)._registry.collect()}
        (sample,) = families["relayd_certificate_expiry_timestamp_seconds"].samples
        assert sample.labels == {"file": str(self.certificate.certificate)}
        assert 86_400 - 600 < sample.value - self.house.reactor.seconds() < 86_400


def make_old(files: Certificate, certificate: Path) -> Certificate:
    return Certificate(certificate, files.key, files.spki_sha256)


class MixedRenewalTests(RenewalTests):
    """The kind `any`."""

    mixed = True
