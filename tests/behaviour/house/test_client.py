"""relayd's own client against the whole relay, over every way in that it speaks and both families."""

from __future__ import annotations

from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, DeferredQueue
from twisted.internet.protocol import DatagramProtocol, ServerFactory
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.internet.ssl import Certificate as TrustRoot
from twisted.internet.ssl import trustRootFromCertificates

from relayd.address import AppConnection, Family
from relayd.client import HttpProxy, TurnClient, TurnUri
from relayd.client.relayed import RelayedPort
from relayd.errors import ConfigurationError, RelaydError, RemoteError, ServerUnavailable
from relayd.turn.outputs import AllocationRefreshed
from tests.behaviour.house.suite import HouseCase, certificate
from tests.support.house import USERS, House
from tests.support.ports import free_ports
from tests.support.turn_client import Peer, eventually, pause
from tests.support.wires import patiently, reactor


class Collector(DatagramProtocol):
    """A protocol as applications write them: keeps what it receives."""

    noisy = False

    def __init__(self) -> None:
        self.received: DeferredQueue[tuple[bytes, Any]] = DeferredQueue()
        self.is_stopped = False

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.received.put((datagram, addr))

    def stopProtocol(self) -> None:
        self.is_stopped = True


class Names:
    """A resolver by which every name has the same addresses; an address is its own."""

    def __init__(self, *hosts: str) -> None:
        self._hosts = hosts

    def resolveHostName(self, receiver: Any, name: str, port: int = 0, *more: Any, **semantics: Any) -> Any:
        receiver.resolutionBegan(None)
        for host in (name,) if isIPAddress(name) or isIPv6Address(name) else self._hosts:
            kind = IPv6Address if ":" in host else IPv4Address
            receiver.addressResolved(kind("UDP", host, port))
        receiver.resolutionComplete()


async def failure_of(waiting: Any) -> BaseException:
    """What an operation, which has to fail, fails with."""
    try:
        await patiently(waiting)
    except (RelaydError, TimeoutError) as error:
        return error
    raise AssertionError("it succeeded")


class ClientCase(HouseCase):
    """A relay, and clients of ours that are closed behind the test."""

    hops = 1  # to the relay

    def turn_client(self, password: str = USERS["alice"], clock: Any = reactor, **options: Any) -> TurnClient:
        address = self.house.address(self.kind, self.host)
        uri = TurnUri(self.host, address.port, self.kind)
        options.setdefault("trust_root", self.trust_root())
        options.setdefault("families", (Family.IPV4 if self.host == "127.0.0.1" else Family.IPV6,))
        return TurnClient(clock, uri, "alice", password, **options)

    def trust_root(self) -> Any:
        pem = certificate().certificate.read_bytes()
        return trustRootFromCertificates([TrustRoot.loadPEM(pem)])

    async def redirect_to_another(self, domain: str = "") -> None:
        """Have the relay send everybody to `self.other`, a second one."""
        self.other = House(self.data_plane, certificate())
        self.other.start()
        self.addCleanup(self.other.stop)
        await self.house.stop()
        target = str(self.other.address(self.kind, self.host)) + (f",{domain}" if domain else "")
        self.house = House(self.data_plane, certificate(), policy=(("redirect", target),))
        self.house.start()

    async def relayed(self, **options: Any) -> tuple[RelayedPort, Collector]:
        collector = Collector()
        port = await patiently(self.turn_client(**options).allocate(collector))
        self.addCleanup(port.stopListening)
        return port, collector


