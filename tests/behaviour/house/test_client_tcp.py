"""TCP to and from peers with our own client, over every way in that carries it (RFC 6062)."""

from __future__ import annotations

import os
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString, wrapClientTLS
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.protocols.portforward import ProxyFactory

from relayd.address import AppConnection
from relayd.client import HttpProxy, PeerTls, TcpAllocation
from relayd.errors import ConfigurationError, RemoteError, ServerUnavailable
from tests.behaviour.house.suite import certificate
from tests.behaviour.house.test_client import ClientCase, failure_of
from tests.support.http_proxy import HttpProxyServer
from tests.support.tcp_peer import Conversation, Conversations, TcpPeer, call
from tests.support.turn_client import eventually
from tests.support.wires import patiently, reactor

MEGABYTE = 1 << 20


class TcpCase(ClientCase):
    """A relay, TCP allocations of ours, and peers."""

    async def allocation(self, **options: Any) -> TcpAllocation:
        made: TcpAllocation = await patiently(self.turn_client(**options).allocate_tcp())
        self.addCleanup(made.close)
        return made

    def tcp_peer(self) -> TcpPeer:
        made = TcpPeer(self.host)
        self.addCleanup(made.close)
        return made

    async def pair(self, **options: Any) -> tuple[TcpAllocation, Conversation, Conversation]:
        """An allocation, and both ends of a connection: ours, and the peer's."""
        peer = self.tcp_peer()
        allocation = await self.allocation(**options)
        endpoint = allocation.endpoint(self.host, peer.address.port)
        ours: Conversation = await patiently(endpoint.connect(Factory.forProtocol(Conversation)))
        return allocation, ours, await peer.next()


