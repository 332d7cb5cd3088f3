"""`relayd-client ping` as a user runs it, against a relay in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.certificate import Certificate, make_certificate
from tests.support.ports import free_ports
from tests.support.servers import PASSWORD, ROOT, USER, TurnServer, assert_clean_end, start_relayd

PATIENCE = 30.0  # seconds for one command, which takes about one


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[TurnServer]:
    running = start_relayd(tmp_path_factory.mktemp("server"), certificate)
    yield running
    assert_clean_end(running)


def run(*arguments: str, password: str = PASSWORD, by_environment: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command; the password comes by a pipe, or in the environment."""
    program = "import sys; from relayd.client.command import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if by_environment:
        environment["RELAYD_PASSWORD"] = password
    return subprocess.run(
        [sys.executable, "-c", program, "ping", "--user", USER, *arguments],
        input="" if by_environment else password + "\n",
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_every_way(server: TurnServer, certificate: Certificate, host: str) -> None:
    """Each way that works is a row with its times, and the status is 0."""
    servers = [f"turn:{host}:{server.plain}", f"turns:{host}:{server.secure}"]
    done = run("--ca", str(certificate.certificate), *servers)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    heading, *rows = done.stdout.splitlines()
    assert heading.startswith("way")
    assert [row.split()[0] for row in rows] == ["udp", "tcp", "tls"]
    assert all(row.count(" ms") == 3 and "127.0.0.1:" in row for row in rows), done.stdout


def test_ipv6_relayed_address(server: TurnServer) -> None:
    """An IPv6 relayed address is given on demand, to a client that comes over IPv4."""
    done = run("--ipv6", f"turn:127.0.0.1:{server.plain}", by_environment=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("[::1]:") == 2


def test_what_fails(server: TurnServer) -> None:
    """Each way that fails says why in its row; those that work still show; the status is 1; no traceback."""
    nobody = free_ports()
    done = run(
        f"turn:127.0.0.1:{nobody}",
        f"turns:127.0.0.1:{server.secure}",
        f"turns:127.0.0.1:{server.secure}?transport=udp",
        f"turn:127.0.0.1:{server.plain}?transport=tcp",
    )
    assert done.returncode == 1
    _, udp, tcp, tls, dtls, good = done.stdout.splitlines()
    assert "nothing listens" in udp
    assert "refused" in tcp
    assert "certificate verify failed" in tls
    assert "certificate verify failed" in dtls
    assert "failed" not in good
    assert "Traceback" not in done.stderr


def test_wrong_password(server: TurnServer) -> None:
    """A wrong password is a row that says so, and is nowhere in what is printed."""
    done = run(f"turn:127.0.0.1:{server.plain}", password="sesame-open")
    assert done.returncode == 1
    assert done.stdout.count("401 Unauthorized: check the user name and the password") == 2
    assert "sesame" not in done.stdout + done.stderr
