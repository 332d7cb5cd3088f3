# mypy: disable-error-code="no-untyped-call"
"""The promises of a data plane (`relayd.interfaces.IDataPlane`), told once. Each plane and family subclasses them."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredQueue, maybeDeferred
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from relayd.address import AppConnection, FiveTuple, Path, TransportAddress
from relayd.dataplane.flow import Flow
from relayd.dataplane.plane import FAILURES_TOLERATED
from relayd.interfaces import IClientPath, IDatagramPort, IDatagramReceiver, IRelay, IRelayReceiver
from relayd.rate import SMALLEST_COST, TokenBucket

NUMBER = 0x4001
PATIENCE = 5.0  # seconds after which something that ought to arrive is missing


def frame(number: int, payload: bytes, padding: int = 0) -> bytes:
    """ChannelData."""
    return number.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload + bytes(padding)


def sockets_open() -> set[str]:
    """The sockets and epoll sets that this process holds, by what the kernel calls them."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing itself was one
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return {f"{fd} {link}" for fd, link in found if link.startswith(("socket:", "anon_inode:[eventpoll]"))}


def later(result: Any) -> Deferred[Any]:
    return deferLater(reactor, 0, lambda: result)


class Stranger(DatagramProtocol):
    """A client or a peer: a UDP socket that is none of the plane's, and what it received."""

    def __init__(self, host: str) -> None:
        self.received: DeferredQueue[tuple[bytes, TransportAddress]] = DeferredQueue()
        self.refused = 0
        self.port: Any = reactor.listenUDP(0, self, interface=host, maxPacketSize=65_535)  # type: ignore[attr-defined]
        self.port.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self.address = TransportAddress.parse(host, self.port.getHost().port)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.received.put((datagram, TransportAddress.parse(addr[0], addr[1])))

    def write(self, data: bytes, to: TransportAddress) -> None:
        self.port.write(data, (to.host, to.port))

    def next(self) -> Deferred[tuple[bytes, TransportAddress]]:
        return self.received.get().addTimeout(PATIENCE, reactor)

    def close(self) -> Any:
        return self.port.stopListening()


@implementer(IDatagramReceiver, IRelayReceiver)
class Service:
    """Whoever is above the plane. `on_*` may be replaced to do something from inside the plane's call."""

    def __init__(self) -> None:
        self.up: DeferredQueue[tuple[Any, bytes]] = DeferredQueue()
        self.from_peer: DeferredQueue[tuple[Any, TransportAddress, bytes]] = DeferredQueue()
        self.errors: DeferredQueue[tuple[Any, ...]] = DeferredQueue()
        self.failed: list[Any] = []
        self.on_datagram: Callable[[Any, bytes], None] = lambda client, data: None
        self.on_peer_datagram: Callable[[Any, TransportAddress, bytes], None] = lambda relay, peer, data: None

    def datagram_received(self, client: Any, data: bytes) -> None:
        self.up.put((client, data))
        self.on_datagram(client, data)

    def peer_datagram(self, relay: Any, peer: TransportAddress, data: bytes) -> None:
        self.from_peer.put((relay, peer, data))
        self.on_peer_datagram(relay, peer, data)

    def peer_error(self, relay: Any, peer: TransportAddress, icmp_type: int, icmp_code: int, data: int) -> None:
        self.errors.put((relay, peer, icmp_type, icmp_code, data))

    def relay_failed(self, relay: Any) -> None:
        self.failed.append(relay)

    def next(self, queue: DeferredQueue[Any]) -> Deferred[Any]:
        """The next of that queue, in a reactor turn of its own: a test does not go on inside a call of the plane."""
        return queue.get().addTimeout(PATIENCE, reactor).addCallback(later)


@implementer(IClientPath)
class StreamClient:
    """A client that another listener (TCP, say) reaches: no port of the plane knows it."""

    def __init__(self) -> None:
        server = TransportAddress.parse("127.0.0.1", 1)
        self.path = Path(FiveTuple(TransportAddress.parse("127.0.0.1", 2), server, 6), AppConnection.TCP)
        self.flows: dict[int, Any] = {}
        self.received: DeferredQueue[tuple[int, bytes]] = DeferredQueue()
        self.paused = False

    def send(self, data: bytes) -> bool:
        return not self.paused

    def send_channel_data(self, number: int, payload: bytes) -> bool:
        if not self.paused:
            self.received.put((number, payload))
        return not self.paused

    def send_channel_data_run(self, number: int, payloads: Sequence[bytes]) -> int:
        return sum([self.send_channel_data(number, payload) for payload in payloads])

    def send_from(self, source: TransportAddress, destination: TransportAddress, data: bytes) -> bool:
        return False

    def close(self) -> None:
        """Nothing to close."""


