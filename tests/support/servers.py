"""Starts TURN servers on loopback for the interop tests: relayd, or coturn to show that the tests ask nothing odd."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import wire
from tests.support.certificate import Certificate
from tests.support.ports import free_ports, is_free, is_listening
from tests.support.process import Process
from tests.support.tools import require

REALM = "example.org"
USER = "alice"
PASSWORD = "correct-horse-battery-staple"
START_PATIENCE = 30.0  # seconds; a loaded machine of two cores imports Twisted in about two
ROOT = Path(__file__).parents[2]

# For tests that run once over the data plane that relayd chooses by itself, and once over the one that runs anywhere.
ON_BOTH_DATA_PLANES = pytest.mark.parametrize(
    "server", [(), ("--data-plane=portable",)], indirect=True, ids=["default-plane", "portable-plane"], scope="session"
)


@dataclass(frozen=True)
class TurnServer:
    """A server that runs, on 127.0.0.1 and ::1: `plain` is its UDP and TCP port, `secure` its DTLS and TLS port.

    For NAT behaviour discovery it also has 127.0.0.2 and the port `alternate`.
    """

    process: Process
    certificate: Certificate
    plain: int
    secure: int
    alternate: int

    def descriptors(self) -> int:
        """How many file descriptors the server holds (Linux)."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def answers(self, patience: float = 1.0) -> bool:
        """Whether a Binding request over UDP is answered on IPv4 and IPv6, and both TCP ports accept."""
        return all(
            self._binds(host, patience) and is_listening(self.plain, host) and is_listening(self.secure, host)
            for host in ("127.0.0.1", "::1")
        )

    def _binds(self, host: str, patience: float) -> bool:
        with wire.StrangeClient((host, self.plain), USER, PASSWORD, patience=patience) as client:
            try:
                return client.ask(wire.BINDING, []).kind == wire.SUCCESS
            except OSError:  # refused as long as nobody listens, or out of patience
                return False


def _ready(server: TurnServer) -> TurnServer:
    if not server.process.wait_until(server.answers, START_PATIENCE):
        server.process.kill()
        raise RuntimeError(f"the server did not start; it printed:\n{server.process.output}")
    return server


def relayd_command(*options: str) -> list[str]:
    """The words that run `twistd -n relayd` with this Python."""
    twistd = "from twisted.scripts.twistd import run; run()"
    return [sys.executable, "-c", twistd, "-n", "--pidfile=", "relayd", *options]


def start_relayd(directory: Path, certificate: Certificate, *more: str, plain: int | None = None) -> TurnServer:
    """`twistd -n relayd` in `directory`, with `more` options behind the usual ones, on free ports or from `plain`."""
    plain = plain or free_ports(4)
    secure, alternate = plain + 2, plain + 3
    options = [
        f"--auth=memory:{USER}:{PASSWORD}",
        f"--realm={REALM}",
        "--allow-peer=127.0.0.0/8",
        "--allow-peer=::1/128",
        "--user-quota=0",
        *more,
    ]
    keys = f"privateKey={certificate.key}:certKey={certificate.certificate}"
    for host in ("127.0.0.1", r"\:\:1"):
        discovery = f":alternateInterface=127.0.0.2:alternatePort={alternate}" if host == "127.0.0.1" else ""
        options += [
            f"--listen=turn=udp:{plain}:interface={host}{discovery}",
            f"--listen=turn=tcp:{plain}:interface={host}",
            f"--listen=turn=ssl:{secure}:interface={host}:{keys}",
            f"--listen=turn=dtls:{secure}:interface={host}:{keys}",
        ]
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = Process(relayd_command(*options), directory, {"PYTHONPATH": search})
    return _ready(TurnServer(process, certificate, plain, secure, alternate))


def start_coturn(directory: Path, certificate: Certificate, plain: int | None = None) -> TurnServer:
    """coturn's turnserver, set up alike."""
    plain = plain or free_ports(4)
    secure, alternate = plain + 2, plain + 3
    options = [
        *(f"--listening-ip={host}" for host in ("127.0.0.1", "127.0.0.2", "::1")),
        *(f"--relay-ip={host}" for host in ("127.0.0.1", "::1")),
        f"--listening-port={plain}",
        f"--tls-listening-port={secure}",
        f"--alt-listening-port={alternate}",
        f"--cert={certificate.certificate}",
        f"--pkey={certificate.key}",
        f"--user={USER}:{PASSWORD}",
        f"--realm={REALM}",
        f"--userdb={directory / 'turndb'}",
        f"--pidfile={directory / 'coturn.pid'}",
    ]
    words = ["-n", "--log-file=stdout", "--lt-cred-mech", "--allow-loopback-peers", "--no-cli"]
    process = Process([require("turnserver"), *words, *options], directory)
    return _ready(TurnServer(process, certificate, plain, secure, alternate))


def assert_clean_end(server: TurnServer) -> None:
    """End relayd with SIGTERM: an orderly end, no traceback, no secret in its log, every port free again.

    Once all is closed, twistd raises the signal that ended it again, so that its parent sees that too.
    """
    status = server.process.stop()
    log = server.process.output
    assert status in (0, -signal.SIGTERM), f"exit status {status}; the log:\n{log}"
    assert "Server Shut Down." in log, log
    assert "Traceback" not in log, log
    assert "Unhandled" not in log, log
    assert PASSWORD not in log, "a password is in the log"
    held = [port for port in (server.plain, server.secure, server.alternate) if not is_free(port)]
    assert not held, f"still in use: {held}"
