"""What a client may expect of the whole relay, told once. Each way in, family and data plane subclasses it."""

from __future__ import annotations

import atexit
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from relayd.address import AppConnection, Family, TransportAddress
from relayd.stun import attributes as a
from relayd.stun.message import Method
from relayd.turn.outputs import AllocationCreated
from tests.support.certificate import Certificate, make_certificate
from tests.support.house import USERS, House, descriptors
from tests.support.ports import is_free
from tests.support.turn_client import Peer, TurnClient, code_of, eventually, pause
from tests.support.wires import connect

NUMBER = 0x4001
MAX_PAYLOAD = {AppConnection.DTLS: 16_384 - 4}  # bytes; one record. Elsewhere only the IP packet bounds it
LARGEST_DATAGRAM = {4: 65_507, 16: 65_527}  # bytes of payload that UDP can carry, by size of the IP address

_directory = tempfile.TemporaryDirectory(prefix="relayd-tests-")
atexit.register(_directory.cleanup)


@cache
def certificate() -> Certificate:
    """One for all tests of this process: a key takes time."""
    return make_certificate(Path(_directory.name))


class HouseCase(TestCase):
    """A relay for each test, with clients and peers that are closed behind it; it must end up holding nothing."""

    data_plane = "portable"
    kind = AppConnection.UDP
    host = "127.0.0.1"
    mixed = False  # whether streams come to ports that take several protocols
    settings: dict[str, Any] = {}

    def setUp(self) -> None:
        self.descriptors = descriptors()
        self.certificate = self.make_certificate()
        self.house = House(self.data_plane, self.certificate, mixed=self.mixed, **self.settings)
        self.house.start()
        self.addCleanup(self.stop)

    def make_certificate(self) -> Certificate:
        return certificate()

    async def stop(self) -> None:
        await self.house.stop()
        assert self.house.reactor.pending() == [], f"delayed calls outlived the relay: {self.house.reactor.pending()}"
        self.house.assert_holds_nothing()
        # The reactor keeps a pipe and a spare descriptor of its own.
        left = {each for each in descriptors() - self.descriptors if "pipe:" not in each and "/dev/null" not in each}
        assert left == set(), f"descriptors outlived the relay: {left}"
        assert self.flushLoggedErrors() == []  # type: ignore[no-untyped-call]

    async def client(
        self, username: str = "alice", kind: AppConnection | None = None, host: str | None = None
    ) -> TurnClient:
        kind, host = kind or self.kind, host or self.host
        wire = await connect(kind, self.house.address(kind, host), self.certificate)
        made = TurnClient(wire, kind, username, USERS.get(username, "wrong"))
        self.addCleanup(made.close)
        return made

    def peer(self, host: str | None = None) -> Peer:
        made = Peer(host or self.host)
        self.addCleanup(made.close)
        # The system may give it the number of a TCP port of the relay, which is no peer whatever the transport.
        own = {address for listener in self.house.daemon.listeners for address in listener.addresses}
        return self.peer(host) if made.address in own else made

    async def bound(self, peer: Peer, username: str = "alice") -> tuple[TurnClient, TransportAddress]:
        """A client with an allocation and a channel to the peer; and its relayed address."""
        client = await self.client(username)
        relayed = await client.relayed(*self.family_attributes)
        assert code_of(await client.bind(NUMBER, peer.address)) == 0
        return client, relayed

    @property
    def family_attributes(self) -> list[Any]:
        """Asks for a relayed address of the family that the test runs over."""
        return [] if self.host == "127.0.0.1" else [(a.REQUESTED_ADDRESS_FAMILY, Family.IPV6)]


