"""Promises of relayd.peers.tcp on real sockets: one port to listen on and to connect from, and nothing left open."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from relayd.address import Family, TransportAddress
from relayd.config import RelayAddress, RelaySettings
from relayd.errors import ConfigurationError, PeerUnreachable, RelayUnavailable
from relayd.interfaces import IPeerConnection, IPeerTransport, IPeerTransportFactory, ITcpRelay
from relayd.peers import tcp
from relayd.peers.bridged import BridgedConnection
from relayd.peers.tcp import TcpPeers, TcpPeersFactory, TcpRelay
from relayd.rate import TokenBucket
from tests.support.house import descriptors
from tests.support.ports import free_ports

PATIENCE = 10.0  # seconds
NO_PLANE: Any = None  # there are no datagrams
LOOPBACK4 = TransportAddress.parse("127.0.0.1", 0)
LOOPBACK6 = TransportAddress.parse("::1", 0)


class Receiver:
    """Hears what a relay says, and lets a test wait for it."""

    def __init__(self) -> None:
        self.arrived: list[IPeerConnection] = []
        self.lost: list[IPeerConnection] = []
        self.awaits = True

    def awaits_peer(self, relay: Any, peer: Any) -> bool:
        return self.awaits

    def peer_arrived(self, relay: Any, connection: Any) -> None:
        self.arrived.append(connection)

    def peer_connection_lost(self, connection: Any) -> None:
        self.lost.append(connection)

    def peer_datagram(self, relay: Any, peer: Any, data: bytes) -> None:
        raise AssertionError("there are no datagrams here")

    peer_error = relay_failed = peer_datagram


class End:
    """The other end of a connection, kept in memory."""

    def __init__(self) -> None:
        self.valve = self
        self.data = b""
        self.ends: list[str] = []
        self.paused = False
        self.rested = 0.0

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        """Nothing to stop."""

    def rest(self, seconds: float) -> None:
        self.rested = seconds

    def write(self, data: bytes) -> None:
        self.data += data

    def finish(self) -> None:
        self.ends.append("finish")

    def close(self) -> None:
        self.ends.append("close")

    def abort(self) -> None:
        self.ends.append("abort")


def in_thread(function: Any, *arguments: Any) -> Deferred[Any]:
    """A blocking call of a peer's, away from the reactor."""
    return deferToThread(function, *arguments)


async def until(holds: Any) -> None:
    """Wait until something is so, and fail if it does not come to be."""
    for _ in range(int(PATIENCE / 0.01)):
        if holds():
            return
        await deferLater(reactor, 0.01)
    raise AssertionError("it did not come to be")


class PeersCase(TestCase):
    """Every test starts with one relayed address on loopback, and ends with no descriptor left."""

    family = Family.IPV4
    address = LOOPBACK4

    def setUp(self) -> None:
        self.before = descriptors()
        self.receiver = Receiver()
        self.peers = self.make()
        self.addCleanup(self.assert_nothing_left)

    async def assert_nothing_left(self) -> None:
        await self.peers.close()
        await until(lambda: not self.left())

    def left(self) -> set[str]:
        """Sockets that were not there before."""
        return {each for each in descriptors() - self.before if "socket:" in each}

    def make(self, lowest: int = 49152, highest: int = 65535) -> TcpPeers:
        settings = RelaySettings((RelayAddress(self.address, self.address),), lowest, highest)
        return TcpPeersFactory().make(reactor, NO_PLANE, settings)

    async def open(self) -> TcpRelay:
        relay, advertised, reserved = await self.peers.open(self.family, self.receiver)
        assert isinstance(relay, TcpRelay)
        assert advertised == relay.address
        assert reserved is None
        return relay

    def listener(self) -> socket.socket:
        """A peer that listens, with all the time in the world."""
        listening = socket.create_server(
            (self.address.host, 0), family=socket.AF_INET if self.family is Family.IPV4 else socket.AF_INET6
        )
        listening.settimeout(PATIENCE)
        self.addCleanup(listening.close)
        return listening

    def address_of(self, peer: socket.socket) -> TransportAddress:
        return TransportAddress.parse(*peer.getsockname()[:2])

    async def connected(self, relay: TcpRelay) -> tuple[IPeerConnection, socket.socket]:
        """A connection from the relayed address to a peer, and the peer's end."""
        listening = self.listener()
        connection = await relay.connect(self.address_of(listening))
        accepted, source = await in_thread(listening.accept)
        accepted.settimeout(PATIENCE)
        self.addCleanup(accepted.close)
        assert TransportAddress.parse(*source[:2]) == relay.address
        return connection, accepted


