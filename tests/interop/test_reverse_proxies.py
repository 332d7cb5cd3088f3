"""relayd behind nginx, HAProxy, Caddy and Apache, set up as in etc/proxies: real traffic, the client's real address."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import wire
from tests.support.certificate import Certificate
from tests.support.ports import free_ports
from tests.support.reverse_proxies import ENDING_TLS, PASSING_TLS, ReverseProxy, Upstream, start_nginx
from tests.support.servers import PASSWORD, USER, TurnServer, assert_clean_end, start_relayd
from tests.support.websocket import TEXT, Closed, Refused, StrangeWebSocket

CLIENT = "127.0.0.9"  # its address, which is not the proxy's
PEER_PATIENCE = 5.0  # seconds
NUMBER = 0x4001

FORGED = {
    "X-Forwarded-For": "192.0.2.66, 127.0.0.1",
    "X-Forwarded-Proto": "http",
    "X-Real-IP": "192.0.2.66",
    "Forwarded": "for=192.0.2.66;proto=http",
}


class Relay:
    """relayd with a listener for each kind of proxy, and its log."""

    def __init__(self, directory: Path, certificate: Certificate, socket_directory: Path) -> None:
        self.upstream = Upstream(free_ports(), free_ports(), certificate)
        self.unix_socket = socket_directory / "web.sock"
        self._log = directory / "allocations.json"
        keys = f"privateKey={certificate.key}:certKey={certificate.certificate}"
        self.server: TurnServer = start_relayd(
            directory,
            certificate,
            f"--listen=web=tcp:{self.upstream.plain}:interface=127.0.0.1",
            f"--listen=web=haproxy:ssl:{self.upstream.passthrough}:interface=127.0.0.1:{keys}",
            f"--listen=web=unix:{self.unix_socket}",
            "--relay-address=127.0.0.1",  # else the Unix socket would have it relay from elsewhere, too
            "--trust-proxy=127.0.0.1",
            f"--observe=json:{self._log}",
        )

    def log_of(self, relayed: wire.Address) -> list[dict[str, Any]]:
        """The lines about the last allocation with that relayed address, which earlier ones may have had too."""
        lines = [json.loads(line) for line in self._log.read_text().split("\n")[:-1]]  # whole lines only
        sessions = [line["session"] for line in lines if f"{relayed[0]}:{relayed[1]}" in line["relayed"]]
        return [line for line in lines if line["session"] == sessions[-1]]


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Relay]:
    # nginx changes to another user, who cannot enter a directory of pytest's.
    with tempfile.TemporaryDirectory(prefix="relayd-tests-") as name:
        Path(name).chmod(0o755)
        made = Relay(tmp_path_factory.mktemp("relay"), certificate, Path(name))
        yield made
        assert_clean_end(made.server)


@pytest.fixture(scope="module", params=[*ENDING_TLS, *PASSING_TLS])
def proxy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, relay: Relay
) -> Iterator[ReverseProxy]:
    """Each in its turn, in front of the relay."""
    start = {**ENDING_TLS, **PASSING_TLS}[request.param]
    running = start(tmp_path_factory.mktemp(request.param), relay.upstream)
    yield running
    assert running.process.running(), running.process.output
    running.process.kill()


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        made.settimeout(PEER_PATIENCE)
        yield made


def connect(proxy: ReverseProxy, relay: Relay, host: str = "127.0.0.1", **settings: Any) -> StrangeWebSocket:
    trusted = str(relay.upstream.certificate.certificate)
    return StrangeWebSocket((host, proxy.port), USER, PASSWORD, trusted, **settings)


def relayed_through(client: StrangeWebSocket) -> wire.Address:
    granted = client.allocate()
    assert granted.error == 0, granted
    return granted.address(wire.XOR_RELAYED_ADDRESS)


def check_traffic(client: StrangeWebSocket, relayed: wire.Address, peer: socket.socket) -> None:
    """Datagrams of many sizes, one by one and in bursts, arrive whole and in order, both ways."""
    assert client.bind_channel(NUMBER, peer.getsockname()).error == 0
    for size in (0, 1, 121, 122, 1200, 9000):
        client.send(wire.channel_data(NUMBER, bytes(size)))
        assert peer.recvfrom(65_536) == (bytes(size), relayed)
        peer.sendto(bytes(size), relayed)
        assert client.receive() == wire.channel_data(NUMBER, bytes(size))
    payloads = [b"%d" % number * 100 for number in range(50)]
    for payload in payloads:
        client.send(wire.channel_data(NUMBER, payload))
    assert [peer.recv(65_536) for _ in payloads] == payloads
    for payload in payloads:
        peer.sendto(payload, relayed)
    assert [client.receive() for _ in payloads] == [wire.channel_data(NUMBER, payload) for payload in payloads]


@pytest.mark.parametrize("headers", [{}, FORGED], ids=["honest", "forged"])
def test_traffic_and_the_address(
    proxy: ReverseProxy, relay: Relay, peer: socket.socket, headers: dict[str, str]
) -> None:
    """Data goes both ways, and the relay knows the client's own address and `wss`, whatever its headers claim."""
    with connect(proxy, relay, source=CLIENT, headers=headers) as client:
        granted = client.allocate()
        assert granted.error == 0
        assert granted.address(wire.XOR_MAPPED_ADDRESS)[0] == CLIENT
        relayed = granted.address(wire.XOR_RELAYED_ADDRESS)
        check_traffic(client, relayed, peer)
        assert client.refresh(0).error == 0
    started, ended = relay.log_of(relayed)
    for line in (started, ended):
        assert line["app_connection"] == "wss"
        assert line["client"].startswith(f"{CLIENT}:")
    assert ended["reason"] == "deleted"
    assert ended["received_packets"] == ended["sent_packets"] == 56


