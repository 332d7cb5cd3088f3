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
REFUSED_PEERS = "relayed TCP addresses: connections are refused"
CONNECT, CONNECTION_BIND = 10, 11
CONNECTION_ID = 0x002A
TCP = (wire.REQUESTED_TRANSPORT, b"\x06\0\0\0")
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

    def tcp_client(self) -> wire.StrangeClient:
        """A client with a TCP allocation."""
        client = self.client(tcp=True)
        assert allocate_tcp(client).error == 0
        return client

    def data_connection(self, client: wire.StrangeClient, number: bytes) -> socket.socket:
        """A connection on which that CONNECTION-ID is bound."""
        data = self.client(tcp=True)
        data.realm, data.nonce, data.key = client.realm, client.nonce, client.key
        assert data.ask(CONNECTION_BIND, [(CONNECTION_ID, number)]).error == 0
        return data.socket


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


@pytest.fixture
def tcp_peer() -> Iterator[socket.socket]:
    """One that listens."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        opened.settimeout(PATIENCE)
        yield opened


def allocate_tcp(client: wire.StrangeClient) -> wire.Message:
    """Allocate with REQUESTED-TRANSPORT 6, greeting first if need be."""
    if client.key is None:
        client.learn(client.ask(wire.ALLOCATE, [TCP]))
    return client.ask(wire.ALLOCATE, [TCP])


def connect(client: wire.StrangeClient, peer: socket.socket) -> wire.Message:
    transaction = os.urandom(12)
    address = wire.xor_address(peer.getsockname(), transaction)
    client.send(client.request(CONNECT, [(wire.XOR_PEER_ADDRESS, address)], transaction))
    return client.answer_to(transaction)


def is_hung_up_on(caller: socket.socket) -> bool:
    """Whether the relay ends the connection without a word."""
    try:
        return caller.recv(1) == b""
    except ConnectionResetError:
        return True


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


def test_peers_without_descriptors(relay: Relay, tcp_peer: socket.socket) -> None:
    """With TCP allocations: a Connect and a new allocation are 508, peers that call are hung up on, each is said once,
    and what is there goes on. All is well when descriptors return. Nothing else is said of relayed ports, of which
    Twisted would tell when each starts and stops.
    """
    before = relay.process.output.count(" starting on ")
    client, newcomer = relay.tcp_client(), relay.client(tcp=True)
    newcomer.learn(newcomer.ask(wire.ALLOCATE, [TCP]))
    assert client.permit(("127.0.0.1", 0)).error == 0
    connected = connect(client, tcp_peer)
    assert connected.error == 0
    peers_end, address = tcp_peer.accept()
    data = relay.data_connection(client, connected.value(CONNECTION_ID))
    granted, codes = relay.fill()
    assert codes == [508] * 5
    with socket.create_server(("127.0.0.1", 0)) as another:
        assert [connect(client, another).error for _ in range(3)] == [508] * 3
        assert allocate_tcp(newcomer).error == 508
        for _ in range(3):
            with socket.create_connection(address, PATIENCE) as caller:
                assert is_hung_up_on(caller)
        relay.process.wait_until(lambda: REFUSED_PEERS in relay.process.output, PATIENCE)
        data.sendall(b"there")
        assert peers_end.recv(10) == b"there"
        peers_end.sendall(b"and back")
        assert data.recv(10) == b"and back"
        for each in granted:
            assert each.refresh(0).error == 0
        assert connect(client, another).error == 0
        with socket.create_connection(address, PATIENCE) as caller:
            called = wire.decode(client.receive())
            assert called.address(wire.XOR_PEER_ADDRESS) == caller.getsockname()
            ringing = relay.data_connection(client, called.value(CONNECTION_ID))
            caller.sendall(b"ring")
            assert ringing.recv(10) == b"ring"
    assert allocate_tcp(newcomer).error == 0
    assert newcomer.refresh(0).error == 0
    for end in (peers_end, data, ringing):
        end.close()
    relay.process.wait_until(lambda: "deleted" in relay.process.output.splitlines()[-1], PATIENCE)
    log = relay.process.output
    assert "Too many open files" in log
    assert [log.count(line) for line in (COMPLAINT, REFUSED_PEERS, " starting on ", "Port")] == [1, 1, before, 0]
