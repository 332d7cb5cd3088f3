"""Plugins of a third party (tests/plugins) are found and work, though nothing in relayd imports or names them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import wire
from tests.support.ports import free_ports
from tests.support.process import Process
from tests.support.servers import ROOT, START_PATIENCE, relayd_command

SEARCH = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "plugins")])


class KnockingClient(wire.StrangeClient):
    """Says the word that the stranger's listener wants to hear, before each datagram."""

    def send(self, data: bytes) -> None:
        super().send(b"knock" + data)


@pytest.fixture
def knock_port(tmp_path: Path) -> Iterator[int]:
    """A relay with the stranger's listener, checker, policy and observer, and none of ours."""
    port = free_ports()
    process = Process(
        relayd_command(
            f"--listen=knock={port}",
            "--auth=palindrome",
            "--policy=notwelcome:mallory",
            f"--observe=diary:{tmp_path / 'diary'}",
            "--relay-address=127.0.0.1",
        ),
        tmp_path,
        {"PYTHONPATH": SEARCH},
    )
    try:
        assert process.wait_until(lambda: "relayd: ready" in process.output, START_PATIENCE), process.output
        yield port
    finally:
        process.stop()
    assert "Traceback" not in process.output


def test_all_four_work_together(knock_port: int, tmp_path: Path) -> None:
    """A client of the stranger's listener, known to its checker and not refused by its policy, gets an allocation, of
    which its observer hears."""
    with KnockingClient(("127.0.0.1", knock_port), "alice", "ecila") as client:
        assert client.allocate().kind == wire.SUCCESS
        assert client.refresh(0).kind == wire.SUCCESS
    with KnockingClient(("127.0.0.1", knock_port), "alice", "alice") as client:
        assert client.allocate().error == 401
    with KnockingClient(("127.0.0.1", knock_port), "mallory", "yrollam") as client:
        assert client.allocate().error == 403
    with wire.StrangeClient(("127.0.0.1", knock_port), "alice", "ecila") as client:
        client.send(client.request(wire.BINDING, [], os.urandom(12)))
        assert client.is_silent(0.3)
    diary = (tmp_path / "diary").read_text(encoding="utf-8").split()
    assert [line for line in diary if line.startswith("Allocation")] == ["AllocationCreated", "AllocationEnded"]


@pytest.mark.parametrize(
    ("option", "kind"),
    [("listen", "knock"), ("auth", "palindrome"), ("policy", "notwelcome"), ("observe", "diary")],
)
def test_help_lists_them(tmp_path: Path, option: str, kind: str) -> None:
    """The lists of kinds show the stranger's next to ours, and only where it is installed."""
    for search, is_listed in ((SEARCH, True), (str(ROOT), False)):
        listed = subprocess.run(
            relayd_command(f"--help-{option}"),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": search},
            capture_output=True,
            text=True,
            timeout=START_PATIENCE,
            check=True,
        )
        assert (kind in listed.stdout) is is_listed
