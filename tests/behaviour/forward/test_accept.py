"""`relayd-client forward --accept` and `--accept-tls` as a user runs them: peers that know nothing of TURN call a
relayed address, and reach a service here that knows nothing of it either.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
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
    failed,
    heard,
    relayed_addresses,
    until_ready,
)
from tests.support.ports import free_ports
from tests.support.servers import TurnServer, assert_clean_end, start_relayd

HERE = "127.0.0.1"


def plain(server: TurnServer) -> str:
    return f"turn:{HERE}:{server.plain}?transport=tcp"


@pytest.mark.parametrize("way", WAYS)
def test_every_way(
    server: TurnServer, certificate: Certificate, web_ports: tuple[int, int], tmp_path: Path, way: str
) -> None:
    """Two callers at once, the first word from either end, much in both directions, an end behind all that was said."""
    uri = way.format(HERE, plain=server.plain, secure=server.secure, ws=web_ports[0], wss=web_ports[1])
    much = os.urandom(2 * MEGABYTE)
    with Listener() as service:
        process = command(tmp_path, "--ca", str(certificate.certificate), uri, "--accept", f"{HERE}={service.port}")
        until_ready(process)
        (relayed,) = relayed_addresses(process)
        with dial(relayed) as caller, service.accept() as called, dial(relayed) as other, service.accept() as second:
            second.sendall(b"220 at your service")
            assert other.recv(100) == b"220 at your service"
            assert_carried(much, caller, called)
            called.sendall(much[:MEGABYTE])
            called.shutdown(socket.SHUT_WR)
            assert heard(caller) == much[:MEGABYTE]
            other.close()
            assert heard(second) == b""
        assert f"accepting: {HERE}, for {HERE}:{service.port}\n" in process.output
        assert "connections: 2\n" in assert_stopped(process, server)


def test_half_close_and_reset(server: TurnServer, tmp_path: Path) -> None:
    """Over TCP a question that ends is answered behind its end, and a reset is no end but a reset."""
    with Listener() as service:
        process = command(tmp_path, plain(server), "--accept", f"{HERE}={service.port}")
        until_ready(process)
        (relayed,) = relayed_addresses(process)
        with dial(relayed) as caller, service.accept() as called:
            assert_half_closes(caller, called)
        with dial(relayed) as caller, service.accept() as called:
            assert_resets(caller, called)
        assert_stopped(process, server, signal.SIGINT)


def test_callers_speak_tls(server: TurnServer, certificate: Certificate, tmp_path: Path) -> None:
    """Who calls verifies the relay's certificate, and is heard in the clear here; who speaks no TLS is not heard."""
    context = ssl.create_default_context(cafile=certificate.certificate)
    with Listener() as service:
        process = command(tmp_path, plain(server), "--accept-tls", f"{HERE}={service.port}")
        until_ready(process)
        (relayed,) = relayed_addresses(process)
        with dial(relayed) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            try:
                assert b"HTTP" not in heard(stranger)
            except ConnectionResetError:
                pass  # which of the two it is depends on what was read of ours
        with context.wrap_socket(dial(relayed), server_hostname="localhost") as caller, service.accept() as called:
            caller.sendall(b"for the relay and its client")
            assert called.recv(100) == b"for the relay and its client"
            called.sendall(b"all right")
            assert caller.recv(100) == b"all right"
        assert f"accepting: {HERE} with TLS, for {HERE}:{service.port}\n" in process.output
        assert_stopped(process, server)


def call_from(host: str, relayed: tuple[str, int]) -> socket.socket:
    return socket.create_connection(relayed, timeout=10.0, source_address=(host, 0))


def test_who_is_led_where(server: TurnServer, tmp_path: Path) -> None:
    """Each peer reaches the port that is meant for it, in the clear and in TLS, and a stranger none."""
    with Listener() as one, Listener() as other, Listener("::1") as third:
        accepted = [f"127.0.0.2={one.port}", f"127.0.0.3=localhost:{other.port}", f"127.0.0.4=[::1]:{third.port}"]
        words = [word for each in accepted for word in ("--accept", each)]
        process = command(tmp_path, plain(server), *words, "--accept-tls", f"127.0.0.2={other.port}")
        assert process.wait_until(lambda: process.output.count("accepting: ") == 4, PATIENCE), process.output
        (relayed,) = relayed_addresses(process, "for TCP from peers")
        for host, service in (("127.0.0.2", one), ("127.0.0.3", other), ("127.0.0.4", third)):
            with call_from(host, relayed) as caller, service.accept() as called:
                caller.sendall(host.encode())
                assert called.recv(100) == host.encode()
        with call_from("127.0.0.5", relayed) as stranger:
            try:
                assert stranger.recv(1) == b""
            except ConnectionResetError:
                pass  # the relay does not say how it turns somebody away
        assert "connections: 3\n" in assert_stopped(process, server)


