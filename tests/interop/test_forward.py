"""`relayd-client forward` under strangers: coturn's STUN client asks coturn's server, and a relay is in between that
neither of them knows of; OpenSSL's client calls a service here; and coturn's server is the relay.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificate import Certificate
from tests.support.forward import Listener, command, dial, failed, local_ports, relayed_addresses, until_ready
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
    shown = [f"--peer-certificate={certificate.certificate}", f"--peer-key={certificate.key}"]
    running = start_relayd(tmp_path_factory.mktemp("relay"), certificate, web, *shown)
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


def test_a_tls_client_calls(relay: TurnServer, certificate: Certificate, web_port: int, tmp_path: Path) -> None:
    """OpenSSL's client verifies the relay's certificate for its name, and is served in the clear by way of wss."""
    with Listener() as service:
        arguments = ["--ca", str(certificate.certificate), f"wss://localhost:{web_port}"]
        process = command(tmp_path, *arguments, "--accept-tls", f"127.0.0.1={service.port}")
        until_ready(process)
        ((host, port),) = relayed_addresses(process)
        words = [require("openssl"), "s_client", "-connect", f"{host}:{port}", "-CAfile", str(certificate.certificate)]
        words += ["-verify_return_error", "-verify_hostname", "localhost", "-quiet", "-ign_eof"]
        caller = Process(words, tmp_path)
        try:
            with service.accept() as called:
                called.sendall(b"220 at your service\n")
                assert caller.wait_until(lambda: "220 at your service" in caller.output, 20.0), caller.output
        finally:
            caller.kill()
        assert process.stop() == 0


def test_coturn_is_the_relay(stun_server: TurnServer, tmp_path: Path) -> None:
    """Peers that call a relayed address of coturn's are led here as well. TLS it does not know, and that is told."""
    uri = f"turn:127.0.0.1:{stun_server.plain}?transport=tcp"
    with Listener() as service:
        process = command(tmp_path, uri, "--accept", f"127.0.0.1={service.port}")
        until_ready(process)
        (relayed,) = relayed_addresses(process)
        with dial(relayed) as caller, service.accept() as called:
            caller.sendall(b"question")
            assert called.recv(100) == b"question"
            called.sendall(b"answer")
            assert caller.recv(100) == b"answer"
        assert process.stop() == 0
    done = failed(uri, "--accept-tls", "127.0.0.1=9")
    assert done.returncode == 1
    assert "420 Unknown Attribute" in done.stderr