class TcpSuite(TcpCase):
    """The promises. Subclasses say over which connections."""

    __test__ = False

    async def test_bytes_go_both_ways(self) -> None:
        """As they are, few and many; each end knows where the other is."""
        allocation, ours, theirs = await self.pair()
        assert theirs.remote == allocation.relayed_addresses[0] == ours.local
        assert ours.remote == theirs.local
        ours.say(b"hello")
        await theirs.hears(b"hello")
        theirs.say(b"hello yourself")
        await ours.hears(b"hello yourself")
        ours.heard = theirs.heard = b""
        much = os.urandom(MEGABYTE)
        ours.say(much)
        theirs.say(much)
        await eventually(lambda: len(ours.heard) + len(theirs.heard) >= 2 * MEGABYTE)
        assert ours.heard == theirs.heard == much

    async def test_a_peer_that_speaks_first(self) -> None:
        """What it says before anybody listens is heard, be it in one segment with the answer to ConnectionBind."""
        peer = self.tcp_peer()
        allocation = await self.allocation()
        connecting = allocation.endpoint(self.host, peer.address.port).connect(Factory.forProtocol(Conversation))
        theirs = await peer.next()
        await eventually(lambda: theirs.transport is not None)
        theirs.say(b"peer first")
        ours: Conversation = await patiently(connecting)
        await ours.hears(b"peer first")

    async def test_a_peer_that_calls(self) -> None:
        """With permission it is connected to a protocol of the factory, and hung up on without."""
        allocation = await self.allocation()
        callers = Conversations()
        allocation.listen(callers)
        with pytest.raises(RuntimeError, match="one factory"):
            allocation.listen(callers)
        (relayed,) = allocation.relayed_addresses
        stranger = await call(relayed)
        await eventually(lambda: stranger.end in ("all", "closed", "reset"))
        await stranger.close()
        await patiently(allocation.permit(self.host))
        theirs = await call(relayed)
        ours = await callers.next()
        await eventually(lambda: ours.transport is not None)
        assert ours.remote == theirs.local
        theirs.say(b"ring")
        await ours.hears(b"ring")
        ours.say(b"speaking")
        await theirs.hears(b"speaking")
        await theirs.close()
        await eventually(lambda: ours.end in ("all", "closed"))
        await patiently(ours.close())

    async def test_what_was_written_arrives_before_the_end(self) -> None:
        """From either side, however much it is."""
        _, ours, theirs = await self.pair()
        ours.say(bytes(MEGABYTE) + b"last")
        ours.transport.loseConnection()  # type: ignore[union-attr]
        await eventually(lambda: theirs.end != "")
        assert theirs.heard == bytes(MEGABYTE) + b"last"
        await theirs.close()
        await patiently(ours.gone)
        assert ours.end == "closed"
        _, ours, theirs = await self.pair()
        theirs.say(bytes(MEGABYTE) + b"last")
        await theirs.close()
        await eventually(lambda: ours.end in ("all", "closed"))
        assert ours.heard == bytes(MEGABYTE) + b"last"

    async def test_resets_are_no_orderly_ends(self) -> None:
        """A reset goes through to the other end, from both."""
        _, ours, theirs = await self.pair()
        theirs.reset()
        await eventually(lambda: ours.end == "reset")
        _, ours, theirs = await self.pair()
        ours.reset()
        await eventually(lambda: theirs.end == "reset")

    async def test_refusals(self) -> None:
        """447 where nobody listens, 446 for a second connection, 403 by the rules; and the allocation lives on."""
        allocation, _, theirs = await self.pair()
        gone = self.tcp_peer()
        await gone.close()
        private = "10.0.0.1" if self.host == "127.0.0.1" else "fd00::1"
        for host, port, code in [
            (self.host, gone.address.port, 447),
            (self.host, theirs.local.port, 446),
            (private, 80, 403),
        ]:
            error = await failure_of(allocation.endpoint(host, port).connect(Factory.forProtocol(Conversation)))
            assert isinstance(error, RemoteError)
            assert error.code == code
        other = self.tcp_peer()
        await patiently(allocation.endpoint(self.host, other.address.port).connect(Factory.forProtocol(Conversation)))

    async def test_again_to_the_same_peer(self) -> None:
        """Who closes a connection may open the next one at once: it waits until the relay has seen the end, too."""
        peer = self.tcp_peer()
        endpoint = (await self.allocation()).endpoint(self.host, peer.address.port)
        ours: Conversation = await patiently(endpoint.connect(Factory.forProtocol(Conversation)))
        theirs = await peer.next()
        await patiently(ours.close())
        connecting = endpoint.connect(Factory.forProtocol(Conversation))
        await eventually(lambda: theirs.end != "")
        assert not connecting.called, "the peer had not closed"
        theirs.transport.loseConnection()  # type: ignore[union-attr]
        again: Conversation = await patiently(connecting)
        again.say(b"once more")
        await (await peer.next()).hears(b"once more")

    async def test_the_end_while_waiting_for_a_peer(self) -> None:
        """The end of the allocation ends that, too, and nothing goes on."""
        allocation, ours, theirs = await self.pair()
        await patiently(ours.close())
        connecting = allocation.endpoint(self.host, theirs.local.port).connect(Factory.forProtocol(Conversation))
        await eventually(lambda: bool(allocation._openings))
        await patiently(allocation.close())
        assert isinstance(await failure_of(connecting), ServerUnavailable)

    async def test_a_slow_peer_slows_us(self) -> None:
        """A producer is paused where the peer does not read, and resumed when it does."""
        _, ours, theirs = await self.pair()
        theirs.transport.pauseProducing()  # type: ignore[union-attr]
        producer = Producer(ours.transport)
        await eventually(lambda: producer.is_paused and producer.is_stuck())
        written = producer.written
        theirs.transport.resumeProducing()  # type: ignore[union-attr]
        await eventually(lambda: producer.written > written)
        producer.stopProducing()
        await eventually(lambda: len(theirs.heard) == producer.written, turns=2000)

    async def test_we_slow_the_peer(self) -> None:
        """What we do not read waits with the peer."""
        _, ours, theirs = await self.pair()
        ours.transport.pauseProducing()  # type: ignore[union-attr]
        producer = Producer(theirs.transport)
        await eventually(lambda: producer.is_paused and producer.is_stuck())
        assert len(ours.heard) <= 2 * 65_536
        producer.stopProducing()
        ours.transport.resumeProducing()  # type: ignore[union-attr]
        await eventually(lambda: len(ours.heard) == producer.written, turns=2000)

    async def test_the_end_of_the_allocation(self) -> None:
        """Closing it cuts its connections, and is done when nothing is left; nothing can be connected any more."""
        allocation, ours, theirs = await self.pair()
        ended = allocation.when_ended()
        await patiently(allocation.close())
        assert ours.end != ""
        assert allocation.connections == 0
        assert await patiently(ended) is None
        await eventually(lambda: theirs.end != "")
        assert self.house.sessions() == 0
        endpoint = allocation.endpoint(self.host, 9)
        assert isinstance(await failure_of(endpoint.connect(Factory.forProtocol(Conversation))), ServerUnavailable)

    async def test_the_relay_goes_away(self) -> None:
        """Its end is told, and that of its connections."""
        allocation, ours, _ = await self.pair()
        ended = allocation.when_ended()
        await self.house.stop()
        assert isinstance(await patiently(ended), ServerUnavailable)
        await eventually(lambda: ours.end not in ("", "all"))

    async def test_cancelled(self) -> None:
        """Who does not wait for a connection any more leaves none behind."""
        peer = self.tcp_peer()
        allocation = await self.allocation()
        connecting = allocation.endpoint(self.host, peer.address.port).connect(Factory.forProtocol(Conversation))
        failures: list[Any] = []
        connecting.addErrback(failures.append)
        connecting.cancel()
        assert len(failures) == 1
        await peer.next()
        await patiently(allocation.close())
        assert allocation.connections == 0

    async def test_tls_of_our_own(self) -> None:
        """Twisted's own wrapper makes a TLS connection with the peer of an endpoint; the relay carries its bytes."""
        peer = TcpPeer(self.host, certificate())
        self.addCleanup(peer.close)
        allocation = await self.allocation()
        options = optionsForClientTLS("localhost", trustRoot=self.trust_root())
        endpoint = wrapClientTLS(options, allocation.endpoint(self.host, peer.address.port))
        ours: Any = await patiently(endpoint.connect(Factory.forProtocol(Conversation)))
        theirs = await peer.next()
        ours.transport.setTcpNoDelay(True)
        much = os.urandom(MEGABYTE)
        ours.say(much)
        theirs.say(much)
        await eventually(lambda: len(ours.heard) + len(theirs.heard) >= 2 * MEGABYTE)
        assert ours.heard == theirs.heard == much
        await patiently(ours.close())
        await eventually(lambda: theirs.end == "closed")

    async def test_a_protocol_that_forwards(self) -> None:
        """Twisted's own forwarder, which pauses its caller until it has found whom to forward to, serves a relayed
        address: nothing is lost at the beginning, and nothing is left at the end.
        """
        peer = self.tcp_peer()
        allocation = await self.allocation()
        forwarder = ProxyFactory(self.host, peer.address.port)
        forwarder.noisy = False
        allocation.listen(forwarder)
        await patiently(allocation.permit(self.host))
        caller = await call(allocation.relayed_addresses[0])
        caller.say(b"at once")
        callee = await peer.next()
        await callee.hears(b"at once")
        callee.say(b"answer")
        await caller.hears(b"answer")
        await patiently(caller.close())
        await eventually(lambda: callee.end != "" and allocation.connections == 0)

    async def test_a_protocol_that_fails(self) -> None:
        """Its connection is reset, and no other one notices."""

        class Failing(Conversation):
            def dataReceived(self, data: bytes) -> None:
                raise RuntimeError("on purpose")

        allocation, ours, theirs = await self.pair()
        peer = self.tcp_peer()
        await patiently(allocation.endpoint(self.host, peer.address.port).connect(Factory.forProtocol(Failing)))
        conversation = await peer.next()
        conversation.say(b"anything")
        await eventually(lambda: conversation.end == "reset")
        assert len(self.flushLoggedErrors(RuntimeError)) == 1  # type: ignore[no-untyped-call]
        ours.say(b"still there")
        await theirs.hears(b"still there")