class TcpPeersTest(PeersCase):
    """Without TLS."""

    async def test_interfaces(self) -> None:
        """What it gives is what the service expects."""
        relay = await self.open()
        verifyObject(IPeerTransportFactory, TcpPeersFactory())
        verifyObject(IPeerTransport, self.peers)
        verifyObject(ITcpRelay, relay)
        connection, _ = await self.connected(relay)
        verifyObject(IPeerConnection, connection)
        connection.abort()

    async def test_one_address_for_both_ways(self) -> None:
        """Peers connect to the relayed address, and from the same address it connects to several peers."""
        relay = await self.open()
        first, _ = await self.connected(relay)
        second, _ = await self.connected(relay)
        with socket.create_connection((relay.address.host, relay.address.port), PATIENCE) as caller:
            await until(lambda: self.receiver.arrived)
            assert self.receiver.arrived[0].peer == self.address_of(caller)
        for connection in (first, second, *self.receiver.arrived):
            connection.abort()

    async def test_nobody_else_has_the_port(self) -> None:
        """Neither another relayed address nor another program that asks for it; it is free again afterwards."""
        relay = await self.open()
        port = relay.address.port
        only = self.make(port, port)
        with pytest.raises(RelayUnavailable):
            await only.open(self.family, self.receiver)
        relay.close()
        await until(lambda: relay not in self.peers._relays)
        again, _, _ = await only.open(self.family, self.receiver)
        assert again.address == relay.address
        await only.close()

    async def test_what_outlives_its_allocation_is_bounded(self) -> None:
        """Connections of closed addresses deliver what was sent; beyond the bound those of the oldest are reset."""
        self.patch(tcp, "MAX_OUTLIVING", 2)  # type: ignore[no-untyped-call]
        relays, accepted = [], []
        for _ in range(3):
            relay = await self.open()
            relays.append(relay)
            connection, peer = await self.connected(relay)
            accepted.append(peer)
            connection.write(b"last")
            connection.close()
            relay.close()
        await until(lambda: relays[0] not in self.peers._relays)  # though its peer has not closed
        assert set(relays[1:]) == self.peers._relays
        for peer in accepted[1:]:
            assert await in_thread(peer.recv, 100) == b"last"
            assert await in_thread(peer.recv, 100) == b""
            peer.close()
        await until(lambda: not self.peers._relays)
        assert not self.peers._outlived

    async def test_a_port_that_is_used_again_before_its_last_connection_ends(self) -> None:
        """All that is open is closed at the end, also what belongs to the relayed address that was there before."""
        port = free_ports()
        self.peers = self.make(port, port)
        relay = await self.open()
        connection, _ = await self.connected(relay)
        relay.close()
        connection.close()  # which the peer does not answer
        await until(lambda: relay._port is None)
        assert (await self.open()).address == relay.address
        assert self.receiver.lost == []
        await self.peers.close()
        assert self.receiver.lost == [connection]

    async def test_bytes_wait_for_the_join(self) -> None:
        """What the peer sends before is not lost, even if it closes right behind; what it does not read is not lost
        either.
        """
        relay = await self.open()
        connection, peer = await self.connected(relay)
        peer.sendall(b"early")
        peer.shutdown(socket.SHUT_WR)
        end = End()
        connection.join(cast(Any, end))
        await until(lambda: end.ends)
        assert (end.data, end.ends) == (b"early", ["finish"])
        connection.write(b"late")
        connection.finish()
        assert await in_thread(peer.recv, 100) == b"late"
        assert await in_thread(peer.recv, 100) == b""
        await until(lambda: self.receiver.lost)
        assert (relay.counters.received_bytes, relay.counters.sent_bytes) == (5, 4)

    async def test_a_peer_that_does_not_read_pauses_the_other_end(self) -> None:
        """As soon as the buffers of the system are full; everything arrives once it reads."""
        relay = await self.open()
        connection, peer = await self.connected(relay)
        end = End()
        connection.join(cast(Any, end))
        sent = 0
        while not end.paused:
            connection.write(bytes(65_536))
            sent += 65_536
            assert sent <= 1 << 25  # the system buffers a few megabytes on loopback
            await deferLater(reactor, 0)
        connection.finish()

        def read_all() -> int:
            return sum(len(data) for data in iter(lambda: peer.recv(1 << 16), b""))

        assert await in_thread(read_all) == sent
        peer.close()
        await until(lambda: self.receiver.lost)

    async def test_a_close_delivers_what_was_written(self) -> None:
        """Though the peer has bytes on the way that nobody will read, which must not turn the end into a reset."""
        relay = await self.open()
        connection, peer = await self.connected(relay)
        connection.join(cast(Any, End()))
        peer.sendall(b"unread" * 1000)
        connection.write(b"x" * 300_000)
        connection.close()
        received = 0
        while data := await in_thread(peer.recv, 65_536):
            received += len(data)
        assert received == 300_000
        peer.close()
        await until(lambda: self.receiver.lost)

    async def test_a_reset_is_carried_across(self) -> None:
        """It is no orderly end."""
        relay = await self.open()
        connection, peer = await self.connected(relay)
        end = End()
        connection.join(cast(Any, end))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        peer.close()
        await until(lambda: end.ends)
        assert end.ends == ["abort"]
        assert self.receiver.lost == [connection]

    async def test_a_peer_that_refuses_is_said_to(self) -> None:
        """PeerUnreachable, and another attempt is as good as the first."""
        relay = await self.open()
        listening = self.listener()
        peer = self.address_of(listening)
        listening.close()
        for _ in range(2):
            with pytest.raises(PeerUnreachable):
                await relay.connect(peer)

    async def test_a_peer_to_which_no_way_leads_is_said_to(self) -> None:
        """The system refuses at once, for loopback leads nowhere else; no packet leaves."""
        relay = await self.open()
        elsewhere = TransportAddress.parse("192.0.2.1" if self.family is Family.IPV4 else "2001:db8::1", 9)
        with pytest.raises(PeerUnreachable):
            await relay.connect(elsewhere)

    async def test_nobody_calls_himself(self) -> None:
        """The relayed address itself is no peer: the system would connect it with itself, permission or not."""
        relay = await self.open()
        with pytest.raises(PeerUnreachable):
            await relay.connect(relay.address)
        assert self.receiver.arrived == []

    async def test_closing_gives_up_what_is_under_way(self) -> None:
        """An attempt that is not finished fails, and later ones fail at once."""
        relay = await self.open()
        listening = self.listener()
        pending = relay.connect(self.address_of(listening))
        relay.close()
        with pytest.raises(PeerUnreachable):
            await pending
        with pytest.raises(PeerUnreachable):
            await relay.connect(self.address_of(listening))

    async def test_the_bandwidth_is_kept_by_reading_slowly(self) -> None:
        """A connection that used up its limit is not read until it may be again; nothing is dropped."""
        relay = await self.open()
        relay.limit = TokenBucket(1_000_000, 65_535, reactor.seconds())
        connection, peer = await self.connected(relay)
        end = End()
        started = reactor.seconds()
        connection.join(cast(Any, end))
        await in_thread(peer.sendall, bytes(400_000))
        await until(lambda: len(end.data) == 400_000)
        assert reactor.seconds() - started > 0.2
        assert relay.counters.dropped == 0
        connection.abort()

    async def test_the_bandwidth_of_what_goes_to_a_peer(self) -> None:
        """The client is not read for as long as it takes to make up for what it sent."""
        relay = await self.open()
        relay.limit = TokenBucket(1_000, 65_535, reactor.seconds())
        connection, _ = await self.connected(relay)
        end = End()
        connection.join(cast(Any, end))
        connection.write(bytes(70_535))
        assert end.rested == pytest.approx(5.0, abs=0.5)
        connection.abort()

    async def test_an_address_that_is_not_ours_is_said_so(self) -> None:
        """One line that names it, before anything runs."""
        elsewhere = TransportAddress.parse("192.0.2.1" if self.family is Family.IPV4 else "2001:db8::1", 0)
        with pytest.raises(ConfigurationError, match=f"{elsewhere.host}.*--relay-address"):
            TcpPeersFactory().make(reactor, NO_PLANE, RelaySettings((RelayAddress(elsewhere, elsewhere),)))


