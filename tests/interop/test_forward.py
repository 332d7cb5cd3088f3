"""`relayd-client forward` under a stranger: coturn's STUN client asks coturn's server, and a relay is in between that
neither of them knows of.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.behaviour.test_client_forward import command, local_ports, until_ready
from tests.support.certificate import Certificate
from tests.support.ports import free_ports
from tests.support.process import Process
from tests.support.servers import PASSWORD, TurnServer, assert_clean_end, start_coturn, start_relayd
from tests.support.squid import running_squid
from tests.support.tools import require

OFFICE_USER, OFFICE_PASSWORD = "carol", "let me out"


@pytest.fixture(scope="module")
def web_port() -> int:
    """Where the relay speaks HTTP over TLS: its 443."""
    return free_ports()


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate, web_port: int) -> Iterator[TurnServer]:
    keys = f"privateKey={certificate.key}:certKey={certificate.certificate}"
    web = f"--listen=web=ssl:{web_port}:interface=127.0.0.1:{keys}"
    running = start_relayd(tmp_path_factory.mktemp("relay"), certificate, web)
    yield running
    assert_clean_end(running)


@pytest.fixture(scope="module")
def stun_server(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[TurnServer]:
    running = start_coturn(tmp_path_factory.mktemp("stun"), certificate)
    yield running
    running.process.kill()


def mapped_address(local: tuple[str, int], directory: Path) -> str:
    """What the STUN client learns: from where the server sees it."""
    client = Process([require("turnutils_stunclient"), "-p", str(local[1]), local[0]], directory)
    said: list[str] = []

    def says() -> bool:
        said[:] = re.findall(r"UDP reflexive addr: (\S+)\s", client.output)
        return bool(said)

    try:
        # It goes on to ask the server's other ports, which are not forwarded, and waits for ever.
        assert client.wait_until(says, 20.0), client.output
    finally:
        client.kill()
    return said[0]


@pytest.mark.parametrize("way", ["direct", "through Squid"])
def test_a_stun_client(
    relay: TurnServer, stun_server: TurnServer, certificate: Certificate, web_port: int, tmp_path: Path, way: str
) -> None:
    """Over wss, and through a proxy that lets out nothing else, it sees the relayed address for its own."""
    arguments = ["--ca", str(certificate.certificate), f"wss://localhost:{web_port}"]
    arguments += ["--udp", f"0=127.0.0.1:{stun_server.plain}"]
    with running_squid([web_port], {OFFICE_USER: OFFICE_PASSWORD}) as squid:
        if way != "direct":
            arguments += ["--proxy", f"http://{OFFICE_USER}@127.0.0.1:{squid.port}"]
        process = command(tmp_path, *arguments, RELAYD_PROXY_PASSWORD=OFFICE_PASSWORD)
        try:
            output = until_ready(process)
            relayed = re.findall(r"^relayed address: (\S+),", output, re.MULTILINE)
            assert mapped_address(local_ports(output)[0], tmp_path) in relayed
            assert process.stop(signal.SIGINT) == 0
        finally:
            process.kill()
        tunnel = ("TCP_TUNNEL/200", "CONNECT", f"localhost:{web_port}")
        assert squid.process.wait_until(lambda: (tunnel in squid.requests) is (way != "direct"), 10.0)
    for secret in (PASSWORD, OFFICE_PASSWORD):
        assert secret not in process.output
