"""Many clients at once, on all ways in, of one relay: nobody gets what is somebody else's."""

from __future__ import annotations

import random
from typing import ClassVar

from relayd.address import AppConnection
from tests.behaviour.house.suite import NUMBER, HouseCase
from tests.support.house import USERS
from tests.support.turn_client import Peer, TurnClient, code_of, eventually, pause
from tests.support.wires import DtlsWire, patiently

KINDS = (AppConnection.UDP, AppConnection.TCP, AppConnection.TLS, AppConnection.DTLS)
SEED = 8656


class CrowdTests(HouseCase):
    CLIENTS_OF_A_KIND: ClassVar[int] = 5
    ROUNDS: ClassVar[int] = 40

    async def test_nobody_gets_what_is_somebody_elses(self) -> None:
        """Clients on all ways in exchange datagrams of all sizes with the same two peers at once: each arrives where it
        belongs, whole, once and in order.
        """
        seeded = random.Random(SEED)
        peers = [self.peer(), self.peer()]
        clients = [
            await self.client(seeded.choice(list(USERS)), kind) for kind in KINDS for _ in range(self.CLIENTS_OF_A_KIND)
        ]
        relayed = [await client.relayed() for client in clients]
        for client in clients:
            for at, peer in enumerate(peers):
                assert code_of(await client.bind(NUMBER + at, peer.address)) == 0
        up: dict[tuple[int, int], list[bytes]] = {}
        down: dict[tuple[int, int], list[bytes]] = {}
        for round_ in range(self.ROUNDS):
            pairs = [(whose, to) for whose in range(len(clients)) for to in (0, 1)]
            for whose, to in seeded.sample(pairs, len(pairs) // 2):
                for _ in range(seeded.choice((1, 1, 3, 8))):
                    filling = seeded.randbytes(seeded.choice((0, 40, 200, 1100)))
                    payload = b"%d/%d/%d/" % (whose, to, round_) + filling
                    up.setdefault((whose, to), []).append(payload)
                    clients[whose].channel_data(NUMBER + to, payload)
                    down.setdefault((whose, to), []).append(payload[::-1])
                    peers[to].write(payload[::-1], relayed[whose])
            await pause()
        await eventually(lambda: sum(len(peer.received.pending) for peer in peers) == sum(map(len, up.values())))
        await eventually(lambda: sum(len(client.data.pending) for client in clients) == sum(map(len, down.values())))
        for (whose, to), sent in up.items():
            assert [data for data, source in peers[to].received.pending if source == relayed[whose]] == sent
        for (whose, to), sent in down.items():
            assert [data for where, data in clients[whose].data.pending if where == NUMBER + to] == sent


class BatchedCrowdTests(CrowdTests):
    data_plane = "batched"


class BandwidthTests(HouseCase):
    """The relay lets 1,000 bytes a second through each allocation, and one largest datagram at once."""

    settings = {"max_bandwidth": 1000}

    async def test_what_is_beyond_it_is_dropped_and_counted(self) -> None:
        """Up and down share one limit, by channel and by indication; other allocations are not touched."""
        for kind in KINDS:
            self.kind = kind
            peer = self.peer()
            client, relayed = await self.bound(peer)
            for _ in range(30):
                client.channel_data(NUMBER, bytes(1000))
                await pause()
            for _ in range(10):
                client.indicate(peer.address, bytes(1000))
            for _ in range(40):
                peer.write(bytes(1000), relayed)
                await pause()
            await eventually(lambda p=peer, c=client: len(p.received.pending) + len(c.data.pending) >= 65)
            await client.refresh(0)
            ended = self.house.log[-1]
            passed = ended["sent_packets"] + ended["received_packets"]
            assert 65 <= passed <= 72  # 65,535 bytes, and what a few seconds bring
            assert ended["dropped"] == 80 - passed
            assert len(peer.received.pending) == ended["sent_packets"] == 40


class BatchedBandwidthTests(BandwidthTests):
    data_plane = "batched"


class ReturnTests(HouseCase):
    """A DTLS client that starts anew from the same address and port, such as one whose host was restarted."""

    kind = AppConnection.DTLS

    async def dtls(self, port: int) -> tuple[TurnClient, DtlsWire]:
        wire = DtlsWire(self.house.address(AppConnection.DTLS, self.host), port)
        await patiently(wire.established)
        return TurnClient(wire, AppConnection.DTLS, "alice", USERS["alice"]), wire

    async def test_a_new_session_ends_the_old_allocation(self) -> None:
        """The old session's allocation ends with it, and the new one has a path of its own to allocate on."""
        peer: Peer = self.peer()
        first, wire = await self.dtls(0)
        await first.relayed()
        assert code_of(await first.bind(NUMBER, peer.address)) == 0
        await wire.vanish()
        second, again = await self.dtls(wire.local.port)
        self.addCleanup(again.close)
        assert again.local == wire.local
        await eventually(lambda: self.house.end_reasons == ["connection-closed"])
        relayed = await second.relayed()
        assert code_of(await second.bind(NUMBER, peer.address)) == 0
        second.channel_data(NUMBER, b"here again")
        assert await peer.next() == (b"here again", relayed)
        peer.write(b"welcome", relayed)
        assert await second.next_data() == (NUMBER, b"welcome")
        assert self.house.sessions() == 1


class BatchedReturnTests(ReturnTests):
    data_plane = "batched"
