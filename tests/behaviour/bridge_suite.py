# mypy: disable-error-code="no-untyped-call"
"""The promises of a data plane about relays that reach each other (`relayd.dataplane.bridge`), told once."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor

from relayd.address import TransportAddress
from relayd.dataplane.bridge import SERVED_PER_TURN, WAITING_BYTES
from relayd.dataplane.flow import Flow
from relayd.dataplane.sockets import LARGEST_PAYLOAD
from relayd.rate import SMALLEST_COST, TokenBucket
from tests.behaviour.dataplane_suite import NUMBER, DataPlaneCase, Stranger, StreamClient, frame
from tests.support.deaf import deafen

ANSWER = 0x4FFE  # the number under which the second client knows the first one's relayed address


class BridgeSuite(DataPlaneCase):
    """Two relays: `relay` is `client`'s, `other_relay` is `other`'s. Neither hears anything from the kernel."""

    def setUp(self) -> None:
        super().setUp()
        self.other = self.stranger()
        self.other_relay = self.plane.open_relay(self.local, self.service)
        for relay in (self.relay, self.other_relay):
            deafen(relay.socket)

    async def join(self, client: Stranger, number: int, relay: Any, peer: TransportAddress, port: Any = None) -> Flow:
        """A client's ChannelBind."""
        client.write(b"bind", (port or self.port).address)
        path, _ = await self.service.next(self.service.up)
        flow = Flow(path, number, relay, peer)
        self.plane.install_flow(flow)
        return flow

    async def join_both(self) -> tuple[Flow, Flow]:
        """Each client binds a channel to the other's relayed address."""
        return (
            await self.join(self.client, NUMBER, self.relay, self.other_relay.address),
            await self.join(self.other, ANSWER, self.other_relay, self.relay.address),
        )

    def bridged(self) -> tuple[int, int]:
        return self.relay.counters.bridged, self.other_relay.counters.bridged

    # --- flows ----------------------------------------------------------------------------------------

    async def test_flows_both_ways(self) -> None:
        """From client to client, each by its own channel number, counted at both relays and as bridged."""
        await self.join_both()
        self.client.write(frame(NUMBER, b"ping"), self.port.address)
        self.assertEqual(await self.other.next(), (frame(ANSWER, b"ping"), self.port.address))
        self.other.write(frame(ANSWER, b"reply"), self.port.address)
        self.assertEqual(await self.client.next(), (frame(NUMBER, b"reply"), self.port.address))
        self.assertEqual(self.counted(), (1, 4, 1, 5, 0))
        self.assertEqual(self.counted(self.other_relay), (1, 5, 1, 4, 0))
        self.assertEqual(self.bridged(), (1, 1))
        self.assertEqual((self.service.up.pending, self.service.from_peer.pending), ([], []))

    async def test_every_size(self) -> None:
        """Whatever fits into a client's datagram arrives unchanged."""
        await self.join_both()
        largest = LARGEST_PAYLOAD[len(self.local.ip)] - 4
        for size in (0, 1, 3, 4, 200, 1473, 9000, largest, 0):
            payload = bytes(range(256)) * (size // 256 + 1)
            self.client.write(frame(NUMBER, payload[:size]), self.port.address)
            self.assertEqual((await self.other.next())[0], frame(ANSWER, payload[:size]))

    async def test_bursts_keep_order_and_content(self) -> None:
        """Bursts of equal and of mixed sizes, both ways at once, arrive complete, in order, each with its own bytes."""
        await self.join_both()
        for sizes in ([200] * 70, [1200] * 60, [7, 200, 200, 7, 0, 0, 3] * 9, [9000] * 9):
            payloads = [bytes([index]) * size for index, size in enumerate(sizes)]
            for payload in payloads:
                self.client.write(frame(NUMBER, payload), self.port.address)
                self.other.write(frame(ANSWER, payload), self.port.address)
            self.assertEqual([(await self.other.next())[0] for _ in payloads], [frame(ANSWER, p) for p in payloads])
            self.assertEqual([(await self.client.next())[0] for _ in payloads], [frame(NUMBER, p) for p in payloads])
        packets, total = 70 + 60 + 63 + 9, 70 * 200 + 60 * 1200 + 9 * (7 + 200 + 200 + 7 + 3) + 9 * 9000
        for relay in (self.relay, self.other_relay):
            self.assertEqual(self.counted(relay), (packets, total, packets, total, 0))
        self.assertEqual(self.bridged(), (packets, packets))

    async def test_answers_and_what_crosses_keep_order(self) -> None:
        """What one client is answered and what crosses to it from another, in one batch, reach it in order."""
        await self.join_both()
        self.service.on_datagram = lambda client, data: client.send(b"answer to " + data)
        for turn in range(10):
            self.client.write(b"\x00 %d" % turn, self.port.address)
            self.other.write(frame(ANSWER, b"crossing %d" % turn), self.port.address)
        for turn in range(10):
            self.assertEqual((await self.client.next())[0], b"answer to \x00 %d" % turn)
            self.assertEqual((await self.client.next())[0], frame(NUMBER, b"crossing %d" % turn))

    async def test_a_ring_over_two_ports(self) -> None:
        """Many clients on two ports, each sending to the next one's relay, with peers outside beside them."""
        second = self.plane.open_port(self.local, "udp", self.service)
        clients, peers = [self.stranger() for _ in range(6)], [self.stranger() for _ in range(6)]
        relays = [self.plane.open_relay(self.local, self.service) for _ in clients]
        ports = [self.port, second] * 3
        for index, client in enumerate(clients):
            onward, back = relays[(index + 1) % 6].address, relays[index - 1].address
            await self.join(client, NUMBER, relays[index], onward, ports[index])
            await self.join(client, ANSWER, relays[index], back, ports[index])
            await self.join(client, NUMBER + 1, relays[index], peers[index].address, ports[index])
        for turn in range(10):
            for index, client in enumerate(clients):
                client.write(frame(NUMBER, b"on %d %d" % (index, turn)), ports[index].address)
                client.write(frame(NUMBER + 1, b"out %d %d" % (index, turn)), ports[index].address)
                peers[index].write(b"in %d %d" % (index, turn), relays[index].address)
        for index, client in enumerate(clients):
            came = [await client.next() for _ in range(20)]
            self.assertEqual({port for _, port in came}, {ports[index].address})
            crossed = [data for data, _ in came if data.startswith(ANSWER.to_bytes(2, "big"))]
            from_peer = [data for data, _ in came if data not in crossed]
            before = (index - 1) % 6
            self.assertEqual(crossed, [frame(ANSWER, b"on %d %d" % (before, turn)) for turn in range(10)])
            self.assertEqual(from_peer, [frame(NUMBER + 1, b"in %d %d" % (index, turn)) for turn in range(10)])
            out = [await peers[index].next() for _ in range(10)]
            self.assertEqual(out, [(b"out %d %d" % (index, turn), relays[index].address) for turn in range(10)])

    async def test_between_two_ports(self) -> None:
        """What waits to leave on one port is not overwritten by what comes to the other."""
        second = self.plane.open_port(self.local, "udp", self.service)
        await self.join(self.client, NUMBER, self.relay, self.other_relay.address)
        await self.join(self.other, ANSWER, self.other_relay, self.relay.address, second)
        for index in range(20):
            self.client.write(frame(NUMBER, b"to other %d" % index), self.port.address)
            self.other.write(frame(ANSWER, b"to client %d" % index), second.address)
        for index in range(20):
            self.assertEqual(await self.other.next(), (frame(ANSWER, b"to other %d" % index), second.address))
            self.assertEqual(await self.client.next(), (frame(NUMBER, b"to client %d" % index), self.port.address))

    async def test_clients_of_the_other_family(self) -> None:
        """How a client comes does not matter, only what its relayed address could carry: IPv6 carries 20 bytes more."""
        host = "::1" if len(self.local.ip) == 4 else "127.0.0.1"
        port = self.plane.open_port(TransportAddress.parse(host, 0), "udp", self.service)
        foreign = Stranger(host)
        self.strangers.append(foreign)
        await self.join(foreign, NUMBER, self.relay, self.other_relay.address, port)
        second = StreamClient()
        self.plane.install_flow(Flow(second, ANSWER, self.other_relay, self.relay.address))
        most = min(LARGEST_PAYLOAD[len(foreign.address.ip)] - 4, LARGEST_PAYLOAD[len(self.local.ip)])
        for size in (most, 200):
            foreign.write(frame(NUMBER, bytes(size)), port.address)
            self.assertEqual(await self.service.next(second.received), (ANSWER, bytes(size)))
        await self.join(self.other, ANSWER, self.other_relay, self.relay.address)
        for size in (LARGEST_PAYLOAD[len(foreign.address.ip)] - 4, 200):
            foreign.write(frame(NUMBER, bytes(size)), port.address)
        if host == "127.0.0.1":
            self.assertEqual(len((await self.other.next())[0]), most + 4)
        self.assertEqual((await self.other.next())[0], frame(ANSWER, bytes(200)))
        self.assertEqual(self.counted()[4], 0 if host == "127.0.0.1" else 1)

    async def test_length_lies(self) -> None:
        """ChannelData that claims more than came is dropped here too, and padding is not passed on."""
        await self.join_both()
        for data in (frame(NUMBER, b"good", 3), frame(NUMBER, b"good")[:-1], frame(NUMBER, b"last")):
            self.client.write(data, self.port.address)
        for payload in (b"good", b"last"):
            self.assertEqual((await self.other.next())[0], frame(ANSWER, payload))
        self.assertEqual(self.counted(self.other_relay), (0, 0, 2, 8, 0))

    async def test_own_relayed_address(self) -> None:
        """A client that sends to its own relayed address hears itself (`relayd-client ping` does that)."""
        await self.join(self.client, NUMBER, self.relay, self.relay.address)
        for _ in range(3):
            self.client.write(frame(NUMBER, b"echo"), self.port.address)
        for _ in range(3):
            self.assertEqual((await self.client.next())[0], frame(NUMBER, b"echo"))
        self.assertEqual(self.counted(), (3, 12, 3, 12, 0))

    # --- clients of other listeners -------------------------------------------------------------------

    async def test_stream_clients(self) -> None:
        """From a stream to a stream, from UDP to a stream and back: each path is given its own number."""
        stream, second = StreamClient(), StreamClient()
        to_stream = Flow(stream, NUMBER, self.relay, self.other_relay.address)
        to_second = Flow(second, ANSWER, self.other_relay, self.relay.address)
        for flow in (to_stream, to_second):
            self.plane.install_flow(flow)
        for payload in (b"across", b"", b"x" * 9000):
            self.assertTrue(self.relay.send(to_stream.peer, payload))
            self.assertEqual(await self.service.next(second.received), (ANSWER, payload))
        await self.join(self.other, ANSWER, self.other_relay, self.relay.address)
        self.assertTrue(self.relay.send(to_stream.peer, b"to UDP"))
        self.assertEqual((await self.other.next())[0], frame(ANSWER, b"to UDP"))
        for payload in (b"from UDP", b"", b"again"):
            self.other.write(frame(ANSWER, payload), self.port.address)
        for payload in (b"from UDP", b"", b"again"):
            self.assertEqual(await self.service.next(stream.received), (NUMBER, payload))
        self.assertEqual(self.bridged(), (4, 3))

    async def test_runs_of_stream_clients(self) -> None:
        """What a stream client sends in one go arrives whole and in order, at a stream, over UDP, and above, whatever
        the sizes and however many; all is counted at both relays.
        """
        runs = [[b"a" * 200] * 3, [b"", b"b", b"", b"", b"cc", b"cc"], [b"d" * 1200] * 130, [b"e" * 9000] * 2, [b"f"]]
        runs = [[bytes([i]) + payload[1:] if payload else b"" for i, payload in enumerate(run)] for run in runs]
        sent = [payload for run in runs for payload in run]
        for run in runs:
            self.relay.send_run(self.other_relay.address, run)
        for payload in sent:
            came = await self.service.next(self.service.from_peer)
            self.assertEqual(came, (self.other_relay, self.relay.address, payload))
        second = StreamClient()
        self.plane.install_flow(Flow(second, ANSWER, self.other_relay, self.relay.address))
        for run in runs:
            self.relay.send_run(self.other_relay.address, run)
        for payload in sent:
            self.assertEqual(await self.service.next(second.received), (ANSWER, payload))
        await self.join(self.other, ANSWER, self.other_relay, self.relay.address)
        for run in runs:
            self.relay.send_run(self.other_relay.address, run)
        for payload in sent:
            self.assertEqual((await self.other.next())[0], frame(ANSWER, payload))
        packets, total = len(sent), sum(map(len, sent))
        self.assertEqual(self.counted(), (3 * packets, 3 * total, 0, 0, 0))
        self.assertEqual(self.counted(self.other_relay), (0, 0, 2 * packets, 2 * total, 0))
        self.assertEqual(self.bridged(), (3 * packets, 0))

    async def test_runs_keep_to_limits(self) -> None:
        """A run draws on both limits datagram by datagram."""
        second = StreamClient()
        self.plane.install_flow(Flow(second, ANSWER, self.other_relay, self.relay.address))
        self.other_relay.limit = TokenBucket(rate=0.001, burst=600, now=reactor.seconds())
        self.relay.send_run(self.other_relay.address, [b"x" * 200] * 5)
        self.assertEqual(self.counted(self.other_relay), (0, 0, 3, 600, 2))
        self.other_relay.limit = None
        self.relay.limit = TokenBucket(rate=0.001, burst=400, now=reactor.seconds())
        self.relay.send_run(self.other_relay.address, [b"x" * 200] * 5)
        self.assertEqual(self.counted(), (7, 1400, 0, 0, 3))
        self.assertEqual(self.counted(self.other_relay), (0, 0, 5, 1000, 2))
        second.paused = True
        self.relay.limit = None
        self.relay.send_run(self.other_relay.address, [b"x" * 200] * 5)
        self.assertEqual(self.counted(self.other_relay), (0, 0, 5, 1000, 7))

    async def test_paused_client(self) -> None:
        """What a client does not take is dropped and counted at its own relay; the sender has sent it."""
        stream = StreamClient()
        stream.paused = True
        self.plane.install_flow(Flow(stream, ANSWER, self.other_relay, self.relay.address))
        await self.join(self.client, NUMBER, self.relay, self.other_relay.address)
        for _ in range(3):
            self.client.write(frame(NUMBER, b"up"), self.port.address)
        await self.turns()
        self.assertEqual(self.counted(), (3, 6, 0, 0, 0))
        self.assertEqual(self.counted(self.other_relay), (0, 0, 0, 0, 3))

    # --- limits -----------------------------------------------------------------------------------------

    async def test_both_limits_hold(self) -> None:
        """The sender's bandwidth limit is charged first, then the receiver's, and each counts what it dropped."""
        await self.join_both()
        self.relay.limit = TokenBucket(rate=0.001, burst=800, now=reactor.seconds())
        self.other_relay.limit = TokenBucket(rate=0.001, burst=500, now=reactor.seconds())
        for _ in range(5):
            self.client.write(frame(NUMBER, b"x" * 200), self.port.address)
        for _ in range(2):
            await self.other.next()
        await self.turns()
        self.assertEqual(self.counted(), (4, 800, 0, 0, 1))
        self.assertEqual(self.counted(self.other_relay), (0, 0, 2, 400, 2))

    def test_too_long(self) -> None:
        """What UDP could not carry from one to the other is dropped and counted; the longest passes, with DF too."""
        stream = StreamClient()
        self.plane.install_flow(Flow(stream, ANSWER, self.other_relay, self.relay.address))
        largest = LARGEST_PAYLOAD[len(self.local.ip)]
        self.assertFalse(self.relay.send(self.other_relay.address, bytes(largest + 1)))
        self.assertTrue(self.relay.send(self.other_relay.address, bytes(largest), True))
        self.assertEqual(self.counted(), (1, largest, 0, 0, 1))
        self.assertEqual(stream.received.pending, [(ANSWER, bytes(largest))])

    async def test_a_flood_that_goes_up_is_bounded(self) -> None:
        """What waits for the receiver is bounded, its excess dropped and counted; other relays and the reactor get
        their turns in between.
        """
        third = self.plane.open_relay(self.local, self.service)
        most = WAITING_BYTES // SMALLEST_COST
        for _ in range(most + 100):
            self.assertTrue(self.relay.send(self.other_relay.address, b"flood"))
        self.assertTrue(self.relay.send(third.address, b"me too"))
        self.assertEqual(self.counted(self.other_relay), (0, 0, 0, 0, 100))
        self.assertEqual(self.service.from_peer.pending, [])
        await self.service.next(self.service.from_peer)
        first = [each for each in self.service.from_peer.pending if each[0] is third]
        self.assertEqual(first, [(third, self.relay.address, b"me too")])
        self.assertLessEqual(len(self.service.from_peer.pending), 2 * SERVED_PER_TURN)
        for _ in range(most):
            await self.service.from_peer.get()
        self.assertTrue(self.relay.send(self.other_relay.address, b"room again"))
        self.assertEqual((await self.service.next(self.service.from_peer))[2], b"room again")

    # --- what no flow takes -------------------------------------------------------------------------------

    async def test_without_a_flow_it_goes_up(self) -> None:
        """The receiver above hears it from the sender's relayed address, in order, empty ones too, after the send is
        over; it is not counted there as received.
        """
        await self.join(self.client, NUMBER, self.relay, self.other_relay.address)
        self.assertTrue(self.relay.send(self.other_relay.address, b"indication"))
        self.assertEqual(self.service.from_peer.pending, [])
        for payload in (b"", b"data"):
            self.client.write(frame(NUMBER, payload), self.port.address)
        for payload in (b"indication", b"", b"data"):
            came = await self.service.next(self.service.from_peer)
            self.assertEqual(came, (self.other_relay, self.relay.address, payload))
        self.assertEqual(self.counted(self.other_relay), (0, 0, 0, 0, 0))
        self.assertEqual((self.counted(), self.bridged()), ((3, 14, 0, 0, 0), (3, 0)))

    async def test_a_flow_that_comes_while_something_waits(self) -> None:
        """What was sent before the channel was bound reaches the client before what is sent after."""
        await self.join(self.client, NUMBER, self.relay, self.other_relay.address)
        self.service.on_datagram = lambda client, data: self.plane.install_flow(
            Flow(client, ANSWER, self.other_relay, self.relay.address)
        )
        for index in range(5):
            self.client.write(frame(NUMBER, b"%d" % index), self.port.address)
        self.other.write(b"bind", self.port.address)
        for index in range(5, 10):
            self.client.write(frame(NUMBER, b"%d" % index), self.port.address)
        came = [(await self.other.next())[0] for _ in range(10 - len(self.service.from_peer.pending))]
        went_up = [data for _, _, data in self.service.from_peer.pending]
        self.assertEqual(went_up + [data[4:] for data in came], [b"%d" % index for index in range(10)])

    async def test_an_echo_above_does_not_recurse(self) -> None:
        """A receiver that answers at once, and whose answer is answered, neither overflows the stack nor blocks."""
        echoes = 0

        def echo(relay: Any, peer: TransportAddress, data: bytes) -> None:
            nonlocal echoes
            echoes += 1
            if echoes < 5000:
                relay.send(peer, data)

        self.service.on_peer_datagram = echo
        self.relay.send(self.other_relay.address, b"echo")
        await self.join(self.client, NUMBER, self.relay, self.peer.address)
        self.client.write(frame(NUMBER, b"meanwhile"), self.port.address)
        await self.peer.next()
        while echoes < 5000:
            await self.turns(0)

    # --- ends -----------------------------------------------------------------------------------------------

    async def test_closed_target(self) -> None:
        """A relay that is closed is an address like any other: its sender is told of the ICMP error. What waited for
        it is gone, and its client hears nothing.
        """
        await self.join_both()
        self.relay.send(self.other_relay.address, b"passes")
        self.plane.remove_flow(Flow((await self.other_path()), ANSWER, self.other_relay, self.relay.address))
        self.relay.send(self.other_relay.address, b"waits")
        self.other_relay.close()
        self.client.write(frame(NUMBER, b"too late"), self.port.address)
        relay, peer, *_ = await self.service.next(self.service.errors)
        self.assertEqual((relay, peer), (self.relay, self.other_relay.address))
        self.assertEqual((await self.other.next())[0], frame(ANSWER, b"passes"))
        self.assertEqual((self.other.received.pending, self.service.from_peer.pending), ([], []))
        self.assertEqual(self.bridged(), (2, 0))

    async def other_path(self) -> Any:
        self.other.write(b"again", self.port.address)
        return (await self.service.next(self.service.up))[0]

    async def test_port_that_is_used_again(self) -> None:
        """Whoever opens the same address next gets what is sent there from then on, and nothing of before. A flow to
        the old one delivers nothing to its client.
        """
        await self.join_both()
        address = self.other_relay.address
        self.client.write(frame(NUMBER, b"old"), self.port.address)
        self.assertEqual((await self.other.next())[0], frame(ANSWER, b"old"))
        self.other_relay.flows.clear()
        self.relay.send(address, b"waits for the old one")
        self.other_relay.close()
        new = self.plane.open_relay(address, self.service)
        deafen(new.socket)
        self.client.write(frame(NUMBER, b"new"), self.port.address)
        self.assertEqual(await self.service.next(self.service.from_peer), (new, self.relay.address, b"new"))
        self.assertEqual(self.other.received.pending, [])

    async def test_closed_sender(self) -> None:
        """A closed relay bridges nothing more; what it sent before arrives, as it would from the kernel."""
        self.relay.send(self.other_relay.address, b"before")
        address = self.relay.address
        self.relay.close()
        self.assertFalse(self.relay.send(self.other_relay.address, b"after"))
        self.assertEqual((await self.service.next(self.service.from_peer))[1:], (address, b"before"))
        await self.turns()
        self.assertEqual(self.service.from_peer.pending, [])

    async def test_close_while_being_told(self) -> None:
        """The receiver may close its relay, or the whole plane, when it is told: nothing more is delivered."""
        self.service.on_peer_datagram = lambda relay, peer, data: relay.close()
        third = self.plane.open_relay(self.local, self.service)
        for relay in (self.other_relay, third):
            for _ in range(5):
                self.relay.send(relay.address, b"x")
        await self.turns()
        self.assertEqual([each[0] for each in self.service.from_peer.pending], [self.other_relay, third])
        self.service.on_peer_datagram = lambda relay, peer, data: self.plane.close()
        self.other_relay, third = (self.plane.open_relay(self.local, self.service) for _ in range(2))
        for relay in (self.other_relay, third):
            for _ in range(5):
                self.relay.send(relay.address, b"x")
        await self.turns()
        self.assertEqual(len(self.service.from_peer.pending), 3)

    async def test_receiver_that_fails(self) -> None:
        """An exception in a receiver is logged; what waits behind it is delivered."""

        def fail(*anything: Any) -> None:
            raise ZeroDivisionError("a bug above")

        self.service.on_peer_datagram = fail
        for _ in range(2):
            self.relay.send(self.other_relay.address, b"x")
        for _ in range(2):
            await self.service.next(self.service.from_peer)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    # --- what is not bridged ----------------------------------------------------------------------------------

    def test_other_family(self) -> None:
        """A relay of one family reaches none of the other."""
        host = "::1" if len(self.local.ip) == 4 else "127.0.0.1"
        foreign = self.plane.open_relay(TransportAddress.parse(host, 0), self.service)
        self.assertFalse(self.relay.send(foreign.address, b"x"))
        self.assertEqual((self.counted(), self.bridged()), ((0, 0, 0, 0, 1), (0, 0)))

    async def test_wildcard(self) -> None:
        """A relay that is bound to no address in particular goes through the kernel, which knows where it is."""
        anywhere = self.plane.open_relay(TransportAddress(bytes(len(self.local.ip)), 0), self.service)
        hearing = self.plane.open_relay(self.local, self.service)
        self.assertTrue(anywhere.send(hearing.address, b"from anywhere"))
        source = self.local.with_port(anywhere.address.port)
        self.assertEqual(await self.service.next(self.service.from_peer), (hearing, source, b"from anywhere"))
        self.assertTrue(hearing.send(source, b"to anywhere"))
        came = await self.service.next(self.service.from_peer)
        self.assertEqual(came, (anywhere, hearing.address, b"to anywhere"))
        self.assertEqual((anywhere.counters.bridged, hearing.counters.bridged), (0, 0))

    async def test_strangers_stay_outside(self) -> None:
        """A socket of somebody else, and a port of our own, are reached through the kernel."""
        for address in (self.peer.address, self.port.address):
            self.assertTrue(self.relay.send(address, b"out"))
        self.assertEqual(await self.peer.next(), (b"out", self.relay.address))
        path, data = await self.service.next(self.service.up)
        self.assertEqual((path.path.client, data), (self.relay.address, b"out"))
        self.assertEqual(self.bridged(), (0, 0))