class ClientSuite:
    """The promises. Mixed into `ClientCase`."""

    async def test_whole_life(self: Any) -> None:
        """Allocate, send and receive with and without a channel, and leave nothing behind."""
        peer: Peer = self.peer()
        port, collector = await self.relayed()
        (relayed,) = port.relayed_addresses
        assert (port.getHost().host, port.getHost().port) == (relayed.host, relayed.port)
        assert port.mapped_address.host == self.host
        for way in ("indication", "channel"):
            port.write(way.encode(), (self.host, peer.address.port))
            assert await peer.next() == (way.encode(), relayed)
            peer.write(b"back", relayed)
            assert await patiently(collector.received.get()) == (b"back", (self.host, peer.address.port))
            await patiently(port.bind(self.host, peer.address.port))
        ended = port.when_ended()
        await patiently(port.stopListening())
        assert await patiently(ended) is None
        assert collector.is_stopped
        assert self.house.sessions() == 0
        assert self.house.end_reasons == ["deleted"]
        await patiently(port.stopListening())
        port.write(b"nobody hears this", (self.host, peer.address.port))

    async def test_a_burst(self: Any) -> None:
        """Datagrams of all sizes in one turn of the reactor arrive whole and in order, empty ones among them."""
        peer: Peer = self.peer()
        port, _ = await self.relayed()
        await patiently(port.bind(self.host, peer.address.port))
        port.connect(self.host, peer.address.port)
        sizes = [0, 1, 2, 3, 4, 5, 100, 1200, 1201, 9000]
        for size in sizes:
            port.write(bytes([size % 251]) * size)
        for size in sizes:
            assert (await peer.next())[0] == bytes([size % 251]) * size

    async def test_a_listener(self: Any) -> None:
        """Who has a permission is heard first; who has none is not; and a connected port hears one peer alone."""
        peer, other = self.peer(), self.peer()
        port, collector = await self.relayed()
        (relayed,) = port.relayed_addresses
        peer.write(b"too early", relayed)
        await pause(0.05)
        await patiently(port.permit(self.host))
        peer.write(b"heard", relayed)
        assert (await patiently(collector.received.get()))[0] == b"heard"
        port.connect(self.host, peer.address.port)
        other.write(b"from another", relayed)
        peer.write(b"from the one", relayed)
        assert (await patiently(collector.received.get()))[0] == b"from the one"

    async def test_longer_than_everything_lasts(self: Any) -> None:
        """An allocation, a permission and a channel outlive their lifetimes, with not a word from the application."""
        peer, silent = self.peer(), self.peer("127.0.0.2" if self.host == "127.0.0.1" else self.host)
        port, collector = await self.relayed(clock=self.house.reactor)
        (relayed,) = port.relayed_addresses
        await patiently(port.bind(self.host, peer.address.port))
        await patiently(port.permit(silent.address.host))
        for _ in range(325):
            self.house.reactor.advance(4)  # so that a ping and its answer, some turns later, are not 20 s apart
            for _ in range(self.hops):
                await pause()
            await eventually(lambda: len(port._session._core._requests) == 0)
        for each in (peer, silent):
            each.write(b"still there?", relayed)
            address = (each.address.host, each.address.port)
            assert await patiently(collector.received.get()) == (b"still there?", address)
        assert self.house.sessions() == 1
        assert self.house.end_reasons == []
        assert len(self.house.recorder.of(AllocationRefreshed)) >= 2

    async def test_echo_against_itself(self: Any) -> None:
        """What a relayed address sends to itself comes back through the relay."""
        port, collector = await self.relayed()
        (relayed,) = port.relayed_addresses
        port.write(b"echo", (relayed.host, relayed.port))
        assert (await patiently(collector.received.get()))[0] == b"echo"

    async def test_wrong_password(self: Any) -> None:
        """A wrong password is a 401, and leaves nothing open."""
        error = await failure_of(self.turn_client(password="wrong").allocate(Collector()))
        assert isinstance(error, RemoteError)
        assert error.code == 401

    async def test_forbidden_peer(self: Any) -> None:
        """A peer that the relay refuses is a 403 for whoever asks for it."""
        port, _ = await self.relayed()
        private = "10.0.0.1" if self.host == "127.0.0.1" else "fd00::1"
        for waiting in (port.permit(private), port.bind(private, 9)):
            error = await failure_of(waiting)
            assert isinstance(error, RemoteError)
            assert error.code == 403
        self.flushLoggedErrors()

    async def test_another_server(self: Any) -> None:
        """A relay that names another one is left, and the other one serves."""
        await self.redirect_to_another()
        port, _ = await self.relayed()
        assert (self.house.sessions(), self.other.sessions()) == (0, 1)
        await patiently(port.stopListening())
        assert self.other.sessions() == 0

    async def test_cancel(self: Any) -> None:
        """An allocation that is no longer wanted can be cancelled at once; nothing stays open."""
        waiting = self.turn_client().allocate(Collector())
        failures: list[Any] = []
        waiting.addErrback(failures.append)
        waiting.cancel()
        assert failures[0].check(CancelledError)
        await pause(0.05)
        assert self.house.sessions() == 0

    async def test_the_relay_stops(self: Any) -> None:
        """When the relay ends an allocation, its client is told; over UDP it finds out."""
        port, collector = await self.relayed()
        ended = port.when_ended()
        await self.house.stop()
        if self.kind is not AppConnection.UDP:
            assert isinstance(await patiently(ended), ServerUnavailable)
            assert collector.is_stopped
            error = await failure_of(port.permit(self.host))
            assert isinstance(error, ServerUnavailable)
        else:
            await patiently(port.stopListening())
            assert await patiently(ended) is None

    async def test_bad_arguments(self: Any) -> None:
        """What cannot be sent is refused on the spot: names, port 0, nobody, and too many bytes."""
        port, _ = await self.relayed()
        for packet, address in (
            (b"", ("example.org", 9)),
            (b"", (self.host, 0)),
            (b"", None),
            (bytes(65_500), (self.host, 9)),
        ):
            with self.assertRaises(ValueError):
                port.write(packet, address)


