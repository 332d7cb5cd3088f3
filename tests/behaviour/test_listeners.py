"""Promises of the listeners on real sockets: every endpoint leads to the service; what cannot be opened says why."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent
from twisted.plugin import getPlugins
from twisted.trial.unittest import TestCase

from relayd.address import AppConnection, Family, TransportAddress
from relayd.config import ListenerSettings
from relayd.dataplane.portable import PortablePlane
from relayd.errors import ConfigurationError
from relayd.interfaces import IListener, IListenerFactory
from relayd.listeners.dtls import open_dtls
from relayd.listeners.turn import TurnListenerFactory
from relayd.listeners.udp import open_udp
from relayd.listeners.web_factory import WebListenerFactory
from relayd.local_addresses import is_link_local, local_addresses
from tests.support.certificate import make_certificate
from tests.support.wire import BINDING, REQUEST
from tests.unit.listeners.fakes import hosts_of

UNREAD = 50_000_000  # bytes: more than the system buffers for both ends of a connection on loopback
PATIENCE = 10.0  # seconds that a client waits for an answer
REQUEST_BYTES = bytes([REQUEST, BINDING, 0, 0]) + b"\x21\x12\xa4\x42transaction!"
ANSWER = b"\x01\x01\0\0\x21\x12\xa4\x42transaction!"
LOOPBACKS = [TransportAddress.parse(host, 0) for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3")]


class AnsweringService:
    """Answers everything, and remembers from whom it was."""

    def __init__(self) -> None:
        self.paths: list[Any] = []
        self.closed: list[Any] = []

    def receive(self, client: Any, data: bytes) -> None:
        self.paths.append(client)
        client.send(ANSWER)

    def path_closed(self, client: Any) -> None:
        self.closed.append(client)

    def has_allocation(self, client: Any) -> bool:
        return False


def ask(connected: socket.socket, prefix: bytes = b"") -> bytes:
    """What a blocking socket is answered; closes it."""
    with connected:
        connected.settimeout(PATIENCE)
        connected.sendall(prefix + REQUEST_BYTES)
        return connected.recv(100)


def unverified() -> ssl.SSLContext:
    """For a client that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class ListenerTest(TestCase):
    """Common ground: a service, a data plane, a certificate, and the clean-up that trial then verifies."""

    timeout = 60

    def setUp(self) -> None:
        self.service = AnsweringService()
        self.plane = PortablePlane(reactor)
        self.addCleanup(self.plane.close)
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        made = make_certificate(self.directory)
        self.files = f"privateKey={made.key}:certKey={made.certificate}"

    async def listen(self, endpoint: str, **settings: Any) -> Any:
        service: Any = self.service
        listener = await TurnListenerFactory().listen(
            endpoint, reactor, service, self.plane, ListenerSettings(**settings)
        )
        self.addCleanup(listener.close)
        assert IListener.providedBy(listener)
        return listener

    async def in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        return await deferToThread(call, *args)

    async def refusal(self, endpoint: str) -> str:
        with pytest.raises(ConfigurationError) as refusal:
            await self.listen(endpoint)
        text = str(refusal.value)
        assert "\n" not in text
        assert text.startswith(endpoint)
        return text


class Plugins(TestCase):
    """The plugin file."""

    def test_the_factory_is_found(self) -> None:
        """Twisted's plugin system finds the kinds `turn`, `web` and `any`."""
        assert {"turn", "web", "any"} <= {plugin.kind for plugin in getPlugins(IListenerFactory)}

    def test_a_relay_without_websocket_loads_none(self) -> None:
        """Autobahn and twisted.web stay out of a process that lists all kinds and listens with another one."""
        program = (
            "import sys; from twisted.plugin import getPlugins; from relayd.interfaces import IListenerFactory;"
            "kinds = [plugin.kind for plugin in getPlugins(IListenerFactory)]; assert 'web' in kinds;"
            "assert not {'autobahn', 'twisted.web.http'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


class Web(ListenerTest):
    """Endpoints of the kind `web`."""

    async def test_what_cannot_be_opened_says_why(self) -> None:
        """A datagram endpoint is none for a web site, and a port in use is one line as it is for every kind."""
        factory: Any = WebListenerFactory("relayd.web.pages.make_pages")
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        endpoints = [
            "udp:0",
            "dtls:0",
            f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1",
            "ssl:0:privateKey=/none.pem",
        ]
        for endpoint in endpoints:
            with pytest.raises(ConfigurationError) as refusal:
                await factory.listen(endpoint, reactor, self.service, self.plane, ListenerSettings())
            assert str(refusal.value).startswith(endpoint)
            assert "\n" not in str(refusal.value)

    async def test_unix(self) -> None:
        """A web proxy on the same host may come through a Unix socket."""
        path = self.directory / "web.socket"
        factory: Any = WebListenerFactory("relayd.web.pages.make_pages")
        listener = await factory.listen(f"unix:{path}", reactor, self.service, self.plane, ListenerSettings())
        self.addCleanup(listener.close)
        assert listener.description == f"ws unix:{path}"
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))

        def healthz() -> bytes:
            with client:
                client.settimeout(PATIENCE)
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return client.recv(1000)

        assert (await self.in_thread(healthz)).startswith(b"HTTP/1.1 200 OK\r\n")


