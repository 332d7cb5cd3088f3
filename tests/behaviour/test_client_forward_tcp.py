"""`relayd-client forward --tcp` and `--tls` as a user runs them: TCP applications that know nothing of TURN reach a
peer through a relay in another process.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.behaviour.test_client_forward import (
    PATIENCE,
    assert_stopped,
    command,
    environment,
    failed,
    local_ports,
    until_ready,
    words,
)
from tests.support.certificate import Certificate, make_certificate
from tests.support.ports import family_of, free_ports
from tests.support.servers import TurnServer, assert_clean_end, start_relayd

MEGABYTE = 1 << 20
WAYS = ["turn:{}:{plain}?transport=tcp", "turns:{}:{secure}", "ws://{}:{ws}/turn", "wss://{}:{wss}/turn"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def web_ports() -> tuple[int, int]:
    """Where the relay is to listen for WebSockets, without TLS and with it."""
    return free_ports(), free_ports()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, certificate: Certificate, web_ports: tuple[int, int]
) -> Iterator[TurnServer]:
    keys = f"privateKey={certificate.key}:certKey={certificate.certificate}"
    plain, secure = web_ports
    web = [f"--listen=web=tcp:{plain}:interface=127.0.0.1", f"--listen=web=ssl:{secure}:interface=127.0.0.1:{keys}"]
    trust = f"--peer-ca={certificate.certificate}"
    running = start_relayd(tmp_path_factory.mktemp("server"), certificate, *web, trust)
    yield running
    assert_clean_end(running)


class Listener:
    """A peer."""

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


@pytest.mark.parametrize("way", WAYS)
def test_every_way(
    server: TurnServer, certificate: Certificate, web_ports: tuple[int, int], tmp_path: Path, way: str
) -> None:
    """Two connections to one peer at once, much in both directions, and an end behind all that was said."""
    uri = way.format("127.0.0.1", plain=server.plain, secure=server.secure, ws=web_ports[0], wss=web_ports[1])
    much = os.urandom(2 * MEGABYTE)
    with Listener() as peer:
        process = command(tmp_path, "--ca", str(certificate.certificate), uri, "--tcp", f"0=127.0.0.1:{peer.port}")
        (local,) = local_ports(until_ready(process))
        with dial(local) as one, peer.accept() as first, dial(local) as other, peer.accept() as second:
            other.sendall(b"second")
            assert second.recv(100) == b"second"
            sender = threading.Thread(target=first.sendall, args=(much,))
            sender.start()
            got = b""
            while len(got) < len(much):
                got += one.recv(65_536)
            sender.join()
            assert got == much
            one.sendall(b"last words")
            one.shutdown(socket.SHUT_WR)
            assert heard(first) == b"last words"
            second.close()
            assert heard(other) == b""
        assert_stopped(process, server)


def test_half_close_and_reset(server: TurnServer, tmp_path: Path) -> None:
    """Over TCP a question that ends is answered behind its end, and a reset is no end but a reset."""
    with Listener() as peer:
        uri = f"turn:127.0.0.1:{server.plain}?transport=tcp"
        process = command(tmp_path, uri, "--tcp", f"0=127.0.0.1:{peer.port}")
        (local,) = local_ports(until_ready(process))
        with dial(local) as ours, peer.accept() as theirs:
            ours.sendall(b"question")
            ours.shutdown(socket.SHUT_WR)
            assert heard(theirs) == b"question"
            theirs.sendall(b"answer")
            theirs.close()
            assert heard(ours) == b"answer"
        with dial(local) as ours, peer.accept() as theirs:
            ours.sendall(b"x")
            assert theirs.recv(1) == b"x"
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            with pytest.raises(ConnectionResetError):
                ours.recv(1)
        assert_stopped(process, server, signal.SIGINT)


def test_a_peer_that_refuses(server: TurnServer, tmp_path: Path) -> None:
    """The local connection is reset, a line says why, and the next one is not held up by it."""
    with Listener() as peer:
        uri = f"turn:127.0.0.1:{server.plain}?transport=tcp"
        wanted = [f"0=127.0.0.1:{free_ports()}", "0=10.0.0.1:9", f"0=127.0.0.1:{peer.port}"]
        process = command(tmp_path, uri, *(word for each in wanted for word in ("--tcp", each)))
        nobody, forbidden, good = local_ports(until_ready(process))
        for local in (nobody, forbidden):
            with dial(local) as ours, pytest.raises(ConnectionResetError):
                ours.recv(1)
        assert process.wait_until(lambda: ": 447 " in process.output, PATIENCE), process.output
        assert process.wait_until(lambda: ": 403 " in process.output, PATIENCE), process.output
        with dial(good) as ours, peer.accept() as theirs:
            ours.sendall(b"hello")
            assert theirs.recv(5) == b"hello"
        assert_stopped(process, server)


def test_the_relay_speaks_tls(server: TurnServer, certificate: Certificate, tmp_path: Path) -> None:
    """What is said in the clear here is heard in TLS there, by the peer that is named and by no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    with Listener() as peer:
        uri = f"turn:127.0.0.1:{server.plain}?transport=tcp"
        process = command(tmp_path, uri, "--tls", f"0=localhost:{peer.port}")
        (local,) = local_ports(until_ready(process))
        with dial(local) as ours:
            accepted = peer.accept()
            with context.wrap_socket(accepted, server_side=True) as theirs:
                ours.sendall(b"in the clear")
                assert theirs.recv(100) == b"in the clear"
                theirs.sendall(b"all right")
                assert ours.recv(100) == b"all right"
        assert_stopped(process, server)


