"""`relayd-client` out of a network whose one way out is Squid, which only allows CONNECT to certain ports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificate import Certificate
from tests.support.forward import (
    PROGRAM,
    Application,
    assert_stopped,
    command,
    local_ports,
    talk,
    until_ready,
)
from tests.support.ports import free_ports
from tests.support.servers import PASSWORD, ROOT, USER, TurnServer, assert_clean_end, start_relayd
from tests.support.squid import Squid, running_squid

PATIENCE = 60.0  # seconds for one command, which takes about two
OFFICE_USER, OFFICE_PASSWORD = "carol", "let me: out"

PLAIN_WEB_PORT = free_ports(2)
WEB_PORT = PLAIN_WEB_PORT + 1


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[TurnServer]:
    keys = f"privateKey={certificate.key}:certKey={certificate.certificate}"
    web = []
    for host in ("127.0.0.1", r"\:\:1"):
        web.append(f"--listen=web=tcp:{PLAIN_WEB_PORT}:interface={host}")
        web.append(f"--listen=web=ssl:{WEB_PORT}:interface={host}:{keys}")
    running = start_relayd(tmp_path_factory.mktemp("relay"), certificate, *web)
    yield running
    assert_clean_end(running)


@pytest.fixture(scope="module")
def open_squid(relay: TurnServer) -> Iterator[Squid]:
    """One that asks nobody who he is, and lets through to all but one of the relay's ports."""
    with running_squid([PLAIN_WEB_PORT, WEB_PORT, relay.secure]) as squid:
        yield squid


@pytest.fixture(scope="module")
def strict_squid(relay: TurnServer) -> Iterator[Squid]:
    """One that asks for a name and a password, in the basic scheme."""
    with running_squid([WEB_PORT], {OFFICE_USER: OFFICE_PASSWORD}) as squid:
        yield squid


def ping(certificate: Certificate, *arguments: str, secrets: str = "") -> tuple[int, dict[str, str]]:
    """The status, and the row of each way. `secrets` are the lines of the pipe behind the relay's password."""
    words = ["ping", "--user", USER, "--ca", str(certificate.certificate), "--count", "3", *arguments]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        input=f"{PASSWORD}\n{secrets}",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    assert PASSWORD not in done.stdout
    assert OFFICE_PASSWORD not in done.stdout
    begin, _, *rows = done.stdout.splitlines()
    assert begin.startswith("through the proxy http://127.0.0.1:"), done.stdout
    return done.returncode, {row.split()[0]: row for row in rows}


def proxy(squid: Squid, user: str = "") -> list[str]:
    return ["--proxy", f"http://{user}{'@' if user else ''}127.0.0.1:{squid.port}"]


def test_all_that_it_lets_through(open_squid: Squid, relay: TurnServer, certificate: Certificate) -> None:
    """TLS, ws and wss work, to an IPv6 address in brackets as well; the port that is not allowed is a clear row."""
    for host in ("localhost", "[::1]"):
        uris = [f"turn:{host}:{relay.plain}", f"turns:{host}:{relay.secure}"]
        uris += [f"ws://{host}:{PLAIN_WEB_PORT}", f"wss://{host}:{WEB_PORT}/turn"]
        status, rows = ping(certificate, *proxy(open_squid), *uris)
        assert status == 1
        assert rows.keys() == {"tcp", "tls", "ws", "wss"}
        assert "403 Forbidden: it does not let us to that server or port" in rows.pop("tcp")
        assert all(row.count(" ms") == 3 for row in rows.values()), rows
    tunnel = ("TCP_TUNNEL/200", "CONNECT", f"[::1]:{WEB_PORT}")
    assert open_squid.process.wait_until(lambda: tunnel in open_squid.requests, 10.0)


def test_nobody_behind_it(open_squid: Squid, relay: TurnServer, certificate: Certificate) -> None:
    """A host that Squid does not reach is a row that says so."""
    status, rows = ping(certificate, *proxy(open_squid), f"wss://127.0.0.9:{WEB_PORT}")
    assert status == 1
    assert "503 Service Unavailable: it does not reach the server" in rows["wss"]


def test_with_a_password(strict_squid: Squid, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The password comes by the pipe, in the environment, or in the proxy's URL in the environment."""
    uri = f"wss://localhost:{WEB_PORT}"
    status, rows = ping(certificate, *proxy(strict_squid, OFFICE_USER), uri, secrets=f"{OFFICE_PASSWORD}\n")
    assert (status, rows["wss"].count(" ms")) == (0, 3)
    monkeypatch.setenv("RELAYD_PROXY_PASSWORD", OFFICE_PASSWORD)
    assert ping(certificate, *proxy(strict_squid, OFFICE_USER), uri)[0] == 0
    monkeypatch.delenv("RELAYD_PROXY_PASSWORD")
    monkeypatch.setenv("https_proxy", f"http://{OFFICE_USER}:let%20me%3A%20out@127.0.0.1:{strict_squid.port}")
    assert ping(certificate, uri)[0] == 0


def test_forward(strict_squid: Squid, relay: TurnServer, certificate: Certificate, tmp_path: Path) -> None:
    """Two UDP applications that know nothing of TURN reach each other from behind Squid, and nothing is left open."""
    with Application() as peer, Application() as application:
        uri = f"wss://localhost:{WEB_PORT}"
        udp = f"0=127.0.0.1:{peer.address[1]}"
        arguments = ["--ca", str(certificate.certificate), *proxy(strict_squid, OFFICE_USER), uri, "--udp", udp]
        forward = command(tmp_path, *arguments, RELAYD_PROXY_PASSWORD=OFFICE_PASSWORD)
        (local,) = local_ports(until_ready(forward))
        talk(application, local, peer, b"hello")
        assert_stopped(forward, relay)
    assert OFFICE_PASSWORD not in forward.output


def test_refused(strict_squid: Squid, certificate: Certificate) -> None:
    """Without a user, and with a wrong password, the row says what Squid wants."""
    uri = f"wss://localhost:{WEB_PORT}"
    status, rows = ping(certificate, *proxy(strict_squid), uri)
    assert status == 1
    assert "407: it wants to know who we are" in rows["wss"]
    status, rows = ping(certificate, *proxy(strict_squid, OFFICE_USER), uri, secrets="wrong\n")
    assert status == 1
    assert "407: it refuses the user name or the password" in rows["wss"]


def test_digest(relay: TurnServer, certificate: Certificate) -> None:
    """A Squid that wants what we do not speak is named by what it wants."""
    with running_squid([WEB_PORT], {OFFICE_USER: OFFICE_PASSWORD}, "digest") as squid:
        arguments = (*proxy(squid, OFFICE_USER), f"wss://localhost:{WEB_PORT}")
        status, rows = ping(certificate, *arguments, secrets=f"{OFFICE_PASSWORD}\n")
    assert status == 1
    assert "407: it asks for Digest authentication, and this client knows Basic only" in rows["wss"]
