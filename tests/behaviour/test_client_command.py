"""`relayd-client ping` as a user runs it, against a relay in another process, straight and through a proxy."""

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
WEB_PORT = free_ports(3)
SECURE_WEB_PORT = WEB_PORT + 1
PORT_FOR_ALL = WEB_PORT + 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[TurnServer]:
    keys = f"privateKey={certificate.key}:certKey={certificate.certificate}"
    hosts = ("127.0.0.1", r"\:\:1")
    web = [f"--listen=web=tcp:{WEB_PORT}:interface={host}" for host in hosts]
    web += [f"--listen=web=ssl:{SECURE_WEB_PORT}:interface={host}:{keys}" for host in hosts]
    web += [f"--listen={kind}:{PORT_FOR_ALL}:interface=127.0.0.1:{keys}" for kind in ("any=ssl", "turn=dtls")]
    running = start_relayd(tmp_path_factory.mktemp("server"), certificate, *web)
    yield running
    assert_clean_end(running)


def rows_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The row of each way, whichever was known first."""
    heading, *rows = done.stdout.splitlines()
    assert heading.startswith("way")
    found = {row.split()[0]: row for row in rows}
    assert len(found) == len(rows), "two rows of one way"
    return found


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
    servers = [
        f"turn:{host}:{server.plain}",
        f"turns:{host}:{server.secure}",
        f"turns:{host}:{server.secure}?transport=udp",
        f"ws://{host}:{WEB_PORT}",
        f"wss://{host}:{SECURE_WEB_PORT}/turn",
    ]
    done = run("--ca", str(certificate.certificate), *servers)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    rows = rows_of(done)
    assert rows.keys() == {"udp", "tcp", "tls", "dtls", "ws", "wss"}
    assert all(row.count(" ms") == 3 and "127.0.0.1:" in row for row in rows.values()), done.stdout


def test_a_host(server: TurnServer, certificate: Certificate) -> None:
    """A host with a port is tried in every way: all but udp work where one port is for all, and one would be enough."""
    done = run("--ca", str(certificate.certificate), "--timeout", "3", f"localhost:{PORT_FOR_ALL}")
    assert done.returncode == 0
    rows = rows_of(done)
    assert {way for way, row in rows.items() if "failed" not in row} == {"tcp", "tls", "dtls", "wss"}, done.stdout
    assert rows.keys() == {"udp", "dtls", "tcp", "tls", "wss"}


def test_ipv6_relayed_address(server: TurnServer) -> None:
    """An IPv6 relayed address is given on demand, to a client that comes over IPv4."""
    done = run("--ipv6", f"turn:127.0.0.1:{server.plain}", by_environment=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("[::1]:") == 2


def test_what_fails(server: TurnServer) -> None:
    """Each way that fails says why in its row; those that work still show; a server that none leads to makes the status
    1; no traceback.
    """
    nobody = free_ports()
    done = run(
        f"turn:127.0.0.1:{nobody}?transport=udp",
        f"turns:127.0.0.1:{server.secure}",
        f"turns:127.0.0.1:{server.secure}?transport=udp",
        f"turn:127.0.0.1:{server.plain}?transport=tcp",
        f"ws://127.0.0.1:{WEB_PORT}/elsewhere",
        f"wss://127.0.0.1:{SECURE_WEB_PORT}",
    )
    assert done.returncode == 1
    rows = rows_of(done)
    assert "nothing listens" in rows["udp"]
    assert "failed" not in rows["tcp"]
    assert "certificate verify failed" in rows["tls"]
    assert "certificate verify failed" in rows["dtls"]
    assert "404 Not Found: there is no TURN at that path" in rows["ws"]
    assert "certificate verify failed" in rows["wss"]
    assert "Traceback" not in done.stderr


def test_wrong_password(server: TurnServer) -> None:
    """A wrong password is a row that says so, and is nowhere in what is printed."""
    done = run(f"turn:127.0.0.1:{server.plain}", password="sesame-open")
    assert done.returncode == 1
    assert done.stdout.count("401 Unauthorized: check the user name and the password") == 2
    assert "sesame" not in done.stdout + done.stderr


def test_no_proxy_there(server: TurnServer) -> None:
    """With a proxy, the ways that go through it are tried; the rows say that it is the proxy that is not there."""
    nobody = free_ports()
    done = run("--proxy", f"http://127.0.0.1:{nobody}", "127.0.0.1")
    assert done.returncode == 1
    begin, *lines = done.stdout.splitlines(keepends=True)
    assert begin.startswith(f"through the proxy http://127.0.0.1:{nobody}: ")
    done.stdout = "".join(lines)
    rows = rows_of(done)
    assert rows.keys() == {"tcp", "tls", "wss"}
    words = f"failed: the proxy http://127.0.0.1:{nobody}: Connection refused"
    assert all(row.endswith(words) for row in rows.values())


def test_a_proxy_of_the_environment(server: TurnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """WebSockets take the proxy of the environment, where no_proxy and --proxy direct do not spare them."""
    nobody = free_ports()
    monkeypatch.setenv("http_proxy", f"http://carol:sesame@127.0.0.1:{nobody}")
    servers = [f"ws://127.0.0.1:{WEB_PORT}", f"turn:127.0.0.1:{server.plain}"]
    done = run(*servers)
    assert done.returncode == 1
    assert f"through the proxy http://127.0.0.1:{nobody}: ws://127.0.0.1:{WEB_PORT}/turn\n" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines() if "failed" in line] == ["ws"]
    assert "sesame" not in done.stdout + done.stderr
    assert run("--proxy", "direct", *servers).returncode == 0
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert run(*servers).returncode == 0