class HouseSuite:
    """The promises. Mixed into `HouseCase`."""

    async def test_binding(self: Any) -> None:
        """A Binding request is answered with the client's own address."""
        client = await self.client()
        answer = await client.ask(Method.BINDING)
        assert answer.get(a.XOR_MAPPED_ADDRESS) == client.wire.local

    async def test_whole_life(self: Any) -> None:
        """401, Allocate, CreatePermission, data by indication, ChannelBind, data by channel, Refresh, deletion."""
        client, peer = await self.client(), self.peer()
        assert code_of(await client.greet()) == 401
        granted = await client.allocate(*self.family_attributes)
        assert code_of(granted) == 0
        proof = granted.proof()
        assert proof is not None
        assert proof.matches(client.key)
        assert granted.get(a.XOR_MAPPED_ADDRESS) == client.wire.local
        assert granted.get(a.LIFETIME) == 600
        relayed = granted.get(a.XOR_RELAYED_ADDRESS)
        assert code_of(await client.permit(peer.address)) == 0
        client.indicate(peer.address, b"by indication")
        assert await peer.next() == (b"by indication", relayed)
        peer.write(b"back", relayed)
        assert await client.next_data() == (peer.address, b"back")
        assert code_of(await client.bind(NUMBER, peer.address)) == 0
        client.channel_data(NUMBER, b"by channel")
        assert await peer.next() == (b"by channel", relayed)
        peer.write(b"back again", relayed)
        assert await client.next_data() == (NUMBER, b"back again")
        client.indicate(peer.address, b"both ways hold")
        assert await peer.next() == (b"both ways hold", relayed)
        assert code_of(await client.refresh(900)) == 0
        assert code_of(await client.refresh(0)) == 0
        assert self.house.sessions() == 0
        assert code_of(await client.refresh(0)) == 437

    async def test_the_log_tells_the_session(self: Any) -> None:
        """One line at the start and one at the end, with the path, the counters each way and one end reason."""
        peer = self.peer()
        client, relayed = await self.bound(peer)
        for size in (0, 1, 200):
            client.channel_data(NUMBER, bytes(size))
            assert await peer.next() == (bytes(size), relayed)
        client.indicate(peer.address, bytes(50))
        await peer.next()
        for size in (10, 1000):
            peer.write(bytes(size), relayed)
            assert await client.next_data() == (NUMBER, bytes(size))
        await client.refresh(0)
        started, ended = self.house.log
        assert started["event"] == "allocation-started"
        assert ended["event"] == "allocation-ended"
        for line in (started, ended):
            assert line["user"] == "alice"
            assert line["app_connection"] == self.kind.value
            assert line["client"] == str(client.wire.local)
            assert line["relayed"] == [str(relayed)]
            assert line["session"] == started["session"]
        (created,) = self.house.recorder.of(AllocationCreated)
        assert created.path.app_connection is self.kind  # a plain string would be equal, and pass every throttle
        assert ended["reason"] == "deleted"
        assert (ended["sent_packets"], ended["sent_bytes"]) == (4, 251)
        assert (ended["received_packets"], ended["received_bytes"]) == (2, 1010)
        assert ended["dropped"] == 0

    async def test_both_families(self: Any) -> None:
        """One allocation has a relayed address of each family, and relays over both."""
        client, peers = await self.client(), [self.peer("127.0.0.1"), self.peer("::1")]
        granted = await client.allocate((a.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6))
        relayed = granted.get_all(a.XOR_RELAYED_ADDRESS)
        assert [address.family for address in relayed] == [Family.IPV4, Family.IPV6]
        for number, (peer, address) in enumerate(zip(peers, relayed, strict=True), 0x4000):
            assert code_of(await client.bind(number, peer.address)) == 0
            client.channel_data(number, b"up")
            assert await peer.next() == (b"up", address)
            peer.write(b"down", address)
            assert await client.next_data() == (number, b"down")

    async def test_even_port_and_reservation(self: Any) -> None:
        """EVEN-PORT with the R bit gives an even port; its token gives another client of the user the next one."""
        first, second = await self.client(), await self.client()
        granted = await first.allocate((a.EVEN_PORT, True))
        even = granted.get(a.XOR_RELAYED_ADDRESS)
        assert even.port % 2 == 0
        token = granted.get(a.RESERVATION_TOKEN)
        odd = await second.relayed((a.RESERVATION_TOKEN, token))
        assert odd == even.with_port(even.port + 1)
        third = await self.client()
        assert code_of(await third.allocate((a.RESERVATION_TOKEN, token))) == 508

    async def test_an_unclaimed_reservation_ends(self: Any) -> None:
        """A reserved port that nobody claims is closed after its time."""
        client = await self.client()
        even = await client.relayed((a.EVEN_PORT, True))
        await client.refresh(0)
        odd = even.port + 1
        assert not is_free(odd, [even.host])
        self.house.reactor.advance(31)
        await eventually(lambda: is_free(odd, [even.host]))
        self.house.assert_holds_nothing()

    async def test_from_allocation_to_allocation(self: Any) -> None:
        """Two clients reach each other through two allocations of the same relay."""
        one, two = await self.client("alice"), await self.client("bob")
        relayed_one = await one.relayed(*self.family_attributes)
        relayed_two = await two.relayed(*self.family_attributes)
        assert code_of(await one.bind(0x4000, relayed_two)) == 0
        assert code_of(await two.bind(0x4FFF, relayed_one)) == 0
        one.channel_data(0x4000, b"to two")
        assert await two.next_data() == (0x4FFF, b"to two")
        two.channel_data(0x4FFF, b"to one")
        assert await one.next_data() == (0x4000, b"to one")

    async def test_a_channel_alone_keeps_data_flowing(self: Any) -> None:
        """Without any CreatePermission a channel lets data in for its own 600 s, not for a permission's 300 s, and then
        no longer.
        """
        peer = self.peer()
        client, relayed = await self.bound(peer)
        await client.refresh(3600)
        self.house.reactor.advance(599)
        peer.write(b"late", relayed)
        assert await client.next_data() == (NUMBER, b"late")
        client.channel_data(NUMBER, b"late too")
        assert await peer.next() == (b"late too", relayed)
        self.house.reactor.advance(2)
        await eventually(lambda: self.house.service._flows == {})
        peer.write(b"too late", relayed)
        client.channel_data(NUMBER, b"too late too")
        assert code_of(await client.bind(NUMBER, peer.address)) == 0
        client.channel_data(NUMBER, b"bound again")
        assert await peer.next() == (b"bound again", relayed)
        assert client.data.pending == []

    async def test_a_permission_ends(self: Any) -> None:
        """A permission lets data in and out for 300 s, and then no longer."""
        client, peer = await self.client(), self.peer()
        relayed = await client.relayed(*self.family_attributes)
        await client.permit(peer.address)
        self.house.reactor.advance(299)
        peer.write(b"in time", relayed)
        assert await client.next_data() == (peer.address, b"in time")
        self.house.reactor.advance(2)
        peer.write(b"late", relayed)
        client.indicate(peer.address, b"late")
        await client.permit(peer.address)
        peer.write(b"again", relayed)
        assert await client.next_data() == (peer.address, b"again")
        client.indicate(peer.address, b"again")
        assert await peer.next() == (b"again", relayed)

    async def test_channel_data_right_behind_the_bind(self: Any) -> None:
        """ChannelData that follows its ChannelBind without waiting for the answer arrives."""
        client, peer = await self.client(), self.peer()
        relayed = await client.relayed(*self.family_attributes)
        answer = client.bind(NUMBER, peer.address)
        for number in range(5):
            client.channel_data(NUMBER, b"%d" % number)
        for number in range(5):
            assert await peer.next() == (b"%d" % number, relayed)
        assert code_of(await answer) == 0

    async def test_empty_payloads(self: Any) -> None:
        """A datagram of no bytes is a datagram: by channel and by indication, both ways."""
        client, peer = await self.client(), self.peer()
        relayed = await client.relayed(*self.family_attributes)
        await client.permit(peer.address)
        client.indicate(peer.address, b"")
        assert await peer.next() == (b"", relayed)
        peer.write(b"", relayed)
        assert await client.next_data() == (peer.address, b"")
        await client.bind(NUMBER, peer.address)
        client.channel_data(NUMBER, b"")
        assert await peer.next() == (b"", relayed)
        peer.write(b"", relayed)
        assert await client.next_data() == (NUMBER, b"")

    async def test_the_largest_payload(self: Any) -> None:
        """The longest payload that the way in can carry arrives whole, both ways."""
        peer = self.peer()
        client, relayed = await self.bound(peer)
        size = LARGEST_DATAGRAM[len(relayed.ip)]
        if self.kind.is_datagram:
            size = min(size - 4, MAX_PAYLOAD.get(self.kind, size))
        payload = bytes(range(256)) * 256
        client.channel_data(NUMBER, payload[:size])
        assert await peer.next() == (payload[:size], relayed)
        peer.write(payload[:size], relayed)
        assert await client.next_data() == (NUMBER, payload[:size])

    async def test_bursts_arrive_in_order(self: Any) -> None:
        """Bursts in both directions at once arrive whole and in order."""
        peer = self.peer()
        client, relayed = await self.bound(peer)
        for burst in range(5):
            for number in range(30):
                client.channel_data(NUMBER, b"up %d.%d" % (burst, number))
                peer.write(b"down %d.%d" % (burst, number), relayed)
            for number in range(30):
                assert await peer.next() == (b"up %d.%d" % (burst, number), relayed)
                assert await client.next_data() == (NUMBER, b"down %d.%d" % (burst, number))

    async def test_an_allocation_expires(self: Any) -> None:
        """An allocation that is not refreshed ends after its lifetime, and its relayed address is closed."""
        peer = self.peer()
        client, relayed = await self.bound(peer)
        self.house.reactor.advance(601)
        await eventually(lambda: self.house.sessions() == 0)
        assert self.house.end_reasons == ["expired"]
        client.channel_data(NUMBER, b"late")
        peer.write(b"late", relayed)
        assert code_of(await client.refresh(600)) == 437
        assert (peer.received.pending, client.data.pending) == ([], [])

    async def test_the_end_of_a_connection_ends_the_allocation(self: Any) -> None:
        """When a stream or a DTLS session closes its allocation ends; over UDP there is nothing that could close."""
        peer = self.peer()
        client, _ = await self.bound(peer)
        await client.close()
        if self.kind is AppConnection.UDP:
            assert self.house.sessions() == 1
            return
        await eventually(lambda: self.house.sessions() == 0)
        assert self.house.end_reasons == ["connection-closed"]
        self.house.assert_holds_nothing()

    async def test_wrong_password(self: Any) -> None:
        """Whoever does not know the password gets 401 again, and leaves nothing behind."""
        stranger = await self.client("mallory")
        for _ in range(3):
            assert code_of(await stranger.allocate()) == 401
        self.house.assert_holds_nothing()

    async def test_nobody_gets_through_without_permission(self: Any) -> None:
        """Datagrams from strangers do not reach the client, and cost it nothing."""
        client, stranger = await self.client(), self.peer()
        relayed = await client.relayed(*self.family_attributes)
        stranger.write(b"unwanted", relayed)
        await client.permit(stranger.address)
        stranger.write(b"wanted", relayed)
        assert await client.next_data() == (stranger.address, b"wanted")

    async def test_two_allocations_of_one_user(self: Any) -> None:
        """One user has an allocation per path: each relays for itself, and one ending leaves the other alone."""
        peer = self.peer()
        (one, relayed_one), (two, relayed_two) = await self.bound(peer), await self.bound(peer)
        assert relayed_one != relayed_two
        await one.refresh(0)
        two.channel_data(NUMBER, b"still here")
        assert await peer.next() == (b"still here", relayed_two)
        peer.write(b"so am I", relayed_two)
        assert await two.next_data() == (NUMBER, b"so am I")

    async def test_stop_in_the_middle_of_traffic(self: Any) -> None:
        """A stop while datagrams are under way ends every allocation with `shutdown`, whatever way its client
        came, and closes everything.
        """
        peer = self.peer()
        clients = [await self.bound(peer) for _ in range(3)]
        for client, relayed in clients:
            for _ in range(50):
                client.channel_data(NUMBER, bytes(200))
                peer.write(bytes(200), relayed)
        await pause()
        await self.house.stop()
        assert self.house.end_reasons == ["shutdown"] * 3
        assert self.house.reactor.pending() == []
        self.house.assert_holds_nothing()


class DatagramSuite(HouseSuite):
    """What holds on ways in that carry less than a peer can send; a stream carries it all."""

    async def test_too_long_for_the_client(self: Any) -> None:
        """What a peer sends and the way in cannot carry is dropped and counted, and the next datagram arrives."""
        peer = self.peer()
        client, relayed = await self.bound(peer)
        peer.write(bytes(LARGEST_DATAGRAM[len(relayed.ip)]), relayed)
        peer.write(b"next", relayed)
        assert await client.next_data() == (NUMBER, b"next")
        await client.refresh(0)
        assert self.house.log[-1]["dropped"] == 1
        assert self.house.log[-1]["received_packets"] == 1
