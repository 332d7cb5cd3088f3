"""Strangers of every kind on one port of relayd, where TLS ends at relayd and where it ends at HAProxy in front."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.interop.test_uclient import MODES, assert_no_loss, uclient
from tests.support import wire
from tests.support.browser import Browser
from tests.support.certificate import Certificate
from tests.support.ports import free_ports
from tests.support.reverse_proxies import start_haproxy_one_port
from tests.support.servers import PASSWORD, USER, TurnServer, assert_clean_end, start_relayd
from tests.support.websocket import StrangeWebSocket

CLIENT = "127.0.0.9"  # its address, which is not the proxy's


class OnePort:
    """relayd, the one port of it, and another one for a proxy."""

    def __init__(self, directory: Path, certificate: Certificate) -> None:
        self.port, self.behind = free_ports(), free_ports()
        self._log = directory / "allocations.json"
        self._certificate = certificate
        keys = f"privateKey={certificate.key}:certKey={certificate.certificate}"
        self.server = start_relayd(
            directory,
            certificate,
            f"--listen=any=ssl:{self.port}:interface=127.0.0.1:{keys}",
            f"--listen=any=haproxy:tcp:{self.behind}:interface=127.0.0.1",
            f"--observe=json:{self._log}",
        )

    def log(self) -> list[dict[str, Any]]:
        """Of the allocations so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def check_websocket(self, port: int) -> None:
        """One that comes to that port is a `wss` client, at its own address."""
        trusted = str(self._certificate.certificate)
        with StrangeWebSocket(("127.0.0.1", port), USER, PASSWORD, trusted, source=CLIENT) as client:
            granted = client.allocate()
            assert granted.address(wire.XOR_MAPPED_ADDRESS) == client.local
            relayed = "{}:{}".format(*granted.address(wire.XOR_RELAYED_ADDRESS))
            lines = [line for line in self.log() if relayed in line["relayed"]]  # a port may have been another's before
        assert lines[-1]["app_connection"] == "wss"


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[OnePort]:
    made = OnePort(tmp_path_factory.mktemp("one-port"), certificate)
    yield made
    assert_clean_end(made.server)


def at(relay: OnePort, port: int) -> TurnServer:
    """The server as it is seen at that port, whatever the transport."""
    return replace(relay.server, plain=port, secure=port)


@pytest.mark.parametrize("mode", ["tcp", "tls"])
def test_turn(relay: OnePort, peer_port: int, mode: str) -> None:
    """coturn's client loses nothing over TCP, nor over TLS, to the same port."""
    before = len(relay.log())
    assert_no_loss(uclient(at(relay, relay.port), "-r", str(peer_port), *MODES[mode]))
    assert {line["app_connection"] for line in relay.log()[before:]} == {mode}


def test_websocket(relay: OnePort) -> None:
    """A WebSocket client opens an allocation there, and is a `wss` one."""
    relay.check_websocket(relay.port)


def test_a_browser(relay: OnePort, certificate: Certificate, tmp_path: Path) -> None:
    """Chromium, which would rather speak HTTP/2, opens the page, and from it a WebSocket."""
    browser = Browser(tmp_path, f"--ignore-certificate-errors-spki-list={certificate.spki_sha256}")
    try:
        browser.open(f"https://127.0.0.1:{relay.port}/healthz")
        assert browser.evaluate("document.body.textContent").strip() == "ok"
        opened = (
            "new Promise(done => {const s = new WebSocket(location.origin.replace('http', 'ws') + '/turn', 'turn');"
        )
        opened += "s.onopen = () => done(s.protocol); s.onerror = () => done('refused')})"
        assert browser.evaluate(opened) == "turn"
    finally:
        browser.close()


def test_tls_that_ended_at_haproxy(relay: OnePort, peer_port: int, certificate: Certificate, tmp_path: Path) -> None:
    """Behind HAProxy, whose header says so, clients are `tls` and `wss`, at their own address; pages are served."""
    proxy = start_haproxy_one_port(tmp_path, certificate, relay.behind)
    try:
        before = len(relay.log())
        assert_no_loss(uclient(at(relay, proxy.port), "-r", str(peer_port), "-L", CLIENT, *MODES["tls"]))
        lines = relay.log()[before:]
        assert {line["app_connection"] for line in lines} == {"tls"}
        assert all(line["client"].startswith(f"{CLIENT}:") for line in lines)
        relay.check_websocket(proxy.port)
        context = ssl.create_default_context(cafile=str(certificate.certificate))
        context.set_alpn_protocols(["http/1.1"])
        page = http.client.HTTPSConnection("localhost", proxy.port, context=context, timeout=10)
        page.request("GET", "/healthz")
        assert page.getresponse().read() == b"ok\n"
        page.close()
        assert proxy.process.running(), proxy.process.output
    finally:
        proxy.process.kill()