class DataPlaneCase(TestCase):
    """A plane with a port, a relay, a client and a peer. Subclassed with a `make_plane` and a `host`."""

    host = "127.0.0.1"

    def make_plane(self) -> Any:
        raise AssertionError("a subclass says which plane")

    def setUp(self) -> None:
        self.descriptors = sockets_open()
        self.readers = set(reactor.getReaders())
        self.service = Service()
        self.plane = self.make_plane()
        self.strangers: list[Stranger] = []
        self.port = self.plane.open_port(self.local, "udp", self.service)
        self.relay = self.plane.open_relay(self.local, self.service)
        self.client = self.stranger()
        self.peer = self.stranger()

    async def tearDown(self) -> None:  # type: ignore[override]
        self.plane.close()
        for stranger in self.strangers:
            await maybeDeferred(stranger.close)
        left = sockets_open() - self.descriptors
        assert not left, f"descriptors left open: {left}"
        watched = set(reactor.getReaders()) - self.readers
        # The reactor's own wakers come with its first start; a reader of ours would be a plane's or a stranger's.
        assert not [reader for reader in watched if not type(reader).__module__.startswith("twisted.internet._")], (
            watched
        )

    @property
    def local(self) -> TransportAddress:
        return TransportAddress.parse(self.host, 0)

    def stranger(self) -> Stranger:
        stranger = Stranger(self.host)
        self.strangers.append(stranger)
        return stranger

    async def bind(self, client: Stranger | None = None, number: int = NUMBER, peer: Stranger | None = None) -> Flow:
        """What a ChannelBind does: the client is heard once, then its flow installed."""
        client = client or self.client
        client.write(b"bind", self.port.address)
        path, data = await self.service.next(self.service.up)
        self.assertEqual(data, b"bind")
        flow = Flow(path, number, self.relay, (peer or self.peer).address)
        self.plane.install_flow(flow)
        return flow

    async def turns(self, seconds: float = 0.05) -> None:
        """Let the reactor run, to see that something does not happen."""
        await deferLater(reactor, seconds)

    def open_relay(self, address: TransportAddress) -> Any:
        return self.plane.open_relay(address, self.service)

    def counted(self, relay: Any = None) -> tuple[int, ...]:
        counters = (relay or self.relay).counters
        return (
            counters.sent_packets,
            counters.sent_bytes,
            counters.received_packets,
            counters.received_bytes,
            counters.dropped,
        )


