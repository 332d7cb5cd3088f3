"""The three topologies of draft-chenxin section 3, over IPv4 and IPv6 and on both data planes."""

from __future__ import annotations

import sys

import pytest

from relayd.address import AppConnection, Family
from relayd.stun import attributes as a
from tests.behaviour.house.topologies import TO_ALICE, TO_BOB, TopologyCase, TopologySuite
from tests.support.turn_client import code_of

if sys.platform != "linux":
    pytest.skip("only Linux can make a socket deaf", allow_module_level=True)


class OnlyAliceTests(TopologySuite, TopologyCase):
    """Section 3.1: only Alice needs a WebSocket, Bob comes to the same relay over UDP."""

    data_plane = "batched"
    bobs_kind = AppConnection.UDP


class OnlyAlice6Tests(OnlyAliceTests):
    host = "::1"


class PortableOnlyAliceTests(OnlyAliceTests):
    data_plane = "portable"


class OnlyAliceWithTwoRelaysTests(OnlyAliceTests):
    """The same, where Bob has a relay of his own."""

    two_relays = True


class OnlyAliceOverTlsTests(OnlyAliceTests):
    """The same over wss; Bob comes over TCP."""

    kind = AppConnection.WSS
    bobs_kind = AppConnection.TCP


class TwoRelaysTests(TopologySuite, TopologyCase):
    """Section 3.2: both need a WebSocket, and each has their own relay."""

    data_plane = "batched"
    two_relays = True


class TwoRelays6Tests(TwoRelaysTests):
    host = "::1"


class PortableTwoRelaysTests(TwoRelaysTests):
    data_plane = "portable"


class OneRelayTests(TopologySuite, TopologyCase):
    """Section 3.3: both need a WebSocket, to the same relay."""

    data_plane = "batched"

    async def test_two_families(self) -> None:
        """Of an allocation with two relayed addresses the one of the other's family meets it."""
        alice = await self.client("alice")
        granted = await alice.allocate((a.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6))
        four, six = granted.get_all(a.XOR_RELAYED_ADDRESS)
        for number, family, mine in ((TO_BOB, Family.IPV4, four), (TO_BOB + 1, Family.IPV6, six)):
            bob = await self.client("bob")
            relayed = await bob.relayed((a.REQUESTED_ADDRESS_FAMILY, family))
            assert code_of(await alice.bind(number, relayed)) == 0
            assert code_of(await bob.bind(TO_ALICE, mine)) == 0
            alice.channel_data(number, b"to Bob")
            assert await bob.next_data() == (TO_ALICE, b"to Bob")
            bob.channel_data(TO_ALICE, b"to Alice")
            assert await alice.next_data() == (number, b"to Alice")
        await alice.refresh(0)
        assert self.house.log[-1]["bridged"] == 2


class OneRelay6Tests(OneRelayTests):
    host = "::1"


class PortableOneRelayTests(OneRelayTests):
    data_plane = "portable"


class OneRelayOverTlsTests(OneRelayTests):
    kind = bobs_kind = AppConnection.WSS


class OneRelayOverUdpTests(OneRelayTests):
    """What holds for two WebSockets holds for two clients over UDP."""

    kind = bobs_kind = AppConnection.UDP