def test_ipv6(proxy: ReverseProxy, relay: Relay) -> None:
    """A client that reaches the proxy over IPv6 is known by that address."""
    with connect(proxy, relay, "::1") as client:
        granted = client.allocate()
        assert granted.error == 0
        assert granted.address(wire.XOR_MAPPED_ADDRESS)[0] == "::1"


def test_two_clients_of_one_address(proxy: ReverseProxy, relay: Relay) -> None:
    """Behind one NAT, and with the same proxy in front, each client still has an allocation of its own."""
    with connect(proxy, relay, source=CLIENT) as one, connect(proxy, relay, source=CLIENT) as two:
        first, second = relayed_through(one), relayed_through(two)
        assert first != second
        assert one.refresh(0).error == 0
        assert two.refresh(600).error == 0


def test_close_codes_get_through(proxy: ReverseProxy, relay: Relay) -> None:
    """A client hears why it is sent away, and its allocation ends."""
    with connect(proxy, relay, source=CLIENT) as client:
        relayed = relayed_through(client)
        client.send_frame(TEXT, b"hello")
        with pytest.raises(Closed) as closed:
            client.receive()
        assert closed.value.code == 1003
    assert relay.server.process.wait_until(lambda: len(relay.log_of(relayed)) == 2, PEER_PATIENCE)
    assert relay.log_of(relayed)[-1]["reason"] == "connection-closed"


def test_a_client_that_leaves(proxy: ReverseProxy, relay: Relay) -> None:
    """When a client's connection to the proxy is gone, so is its allocation, at once."""
    with connect(proxy, relay, source=CLIENT) as client:
        relayed = relayed_through(client)
    assert relay.server.process.wait_until(lambda: len(relay.log_of(relayed)) == 2, PEER_PATIENCE)
    assert relay.log_of(relayed)[-1]["reason"] == "connection-closed"


def test_a_unix_socket(relay: Relay, peer: socket.socket, tmp_path: Path) -> None:
    """Between a proxy and the relay on one host a Unix socket does, too, and is trusted with the client's address."""
    changes = {f"http://127.0.0.1:{relay.upstream.plain}": f"http://unix:{relay.unix_socket}:"}
    proxy = start_nginx(tmp_path, relay.upstream, changes)
    try:
        with connect(proxy, relay, source=CLIENT, headers=FORGED) as client:
            granted = client.allocate()
            assert granted.error == 0
            assert granted.address(wire.XOR_MAPPED_ADDRESS)[0] == CLIENT
            relayed = granted.address(wire.XOR_RELAYED_ADDRESS)
            check_traffic(client, relayed, peer)
    finally:
        proxy.process.kill()
    assert relay.log_of(relayed)[0]["app_connection"] == "wss"


def test_pages_of_others(proxy: ReverseProxy, relay: Relay) -> None:
    """The Host header gets through, so that our own pages are let in and those of others are not."""
    with pytest.raises(Refused) as refused:
        connect(proxy, relay, source=CLIENT, headers={"Origin": "https://evil.example"})
    assert refused.value.status == 403
    own = {"Host": f"localhost:{proxy.port}", "Origin": f"https://localhost:{proxy.port}"}
    connect(proxy, relay, source=CLIENT, headers=own).socket.close()


def status_of(port: int, path: str, headers: dict[str, str]) -> int:
    """What a page of the relay is answered with, asked for from this host over TLS under the name `localhost`."""
    unverified = ssl._create_unverified_context()
    with contextlib.closing(
        http.client.HTTPSConnection("127.0.0.1", port, timeout=PEER_PATIENCE, context=unverified)
    ) as connection:
        connection.request("GET", path, headers={"Host": "localhost", **headers})
        return connection.getresponse().status


CLAIMS: list[dict[str, str]] = [
    {},
    {"X-Forwarded-For": "127.0.0.1"},
    {"Forwarded": "for=127.0.0.1"},
    {"Via": "1.1 nobody", "X-Real-IP": "127.0.0.1"},
]


def test_the_operators_pages_stay_closed(proxy: ReverseProxy, relay: Relay) -> None:
    """What comes from the proxy, which is on the relay's own host, is not taken for somebody's there."""
    assert status_of(proxy.port, "/healthz", {}) == 200
    for path in ("/", "/status.json", "/metrics"):
        for claim in CLAIMS:
            assert status_of(proxy.port, path, claim) == 403


def test_a_careless_nginx(relay: Relay, tmp_path: Path) -> None:
    """With the least configuration that passes requests on, which tells the relay nothing, they stay closed as well."""
    wanted = (
        "proxy_http_version 1.1;",
        "proxy_set_header Upgrade    $http_upgrade;",
        "proxy_set_header Connection $relayd_connection;",
        "proxy_set_header Host       $http_host;",
        "proxy_set_header X-Forwarded-For   $remote_addr;",
        "proxy_set_header X-Forwarded-Proto $scheme;",
        'proxy_set_header Forwarded         "";',
    )
    careless = start_nginx(tmp_path, relay.upstream, dict.fromkeys(wanted, ""))
    try:
        assert status_of(careless.port, "/healthz", {}) == 200
        for claim in CLAIMS:
            assert status_of(careless.port, "/metrics", claim) == 403
    finally:
        careless.process.kill()
