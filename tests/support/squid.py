"""Starts Squid on loopback as a forward proxy that lets clients CONNECT to certain ports, and do nothing else.

That is what the proxies of offices, schools and hotels allow, with 443 for the ports.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_ports, is_listening
from tests.support.process import Process
from tests.support.tools import require, require_file

PROXY_REALM = "the office"
START_PATIENCE = 30.0  # seconds; it takes less than one

_CONFIGURATION = """\
http_port 127.0.0.1:{port}
acl CONNECT method CONNECT
acl tunnels port {tunnels}
{authentication}
http_access deny !CONNECT
http_access deny !tunnels
http_access allow {whom}
http_access deny all

visible_hostname localhost
via on
cache deny all
access_log stdio:{directory}/access.log
cache_log {directory}/cache.log
pid_filename none
shutdown_lifetime 0 seconds
pinger_enable off
"""

_AUTHENTICATION = """\
auth_param {scheme} program {program}
auth_param {scheme} children 1 startup=1 idle=1
auth_param {scheme} realm {realm}
acl known proxy_auth REQUIRED
"""


@dataclass(frozen=True)
class Squid:
    """A proxy that runs, on that port of 127.0.0.1."""

    process: Process
    port: int
    directory: Path

    @property
    def requests(self) -> list[tuple[str, str, str]]:
        """What it has served or refused so far: (result, method, target), such as TCP_TUNNEL/200, CONNECT, HOST:PORT.

        A tunnel is there once it is closed.
        """
        log = self.directory / "access.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [(fields[3], fields[5], fields[6]) for fields in map(str.split, lines) if len(fields) > 6]


@contextmanager
def running_squid(
    tunnels: Iterable[int], users: Mapping[str, str] | None = None, scheme: str = "basic"
) -> Iterator[Squid]:
    """Run it as long as the context lasts. With `users` it asks for a name and a password, by `basic` or `digest`."""
    program = require("squid")
    # Started by root it goes on as another user, who has to get at its files, and cannot in a directory of pytest's.
    with tempfile.TemporaryDirectory(prefix="relayd-squid-") as name:
        directory = Path(name)
        directory.chmod(0o777)
        port = free_ports()
        configuration = directory / "squid.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                port=port,
                tunnels=" ".join(map(str, tunnels)),
                authentication=_authentication(directory, users, scheme) if users else "",
                whom="known" if users else "all",
                directory=directory,
            )
        )
        process = Process([program, "-N", "-d", "1", "-f", str(configuration)], directory)
        try:
            if not process.wait_until(lambda: is_listening(port), START_PATIENCE):
                raise RuntimeError(f"Squid did not start; it printed:\n{process.output}")
            yield Squid(process, port, directory)
        finally:
            process.kill()


def _authentication(directory: Path, users: Mapping[str, str], scheme: str) -> str:
    passwords = directory / "passwords"
    if scheme == "basic":
        program = [str(require_file("/usr/lib/squid/basic_ncsa_auth", "squid"))]
        lines = [f"{user}:{_crypted(password)}" for user, password in users.items()]
    else:
        program = [str(require_file("/usr/lib/squid/digest_file_auth", "squid")), "-c"]
        lines = [
            f"{user}:{PROXY_REALM}:{hashlib.md5(f'{user}:{PROXY_REALM}:{password}'.encode()).hexdigest()}"
            for user, password in users.items()
        ]
    passwords.write_text("".join(f"{line}\n" for line in lines))
    os.chmod(passwords, 0o644)
    return _AUTHENTICATION.format(scheme=scheme, program=shlex.join([*program, str(passwords)]), realm=PROXY_REALM)


def _crypted(password: str) -> str:
    """As in a file of htpasswd."""
    command = [require("openssl"), "passwd", "-apr1", "-stdin"]
    return subprocess.run(command, input=password, capture_output=True, text=True, check=True).stdout.strip()