def test_both_kinds(server: TurnServer, tmp_path: Path) -> None:
    """UDP and TCP are forwarded by one command."""
    with Listener() as peer, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.bind(("127.0.0.1", 0))
        echo.settimeout(10.0)
        uri = f"turn:127.0.0.1:{server.plain}?transport=tcp"
        udp, tcp = f"0=127.0.0.1:{echo.getsockname()[1]}", f"0=127.0.0.1:{peer.port}"
        process = command(tmp_path, uri, "--udp", udp, "--tcp", tcp)
        assert process.wait_until(lambda: process.output.count("relayed address:") == 2, PATIENCE), process.output
        datagrams, streams = local_ports(process.output)
        with dial(streams) as ours, peer.accept() as theirs, socket.socket(type=socket.SOCK_DGRAM) as sender:
            ours.sendall(b"stream")
            assert theirs.recv(6) == b"stream"
            sender.sendto(b"datagram", datagrams)
            assert echo.recv(100) == b"datagram"
        assert_stopped(process, server)


def test_the_relay_restarts(certificate: Certificate, tmp_path: Path) -> None:
    """Connections end with the relay, and new ones work when it is back."""
    (tmp_path / "server").mkdir()
    plain = free_ports(4)
    first = start_relayd(tmp_path / "server", certificate, plain=plain)
    with Listener() as peer:
        process = command(tmp_path, f"turn:127.0.0.1:{first.plain}?transport=tcp", "--tcp", f"0=127.0.0.1:{peer.port}")
        (local,) = local_ports(until_ready(process))
        with dial(local) as ours, peer.accept() as theirs:
            ours.sendall(b"before")
            assert theirs.recv(6) == b"before"
            assert_clean_end(first)
            try:
                assert ours.recv(1) == b""
            except ConnectionResetError:
                pass  # which of the two says it first is up to the relay
        assert process.wait_until(lambda: "no relay:" in process.output, PATIENCE), process.output
        second = start_relayd(tmp_path / "server", certificate, plain=plain)
        with dial(local) as ours, peer.accept() as theirs:
            ours.sendall(b"after")
            assert theirs.recv(5) == b"after"
        assert process.stop() == 0
        assert_clean_end(second)


def test_nobody_listens_to_it(server: TurnServer) -> None:
    """With nobody left to read its lines it goes on, and stops when it is told to."""
    uri = f"turn:127.0.0.1:{server.plain}?transport=tcp"
    with Listener() as peer:
        wanted = ["--tcp", f"0=127.0.0.1:{free_ports()}", "--tcp", f"0=127.0.0.1:{peer.port}"]
        process = subprocess.Popen(
            words(uri, *wanted), stdout=subprocess.PIPE, text=True, env={**os.environ, **environment()}
        )
        try:
            assert process.stdout is not None
            output = ""
            while "relayed address:" not in output:
                output += process.stdout.readline()
            process.stdout.close()
            nobody, good = local_ports(output)
            with dial(nobody) as ours, pytest.raises(ConnectionResetError):
                ours.recv(1)  # of which a line tells
            with dial(good) as ours, peer.accept() as theirs:
                ours.sendall(b"hello")
                assert theirs.recv(5) == b"hello"
            process.terminate()
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()


def test_no_way_for_tcp(server: TurnServer) -> None:
    """Where only UDP leads to the relay, the error says what to name instead."""
    done = failed(f"turn:127.0.0.1:{server.plain}?transport=udp", "--tcp", "0=127.0.0.1:9")
    assert done.returncode == 1
    assert "TCP goes over tcp, tls, ws or wss" in done.stderr
    assert "Traceback" not in done.stderr
