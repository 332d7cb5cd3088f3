"""Running out of file descriptors: a relay in a process of its own that may open few of them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import wire
from tests.support.ports import free_ports
from tests.support.process import Process
from tests.support.servers import PASSWORD, REALM, ROOT, USER, relayd_command

LIMIT = 64  # descriptors: about forty for allocations and connections
PATIENCE = 5.0  # seconds
COMPLAINT = "no relayed address could be opened"
_LIMITED = (
    "import os, resource, sys; "
    f"resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT})); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class Relay:
    """The process, its UDP and TCP port, and clients that are closed with it."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack, data_plane: str) -> None:
        self._stack = stack
        self.port = free_ports()
        options = [
            f"--listen=turn=udp:{self.port}:interface=127.0.0.1",
            f"--listen=turn=tcp:{self.port}:interface=127.0.0.1",
            f"--auth=memory:{USER}:{PASSWORD}",
            f"--realm={REALM}",
            "--user-quota=0",
            f"--data-plane={data_plane}",
        ]
        command = [sys.executable, "-c", _LIMITED, *relayd_command(*options)]
        search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = Process(command, directory, {"PYTHONPATH": search})
        stack.callback(self.process.kill)
        assert self.process.wait_until(lambda: "relayd: ready" in self.process.output, 30.0), self.process.output

    def client(self, tcp: bool = False) -> wire.StrangeClient:
        address = ("127.0.0.1", self.port)
        return self._stack.enter_context(wire.StrangeClient(address, USER, PASSWORD, tcp=tcp, patience=PATIENCE))

    def fill(self) -> tuple[list[wire.StrangeClient], list[int]]:
        """Allocate until it is refused, and then some more times: who got an allocation, and the last five codes."""
        granted: list[wire.StrangeClient] = []
        for _ in range(2 * LIMIT):
            client = self.client()
            code = client.allocate().error
            if code:
                return granted, [code, *(self.client().allocate().error for _ in range(4))]
            granted.append(client)
        raise AssertionError("descriptors without end")

    def complaints(self) -> int:
        return self.process.output.count(COMPLAINT)


@pytest.fixture(params=["portable", "batched"])
def relay(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Relay]:
    """A relay that may hold `LIMIT` descriptors; it has to end in good order."""
    with contextlib.ExitStack() as stack:
        started = Relay(tmp_path, stack, request.param)
        yield started
        started.process.stop()
        log = started.process.output
        assert "Server Shut Down." in log, log
        assert "Traceback" not in log, log
        assert "Unhandled" not in log, log


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """A peer of the clients."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.settimeout(PATIENCE)
        yield opened


def assert_relays(client: wire.StrangeClient, peer: socket.socket) -> None:
    """That an allocation moves data both ways."""
    assert client.permit(peer.getsockname()).error == 0
    client.send_indication(peer.getsockname(), b"hello")
    data, relayed = peer.recvfrom(100)
    assert data == b"hello"
    peer.sendto(b"back", relayed)
    assert wire.decode(client.receive()).value(wire.DATA_ATTRIBUTE) == b"back"


def test_allocations_without_descriptors(relay: Relay, peer: socket.socket) -> None:
    """New allocations are 508, the old ones go on, the log says it once, and all is well when descriptors return."""
    for round_ in (1, 2):
        granted, codes = relay.fill()
        assert len(granted) > LIMIT // 4
        assert codes == [508] * 5
        for client in granted:
            assert_relays(client, peer)
        assert relay.complaints() == round_
        for client in granted:
            assert client.refresh(0).error == 0
        again = relay.client()
        assert again.allocate().error == 0
        assert_relays(again, peer)
        assert again.refresh(0).error == 0


def test_connections_without_descriptors(relay: Relay, peer: socket.socket) -> None:
    """A connection that cannot be accepted hurts nobody, and the next one is served when descriptors return."""
    on_tcp = relay.client(tcp=True)
    assert on_tcp.allocate().error == 0
    granted, _ = relay.fill()
    for _ in range(3):
        with contextlib.suppress(OSError):
            refused = relay.client(tcp=True)
            refused.socket.settimeout(0.2)
            refused.ask(wire.BINDING, [])
    assert_relays(on_tcp, peer)
    assert_relays(granted[0], peer)
    for client in granted:
        assert client.refresh(0).error == 0
    assert relay.client(tcp=True).ask(wire.BINDING, []).error == 0
    assert_relays(on_tcp, peer)
