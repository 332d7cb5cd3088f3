"""The start and the end of `twistd relayd`, seen from outside: what is printed, its exit status, what it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import wire
from tests.support.certificate import make_certificate, replace_certificate
from tests.support.ports import LOOPBACK, free_ports, is_free
from tests.support.process import Process
from tests.support.servers import ROOT, START_PATIENCE, relayd_command

READY = "relayd: ready"
PATIENCE = 60.0  # seconds for a process that ends by itself, on a busy machine


def environment(**more: str) -> dict[str, str]:
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": search, **more}


def run_to_the_end(directory: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        relayd_command(*options),
        cwd=directory,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def comes_true(holds: Callable[[], bool]) -> bool:
    """Whether it holds within a while, for what another process does in its own time."""
    pause, deadline = threading.Event(), time.monotonic() + PATIENCE
    while not holds() and time.monotonic() < deadline:
        pause.wait(0.02)
    return holds()


class Relay:
    """A relay that runs on a free port of loopback, until the test is over."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[Process] = []

    def start(self, *options: str) -> Process:
        process = Process(relayd_command(*options), self.directory, environment())
        self.processes.append(process)
        assert process.wait_until(lambda: READY in process.output, START_PATIENCE), process.output
        return process


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    runner = Relay(tmp_path)
    yield runner
    for process in runner.processes:
        process.kill()