class BridgedTest(PeersCase):
    """Two relayed addresses of one relay: what holds between them is what holds through the kernel."""

    async def bridged(self) -> tuple[IPeerConnection, IPeerConnection, TcpRelay, TcpRelay]:
        """The caller's half, the one that was called, and their relays."""
        caller, called = await self.open(), await self.open()
        ours = await caller.connect(called.address)
        (theirs,) = self.receiver.arrived
        assert isinstance(ours, BridgedConnection)
        assert isinstance(theirs, BridgedConnection)
        assert (ours.peer, theirs.peer) == (called.address, caller.address)
        verifyObject(IPeerConnection, ours)
        return ours, theirs, caller, called

    def joined(self, half: IPeerConnection) -> Any:
        end = End()
        half.join(cast(Any, end))
        return end

    async def test_bytes_go_across_inside(self) -> None:
        """Both ways, and are counted on both sides."""
        ours, theirs, caller, called = await self.bridged()
        here, there = self.joined(ours), self.joined(theirs)
        ours.write(b"ping")
        theirs.write(b"pong!")
        assert (there.data, here.data) == (b"ping", b"pong!")
        counters = caller.counters, called.counters
        assert [each.sent_bytes for each in counters] == [4, 5]
        assert [each.received_bytes for each in counters] == [5, 4]
        assert [each.bridged for each in counters] == [1, 1]

    async def test_bytes_wait_for_the_other_end(self) -> None:
        """Their sender is held back meanwhile; an orderly end behind them waits too."""
        ours, theirs, _, _ = await self.bridged()
        here = self.joined(ours)
        ours.write(b"early")
        assert here.paused
        ours.finish()
        there = self.joined(theirs)
        assert not here.paused
        assert (there.data, there.ends) == (b"early", ["finish"])

    async def test_a_close_delivers_what_was_sent(self) -> None:
        """Also to an end that is joined later."""
        ours, theirs, _, _ = await self.bridged()
        self.joined(ours)
        ours.write(b"last words")
        ours.close()
        assert self.receiver.lost == [ours]
        there = self.joined(theirs)
        assert (there.data, there.ends) == (b"last words", ["close"])
        assert self.receiver.lost == [ours, theirs]

    async def test_each_end_is_carried_across(self) -> None:
        """Half-close, close and reset."""
        for end, seen in (("finish", "finish"), ("close", "close"), ("abort", "abort")):
            self.receiver.arrived.clear()
            ours, theirs, _, _ = await self.bridged()
            self.joined(ours)
            there = self.joined(theirs)
            getattr(ours, end)()
            assert there.ends == [seen]
            theirs.close()
            ours.close()
        assert len(self.receiver.lost) == 6

    async def test_a_slow_client_holds_the_other_back(self) -> None:
        """What its transport says to the half is done to the other client."""
        ours, theirs, _, _ = await self.bridged()
        here, there = self.joined(ours), self.joined(theirs)
        theirs.valve.pauseProducing()  # the transport of the client there is full
        assert here.paused
        assert not there.paused
        theirs.valve.resumeProducing()
        assert not here.paused

    async def test_bandwidth_limits_of_both_sides_hold(self) -> None:
        """The sender rests until the stricter one is paid."""
        ours, theirs, caller, called = await self.bridged()
        caller.limit = TokenBucket(1_000_000, 65_535, reactor.seconds())
        called.limit = TokenBucket(1_000, 65_535, reactor.seconds())
        here = self.joined(ours)
        self.joined(theirs)
        ours.write(bytes(70_535))
        assert here.rested == pytest.approx(5.0, abs=0.5)

    async def test_whoever_is_not_awaited_goes_through_the_kernel(self) -> None:
        """Where it is refused as any stranger is."""
        caller, called = await self.open(), await self.open()
        self.receiver.awaits = False
        connection = await caller.connect(called.address)
        assert not isinstance(connection, BridgedConnection)
        end = self.joined(connection)
        await until(lambda: end.ends)
        assert self.receiver.arrived == []

    async def test_closing_the_relays_ends_it(self) -> None:
        """At once, on both sides, joined or not."""
        ours, theirs, _, _ = await self.bridged()
        here = self.joined(ours)
        await self.peers.close()
        assert here.ends == ["abort"]
        assert sorted(map(id, self.receiver.lost)) == sorted(map(id, (ours, theirs)))


class TcpPeers6Test(TcpPeersTest):
    """The same over IPv6."""

    family = Family.IPV6
    address = LOOPBACK6

    async def test_ipv4_inside_ipv6_is_not_reached(self) -> None:
        """It would be from another address than the relayed one."""
        relay = await self.open()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            mapped = bytes(10) + b"\xff\xff" + socket.inet_aton("127.0.0.1")
            with pytest.raises(PeerUnreachable):
                await relay.connect(TransportAddress(mapped, listening.getsockname()[1]))