class DataPlaneSuite(DataPlaneCase):
    """The promises. Test modules import this module, not the class: it is no test."""

    # --- ports ------------------------------------------------------------------------------------

    def test_interfaces(self) -> None:
        """Ports and relays keep their interfaces to the letter, and know their real address."""
        verifyObject(IDatagramPort, self.port)
        verifyObject(IRelay, self.relay)
        self.assertEqual(self.port.address.host, self.host)
        self.assertNotEqual(self.port.address.port, 0)
        self.assertNotEqual(self.relay.address.port, 0)

    async def test_goes_up_and_back(self) -> None:
        """What matches no flow goes up with the path it came on, and an answer on that path reaches the client."""
        self.client.write(b"\x00\x01hello", self.port.address)
        path, data = await self.service.next(self.service.up)
        verifyObject(IClientPath, path)
        self.assertEqual(data, b"\x00\x01hello")
        self.assertEqual(path.path, Path(FiveTuple(self.client.address, self.port.address, 17), AppConnection.UDP))
        self.assertTrue(path.send(b"answer"))
        self.assertEqual(await self.client.next(), (b"answer", self.port.address))
        self.assertTrue(path.send_channel_data(NUMBER, b"abc"))
        self.assertEqual((await self.client.next())[0], frame(NUMBER, b"abc"))
        path.close()

    async def test_answers_keep_their_order(self) -> None:
        """What is answered from within, to many datagrams at once, arrives complete and in order, and before what is
        sent after it in another way.
        """

        def answer(client: Any, data: bytes) -> None:
            self.assertTrue(client.send(b"answer to " + data))
            if data == b"\x00 20":
                client.send_channel_data(NUMBER, b"then this")

        self.service.on_datagram = answer
        requests = [b"\x00 %d" % index for index in range(50)]
        for request in requests:
            self.client.write(request, self.port.address)
        expected = [b"answer to " + request for request in requests]
        expected.insert(21, frame(NUMBER, b"then this"))
        self.assertEqual([(await self.client.next())[0] for _ in expected], expected)

    async def test_the_last_answer_of_a_port(self) -> None:
        """What was answered before a port closes, from within, arrives; behind that, sending gives False."""
        late: list[bool] = []

        def answer_and_close(client: Any, data: bytes) -> None:
            client.send(b"goodbye")
            self.port.close()
            late.extend([client.send(b"too late"), client.send_channel_data(NUMBER, b"too late")])

        self.service.on_datagram = answer_and_close
        self.client.write(b"\x00", self.port.address)
        self.assertEqual((await self.client.next())[0], b"goodbye")
        self.assertEqual(late, [False, False])

    async def test_every_size_goes_up_whole(self) -> None:
        """Datagrams from 0 to 65,000 bytes go up as they are, in order."""
        sizes = [0, 1, 2, 3, 4, 5, 1200, 9000, 65_000]
        for size in sizes:
            self.client.write(b"\x41" * size, self.port.address)
        for size in sizes:
            self.assertEqual((await self.service.next(self.service.up))[1], b"\x41" * size)

    async def test_send_from_sibling(self) -> None:
        """NAT behaviour discovery can answer from another port of the plane, to another port of the client."""
        other = self.plane.open_port(self.local, "udp", self.service)
        self.port.siblings = other.siblings = [self.port, other]
        elsewhere = self.stranger()
        self.client.write(b"change", self.port.address)
        path, _ = await self.service.next(self.service.up)
        self.assertTrue(path.send_from(other.address, elsewhere.address, b"here"))
        self.assertEqual(await elsewhere.next(), (b"here", other.address))
        self.assertFalse(path.send_from(self.client.address, elsewhere.address, b"no such port of ours"))

    def test_port_in_use(self) -> None:
        """A port that is taken is an error, by another or by ourselves, and opens nothing."""
        for taken in (self.client.address, self.port.address, self.relay.address):
            for opener in (lambda a: self.plane.open_port(a, "udp", self.service), self.open_relay):
                error = self.assertRaises(OSError, opener, taken)
                self.assertEqual(error.errno, errno.EADDRINUSE)

    def test_wrong_family(self) -> None:
        """An address of the other family is refused with False, not with an exception."""
        other = TransportAddress.parse("::1" if len(self.local.ip) == 4 else "127.0.0.1", 9)
        self.assertFalse(self.port.send(other, b"x"))
        self.assertFalse(self.relay.send(other, b"x"))
        self.assertEqual(self.counted(), (0, 0, 0, 0, 1))

    async def test_dtls_port_is_raw(self) -> None:
        """A port of another app_connection gives everything up raw, and says so in its paths."""
        port = self.plane.open_port(self.local, "dtls", self.service)
        self.client.write(frame(NUMBER, b"record"), port.address)
        path, data = await self.service.next(self.service.up)
        self.assertEqual((path.path.app_connection, data), ("dtls", frame(NUMBER, b"record")))

    # --- flows ------------------------------------------------------------------------------------

    async def test_forwards_both_ways(self) -> None:
        """A flow carries ChannelData to the peer as datagrams and back, and nobody above sees it. Counted once."""
        await self.bind()
        self.client.write(frame(NUMBER, b"ping"), self.port.address)
        self.assertEqual(await self.peer.next(), (b"ping", self.relay.address))
        self.peer.write(b"reply", self.relay.address)
        self.assertEqual(await self.client.next(), (frame(NUMBER, b"reply"), self.port.address))
        self.assertEqual(self.counted(), (1, 4, 1, 5, 0))
        self.assertEqual((self.service.up.pending, self.service.from_peer.pending), ([], []))

    async def test_every_size_is_forwarded(self) -> None:
        """Payloads of 0 to 65,000 bytes pass unchanged in both directions, in order."""
        await self.bind()
        for size in (0, 1, 3, 4, 200, 1200, 1473, 9000, 65_000, 0):
            payload = os.urandom(size)
            self.client.write(frame(NUMBER, payload), self.port.address)
            self.assertEqual((await self.peer.next())[0], payload)
            self.peer.write(payload, self.relay.address)
            self.assertEqual((await self.client.next())[0], frame(NUMBER, payload))

    async def test_bursts_keep_order_and_content(self) -> None:
        """Bursts of equal and of mixed sizes arrive complete, in order, each with its own bytes, both ways."""
        await self.bind()
        for sizes in ([200] * 70, [1200] * 60, [7, 200, 200, 7, 0, 0, 3] * 9, [9000] * 9):
            payloads = [bytes([index]) * size for index, size in enumerate(sizes)]
            for payload in payloads:
                self.client.write(frame(NUMBER, payload), self.port.address)
            self.assertEqual([(await self.peer.next())[0] for _ in payloads], payloads)
            for payload in payloads:
                self.peer.write(payload, self.relay.address)
            self.assertEqual([(await self.client.next())[0] for _ in payloads], [frame(NUMBER, p) for p in payloads])
        packets, total = 70 + 60 + 63 + 9, 70 * 200 + 60 * 1200 + 9 * (7 + 200 + 200 + 7 + 3) + 9 * 9000
        self.assertEqual(self.counted(), (packets, total, packets, total, 0))

    async def test_interleaved_flows(self) -> None:
        """Packets of many flows in turn, of several clients and relays, each end where they belong."""
        clients, relays, peers = [self.stranger() for _ in range(4)], [], [self.stranger() for _ in range(4)]
        for client, peer in zip(clients, peers, strict=True):
            self.relay = self.plane.open_relay(self.local, self.service)
            relays.append(self.relay)
            await self.bind(client, NUMBER, peer)
            await self.bind(client, NUMBER + 1, self.peer)
        for turn in range(10):
            for index, client in enumerate(clients):
                client.write(frame(NUMBER, b"%d %d" % (index, turn)), self.port.address)
                peers[index].write(b"down %d %d" % (index, turn), relays[index].address)
        for turn in range(10):
            for index in range(4):
                self.assertEqual(await peers[index].next(), (b"%d %d" % (index, turn), relays[index].address))
                self.assertEqual((await clients[index].next())[0], frame(NUMBER, b"down %d %d" % (index, turn)))
        clients[2].write(frame(NUMBER + 1, b"other channel"), self.port.address)
        self.assertEqual(await self.peer.next(), (b"other channel", relays[2].address))

    async def test_interleaved_ports(self) -> None:
        """Peers of clients on two ports, each with one datagram waiting, reach their own client from its own port."""
        second = self.plane.open_port(self.local, "udp", self.service)
        expected, peers = [], []
        for index in range(12):
            self.relay, client, peer = self.plane.open_relay(self.local, self.service), self.stranger(), self.stranger()
            port = second if index % 2 else self.port
            client.write(b"bind", port.address)
            path, _ = await self.service.next(self.service.up)
            self.plane.install_flow(Flow(path, NUMBER, self.relay, peer.address))
            peers.append((peer, self.relay.address, b"for %d" % index))
            expected.append((client, (frame(NUMBER, b"for %d" % index), port.address)))
        for peer, relay_address, payload in peers:
            peer.write(payload, relay_address)
        for client, datagram in expected:
            self.assertEqual(await client.next(), datagram)

    async def test_padding_over_udp(self) -> None:
        """The length field decides, not the size of the datagram: padding is not passed on (pion pads over UDP)."""
        await self.bind()
        for padding in (1, 2, 3, 0, 3):
            self.client.write(frame(NUMBER, b"x" * 5, padding), self.port.address)
        for _ in range(5):
            self.assertEqual((await self.peer.next())[0], b"x" * 5)

    async def test_length_lies(self) -> None:
        """ChannelData that claims more than came is dropped without an answer; what stands around it passes."""
        await self.bind()
        for data in (frame(NUMBER, b"good"), frame(NUMBER, b"good")[:-1], NUMBER.to_bytes(2, "big") + b"\xff\xff"):
            self.client.write(data, self.port.address)
        self.client.write(frame(NUMBER, b"last"), self.port.address)
        self.assertEqual([(await self.peer.next())[0], (await self.peer.next())[0]], [b"good", b"last"])
        self.assertEqual(self.counted()[:2], (2, 8))
        self.assertEqual((self.client.received.pending, self.service.up.pending), ([], []))

    async def test_other_clients_and_numbers_do_not_match(self) -> None:
        """A flow is one client's: the same number from another address, or another number, goes up."""
        await self.bind()
        other = self.stranger()
        other.write(frame(NUMBER, b"not mine"), self.port.address)
        path, data = await self.service.next(self.service.up)
        self.assertEqual((path.path.client, data), (other.address, frame(NUMBER, b"not mine")))
        self.client.write(frame(NUMBER + 1, b"unbound"), self.port.address)
        self.assertEqual((await self.service.next(self.service.up))[1], frame(NUMBER + 1, b"unbound"))

    async def test_unmatched_peer_goes_up(self) -> None:
        """A datagram from a peer without a flow goes up with its sender, empty ones too, and is not counted here."""
        await self.bind()
        other = self.stranger()
        for data in (b"", b"data"):
            other.write(data, self.relay.address)
            self.assertEqual(await self.service.next(self.service.from_peer), (self.relay, other.address, data))
        self.assertEqual(self.counted(), (0, 0, 0, 0, 0))

    async def test_removed_flow_forwards_nothing(self) -> None:
        """After remove_flow both directions go up again; removing twice, or an equal flow, is harmless."""
        flow = await self.bind()
        self.plane.remove_flow(Flow(flow.client, flow.number, flow.relay, flow.peer))
        self.plane.remove_flow(flow)
        self.client.write(frame(NUMBER, b"up"), self.port.address)
        self.assertEqual((await self.service.next(self.service.up))[1], frame(NUMBER, b"up"))
        self.peer.write(b"down", self.relay.address)
        self.assertEqual((await self.service.next(self.service.from_peer))[2], b"down")

    async def test_replaced_flow(self) -> None:
        """A flow with the same client and number replaces the old both ways; removing the old one leaves the new."""
        old = await self.bind()
        other = self.stranger()
        await self.bind(peer=other)
        self.plane.remove_flow(old)
        self.client.write(frame(NUMBER, b"to the new"), self.port.address)
        self.assertEqual((await other.next())[0], b"to the new")
        self.peer.write(b"from the old", self.relay.address)
        self.assertEqual((await self.service.next(self.service.from_peer))[1], self.peer.address)

    async def test_moved_client(self) -> None:
        """When an allocation moves to another path, the peer's datagrams follow, and the old one's removal keeps it."""
        old = await self.bind()
        new_client = self.stranger()
        await self.bind(new_client)
        self.plane.remove_flow(old)
        self.peer.write(b"follow", self.relay.address)
        self.assertEqual((await new_client.next())[0], frame(NUMBER, b"follow"))
        new_client.write(frame(NUMBER, b"up"), self.port.address)
        self.assertEqual((await self.peer.next())[0], b"up")

    async def test_stream_client(self) -> None:
        """A client of another listener finds its flow on its path, sends through the relay and receives on its path."""
        client = StreamClient()
        flow = Flow(client, NUMBER, self.relay, self.peer.address)
        self.plane.install_flow(flow)
        self.assertIs(client.flows[NUMBER], flow)
        self.assertTrue(flow.relay.send(flow.peer, b"up"))
        self.assertEqual((await self.peer.next())[0], b"up")
        for payload in (b"down", b"", b"d" * 9000):
            self.peer.write(payload, self.relay.address)
            self.assertEqual(await self.service.next(client.received), (NUMBER, payload))
        client.paused = True
        self.peer.write(b"dropped", self.relay.address)
        await self.turns()
        self.assertEqual(self.counted(), (1, 2, 3, 9004, 1))
        self.plane.remove_flow(flow)
        self.assertEqual(client.flows, {})

    async def test_bursts_for_stream_clients(self) -> None:
        """Bursts reach clients of other listeners whole and in order, beside those of our own ports; a paused client's
        are dropped and counted."""
        client = StreamClient()
        other = Stranger(self.host)
        self.addCleanup(other.close)
        self.plane.install_flow(Flow(client, NUMBER, self.relay, other.address))
        await self.bind()
        sizes = [200] * 40 + [0, 0, 5, 5, 1200] + [9000] * 5
        for number, size in enumerate(sizes):
            other.write(bytes([number]) * size, self.relay.address)
            self.peer.write(b"beside", self.relay.address)
        for number, size in enumerate(sizes):
            self.assertEqual(await self.service.next(client.received), (NUMBER, bytes([number]) * size))
            self.assertEqual((await self.client.next())[0], frame(NUMBER, b"beside"))
        for _ in range(10):
            other.write(b"burst", self.relay.address)
        for _ in range(10):
            self.assertEqual(await self.service.next(client.received), (NUMBER, b"burst"))
        client.paused = True
        for _ in range(10):
            other.write(b"dropped", self.relay.address)
        await self.turns()
        self.assertEqual(self.counted()[2:], (2 * len(sizes) + 10, sum(sizes) + 6 * len(sizes) + 50, 10))

    async def test_client_path_that_fails(self) -> None:
        """What a client's path raises ends neither the batch nor the relay, and is counted as a drop."""
        client = StreamClient()
        self.plane.install_flow(Flow(client, NUMBER, self.relay, self.peer.address))
        receive, client.received = client.received, None  # type: ignore[assignment]
        self.peer.write(b"lost", self.relay.address)
        await self.turns()
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)
        client.received = receive
        self.peer.write(b"passed", self.relay.address)
        self.assertEqual(await self.service.next(client.received), (NUMBER, b"passed"))
        self.assertEqual(self.counted(), (0, 0, 1, 6, 1))

    async def test_limit(self) -> None:
        """With a limit set, what exceeds it is dropped and counted, the two directions drawing on one bucket."""
        await self.bind()
        now = reactor.seconds()
        self.relay.limit = TokenBucket(rate=0.001, burst=1000, now=now)
        for _ in range(4):
            self.client.write(frame(NUMBER, b"u" * 200), self.port.address)
        for _ in range(4):
            await self.peer.next()
        for _ in range(3):
            self.peer.write(b"d" * 100, self.relay.address)
        for _ in range(2):
            await self.client.next()
        self.assertFalse(self.relay.send(self.peer.address, b"x"))
        await self.turns()
        self.assertEqual(self.counted(), (4, 800, 2, 200, 2))

    async def test_limit_on_empty_datagrams(self) -> None:
        """What carries no payload draws on the limit too."""
        await self.bind()
        self.relay.limit = TokenBucket(rate=0.001, burst=3 * SMALLEST_COST, now=reactor.seconds())
        for _ in range(5):
            self.client.write(frame(NUMBER, b""), self.port.address)
        for _ in range(3):
            await self.peer.next()
        await self.turns()
        self.assertEqual(self.counted(), (3, 0, 0, 0, 2))

    # --- relays -----------------------------------------------------------------------------------

    async def test_relay_send(self) -> None:
        """A relay sends single datagrams, with and without DF; one that is too long is refused and counted."""
        self.assertTrue(self.relay.send(self.peer.address, b""))
        self.assertTrue(self.relay.send(self.peer.address, b"with DF", True))
        self.assertTrue(self.relay.send(self.peer.address, b"without"))
        self.assertEqual([(await self.peer.next())[0] for _ in range(3)], [b"", b"with DF", b"without"])
        self.assertFalse(
            self.relay.send(self.peer.address, bytes(65_535 - (20 if self.host == "127.0.0.1" else 0)), True)
        )
        self.assertEqual(self.counted(), (3, 14, 0, 0, 1))

    async def test_relay_send_run(self) -> None:
        """Datagrams for one peer arrive whole and in order, whatever their sizes and however many; all are counted."""
        runs = [[b"a" * 200] * 3, [b"", b"b", b"", b"", b"cc", b"cc"], [b"d" * 1100] * 130, [b"e" * 9000] * 2, [b"f"]]
        for run in runs:
            payloads = [bytes([number]) + payload[1:] if payload else b"" for number, payload in enumerate(run)]
            self.relay.send_run(self.peer.address, payloads)
            self.assertEqual([(await self.peer.next())[0] for _ in payloads], payloads)
        sent = [payload for run in runs for payload in run]
        self.assertEqual(self.counted(), (len(sent), sum(map(len, sent)), 0, 0, 0))

    async def test_relay_send_run_is_limited(self) -> None:
        """A run draws on the limit datagram by datagram; what is too long, or of the other family, is dropped."""
        self.relay.limit = TokenBucket(rate=0.001, burst=1000, now=reactor.seconds())
        self.relay.send_run(self.peer.address, [b"u" * 300] * 5)
        self.assertEqual([(await self.peer.next())[0] for _ in range(3)], [b"u" * 300] * 3)
        self.assertEqual(self.counted(), (3, 900, 0, 0, 2))
        self.relay.limit = None
        self.relay.send_run(self.peer.address, [bytes(65_530)] * 2 + [b"x"] * 2)
        self.assertEqual([(await self.peer.next())[0] for _ in range(2)], [b"x"] * 2)
        other = TransportAddress.parse("127.0.0.1" if self.host == "::1" else "::1", 9)
        self.relay.send_run(other, [b"x"] * 2)
        self.relay.close()
        self.relay.send_run(self.peer.address, [b"x"] * 2)
        self.assertEqual(self.counted(), (5, 902, 0, 0, 8))

    async def test_icmp_error(self) -> None:
        """A peer that is gone is reported as the ICMP error that came back, with the peer's address."""
        gone = self.stranger()
        await gone.close()
        self.assertTrue(self.relay.send(gone.address, b"anyone?"))
        relay, peer, icmp_type, icmp_code, data = await self.service.next(self.service.errors)
        unreachable = (3, 3) if len(gone.address.ip) == 4 else (1, 4)
        self.assertEqual((relay, peer, (icmp_type, icmp_code), data), (self.relay, gone.address, unreachable, 0))

    async def test_icmp_error_disturbs_nobody(self) -> None:
        """While one peer answers every datagram with an error, nothing to or from another is lost, nor closed."""
        gone = self.stranger()
        await gone.close()
        await self.bind()
        for index in range(50):
            self.assertTrue(self.relay.send(gone.address, b"anyone?"))
            self.client.write(frame(NUMBER, b"%d" % index), self.port.address)
            self.peer.write(b"%d" % index, self.relay.address)
            self.assertEqual((await self.peer.next())[0], b"%d" % index)
            self.assertEqual((await self.client.next())[0], frame(NUMBER, b"%d" % index))
        await self.turns()
        self.assertEqual((self.counted()[4], self.service.failed), (0, []))

    async def test_icmp_flood_is_bounded(self) -> None:
        """A flow to a dead peer at full rate hands up a few errors, not one per datagram, and the relay goes on."""
        gone = self.stranger()
        await self.bind(peer=gone)
        await gone.close()
        for _ in range(300):
            self.client.write(frame(NUMBER, b"anyone?"), self.port.address)
        await self.turns(0.2)
        self.assertTrue(0 < len(self.service.errors.pending) <= 20, len(self.service.errors.pending))
        self.peer.write(b"alive", self.relay.address)
        self.assertEqual((await self.service.next(self.service.from_peer))[2], b"alive")

    async def test_closed_relay_is_silent(self) -> None:
        """A closed relay sends, delivers and holds nothing: its flows are gone and its port can be opened again."""
        flow = await self.bind()
        self.peer.write(b"too late", self.relay.address)
        self.relay.close()
        self.relay.close()
        self.plane.install_flow(flow)
        self.assertFalse(self.relay.send(self.peer.address, b"x"))
        self.client.write(frame(NUMBER, b"up"), self.port.address)
        self.assertEqual((await self.service.next(self.service.up))[1], frame(NUMBER, b"up"))
        self.assertEqual(self.service.from_peer.pending, [])
        self.open_relay(flow.relay.address).close()

    async def test_closed_port_is_silent(self) -> None:
        """A closed port hears nothing, its flows are gone from the relays, and sending on it gives False."""
        flow = await self.bind()
        self.port.close()
        self.port.close()
        self.assertFalse(flow.client.send(b"x"))
        self.plane.install_flow(flow)
        self.peer.write(b"down", self.relay.address)
        self.assertEqual((await self.service.next(self.service.from_peer))[2], b"down")

    # --- re-entrancy and hard times ---------------------------------------------------------------

    async def test_receiver_that_fails(self) -> None:
        """An exception in a receiver is logged and costs nobody else a datagram."""
        await self.bind()

        def fail(*anything: Any) -> None:
            raise ZeroDivisionError("a bug above")

        self.service.on_datagram = self.service.on_peer_datagram = fail
        other = self.stranger()
        other.write(b"trigger", self.port.address)
        self.client.write(frame(NUMBER, b"up"), self.port.address)
        other.write(b"trigger", self.relay.address)
        self.peer.write(b"down", self.relay.address)
        self.assertEqual((await self.peer.next())[0], b"up")
        self.assertEqual((await self.client.next())[0], frame(NUMBER, b"down"))
        await self.service.next(self.service.from_peer)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    async def test_bind_inside_a_batch(self) -> None:
        """A flow that is installed while a batch is handled takes the very next datagram of that batch (libjuice)."""

        def install(client: Any, data: bytes) -> None:
            self.plane.install_flow(Flow(client, NUMBER, self.relay, self.peer.address))

        self.service.on_datagram = install
        self.client.write(b"bind", self.port.address)
        self.client.write(frame(NUMBER, b"right behind"), self.port.address)
        self.assertEqual((await self.peer.next())[0], b"right behind")
        self.assertEqual(len(self.service.up.pending), 1)

    async def test_unbind_inside_a_batch(self) -> None:
        """A flow that is removed while a batch is handled forwards nothing of the rest of that batch."""
        flow = await self.bind()
        self.service.on_datagram = lambda client, data: self.plane.remove_flow(flow)
        self.client.write(frame(NUMBER, b"before"), self.port.address)
        self.client.write(b"unbind", self.port.address)
        self.client.write(frame(NUMBER, b"after"), self.port.address)
        self.assertEqual((await self.peer.next())[0], b"before")
        self.assertEqual((await self.service.next(self.service.up))[1], b"unbind")
        self.assertEqual((await self.service.next(self.service.up))[1], frame(NUMBER, b"after"))
        self.assertEqual(self.counted()[0], 1)

    async def test_close_relay_inside_its_batch(self) -> None:
        """A relay closed by its receiver delivers nothing more of the batch; one opened in its place is clean."""
        reopened = []

        def replace(relay: Any, peer: TransportAddress, data: bytes) -> None:
            relay.close()
            reopened.append(self.plane.open_relay(self.local, self.service))

        self.service.on_peer_datagram = replace
        for index in range(10):
            self.peer.write(b"%d" % index, self.relay.address)
        await self.service.next(self.service.from_peer)
        await self.turns()
        self.assertEqual((self.service.from_peer.pending, len(reopened)), ([], 1))
        self.peer.write(b"new", reopened[0].address)
        self.assertEqual((await self.service.next(self.service.from_peer))[0], reopened[0])

    async def test_close_port_inside_its_batch(self) -> None:
        """A port closed by its receiver delivers nothing of the rest of the batch."""
        self.service.on_datagram = lambda client, data: self.port.close()
        for index in range(10):
            self.client.write(b"%d" % index, self.port.address)
        await self.turns()
        self.assertEqual(len(self.service.up.pending), 1)

    async def test_close_plane_inside_a_batch(self) -> None:
        """The whole plane can be closed from inside a callback, with other sockets waiting to be read."""
        self.service.on_datagram = lambda client, data: self.plane.close()
        self.service.on_peer_datagram = lambda relay, peer, data: self.plane.close()
        for _ in range(5):
            self.client.write(b"stop", self.port.address)
            self.peer.write(b"stop", self.relay.address)
        await self.turns()
        self.assertEqual(len(self.service.up.pending) + len(self.service.from_peer.pending), 1)
        self.plane.close()

    async def test_flood_starves_nobody(self) -> None:
        """A socket that always has more to read leaves the reactor, and every other socket, its turn."""
        await self.bind()
        flooded = self.plane.open_relay(self.local, self.service)
        sender = socket.socket(socket.AF_INET if self.host == "127.0.0.1" else socket.AF_INET6, socket.SOCK_DGRAM)
        self.addCleanup(sender.close)
        target = (self.host, flooded.address.port)
        refills = 0

        def refill(relay: Any, peer: TransportAddress, data: bytes) -> None:
            nonlocal refills
            if relay is flooded and refills < 20_000:  # a loop that never yields would end here, and be seen
                refills += 1
                sender.sendto(b"more", target)
                sender.sendto(b"more", target)

        self.service.on_peer_datagram = refill
        sender.sendto(b"more", target)
        await self.service.next(self.service.from_peer)
        self.client.write(frame(NUMBER, b"me too"), self.port.address)
        await self.peer.next()
        self.assertLess(refills, 20_000)

    async def test_out_of_descriptors(self) -> None:
        """When descriptors run out, opening says EMFILE, nothing leaks, and what is open goes on."""
        await self.bind()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened: list[Any] = []
        # Lowered to what is in use: the next socket that is opened is one too many.
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 4, hard))
        try:
            with self.assertRaises(OSError) as raised:
                for _ in range(1000):
                    opened.append(self.plane.open_relay(self.local, self.service))
            with self.assertRaises(OSError):
                self.plane.open_port(self.local, "udp", self.service)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.assertEqual(raised.exception.errno, errno.EMFILE)
        self.client.write(frame(NUMBER, b"still here"), self.port.address)
        self.assertEqual((await self.peer.next())[0], b"still here")
        for relay in opened:
            relay.close()
        self.open_relay(self.local)

    async def test_broken_relay(self) -> None:
        """A relay on which nothing but errors can be read is closed, and its receiver told once; the others go on."""
        await self.bind()
        broken = self.plane.open_relay(self.local, self.service)
        for _ in range(FAILURES_TOLERATED + 1):
            broken.receive_failed(errno.EIO)
        self.assertEqual((self.service.failed, broken.closed), ([broken], True))
        self.client.write(frame(NUMBER, b"still here"), self.port.address)
        self.assertEqual((await self.peer.next())[0], b"still here")

    async def test_nothing_left(self) -> None:
        """Closing the plane closes every port and relay and their flows, and it can be done twice."""
        flow = await self.bind()
        self.plane.close()
        self.plane.close()
        self.assertFalse(self.relay.send(self.peer.address, b"x"))
        self.assertFalse(flow.client.send(b"x"))
        self.assertEqual((self.relay.flows, self.port.flows), ({}, {}))
