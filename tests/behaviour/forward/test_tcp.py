"""`relayd-client forward --tcp` and `--tls` as a user runs them: TCP applications that know nothing of TURN reach a
peer through a relay in another process.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.support.certificate import Certificate
from tests.support.forward import (
    MEGABYTE,
    PATIENCE,
    WAYS,
    Listener,
    assert_carried,
    assert_half_closes,
    assert_resets,
    assert_stopped,
    command,
    dial,
    environment,
    failed,
    heard,
    local_ports,
    until_ready,
    words,
)
from tests.support.ports import free_ports
from tests.support.servers import TurnServer, assert_clean_end, start_relayd


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
            assert_carried(much, first, one)
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
            assert_half_closes(ours, theirs)
        with dial(local) as ours, peer.accept() as theirs:
            assert_resets(ours, theirs)
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