class Producer:
    """Writes to a transport whenever it may."""

    PIECE = bytes(50_000)

    def __init__(self, transport: Any) -> None:
        self.written = 0
        self.is_paused = False
        self._seen = -1
        self._looks = 0
        self._transport = transport
        self._is_stopped = False
        transport.registerProducer(self, True)
        self._go_on()

    def is_stuck(self) -> bool:
        """Whether nothing was written in a good number of looks."""
        self._looks = self._looks + 1 if self.written == self._seen else 0
        self._seen = self.written
        return self._looks > 20

    def pauseProducing(self) -> None:
        self.is_paused = True

    def resumeProducing(self) -> None:
        self.is_paused = False
        self._go_on()

    def stopProducing(self) -> None:
        if not self._is_stopped:
            self._is_stopped = True
            self._transport.unregisterProducer()

    def _go_on(self) -> None:
        if not self.is_paused and not self._is_stopped:
            self.written += len(self.PIECE)
            self._transport.write(self.PIECE)
            reactor.callLater(0, self._go_on) if not self.is_paused else None


class TcpTests(TcpSuite):
    """Over TCP, where one direction can end alone."""

    __test__ = True
    kind = AppConnection.TCP

    async def test_half_close(self) -> None:
        """It is carried across, both ways."""
        _, ours, theirs = await self.pair()
        ours.say(b"question")
        ours.say_all()
        await eventually(lambda: theirs.end == "all")
        assert theirs.heard == b"question"
        theirs.say(b"answer")
        theirs.say_all()
        await eventually(lambda: ours.end == "all")
        assert ours.heard == b"answer"
        await patiently(ours.close())
        await eventually(lambda: len(self.house.core._allocations.connections) == 0)

    async def test_through_a_proxy(self) -> None:
        """The data connection takes the same proxy, and its half-closes go with it as far as the proxy takes them."""
        proxy = HttpProxyServer(self.host)
        self.addCleanup(proxy.stop)
        _, ours, theirs = await self.pair(proxy=HttpProxy(self.host, proxy.port))
        ours.say(b"hello")
        await theirs.hears(b"hello")
        theirs.say(b"hello yourself")
        await ours.hears(b"hello yourself")
        assert len(proxy.targets) == 2


