"""Squid as a forward proxy that allows CONNECT to port 443 only: what gets through, and what it asks for."""

from __future__ import annotations

import socket
import ssl
from base64 import b64encode
from collections.abc import Iterator

import pytest

from tests.support.certificate import Certificate
from tests.support.ports import free_ports
from tests.support.servers import TurnServer, assert_clean_end, start_relayd
from tests.support.squid import PROXY_REALM, Squid, running_squid

PATIENCE = 10.0  # seconds for one answer
OFFICE_USER, OFFICE_PASSWORD = "carol", "let me out"

WEBSOCKET = (
    b"GET /turn HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(scope="module")
def web_port() -> int:
    """Where the relay behind the proxy speaks HTTP over TLS: its 443."""
    return free_ports()


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate, web_port: int) -> Iterator[TurnServer]:
    keys = f"privateKey={certificate.key}:certKey={certificate.certificate}"
    web = f"--listen=web=ssl:{web_port}:interface=127.0.0.1:{keys}"
    running = start_relayd(tmp_path_factory.mktemp("relay"), certificate, web)
    yield running
    assert_clean_end(running)


@pytest.fixture(scope="module")
def open_squid(web_port: int) -> Iterator[Squid]:
    """One that asks nobody who he is."""
    with running_squid([web_port]) as squid:
        yield squid


@pytest.fixture(scope="module", params=["basic", "digest"])
def strict_squid(request: pytest.FixtureRequest, web_port: int) -> Iterator[tuple[Squid, str]]:
    """One that asks for a name and a password; and in which scheme."""
    with running_squid([web_port], {OFFICE_USER: OFFICE_PASSWORD}, request.param) as squid:
        yield squid, request.param


def ask(squid: Squid, request: str) -> tuple[socket.socket, str]:
    """The connection, and the head of the answer."""
    connection = socket.create_connection(("127.0.0.1", squid.port), PATIENCE)
    connection.sendall(request.encode())
    return connection, head_of(connection)


def head_of(connection: socket.socket) -> str:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, f"it hung up after {head!r}"
        head += byte
    return head.decode()


def connect(port: int, *headers: str) -> str:
    return "\r\n".join([f"CONNECT localhost:{port} HTTP/1.1", f"Host: localhost:{port}", *headers, "", ""])


def credentials(password: str) -> str:
    return "Proxy-Authorization: Basic " + b64encode(f"{OFFICE_USER}:{password}".encode()).decode()


def check_websocket(tunnel: socket.socket, certificate: Certificate) -> None:
    """TLS and a WebSocket come about through the tunnel."""
    context = ssl.create_default_context(cafile=certificate.certificate)
    with context.wrap_socket(tunnel, server_hostname="localhost") as secure:
        secure.sendall(WEBSOCKET)
        assert head_of(secure).startswith("HTTP/1.1 101 ")


def test_it_tunnels(open_squid: Squid, relay: TurnServer, web_port: int, certificate: Certificate) -> None:
    """To the relay's port for HTTPS a WebSocket gets through."""
    tunnel, head = ask(open_squid, connect(web_port))
    assert head.startswith("HTTP/1.1 200 ")
    check_websocket(tunnel, certificate)
    logged = ("TCP_TUNNEL/200", "CONNECT", f"localhost:{web_port}")
    assert open_squid.process.wait_until(lambda: logged in open_squid.requests, PATIENCE)


def test_it_lets_nothing_else_through(open_squid: Squid, relay: TurnServer, web_port: int) -> None:
    """The relay's own TURN ports cannot be reached that way, nor does the proxy speak HTTP for anybody."""
    for request in (
        connect(relay.plain),
        connect(relay.secure),
        f"GET http://localhost:{web_port}/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ):
        connection, head = ask(open_squid, request)
        with connection:
            assert head.startswith("HTTP/1.1 403 ")


def test_it_asks_for_a_password(strict_squid: tuple[Squid, str], relay: TurnServer, web_port: int) -> None:
    """Without one, and with a wrong one, it answers 407 and names the scheme."""
    squid, scheme = strict_squid
    for headers in ([], [credentials("wrong")]):
        connection, head = ask(squid, connect(web_port, *headers))
        with connection:
            assert head.startswith("HTTP/1.1 407 ")
            assert f'\r\nProxy-Authenticate: {scheme.title()} realm="{PROXY_REALM}"' in head


def test_it_tunnels_for_whom_it_knows(relay: TurnServer, web_port: int, certificate: Certificate) -> None:
    """With the right password a WebSocket gets through."""
    with running_squid([web_port], {OFFICE_USER: OFFICE_PASSWORD}) as squid:
        tunnel, head = ask(squid, connect(web_port, credentials(OFFICE_PASSWORD)))
        assert head.startswith("HTTP/1.1 200 ")
        check_websocket(tunnel, certificate)
