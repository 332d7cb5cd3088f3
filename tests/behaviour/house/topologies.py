"""Alice and Bob reach each other, each through an allocation, told once for the three topologies of draft-chenxin
section 3: what passes and what does not is the same, whichever relays they use and however they come to them.
"""

from __future__ import annotations

from typing import Any

from relayd.address import AppConnection, TransportAddress
from relayd.interfaces import Counters
from relayd.turn.outputs import AllocationCreated
from tests.behaviour.house.suite import HouseCase, certificate
from tests.support.deaf import deafen
from tests.support.house import USERS, House
from tests.support.turn_client import TurnClient, code_of
from tests.support.wires import connect

TO_BOB, TO_ALICE = 0x4000, 0x4FFF


class Party:
    """One of the two: the client, its relayed address, and the relay behind it."""

    def __init__(self, client: TurnClient, relayed: TransportAddress, relay: Any) -> None:
        self.client = client
        self.relayed = relayed
        self.relay = relay

    @property
    def counters(self) -> Counters:
        counters: Counters = self.relay.counters
        return counters


class TopologyCase(HouseCase):
    """`kind` is Alice's way in, `bobs_kind` Bob's. With `two_relays` each has their own; else they share one, whose
    relayed sockets are deaf: nothing passes through the kernel.
    """

    kind = AppConnection.WS
    bobs_kind = AppConnection.WS
    two_relays = False

    def setUp(self) -> None:
        super().setUp()
        self.bobs_house = self.house
        if self.two_relays:
            self.bobs_house = House(self.data_plane, certificate(), **self.settings)
            self.bobs_house.start()
            self.addCleanup(self.stop_bobs_house)

    async def stop_bobs_house(self) -> None:
        await self.bobs_house.stop()
        assert self.bobs_house.reactor.pending() == [], "a delayed call outlived the relay"
        self.bobs_house.assert_holds_nothing()

    async def party(self, name: str, house: House, kind: AppConnection) -> Party:
        wire = await connect(kind, house.address(kind, self.host), certificate())
        client = TurnClient(wire, kind, name, USERS[name])
        self.addCleanup(client.close)
        relayed = await client.relayed(*self.family_attributes)
        created = house.recorder.of(AllocationCreated)[-1]
        assert created.path.app_connection is kind
        ((relay, _),) = created.relays
        if not self.two_relays:
            deafen(relay.socket)
        return Party(client, relayed, relay)

    async def alice_and_bob(self) -> tuple[Party, Party]:
        return (
            await self.party("alice", self.house, self.kind),
            await self.party("bob", self.bobs_house, self.bobs_kind),
        )