class StreamSuite(ClientSuite):
    """What holds on streams besides."""

    async def test_no_datagram_waits_for_another(self: Any) -> None:
        """Nagle's algorithm is off: it would hold back a datagram until the one before is acknowledged."""
        port, _ = await self.relayed()
        assert port._session._connection.transport.getTcpNoDelay()


class UdpClientTests(ClientSuite, ClientCase):
    async def test_nobody_there(self) -> None:
        """A port that nobody listens on is an error at once, and not after all retransmissions."""
        client = TurnClient(reactor, f"turn:127.0.0.1:{free_ports()}", "alice", "secret")
        error = await failure_of(client.allocate(Collector()))
        assert "nothing listens" in str(error)

    async def test_a_name(self) -> None:
        """The server may be given by name, and one that does not exist is an error."""
        port = self.house.address(self.kind, self.host).port
        allocated = await patiently(
            TurnClient(reactor, f"turn:localhost:{port}", "alice", USERS["alice"]).allocate(Collector())
        )
        await patiently(allocated.stopListening())
        error = await failure_of(TurnClient(reactor, "turn:nowhere.invalid", "alice", "x").allocate(Collector()))
        assert "nowhere.invalid" in str(error)

    async def test_the_first_address_that_there_is_a_way_to(self) -> None:
        """Of several addresses of a name, those that cannot be sent to, as link-local ones without a zone, are passed
        over.
        """
        port = self.house.address(self.kind, self.host).port
        vars(self.house.reactor)["nameResolver"] = Names("fe80::1", "127.0.0.1")
        uri = f"turn:relay.example.org:{port}"
        client = TurnClient(self.house.reactor, uri, "alice", USERS["alice"])
        allocated = await patiently(client.allocate(Collector()))
        await patiently(allocated.stopListening())

    async def test_the_first_address_that_answers(self) -> None:
        """Nor does it matter that nobody listens at the first ones, as where a relay has no IPv6 but its name has."""
        port = self.house.address(self.kind, self.host).port
        vars(self.house.reactor)["nameResolver"] = Names("127.0.0.3", "127.0.0.2", "127.0.0.1")
        uri = f"turn:relay.example.org:{port}"
        client = TurnClient(self.house.reactor, uri, "alice", USERS["alice"])
        allocated = await patiently(client.allocate(Collector()))
        await patiently(allocated.stopListening())
        vars(self.house.reactor)["nameResolver"] = Names("127.0.0.3", "127.0.0.2")
        error = await failure_of(client.allocate(Collector()))
        assert str(error) == "nothing listens on that port"

    async def test_not_through_a_proxy(self) -> None:
        """No HTTP proxy carries datagrams, and who asks for that is told so."""
        client = self.turn_client(proxy=HttpProxy("127.0.0.1", free_ports()))
        error = await failure_of(client.allocate(Collector()))
        assert isinstance(error, ConfigurationError)
        assert "carries no udp" in str(error)


