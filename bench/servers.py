"""Starts and stops the servers that are compared, on their core. How a relayd is started is told here and only here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from bench import wire
from bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.fleet import Transport

HOST = "127.0.0.1"
REALM = "bench.example"
USERNAME = "bench"
PASSWORD = "not-a-secret"
START_SECONDS = 20.0
STOP_SECONDS = 10.0
_ROOT = Path(__file__).resolve().parent.parent
"""The checkout: the relayd that is measured is the one beside this bench, installed or not."""
_PLUGINS = _ROOT / "bench" / "plugins"
"""What the bench adds to a relayd, to compare it with."""
_CERTIFICATE_COMMAND = [
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
]
_CERTIFICATE_COMMAND += ["-days", "2", "-subj", "/CN=bench.example", "-batch"]


@dataclass
class Server:
    """A TURN server that answers. `tcp` to `wss` are ports, 0 where it has none; `pid` is 0 where it is not known."""

    name: str
    release: str
    udp: tuple[str, int]
    tcp: int = 0
    tls: int = 0
    ws: int = 0
    wss: int = 0
    pid: int = 0
    username: str = USERNAME
    password: str = PASSWORD
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    log: Path | None = field(default=None, repr=False)

    def nearest(self, transport: Transport) -> Transport:
        """What comes next to it of what this server speaks: for WebSocket the stream below it."""
        if transport == "ws" and not self.ws:
            return "tcp"
        if transport == "wss" and not self.wss:
            return "tls"
        return transport

    def port(self, transport: Transport) -> int:
        """Where it speaks that."""
        return {"udp": self.udp[1], "tcp": self.tcp, "tls": self.tls, "ws": self.ws, "wss": self.wss}[transport]

    def stop(self) -> None:
        """End the process, if it is ours. Raises BenchError if it had ended by itself: its figures mean nothing."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is not None:
            raise BenchError(
                f"{self.name} ended during the measurement with status {process.returncode}:\n{self.tail()}"
            )
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def tail(self) -> str:
        """The end of its log."""
        try:
            return self.log.read_text(errors="replace")[-2000:] if self.log else ""
        except OSError:
            return ""


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes started inside stay on that core."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {core})
    except OSError as error:
        raise BenchError(f"cannot use core {core}: {error}") from error
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A port that is free this moment for UDP and TCP: on a used one coturn would start silently, and share it."""
    for _ in range(100):
        with socket.socket() as stream, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
            stream.bind((HOST, 0))
            port = int(stream.getsockname()[1])
            try:
                datagram.bind((HOST, port))
            except OSError:
                continue
            return port
    raise BenchError("no port is free")


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    if not certificate.exists():
        command = [*_CERTIFICATE_COMMAND, "-keyout", str(key), "-out", str(certificate)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BenchError(f"cannot make a certificate with openssl: {error}") from error
    return certificate, key


def start_coturn(core: int, directory: Path) -> Server:
    """A coturn with one relay thread. Raises BenchError if there is none on this machine."""
    program = shutil.which("turnserver")
    if program is None:
        raise BenchError("coturn is not installed: on Debian, apt-get install coturn")
    certificate, key = make_certificate(directory)
    udp, tls = free_port(), free_port()
    command = [program, "-n", "-m", "1", "--listening-ip", HOST, "--relay-ip", HOST, "--allow-loopback-peers"]
    command += [
        "--listening-port",
        str(udp),
        "--tls-listening-port",
        str(tls),
        "--cert",
        str(certificate),
        "--pkey",
        str(key),
    ]
    command += ["--lt-cred-mech", "--realm", REALM, "--user", f"{USERNAME}:{PASSWORD}", "--no-cli", "--no-dtls"]
    command += ["--userdb", str(directory / "turndb"), "--pidfile", str(directory / "coturn.pid")]
    command += ["--no-stdout-log", "--simple-log", "--log-file", str(directory / "coturn.log")]
    release = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.split()
    server = Server("coturn", release[0] if release else "?", (HOST, udp), tcp=udp, tls=tls)
    server.log = directory / "coturn.log"
    return _started(server, command, core, directory)


def start_relayd(
    core: int, directory: Path, data_plane: str = "batched", web: str = "web", name: str = "relayd"
) -> Server:
    """A relayd of the Python that runs the bench; `web` is the kind of its listeners for WebSocket."""
    certificate, key = make_certificate(directory)
    udp, tls, ws, wss = (free_port() for _ in range(4))
    files = f"privateKey={key}:certKey={certificate}"
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
    command += ["--logfile", str(directory / f"{name}.log"), "relayd"]
    command += ["--listen", f"turn=udp:{udp}:interface={HOST}", "--listen", f"turn=tcp:{udp}:interface={HOST}"]
    command += ["--listen", f"turn=ssl:{tls}:interface={HOST}:{files}"]
    command += ["--listen", f"{web}=tcp:{ws}:interface={HOST}", "--listen", f"{web}=ssl:{wss}:interface={HOST}:{files}"]
    command += ["--auth", f"memory:{USERNAME}:{PASSWORD}", "--realm", REALM, "--allow-peer", "127.0.0.0/8"]
    command += ["--user-quota", "0", "--total-quota", "0", "--data-plane", data_plane]
    server = Server(name, f"{_relayd_version()} ({data_plane})", (HOST, udp), tcp=udp, tls=tls, ws=ws, wss=wss)
    server.log = directory / f"{name}.log"
    return _started(server, command, core, directory)


def given_server(where: str, username: str, password: str, pid: int, tls: int) -> Server:
    """A server that somebody else runs: UDP and TCP at `where` (HOST:PORT), TLS at port `tls` if that is not 0."""
    host, _, port = where.rpartition(":")
    if not re.fullmatch(r"\d{1,5}", port):
        raise BenchError(f"--server {where}: it must be HOST:PORT")
    try:
        address = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_DGRAM)[0][4]
    except OSError as error:
        raise BenchError(f"--server {where}: no IPv4 address: {error}") from error
    udp = (str(address[0]), int(port))
    server = Server(where, "", udp, tcp=udp[1], tls=tls, pid=pid, username=username, password=password)
    if not _answers(udp, START_SECONDS / 4):
        raise BenchError(f"--server {where}: no answer to a Binding request over UDP")
    return server


def _started(server: Server, command: list[str], core: int, directory: Path) -> Server:
    output: IO[bytes]
    with open(directory / f"{server.name}.out", "wb") as output, pinned(core):
        server.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=directory, env=_environment()
        )
    server.pid = server.process.pid
    deadline = time.monotonic() + START_SECONDS
    while not _answers(server.udp, 0.1):
        status = server.process.poll()
        if status is not None or time.monotonic() > deadline:
            said = (directory / f"{server.name}.out").read_text(errors="replace")[-2000:]
            if status is None:
                server.stop()
            raise BenchError(f"{server.name} did not start (status {status}):\n{said}{server.tail()}")
    return server


def _answers(address: tuple[str, int], seconds: float) -> bool:
    """Whether a Binding request gets an answer within that time, asked ten times a second."""
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        while True:
            asked = time.monotonic()
            try:
                sock.sendto(wire.request(wire.BINDING, []), address)
                if wire.parse(sock.recv(2048)).kind == wire.BINDING | wire.SUCCESS:
                    return True
            except OSError:
                time.sleep(max(0.0, asked + 0.1 - time.monotonic()))
            if time.monotonic() >= deadline:
                return False


def _environment() -> dict[str, str]:
    path = [str(_ROOT), str(_PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _relayd_version() -> str:
    command = [sys.executable, "-c", "import relayd; print(relayd.__version__)"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    if result.returncode:
        raise BenchError(f"{sys.executable} cannot import relayd")
    return result.stdout.strip()
