"""Two clients of one relay that stands behind a one-to-one NAT: no packet of theirs needs the NAT."""

from __future__ import annotations

from relayd.address import TransportAddress
from relayd.config import RelayAddress
from tests.behaviour.house.suite import HouseCase
from tests.support.turn_client import code_of, pause

BOUND = TransportAddress.parse("127.0.0.1", 0)
PUBLIC = TransportAddress.parse("198.51.7.9", 0)  # in no special range, and on no interface


class HairpinTests(HouseCase):
    # Peers on loopback are not allowed: whoever is reached there is reached by the public address.
    settings = {"relay_address": (RelayAddress(BOUND, PUBLIC),), "allow_peer": (), "relay_ports": (1024, 65_535)}

    async def test_channels(self) -> None:
        """Bound to each other's advertised addresses, they hear each other through flows."""
        one, two = await self.client("alice"), await self.client("bob")
        relayed_one, relayed_two = await one.relayed(), await two.relayed()
        assert (relayed_one.ip, relayed_two.ip) == (PUBLIC.ip, PUBLIC.ip)
        assert code_of(await one.bind(0x4000, relayed_two)) == 0
        assert code_of(await two.bind(0x4FFF, relayed_one)) == 0
        one.channel_data(0x4000, b"to two")
        assert await two.next_data() == (0x4FFF, b"to two")
        two.channel_data(0x4FFF, b"to one")
        assert await one.next_data() == (0x4000, b"to one")

    async def test_indications(self) -> None:
        """With permissions alone each learns of the other by the advertised address."""
        one, two = await self.client("alice"), await self.client("bob")
        relayed_one, relayed_two = await one.relayed(), await two.relayed()
        assert code_of(await one.permit(relayed_two)) == 0
        assert code_of(await two.permit(relayed_one)) == 0
        one.indicate(relayed_two, b"to two")
        assert await two.next_data() == (relayed_one, b"to two")

    async def test_the_inside_stays_closed(self) -> None:
        """The bound address itself is refused as a peer, like all of loopback."""
        one, two = await self.client("alice"), await self.client("bob")
        await one.relayed()
        inside = BOUND.with_port((await two.relayed()).port)
        assert code_of(await one.permit(inside)) == 403

    async def test_other_sockets_inside_stay_closed(self) -> None:
        """What else is bound inside, on a port that a relayed address could have, is not reached by the public one."""
        client, service = await self.client(), self.peer()
        await client.relayed()
        public = PUBLIC.with_port(service.address.port)
        assert code_of(await client.bind(0x4000, public)) == 0
        client.channel_data(0x4000, b"by channel")
        client.indicate(public, b"by indication")
        await pause(0.05)
        assert service.received.pending == []


class BatchedHairpinTests(HairpinTests):
    data_plane = "batched"