class Streams(ListenerTest):
    """Endpoints of Twisted."""

    async def test_tcp(self) -> None:
        """A client of a `tcp:` endpoint is answered, on a `tcp` path with its own address."""
        listener = await self.listen("tcp:0:interface=127.0.0.1")
        (address,) = listener.addresses
        assert listener.description == f"tcp {address}"
        client = socket.create_connection((address.host, address.port))
        name = client.getsockname()
        assert await self.in_thread(ask, client) == ANSWER
        (path,) = self.service.paths
        assert path.path.client == TransportAddress.parse(*name)
        assert path.path.five_tuple.server == address
        assert path.path.app_connection == AppConnection.TCP

    async def test_ipv6(self) -> None:
        """Colons of an IPv6 interface are escaped."""
        listener = await self.listen("tcp:0:interface=\\:\\:1")
        (address,) = listener.addresses
        client = socket.create_connection((address.host, address.port))
        assert await self.in_thread(ask, client) == ANSWER

    async def test_twisted_says_which_endpoint_it_starts(self) -> None:
        """The one line that Twisted logs for each port tells them apart."""
        for endpoint, suffix in (
            ("tcp:0:interface=127.0.0.1", ""),
            (f"ssl:0:interface=127.0.0.1:{self.files}", " (TLS)"),
            (f"haproxy:ssl:0:interface=127.0.0.1:{self.files}", " (TLS) (PROXY)"),
        ):
            with capturedLogs() as events:
                (address,) = (await self.listen(endpoint)).addresses
            lines = [formatEvent(event) for event in events]
            assert lines == [f"turn={endpoint}{suffix} starting on {address.port}"]

    async def test_unix(self) -> None:
        """A Unix socket leads to the service too; each of its clients has an address of its own."""
        path = self.directory / "turn.socket"
        await self.listen(f"unix:{path}")
        for _ in range(2):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(path))
            assert await self.in_thread(ask, client) == ANSWER
        first, second = (each.path.client for each in self.service.paths)
        assert first != second
        assert first.host.startswith("100::")

    async def test_proxy_protocol(self) -> None:
        """Behind `haproxy:` the client's address is the one of the PROXY header."""
        listener = await self.listen("haproxy:tcp:0:interface=127.0.0.1")
        (address,) = listener.addresses
        header = b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 3478\r\n"
        client = socket.create_connection((address.host, address.port))
        assert await self.in_thread(ask, client, header) == ANSWER
        (path,) = self.service.paths
        assert path.path.client == TransportAddress.parse("198.51.100.7", 50000)

    async def test_proxy_protocol_in_pieces(self) -> None:
        """The header may come a byte at a time, and of either version; a stranger's connection is closed at once."""
        binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c" + bytes([198, 51, 100, 7, 192, 0, 2, 1]) + b"\xc3\x50\x0d\x96"
        listener = await self.listen("haproxy:tcp:0:interface=127.0.0.1")
        (address,) = listener.addresses
        for header in (b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 3478\r\n", binary):
            client = socket.create_connection((address.host, address.port))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in header:
                client.send(bytes([byte]))
                await deferLater(reactor, 0)
            assert await self.in_thread(ask, client) == ANSWER
            assert self.service.paths[-1].path.client == TransportAddress.parse("198.51.100.7", 50000)
            assert self.service.paths[-1].path.five_tuple.server == TransportAddress.parse("192.0.2.1", 3478)
        strict = await self.listen("haproxy:tcp:0:interface=127.0.0.1", trusted_proxies=())
        client = socket.create_connection((strict.addresses[0].host, strict.addresses[0].port), PATIENCE)
        with client, pytest.raises(ConnectionResetError):
            await self.in_thread(client.recv, 100)

    async def test_proxy_protocol_on_a_unix_socket(self) -> None:
        """A proxy on this host may come through a Unix socket, whose permissions say who may."""
        path = self.directory / "proxied.socket"
        await self.listen(f"haproxy:unix:{path}")
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        assert await self.in_thread(ask, client, b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 3478\r\n") == ANSWER
        assert self.service.paths[0].path.client == TransportAddress.parse("198.51.100.7", 50000)

    async def test_a_connection_that_is_lost_closes_its_path(self) -> None:
        """The service hears when the client goes."""
        listener = await self.listen("tcp:0:interface=127.0.0.1")
        (address,) = listener.addresses
        client = socket.create_connection((address.host, address.port))
        await self.in_thread(ask, client)
        while not self.service.closed:
            await deferLater(reactor, 0.01)
        assert self.service.closed == self.service.paths

    async def test_a_client_that_does_not_read(self) -> None:
        """Datagrams for it are dropped once the system's own buffers are full, over TCP and over TLS."""
        for endpoint in ("tcp:0:interface=127.0.0.1", f"ssl:0:interface=127.0.0.1:{self.files}"):
            (address,) = (await self.listen(endpoint)).addresses
            client = socket.create_connection((address.host, address.port), PATIENCE)
            if endpoint.startswith("ssl"):
                client = await self.in_thread(unverified().wrap_socket, client)
            self.addCleanup(client.close)
            client.sendall(REQUEST_BYTES)
            assert await self.in_thread(client.recv, 100) == ANSWER
            path = self.service.paths[-1]
            sent = 0
            while path.send_channel_data(0x4000, bytes(1000)):
                sent += 1000
                assert sent < UNREAD
                if sent % 50_000 == 0:
                    await deferLater(reactor, 0)
            assert not path.send_channel_data(0x4000, bytes(1000))

    async def test_close_ends_connections(self) -> None:
        """After close the client reads the end of the stream, and trial finds neither socket nor delayed call."""
        listener = await self.listen("tcp:0:interface=127.0.0.1")
        (address,) = listener.addresses
        client = socket.create_connection((address.host, address.port))
        self.addCleanup(client.close)
        client.settimeout(PATIENCE)
        client.sendall(REQUEST_BYTES)
        assert await self.in_thread(client.recv, 100) == ANSWER
        await listener.close()
        assert await self.in_thread(client.recv, 100) == b""

    async def test_running_out_of_descriptors(self) -> None:
        """While no descriptor is left connections are dropped, those that are there go on, and later ones succeed.

        The log says so in one line, however many are dropped.
        """
        listener = await self.listen("tcp:0:interface=127.0.0.1")
        (address,) = listener.addresses
        old, refused, again = socket.create_connection((address.host, address.port)), socket.socket(), socket.socket()
        for client in (old, refused, again):
            self.addCleanup(client.close)
            client.settimeout(PATIENCE)
        old.sendall(REQUEST_BYTES)
        assert await self.in_thread(old.recv, 100) == ANSWER
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (again.fileno() + 20, limits[1]))
        taken: list[int] = []
        try:
            while True:
                taken.append(os.dup(refused.fileno()))
        except OSError:
            pass
        try:
            with capturedLogs() as events:
                for client in (refused, again):
                    client.connect((address.host, address.port))
                    assert await self.in_thread(client.recv, 100) == b""
            assert [event["where"] for event in events] == [listener.description]
            old.sendall(REQUEST_BYTES)
            assert await self.in_thread(old.recv, 100) == ANSWER
        finally:
            for descriptor in taken:
                os.close(descriptor)
        client = socket.create_connection((address.host, address.port))
        assert await self.in_thread(ask, client) == ANSWER


class Tls(ListenerTest):
    """The `ssl:` endpoint, asked by Python's own ssl module."""

    endpoint = "ssl"
    preface = b""  # what comes before the handshake
    prefix = b""  # what comes before the request

    async def connect(self, protocols: list[str], newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Any:
        """The answer, and the protocol that ALPN chose."""
        listener = await self.listen(f"{self.endpoint}:0:interface=127.0.0.1:{self.files}")
        assert listener.app_connection == "tls"
        (address,) = listener.addresses
        context = unverified()
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = newest
        if protocols:
            context.set_alpn_protocols(protocols)

        def talk() -> tuple[bytes, str | None]:
            with socket.create_connection((address.host, address.port), PATIENCE) as client:
                client.sendall(self.preface)
                secure = context.wrap_socket(client)
                chosen = secure.selected_alpn_protocol()
                return ask(secure, self.prefix), chosen

        return await self.in_thread(talk)

    async def test_tls(self) -> None:
        """A client of an `ssl:` endpoint is answered, on a `tls` path; ALPN is not needed."""
        assert await self.connect([]) == (ANSWER, None)
        assert self.service.paths[0].path.app_connection == AppConnection.TLS

    async def test_alpn(self) -> None:
        """`stun.turn` is preferred (RFC 7443), `stun.nat-discovery` is served."""
        assert await self.connect(["http/1.1", "stun.nat-discovery", "stun.turn"]) == (ANSWER, "stun.turn")
        assert await self.connect(["stun.nat-discovery"]) == (ANSWER, "stun.nat-discovery")

    async def test_each_message_is_a_record(self) -> None:
        """Answers that leave together arrive one to a record: some clients take a record for a message."""
        self.prefix = REQUEST_BYTES * 4
        assert (await self.connect([]))[0] == ANSWER
        assert len(self.service.paths) == 5

    async def test_foreign_alpn(self) -> None:
        """A client that offers other protocols only is refused in the handshake; nobody else is harmed by it."""
        with pytest.raises(ssl.SSLError):
            await self.connect(["h2"])
        assert self.service.paths == []
        assert await self.connect(["stun.turn"]) == (ANSWER, "stun.turn")

    async def test_tls_1_2(self) -> None:
        """TLS 1.2 is spoken."""
        assert (await self.connect([], ssl.TLSVersion.TLSv1_2))[0] == ANSWER

    async def test_tls_1_1_is_refused(self) -> None:
        """Nothing older is."""
        with pytest.raises(ssl.SSLError):
            await self.connect([], ssl.TLSVersion.TLSv1_1)
        assert self.service.paths == []

    async def test_close_during_a_handshake(self) -> None:
        """A client that never finishes its handshake does not hold the listener up."""
        listener = await self.listen(f"{self.endpoint}:0:interface=127.0.0.1:{self.files}")
        (address,) = listener.addresses
        client = socket.create_connection((address.host, address.port))
        self.addCleanup(client.close)
        await deferLater(reactor, 0.05)
        await listener.close()


class TlsBehindProxy(Tls):
    """The same behind a proxy that passes TLS through: its PROXY header comes ahead of the handshake."""

    endpoint = "haproxy:ssl"
    preface = b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 5349\r\n"

    async def test_the_client_is_known(self) -> None:
        """The path has the client's own address and the one that it wrote to, and is `tls`."""
        await self.connect([])
        path = self.service.paths[0].path
        assert path.client == TransportAddress.parse("198.51.100.7", 50000)
        assert path.five_tuple.server == TransportAddress.parse("192.0.2.1", 5349)
        assert path.app_connection == AppConnection.TLS

    async def test_without_a_header(self) -> None:
        """Who begins with the handshake is no trusted proxy's client, and is not served."""
        self.preface = b""
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await self.connect([])
        assert self.service.paths == []


class Datagrams(ListenerTest):
    """The `udp:` and `dtls:` endpoints."""

    async def test_udp(self) -> None:
        """A client of a `udp:` endpoint is answered, on a `udp` path."""
        listener = await self.listen("udp:0:interface=127.0.0.1")
        (address,) = listener.addresses
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.connect((address.host, address.port))
        assert await self.in_thread(ask, client) == ANSWER
        assert self.service.paths[0].path.app_connection == AppConnection.UDP

    async def test_dtls(self) -> None:
        """OpenSSL's own client completes the handshake over DTLS 1.2, and gets its protocol by ALPN."""
        listener = await self.listen(f"dtls:0:interface=127.0.0.1:{self.files}")
        (address,) = listener.addresses
        command = ["openssl", "s_client", "-dtls1_2", "-connect", str(address), "-alpn", "h2,stun.turn"]
        done = await self.in_thread(
            lambda: subprocess.run(command, input=REQUEST_BYTES, capture_output=True, timeout=PATIENCE, check=True)
        )
        assert b"ALPN protocol: stun.turn" in done.stdout
        assert b"DTLSv1.2" in done.stdout
        while not self.service.closed:
            await deferLater(reactor, 0.01)
        assert self.service.paths[0].path.app_connection == AppConnection.DTLS

    async def test_a_wildcard_answers_from_the_address_that_was_asked(self) -> None:
        """A connected socket takes an answer from nowhere else; to one at 127.0.0.1 routing would pick 127.0.0.1."""
        service: Any = self.service
        listener = open_udp("udp:0", service, self.plane, hosts_of(*LOOPBACKS))
        self.addCleanup(listener.close)
        assert [address.with_port(0) for address in listener.addresses] == LOOPBACKS
        assert len({address.port for address in listener.addresses}) == 1
        for address in listener.addresses:
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.bind(("127.0.0.1", 0))
            client.connect((address.host, address.port))
            assert await self.in_thread(ask, client) == ANSWER
        assert [each.path.five_tuple.server for each in self.service.paths] == listener.addresses

    async def test_a_dtls_wildcard_too(self) -> None:
        """The whole handshake happens at the address that the client chose."""
        service: Any = self.service
        listener = open_dtls(
            f"dtls:0:{self.files}", reactor, service, self.plane, ListenerSettings(), hosts_of(*LOOPBACKS)
        )
        self.addCleanup(listener.close)
        last = listener.addresses[-1]
        command = ["openssl", "s_client", "-dtls1_2", "-connect", str(last), "-bind", "127.0.0.1:0"]
        await self.in_thread(
            lambda: subprocess.run(command, input=REQUEST_BYTES, capture_output=True, timeout=PATIENCE, check=True)
        )
        while not self.service.closed:
            await deferLater(reactor, 0.01)
        assert self.service.paths[0].path.five_tuple.server == last

    async def test_wildcards_of_this_host(self) -> None:
        """Every address that it really has can be opened, link-local ones on their interface."""
        for endpoint, family in (("udp:0", Family.IPV4), ("udp:0:interface=\\:\\:", Family.IPV6)):
            hosts = local_addresses(family)
            if hosts:
                listener = await self.listen(endpoint)
                opened = [address.with_port(0) for address in listener.addresses]
                assert set(opened) <= set(hosts)
                assert {host for host in hosts if not is_link_local(host)} <= set(opened)
                assert len({address.port for address in listener.addresses}) == 1


class Refusals(ListenerTest):
    """One line for the operator: what, where, what to do."""

    async def test_a_tcp_port_in_use(self) -> None:
        """The address and port are named."""
        port = (await self.listen("tcp:0:interface=127.0.0.1")).addresses[0].port
        text = await self.refusal(f"tcp:{port}:interface=127.0.0.1")
        assert f"127.0.0.1 port {port}: Address already in use; choose another port" in text

    async def test_a_udp_port_in_use(self) -> None:
        """So it is for UDP."""
        port = (await self.listen("udp:0:interface=127.0.0.1")).addresses[0].port
        text = await self.refusal(f"udp:{port}:interface=127.0.0.1")
        assert f"127.0.0.1:{port}: Address already in use; choose another port" in text

    async def test_an_address_of_another_machine(self) -> None:
        """Neither kind can listen there."""
        for prefix in ("tcp", "udp"):
            assert "give an address of this machine" in await self.refusal(f"{prefix}:0:interface=192.0.2.1")

    async def test_certificates(self) -> None:
        """A missing file, one that is no PEM, and a key of another certificate."""
        (self.directory / "other").mkdir()
        other = make_certificate(self.directory / "other")
        junk = self.directory / "junk.pem"
        junk.write_text("junk")
        for prefix in ("ssl", "dtls"):
            text = await self.refusal(f"{prefix}:0:privateKey=/nonexistent.pem")
            assert "/nonexistent.pem: No such file" in text
            text = await self.refusal(f"{prefix}:0:privateKey={junk}")
            assert str(junk) in text
            mixed = self.files.partition(":")[0] + f":certKey={other.certificate}"
            assert "certKey=" in await self.refusal(f"{prefix}:0:{mixed}")

    async def test_an_encrypted_key(self) -> None:
        """It is refused, and nobody is asked for its pass phrase: a daemon has no terminal, and a terminal no time."""
        made = make_certificate(self.directory)
        key: Any = load_pem_private_key(made.key.read_bytes(), None)
        cipher = BestAvailableEncryption(b"pass phrase")
        made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher))
        for prefix in ("ssl", "dtls"):
            text = await self.refusal(f"{prefix}:0:privateKey={made.key}:certKey={made.certificate}")
            assert f"{made.key}: the private key is encrypted" in text

    async def test_bad_grammar(self) -> None:
        """Unknown kinds, missing and superfluous arguments, and TLS versions that must not be had."""
        for endpoint in ("nonsense:1", "tcp", "tcp:x", "tcp:0:colour=red", "udp:0:colour=red", "", "udp"):
            await self.refusal(endpoint)
        assert "leave it out" in await self.refusal(f"ssl:0:sslmethod=TLSv1_METHOD:{self.files}")