class TopologySuite:
    """The promises. Mixed into `TopologyCase`."""

    async def test_channels(self: Any) -> None:
        """With a channel each, data passes both ways as ChannelData, and is counted at both relays."""
        alice, bob = await self.alice_and_bob()
        assert code_of(await alice.client.bind(TO_BOB, bob.relayed)) == 0
        assert code_of(await bob.client.bind(TO_ALICE, alice.relayed)) == 0
        for payload in (b"to Bob", b"", bytes(1200), bytes(16_000)):
            alice.client.channel_data(TO_BOB, payload)
            assert await bob.client.next_data() == (TO_ALICE, payload)
            bob.client.channel_data(TO_ALICE, payload + b"!")
            assert await alice.client.next_data() == (TO_BOB, payload + b"!")
        for party in (alice, bob):
            counters = party.counters
            assert (counters.sent_packets, counters.received_packets, counters.dropped) == (4, 4, 0)
            assert counters.bridged == (0 if self.two_relays else 4)
        assert alice.counters.sent_bytes == bob.counters.received_bytes == 17_206
        assert bob.counters.sent_bytes == alice.counters.received_bytes == 17_210

    async def test_indications(self: Any) -> None:
        """With a permission each, data passes both ways by indication, and each is told the other's relayed address."""
        alice, bob = await self.alice_and_bob()
        assert code_of(await alice.client.permit(bob.relayed)) == 0
        assert code_of(await bob.client.permit(alice.relayed)) == 0
        for payload in (b"to Bob", b"", bytes(1200)):
            alice.client.indicate(bob.relayed, payload)
            assert await bob.client.next_data() == (alice.relayed, payload)
            bob.client.indicate(alice.relayed, payload)
            assert await alice.client.next_data() == (bob.relayed, payload)
        for party in (alice, bob):
            counters = party.counters
            assert (counters.sent_packets, counters.received_packets, counters.dropped) == (3, 3, 0)
            assert counters.bridged == (0 if self.two_relays else 3)

    async def test_a_channel_on_one_side(self: Any) -> None:
        """Each side hears in the form that it asked for itself, whichever form the other one writes."""
        alice, bob = await self.alice_and_bob()
        assert code_of(await alice.client.bind(TO_BOB, bob.relayed)) == 0
        assert code_of(await bob.client.permit(alice.relayed)) == 0
        alice.client.channel_data(TO_BOB, b"by channel")
        assert await bob.client.next_data() == (alice.relayed, b"by channel")
        alice.client.indicate(bob.relayed, b"by indication")
        assert await bob.client.next_data() == (alice.relayed, b"by indication")
        bob.client.indicate(alice.relayed, b"back")
        assert await alice.client.next_data() == (TO_BOB, b"back")

    async def test_bursts_in_order(self: Any) -> None:
        """Bursts both ways at once arrive whole and in order, also where a channel is bound in the middle."""
        alice, bob = await self.alice_and_bob()
        await alice.client.bind(TO_BOB, bob.relayed)
        await bob.client.permit(alice.relayed)
        for index in range(20):
            alice.client.channel_data(TO_BOB, b"%d" % index)
        bound = bob.client.bind(TO_ALICE, alice.relayed)
        for index in range(20, 40):
            alice.client.channel_data(TO_BOB, b"%d" % index)
            bob.client.channel_data(TO_ALICE, b"%d" % index)
        assert [(await bob.client.next_data())[1] for _ in range(40)] == [b"%d" % index for index in range(40)]
        assert [await alice.client.next_data() for _ in range(20)] == [(TO_BOB, b"%d" % i) for i in range(20, 40)]
        assert code_of(await bound) == 0

    async def test_the_receiver_has_no_permission(self: Any) -> None:
        """Whatever the sender has, who has not permitted the sender's relayed address hears nothing, and it costs them
        nothing.
        """
        alice, bob = await self.alice_and_bob()
        assert code_of(await alice.client.bind(TO_BOB, bob.relayed)) == 0
        alice.client.channel_data(TO_BOB, b"unwanted")
        alice.client.indicate(bob.relayed, b"unwanted")
        await self.both_are_served(alice, bob)
        assert bob.client.data.pending == []
        assert (bob.counters.received_packets, bob.counters.dropped) == (0, 0)
        assert alice.counters.sent_packets == 2
        assert code_of(await bob.client.permit(alice.relayed)) == 0
        alice.client.channel_data(TO_BOB, b"wanted")
        assert await bob.client.next_data() == (alice.relayed, b"wanted")

    async def test_the_sender_has_no_permission(self: Any) -> None:
        """Who has not permitted the receiver's relayed address sends nothing there, though the receiver would hear."""
        alice, bob = await self.alice_and_bob()
        assert code_of(await bob.client.bind(TO_ALICE, alice.relayed)) == 0
        alice.client.channel_data(TO_BOB, b"without a channel")
        alice.client.indicate(bob.relayed, b"without a permission")
        await self.both_are_served(alice, bob)
        assert bob.client.data.pending == []
        assert (alice.counters.sent_packets, bob.counters.received_packets) == (0, 0)
        assert code_of(await alice.client.permit(bob.relayed)) == 0
        alice.client.indicate(bob.relayed, b"permitted")
        assert await bob.client.next_data() == (TO_ALICE, b"permitted")

    async def test_permissions_end(self: Any) -> None:
        """Permissions end after 300 s, the receiver's as well as the sender's."""
        alice, bob = await self.alice_and_bob()
        await bob.client.permit(alice.relayed)
        await self.advance(200, alice, bob)
        await alice.client.permit(bob.relayed)
        await self.advance(99, alice, bob)
        alice.client.indicate(bob.relayed, b"in time")
        assert await bob.client.next_data() == (alice.relayed, b"in time")
        await self.advance(2, alice, bob)
        alice.client.indicate(bob.relayed, b"too late for Bob")
        bob.client.indicate(alice.relayed, b"too late from Bob")
        await self.both_are_served(alice, bob)
        assert (alice.counters.sent_packets, bob.counters.sent_packets) == (2, 0)
        await bob.client.permit(alice.relayed)
        bob.client.indicate(alice.relayed, b"permitted again")
        assert await alice.client.next_data() == (bob.relayed, b"permitted again")
        assert bob.client.data.pending == []

    async def test_the_rules_change(self: Any) -> None:
        """When the sender's relay no longer lets it reach the receiver, channel and permission end there and then."""
        alice, bob = await self.alice_and_bob()
        await alice.client.bind(TO_BOB, bob.relayed)
        await bob.client.bind(TO_ALICE, alice.relayed)
        alice.client.channel_data(TO_BOB, b"before")
        assert await bob.client.next_data() == (TO_ALICE, b"before")
        guard = self.house.core._guard
        self.patch(type(guard), "may_reach", lambda guard, username, peer: username != "alice")
        self.house.service.peer_rules_changed()
        alice.client.channel_data(TO_BOB, b"after")
        alice.client.indicate(bob.relayed, b"after")
        await self.both_are_served(alice, bob)
        assert code_of(await alice.client.permit(bob.relayed)) == 403
        assert (bob.client.data.pending, alice.counters.sent_packets) == ([], 1)

    async def test_the_receiver_leaves(self: Any) -> None:
        """After the receiver's allocation has ended nothing reaches anybody, and the sender's goes on."""
        alice, bob = await self.alice_and_bob()
        await alice.client.bind(TO_BOB, bob.relayed)
        await bob.client.bind(TO_ALICE, alice.relayed)
        assert code_of(await bob.client.refresh(0)) == 0
        peer = self.peer()
        alice.client.channel_data(TO_BOB, b"too late")
        assert code_of(await alice.client.bind(TO_BOB + 1, peer.address)) == 0
        alice.client.channel_data(TO_BOB + 1, b"elsewhere")
        assert await peer.next() == (b"elsewhere", alice.relayed)
        assert bob.client.data.pending == []
        assert alice.counters.bridged == 0

    async def test_the_log_tells_what_was_bridged(self: Any) -> None:
        """At the end of an allocation the log says how much of what it sent stayed within the relay."""
        alice, bob = await self.alice_and_bob()
        await alice.client.bind(TO_BOB, bob.relayed)
        await bob.client.bind(TO_ALICE, alice.relayed)
        for _ in range(3):
            alice.client.channel_data(TO_BOB, b"data")
            await bob.client.next_data()
        await alice.client.refresh(0)
        line = self.house.log[-1]
        assert (line["sent_packets"], line["bridged"]) == (3, 0 if self.two_relays else 3)

    async def both_are_served(self: Any, alice: Party, bob: Party) -> None:
        """Whatever was sent before has gone its way: both are answered, by relays that handle all in order."""
        for _ in range(2):
            for party in (alice, bob):
                assert code_of(await party.client.refresh(600)) == 0

    async def advance(self: Any, seconds: float, alice: Party, bob: Party) -> None:
        """Set the clocks forward, with a sign of life from both: WebSockets that give none are closed."""
        for house in {self.house, self.bobs_house}:
            house.reactor.advance(seconds)
        await self.both_are_served(alice, bob)