class Tcp6Tests(TcpSuite):
    """Over TCP on IPv6."""

    __test__ = True
    kind = AppConnection.TCP
    host = "::1"


class TlsTests(TcpSuite):
    """Over TLS."""

    __test__ = True
    kind = AppConnection.TLS


class WsTests(TcpSuite):
    """Over WebSocket."""

    __test__ = True
    kind = AppConnection.WS


class WssTests(TcpSuite):
    """Over WebSocket on TLS."""

    __test__ = True
    kind = AppConnection.WSS


class UdpTests(TcpCase):
    """Over UDP there is nothing that could carry it."""

    kind = AppConnection.UDP

    async def test_no_way(self) -> None:
        """The error says so."""
        error = await failure_of(self.turn_client().allocate_tcp())
        assert isinstance(error, ConfigurationError)
        assert "udp" in str(error)


class PeerTlsTests(TcpCase):
    """The relay speaks TLS with the peer."""

    kind = AppConnection.WS
    settings = {
        "peer_ca": certificate().certificate,
        "peer_certificate": certificate().certificate,
        "peer_key": certificate().key,
    }

    async def test_a_peer_with_tls(self) -> None:
        """Reached under its own name, and refused with 460 under another; we speak in the clear."""
        files = certificate()
        server: Any = serverFromString(
            reactor, f"ssl:0:interface=127.0.0.1:privateKey={files.key}:certKey={files.certificate}"
        )
        peers = Conversations()
        port = await server.listen(peers)
        self.addCleanup(port.stopListening)
        allocation = await self.allocation()

        def connect(name: str) -> Deferred[Any]:
            endpoint = allocation.endpoint("127.0.0.1", port.getHost().port, PeerTls(name))
            return endpoint.connect(Factory.forProtocol(Conversation))

        error = await failure_of(connect("other.example"))
        assert isinstance(error, RemoteError)
        assert error.code == 460
        await peers.next()
        ours: Conversation = await patiently(connect("localhost"))
        theirs = await peers.next()
        ours.say(b"in the clear")
        await theirs.hears(b"in the clear")
        for name in ("", "two words", f"{'a' * 64}.example"):
            with pytest.raises(ValueError, match="no certificate"):
                allocation.endpoint("127.0.0.1", 443, PeerTls(name))
        with pytest.raises(ValueError, match="255 bytes"):
            allocation.endpoint("127.0.0.1", 443, PeerTls("localhost", (bytes(256),)))
        error = await failure_of(connect("bücher.example"))
        assert isinstance(error, RemoteError)
        assert error.code == 446  # the name itself can be asked for
        ours.transport.loseConnection()  # type: ignore[union-attr]
        await eventually(lambda: theirs.end != "")

    async def test_a_peer_that_calls_with_tls(self) -> None:
        """Another client has its relay verify ours, which shows its certificate; both clients speak in the clear. Who
        comes without TLS reaches nobody.
        """
        called = await patiently(self.turn_client().allocate_tcp(accept_tls=True))
        self.addCleanup(called.close)
        callers = Conversations()
        called.listen(callers)
        await patiently(called.permit(self.host))
        (relayed,) = called.relayed_addresses
        plain = await call(relayed)
        plain.say(b"GET / HTTP/1.1\r\n\r\n")
        await eventually(lambda: plain.end in ("all", "closed", "reset"))
        await plain.close()
        assert callers.made == []
        calling = await self.allocation()
        endpoint = calling.endpoint(relayed.host, relayed.port, PeerTls("localhost"))
        theirs: Conversation = await patiently(endpoint.connect(Factory.forProtocol(Conversation)))
        ours = await callers.next()
        theirs.say(b"ring")
        await ours.hears(b"ring")
        ours.say(b"speaking")
        await theirs.hears(b"speaking")
        theirs.transport.loseConnection()  # type: ignore[union-attr]
        await eventually(lambda: ours.end != "")


class NoCertificateTests(TcpCase):
    """The relay has no certificate to show to peers."""

    kind = AppConnection.WS

    async def test_peers_that_are_to_speak_tls(self) -> None:
        """There is no such allocation: 442."""
        error = await failure_of(self.turn_client().allocate_tcp(accept_tls=True))
        assert isinstance(error, RemoteError)
        assert error.code == 442
