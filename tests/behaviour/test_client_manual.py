"""The programs of docs/client.rst, which are there to be copied, do what is said of them. Whom they reach differs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.certificate import make_certificate
from tests.support.servers import PASSWORD, ROOT, TurnServer, assert_clean_end, start_relayd

HOST = "127.0.0.1"
PATIENCE = 30.0  # seconds for one word of a program, which takes about one


def program(word: str) -> str:
    """The literal block of the manual that runs the reactor and has that word in it."""
    text = (ROOT / "docs" / "client.rst").read_text(encoding="utf-8")
    blocks = [textwrap.dedent(block) for block in re.findall(r"::\n\n((?:(?: {4}.*)?\n)+)", text)]
    (found,) = [block for block in blocks if "react(" in block and word in block]
    return found


def put(text: str, *changes: tuple[str, str]) -> str:
    """With each of these words, which has to be there, in place of another."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture
def server(tmp_path: Path) -> TurnServer:
    return start_relayd(tmp_path, make_certificate(tmp_path))


@contextmanager
def running(text: str) -> Iterator[subprocess.Popen[str]]:
    """That program, which was told the password."""
    with subprocess.Popen(
        [sys.executable, "-u", "-c", text],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(f"{PASSWORD}\n")
            process.stdin.flush()
            yield process
        finally:
            process.kill()


def test_the_echo(server: TurnServer) -> None:
    """It says where it is, echoes what comes there, and says so when the relay is gone."""
    uri = f"turn:{HOST}:{server.plain}?transport=tcp"
    text = put(program("class Echo"), ("turns:relay.example.org", uri), ("198.51.100.7", HOST))
    with running(text) as process, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.fullmatch(r"echoing at IPv4Address\(type='UDP', host='127.0.0.1', port=(\d+)\)\n", said)
        assert found is not None, said
        peer.settimeout(0.2)
        for _ in range(int(PATIENCE / 0.2)):
            peer.sendto(b"hello", (HOST, int(found[1])))
            try:
                assert peer.recv(100) == b"hello"
                break
            except TimeoutError:
                pass  # the permission comes after the line
        else:
            raise AssertionError("no echo")
        assert_clean_end(server)
        rest, _ = process.communicate(timeout=PATIENCE)
        assert rest.startswith("the relay is gone: "), rest
        assert process.returncode == 0


def test_the_page(server: TurnServer) -> None:
    """It fetches what a peer has, prints it, and ends."""
    with socket.create_server((HOST, 0)) as peer:
        peer.settimeout(PATIENCE)
        uri = f"turn:{HOST}:{server.plain}?transport=tcp"
        where = f'"{HOST}", {peer.getsockname()[1]}'
        text = put(program("class Fetch"), ("wss://relay.example.org", uri), ('"192.0.2.9", 80', where))
        with running(text) as process:
            asking, _ = peer.accept()
            with asking:
                assert asking.recv(100) == b"GET / HTTP/1.0\r\n\r\n"
                asking.sendall(b"a page")
            said, _ = process.communicate(timeout=PATIENCE)
            assert said == "b'a page'\n"
            assert process.returncode == 0
    assert_clean_end(server)