def test_ipv6(server: TurnServer, tmp_path: Path) -> None:
    """A peer with an IPv6 address has a relayed address of that family to call."""
    with Listener() as service:
        process = command(tmp_path, plain(server), "--accept", f"[::1]={service.port}")
        until_ready(process)
        (relayed,) = relayed_addresses(process)
        assert relayed[0] == "::1"
        with dial(relayed) as caller, service.accept() as called:
            caller.sendall(b"hello")
            assert called.recv(5) == b"hello"
        assert_stopped(process, server)


def test_nobody_serves(server: TurnServer, tmp_path: Path) -> None:
    """Where nothing listens here the caller is reset and a line says so; as soon as something does, it is reached."""
    port = free_ports()
    process = command(tmp_path, plain(server), "--accept", f"{HERE}={port}")
    until_ready(process)
    (relayed,) = relayed_addresses(process)
    with dial(relayed) as caller, pytest.raises(ConnectionResetError):
        caller.recv(1)
    refused = f"came to nothing: {HERE}:{port}: Connection refused\n"
    assert process.wait_until(lambda: refused in process.output, PATIENCE), process.output
    with socket.create_server((HERE, port)) as service, dial(relayed) as caller:
        service.settimeout(10.0)
        called, _ = service.accept()
        with called:
            called.sendall(b"hello")
            assert caller.recv(5) == b"hello"
    assert_stopped(process, server)


def test_the_relay_restarts(certificate: Certificate, tmp_path: Path) -> None:
    """The relayed address is lost with the relay, and another one is told and works when it is back."""
    (tmp_path / "server").mkdir()
    port = free_ports(4)
    first = start_relayd(tmp_path / "server", certificate, plain=port)
    with Listener() as service:
        process = command(tmp_path, plain(first), "--accept", f"{HERE}={service.port}")
        until_ready(process)
        with dial(relayed_addresses(process)[0]) as caller, service.accept() as called:
            caller.sendall(b"before")
            assert called.recv(6) == b"before"
            assert_clean_end(first)
            try:
                assert called.recv(1) == b""
            except ConnectionResetError:
                pass  # which of the two says it first is up to the relay
        second = start_relayd(tmp_path / "server", certificate, plain=port)
        assert process.wait_until(lambda: len(relayed_addresses(process)) == 2, PATIENCE), process.output
        assert "no relay: " in process.output
        with dial(relayed_addresses(process)[1]) as caller, service.accept() as called:
            caller.sendall(b"after")
            assert called.recv(5) == b"after"
        assert process.stop() == 0
        assert_clean_end(second)


def test_stopped_in_the_middle(server: TurnServer, tmp_path: Path) -> None:
    """A connection that is open does not keep it, and neither does a caller that waits for a service that is silent."""
    with Listener() as service:
        process = command(tmp_path, plain(server), "--accept", f"{HERE}={service.port}")
        until_ready(process)
        (relayed,) = relayed_addresses(process)
        with dial(relayed) as caller, service.accept() as called:
            caller.sendall(b"hello")
            assert called.recv(5) == b"hello"
            assert_stopped(process, server)
            with pytest.raises(ConnectionResetError):
                heard(called)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--accept", "10.0.0.1=9"], "the relay does not let 10.0.0.1 call us: 403"),
        (["--accept", "127.0.0.1=9", "--accept", "127.0.0.1=10"], "127.0.0.1 is accepted 2 times"),
        (["--accept", "nowhere.invalid=9"], "nowhere.invalid: there is no address of that name"),
    ],
)
def test_faults(server: TurnServer, arguments: list[str], words: str) -> None:
    """What cannot be is one line that says why, and the end."""
    done = failed(plain(server), *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_no_way_for_tcp(server: TurnServer) -> None:
    """Where only UDP leads to the relay, the error says what to name instead."""
    done = failed(f"turn:{HERE}:{server.plain}?transport=udp", "--accept", f"{HERE}=9")
    assert done.returncode == 1
    assert "TCP goes over tcp, tls, ws or wss" in done.stderr


def test_a_relay_without_a_certificate(certificate: Certificate, tmp_path: Path) -> None:
    """A relay that cannot show one says so, and nobody is received in the clear instead."""
    running = start_relayd(tmp_path, certificate)
    done = failed(plain(running), "--accept-tls", f"{HERE}=9")
    assert done.returncode == 1
    assert "442 Unsupported Transport Protocol" in done.stderr
    assert "--peer-certificate" in done.stderr
    assert_clean_end(running)