class Udp6ClientTests(ClientSuite, ClientCase):
    host = "::1"


class TcpClientTests(StreamSuite, ClientCase):
    kind = AppConnection.TCP

    async def test_nobody_there(self) -> None:
        """A refused connection is an error that says so."""
        client = TurnClient(reactor, f"turn:127.0.0.1:{free_ports()}?transport=tcp", "alice", "secret")
        error = await failure_of(client.allocate(Collector()))
        assert "refused" in str(error)

    async def test_no_turn_server(self) -> None:
        """What answers in another protocol is told apart."""

        class Web(StreamProtocol):
            def dataReceived(self, data: bytes) -> None:
                self.transport.write(b"\xff\xff\xff\xff this is no TURN server")  # type: ignore[union-attr]

        listening = reactor.listenTCP(0, ServerFactory.forProtocol(Web), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        uri = f"turn:127.0.0.1:{listening.getHost().port}?transport=tcp"
        error = await failure_of(TurnClient(reactor, uri, "alice", "secret").allocate(Collector()))
        assert "no TURN server" in str(error)


class Tcp6ClientTests(StreamSuite, ClientCase):
    kind = AppConnection.TCP
    host = "::1"


class CertificateSuite:
    """What holds wherever the server proves who it is."""

    async def test_an_unknown_authority(self: Any) -> None:
        """A certificate that nobody trusted vouches for is refused before any credentials are sent."""
        error = await failure_of(self.turn_client(trust_root=trustRootFromCertificates([])).allocate(Collector()))
        assert "certificate verify failed" in str(error)
        assert self.house.recorder.events == []

    async def test_another_name(self: Any) -> None:
        """A certificate for somebody else is refused: a redirection that names one is not followed blindly."""
        await self.redirect_to_another("other.example.org")
        error = await failure_of(self.turn_client().allocate(Collector()))
        assert isinstance(error, ServerUnavailable)
        assert self.other.sessions() == 0


class TlsClientTests(CertificateSuite, StreamSuite, ClientCase):
    kind = AppConnection.TLS


class Tls6ClientTests(StreamSuite, ClientCase):
    kind = AppConnection.TLS
    host = "::1"


class DtlsClientTests(CertificateSuite, ClientSuite, ClientCase):
    kind = AppConnection.DTLS

    async def test_nobody_there(self) -> None:
        """A port that nobody listens on is an error at once, and not after all retransmissions."""
        client = TurnClient(reactor, f"turns:127.0.0.1:{free_ports()}?transport=udp", "alice", "secret")
        error = await failure_of(client.allocate(Collector()))
        assert "nothing listens" in str(error)


class Dtls6ClientTests(ClientSuite, ClientCase):
    kind = AppConnection.DTLS
    host = "::1"


class WsClientTests(StreamSuite, ClientCase):
    kind = AppConnection.WS


class Ws6ClientTests(StreamSuite, ClientCase):
    kind = AppConnection.WS
    host = "::1"


class WssClientTests(CertificateSuite, StreamSuite, ClientCase):
    kind = AppConnection.WSS


class Wss6ClientTests(StreamSuite, ClientCase):
    kind = AppConnection.WSS
    host = "::1"
