"""Runs `relayd-client forward` as a user does, and the programs at both ends that know nothing of TURN."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

import pytest

from tests.support.ports import family_of
from tests.support.process import Process
from tests.support.servers import PASSWORD, ROOT, USER, TurnServer

PATIENCE = 30.0  # seconds until the command is ready, which takes about one
MEGABYTE = 1 << 20
WAYS = ["turn:{}:{plain}?transport=tcp", "turns:{}:{secure}", "ws://{}:{ws}/turn", "wss://{}:{wss}/turn"]  # for TCP
PROGRAM = "import sys; from relayd.client.command import main; sys.exit(main())"


def words(*arguments: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, "forward", "--user", USER, *arguments]


def environment(password: str = PASSWORD) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "RELAYD_PASSWORD": password}


def command(directory: Path, *arguments: str, **more: str) -> Process:
    """The command, with more in its environment than the password."""
    return Process(words(*arguments), directory, {**environment(), **more})


def failed(*arguments: str, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
    """The command, which has to end by itself."""
    return subprocess.run(
        words(*arguments),
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment(password)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def until_ready(process: Process) -> str:
    assert process.wait_until(lambda: "relayed address:" in process.output, PATIENCE), process.output
    return process.output


def local_ports(output: str) -> list[tuple[str, int]]:
    """Where it listens, in the order of the arguments."""
    found = re.findall(r"^listening: \[?(.+?)\]?:(\d+), for", output, re.MULTILINE)
    return [(host, int(port)) for host, port in found]


def assert_stopped(process: Process, server: TurnServer, how: signal.Signals = signal.SIGTERM) -> str:
    """It ends in order, with status 0, and with its allocations deleted, whatever other signals come meanwhile."""
    ended = server.process.output.count("ended: deleted")
    held = process.output.count("relayed address:")
    assert process.stop(how, (signal.SIGINT, signal.SIGTERM)) == 0, process.output
    assert process.output.endswith("stopped\n")
    assert "Traceback" not in process.output
    assert "Unhandled" not in process.output
    assert PASSWORD not in process.output
    assert server.process.wait_until(lambda: server.process.output.count("ended: deleted") >= ended + held, 5.0)
    return process.output


def relayed_addresses(process: Process, purpose: str = "") -> list[tuple[str, int]]:
    """All that it told of so far, whatever they are for, or those for a purpose: they come in any order."""
    line = rf"^relayed address: \[?([^\s,]+?)\]?:(\d+),.*{re.escape(purpose)}$"
    found = re.findall(line, process.output, re.MULTILINE)
    return [(host, int(port)) for host, port in found]


class Application:
    """A UDP socket."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.socket = socket.socket(family_of(host), socket.SOCK_DGRAM)
        self.socket.bind((host, 0))
        self.socket.settimeout(10.0)
        self.address = self.socket.getsockname()[:2]

    def send(self, data: bytes, to: tuple[str, int]) -> None:
        self.socket.sendto(data, to)

    def receive(self) -> tuple[bytes, tuple[str, int]]:
        data, address = self.socket.recvfrom(65_536)
        return data, address[:2]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def talk(application: Application, local: tuple[str, int], peer: Application, text: bytes) -> tuple[str, int]:
    """A question and its answer; gives the relayed address that the peer saw."""
    application.send(text, local)
    data, relayed = peer.receive()
    assert data == text
    peer.send(b"answer to " + text, relayed)
    assert application.receive() == (b"answer to " + text, local)
    return relayed


class Listener:
    """A TCP server, which serves one connection after the other."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_server((host, 0), family=family_of(host))
        self.socket.settimeout(10.0)
        self.port = self.socket.getsockname()[1]

    def accept(self) -> socket.socket:
        accepted, _ = self.socket.accept()
        accepted.settimeout(10.0)
        return accepted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def dial(local: tuple[str, int]) -> socket.socket:
    return socket.create_connection(local, timeout=10.0)


def heard(connection: socket.socket) -> bytes:
    """All until the other end has said all."""
    pieces = []
    while piece := connection.recv(65_536):
        pieces.append(piece)
    return b"".join(pieces)


def assert_carried(data: bytes, source: socket.socket, destination: socket.socket) -> None:
    """All of it, however much it is."""
    sender = threading.Thread(target=source.sendall, args=(data,))
    sender.start()
    got = b""
    while len(got) < len(data):
        got += destination.recv(65_536)
    sender.join()
    assert got == data


def assert_half_closes(asking: socket.socket, answering: socket.socket) -> None:
    """A question that ends is answered behind its end."""
    asking.sendall(b"question")
    asking.shutdown(socket.SHUT_WR)
    assert heard(answering) == b"question"
    answering.sendall(b"answer")
    answering.close()
    assert heard(asking) == b"answer"


def assert_resets(heard_of_by: socket.socket, resetting: socket.socket) -> None:
    """A reset is no end but a reset."""
    heard_of_by.sendall(b"x")
    assert resetting.recv(1) == b"x"
    resetting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    resetting.close()
    with pytest.raises(ConnectionResetError):
        heard_of_by.recv(1)