def exchange_through(user: str, password: str, port: int) -> None:
    """Allocate with these credentials, and pass one datagram each way through the relayed address."""
    with (
        wire.StrangeClient(("127.0.0.1", port), user, password) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        peer.settimeout(START_PATIENCE)
        peer.bind(("127.0.0.1", 0))
        relayed = client.allocate().address(wire.XOR_RELAYED_ADDRESS)
        assert client.bind_channel(0x4000, peer.getsockname()).kind == wire.SUCCESS
        client.send(wire.channel_data(0x4000, b"there"))
        assert peer.recvfrom(100) == (b"there", relayed)
        peer.sendto(b"back", relayed)
        assert client.receive() == wire.channel_data(0x4000, b"back")


def test_printed_user_relays(relay: Relay) -> None:
    """Without --auth the relay prints an entry of iceServers, and whoever has it can relay, on loopback peers too."""
    port = free_ports()
    process = relay.start(f"--listen=turn=udp:{port}:interface=127.0.0.1")
    entry = json.loads(next(line for line in process.output.splitlines() if line.startswith("{")))
    assert entry["urls"] == [f"turn:127.0.0.1:{port}?transport=udp"]
    exchange_through(entry["username"], entry["credential"], port)
    assert f"listening on udp 127.0.0.1:{port}" in process.output
    assert re.search(r"data plane \w+", process.output)
    assert process.output.count(entry["credential"]) == 1, "the credential is printed once, and in no log line"


@pytest.mark.parametrize("impatience", [(), (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)], ids=["once", "again"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_it_cleanly(relay: Relay, how: signal.Signals, impatience: tuple[signal.Signals, ...]) -> None:
    """With an allocation open, a signal ends everything: orderly, no traceback, no port held, whatever comes behind."""
    port = free_ports(2)
    process = relay.start(
        *(f"--listen=turn={transport}:{port}:interface=127.0.0.1" for transport in ("udp", "tcp")),
        f"--relay-ports={port + 1}-{port + 1}",
        "--auth=memory:alice:secret-word",
    )
    with wire.StrangeClient(("127.0.0.1", port), "alice", "secret-word") as client:
        relayed = client.allocate().address(wire.XOR_RELAYED_ADDRESS)
        # twistd raises the signal that ended it again once all is closed, so that its parent sees it. Of several that
        # wait, the system delivers any first.
        assert process.stop(how, impatience) in (0, -how, *(-each for each in impatience))
    assert "Server Shut Down." in process.output
    assert "Traceback" not in process.output
    assert "secret-word" not in process.output
    assert is_free(port)
    assert is_free(relayed[1], LOOPBACK[:1])


def test_signal_takes_a_renewed_certificate(relay: Relay, tmp_path: Path) -> None:
    """SIGUSR2 ends nothing: what was renewed is shown from then on, and whoever was connected stays."""
    files = make_certificate(tmp_path)
    port = free_ports()
    keys = f"privateKey={files.key}:certKey={files.certificate}"
    process = relay.start(f"--listen=turn=ssl:{port}:interface=127.0.0.1:{keys}", "--auth=memory:alice:pw")

    def connect(certificate: Path) -> ssl.SSLSocket:
        connected = socket.create_connection(("127.0.0.1", port), PATIENCE)
        return ssl.create_default_context(cafile=str(certificate)).wrap_socket(connected, server_hostname="localhost")

    with connect(files.certificate) as before:
        replace_certificate(files, tmp_path / "next")
        os.kill(process.pid, signal.SIGUSR2)
        assert process.wait_until(lambda: ": renewed: CN=localhost, " in process.output, PATIENCE), process.output
        connect(files.certificate).close()
        before.sendall(wire.encode(wire.BINDING, wire.REQUEST, [], transaction=os.urandom(12)))
        assert before.recv(2) == b"\x01\x01"


def test_json_log(relay: Relay) -> None:
    """--log-format json: a line when an allocation starts and one when it ends, with session, path and counters."""
    port = free_ports()
    process = relay.start(
        f"--listen=turn=udp:{port}:interface=127.0.0.1", "--auth=memory:alice:pw", "--log-format=json"
    )
    exchange_through("alice", "pw", port)
    process.stop()
    lines = [json.loads(line) for line in process.output.splitlines() if line.startswith("{")]
    started, ended = lines
    assert (started["event"], ended["event"]) == ("allocation-started", "allocation-ended")
    assert started["session"] == ended["session"]
    assert (ended["user"], ended["app_connection"], ended["reason"]) == ("alice", "udp", "shutdown")
    assert (ended["sent_packets"], ended["sent_bytes"]) == (1, len(b"there"))
    assert (ended["received_packets"], ended["received_bytes"]) == (1, len(b"back"))


def test_config_file(relay: Relay, tmp_path: Path) -> None:
    """A relay can be run from a file alone."""
    port = free_ports()
    (tmp_path / "relayd.toml").write_text(
        f"listen = ['turn=udp:{port}:interface=127.0.0.1']\nauth = ['memory:alice:pw']\nrealm = 'example.org'\n",
        encoding="utf-8",
    )
    relay.start("--config=relayd.toml")
    exchange_through("alice", "pw", port)


def test_two_address_families(relay: Relay) -> None:
    """IPv6 listeners are written with escaped colons, and relayed from as IPv4 ones are."""
    port = free_ports()
    process = relay.start(rf"--listen=turn=udp:{port}:interface=\:\:1", "--auth=memory:alice:pw")
    assert "relaying from ::1" in process.output
    with wire.StrangeClient(("::1", port), "alice", "pw") as client:
        family = (wire.REQUESTED_ADDRESS_FAMILY, b"\x02\0\0\0")
        assert client.allocate(family).address(wire.XOR_RELAYED_ADDRESS)[0] == "::1"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = make_certificate(tmp_path_factory.mktemp("certificate"))
    return f"privateKey={made.key}:certKey={made.certificate}"


LISTEN = "--listen=turn=udp:0:interface=127.0.0.1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lisen=turn=udp:0"], ["--lisen", "did you mean listen?"]),
        (["--listen=turm=udp:0"], ["--listen turm", "did you mean turn?"]),
        (["--listen=turn=udp:0:interfase=127.0.0.1"], ["interfase", "did you mean interface=?"]),
        (["--listen=turn=udp:0:interface=192.0.2.1"], ["192.0.2.1"]),
        (["--listen=turn=nosuch:0"], ["nosuch:0"]),
        (["--listen=turn=tcp:99999:interface=127.0.0.1"], ["tcp:99999"]),
        (["--listen=turn=ssl:0:interface=127.0.0.1:privateKey=none.pem:certKey=none.pem"], ["none.pem"]),
        (["--listen=turn=dtls:0:interface=127.0.0.1:privateKey=none.pem:certKey=none.pem"], ["none.pem"]),
        (["--listen=turn=ssl:0:interface=127.0.0.1:privateKey=garbage.pem:certKey=garbage.pem"], ["garbage.pem"]),
        (["--listen=turn=dtls:0:interface=127.0.0.1:privateKey=garbage.pem:certKey=garbage.pem"], ["garbage.pem"]),
        ([LISTEN, "--allow-peer=10.0.0.0/99"], ["--allow-peer 10.0.0.0/99"]),
        ([LISTEN, "--relay-address=192.0.2.1"], ["192.0.2.1", "--relay-address"]),
        ([LISTEN, "--auth=sqlite:none.sqlite"], ["none.sqlite"]),
        ([LISTEN, "--auth=sqlite:garbage.pem"], ["garbage.pem"]),
        ([LISTEN, "--auth=file:none.txt"], ["none.txt"]),
        ([LISTEN, "--auth=secret:file=none.txt"], ["none.txt"]),
        ([LISTEN, "--auth=secret:env=NO_SUCH_VARIABLE"], ["NO_SUCH_VARIABLE"]),
        ([LISTEN, "--data-plane=bached"], ["--data-plane bached", "did you mean batched?"]),
        ([LISTEN, "--policy=redirect:nowhere"], ["--policy redirect:nowhere"]),
        ([LISTEN, "--observe=json:no/such/directory/log"], ["no/such/directory"]),
        ([LISTEN, "--config=bad.toml"], ["bad.toml", "'relm'", "did you mean realm?"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_bad_start_is_one_line_and_status_1(tmp_path: Path, options: list[str], words: list[str]) -> None:
    """Whatever the operator got wrong: one line on stderr that names it, status 1, no traceback, no file left."""
    (tmp_path / "garbage.pem").write_text("this is no certificate\n" * 200, encoding="utf-8")
    (tmp_path / "bad.toml").write_text('relm = "example.org"\n', encoding="utf-8")
    ended = run_to_the_end(tmp_path, *options)
    assert ended.returncode == 1, ended
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("relayd: "), ended.stderr
    for word in words:
        assert word in ended.stderr
    assert "Traceback" not in ended.stdout
    assert sorted(os.listdir(tmp_path)) == ["bad.toml", "garbage.pem"]


@pytest.mark.parametrize("transport", ["udp", "tcp", "ssl", "dtls"])
def test_port_in_use(tmp_path: Path, transport: str, keys: str) -> None:
    """A port that somebody else holds is named, with what to do."""
    kind = socket.SOCK_DGRAM if transport in ("udp", "dtls") else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            holder.listen()
        port = holder.getsockname()[1]
        more = f":{keys}" if transport in ("ssl", "dtls") else ""
        ended = run_to_the_end(tmp_path, f"--listen=turn={transport}:{port}:interface=127.0.0.1{more}")
    assert ended.returncode == 1, ended
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert str(port) in ended.stderr
    assert "in use" in ended.stderr
    assert "Traceback" not in ended.stdout
    assert "in use" not in ended.stdout, "a terminal shows both streams: once is enough"


def test_failed_start_leaves_no_pid_file(tmp_path: Path) -> None:
    """With twistd's usual pid file, a start that fails after it was written removes it again."""
    command = [word for word in relayd_command("--listen=turn=udp:0:interface=192.0.2.1") if word != "--pidfile="]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ended.returncode == 1
    assert os.listdir(tmp_path) == []


def test_daemon_reports_to_its_terminal(tmp_path: Path) -> None:
    """Without --nodaemon the printed user goes to the terminal that started it and never into twistd.log."""
    port = free_ports()
    command = [word for word in relayd_command(f"--listen=turn=udp:{port}:interface=127.0.0.1") if word != "-n"]
    command[command.index("--pidfile=")] = "--pidfile=relayd.pid"
    started = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    pid = int((tmp_path / "relayd.pid").read_text(encoding="utf-8"))
    try:
        assert started.returncode == 0, started
        assert READY in started.stdout
        entry = json.loads(next(line for line in started.stdout.splitlines() if line.startswith("{")))
        exchange_through(entry["username"], entry["credential"], port)
        log = tmp_path / "twistd.log"
        assert comes_true(lambda: entry["username"] in log.read_text(encoding="utf-8")), "the allocation is logged"
        assert entry["credential"] not in log.read_text(encoding="utf-8")
    finally:
        os.kill(pid, signal.SIGTERM)


def test_daemon_that_does_not_start(tmp_path: Path) -> None:
    """A daemon that finds its port taken tells its terminal and its log, with status 1, and leaves no pid file."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        command = [word for word in relayd_command(f"--listen=turn=udp:{port}:interface=127.0.0.1") if word != "-n"]
        command[command.index("--pidfile=")] = "--pidfile=relayd.pid"
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    assert ended.returncode == 1
    line = ended.stderr.splitlines()[0]
    assert line.startswith("relayd: ")
    assert "in use" in line
    assert line in (tmp_path / "twistd.log").read_text(encoding="utf-8")
    assert comes_true(lambda: os.listdir(tmp_path) == ["twistd.log"]), "twistd removes it after it told its parent"


def test_journal_gets_no_password(tmp_path: Path) -> None:
    """Where standard output is systemd's journal there is no user for this run: its password would be kept there."""
    with (tmp_path / "journal").open("w+", encoding="utf-8") as journal:
        status = os.fstat(journal.fileno())
        ended = subprocess.run(
            relayd_command(LISTEN),
            cwd=tmp_path,
            env=environment(JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}"),
            stdout=journal,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert ended.returncode == 1
    assert "--auth" in ended.stderr


def test_version_and_help_end_with_0(tmp_path: Path) -> None:
    """--help and --version print and leave."""
    for option, word in (("--help", "--listen"), ("--version", "relayd ")):
        ended = run_to_the_end(tmp_path, option)
        assert ended.returncode == 0
        assert word in ended.stdout


def test_descriptor_limit_is_raised(tmp_path: Path, relay: Relay) -> None:
    """The soft limit of open files is raised to the hard one: each relayed address takes a descriptor."""
    process = relay.start(LISTEN)
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc is Linux's")
    limits = Path(f"/proc/{process.pid}/limits").read_text(encoding="utf-8")
    line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    _, _, _, soft, hard, *_ = line.split()
    assert soft == hard
