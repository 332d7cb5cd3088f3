"""What bounds relayed TCP connections, and how they end, on real sockets (RFC 6062 sections 5.2 to 5.5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from relayd.address import AppConnection, TransportAddress
from relayd.config import RelayAddress
from relayd.stun import attributes as a
from relayd.stun.message import Method
from relayd.turn.outputs import PeerConnectionEnded, PeerConnectionOpened
from relayd.turn.peer_connections import MAX_CONNECTIONS
from tests.support.ports import free_ports
from tests.support.tcp_peer import Conversation, call
from tests.support.turn_client import TurnClient, code_of, eventually

from .suite import certificate
from .test_hairpin import BOUND, PUBLIC
from .test_tcp_allocations import TCP_ATTRIBUTE, TcpAllocationCase


async def all_close(conversations: Iterable[Conversation]) -> None:
    for each in conversations:
        if each.end not in ("closed", "reset"):
            await each.close()


class TcpBoundsTest(TcpAllocationCase):
    """Over TCP."""

    kind = AppConnection.TCP

    async def test_whatever_ends_it_closes_both_ends(self) -> None:
        """A Refresh, expiry, the operator, and a rule that withdraws the peer, after which the allocation lasts. What
        went through is in the allocation log.
        """
        service, core = self.house.service, self.house.core

        async def refuse(client: TurnClient) -> None:
            core._guard, guard = Nobody(), core._guard
            service.peer_rules_changed()
            core._guard = guard

        async def delete(client: TurnClient) -> None:
            assert code_of(await client.refresh(0)) == 0

        async def revoke(client: TurnClient) -> None:
            service.end_user("alice")

        async def expire(client: TurnClient) -> None:
            self.house.reactor.advance(601.0)

        for ends, reason in ((refuse, None), (delete, "deleted"), (revoke, "revoked"), (expire, "expired")):
            client, wire, conversation = await self.pair()
            wire.write(b"there")
            await conversation.hears(b"there")
            conversation.say(b"and back")
            await eventually(lambda: wire.raw == b"and back")  # noqa: B023
            await ends(client)
            await eventually(lambda: wire.end == "closed")  # noqa: B023
            await eventually(lambda: conversation.end in ("all", "closed"))  # noqa: B023
            await conversation.close()
            if reason is None:
                assert code_of(await client.refresh(0)) == 0
            line = self.house.log[-1]
            assert line["reason"] == (reason or "deleted")
            assert (line["sent_bytes"], line["received_bytes"]) == (5, 8)
        opened, ended = self.house.recorder.of(PeerConnectionOpened), self.house.recorder.of(PeerConnectionEnded)
        assert [each.session_id for each in opened] == [each.session_id for each in ended]
        assert [each.peer for each in opened] == [each.peer for each in ended]

    async def test_a_permission_that_expires_ends_nothing(self) -> None:
        """It is for peers who call (RFC 6062 section 5.3): a connection that was made lasts, later ones are refused."""
        client, relayed = await self.tcp_client()
        announced = self.announced_to(client)
        await client.permit(TransportAddress.parse(self.host, 9))
        caller = await call(relayed)
        await eventually(lambda: announced)
        wire = await self.data(announced[0].get(a.CONNECTION_ID) or 0)
        self.house.reactor.advance(301.0)
        late = await call(relayed)
        await eventually(lambda: late.end in ("all", "closed", "reset"))
        caller.say(b"still there")
        await eventually(lambda: wire.raw == b"still there")
        assert len(announced) == 1
        await all_close((caller, late))

    async def test_the_same_peer_again_right_after_a_close(self) -> None:
        """Whoever closed first: neither the core (446) nor the system holds the addresses back."""
        peer = self.tcp_peer()
        client, _ = await self.tcp_client()
        for first in ("client", "peer") * 3:
            wire = await self.data(await self.connect(client, peer.address))
            conversation = await peer.next()
            await (wire.close() if first == "client" else conversation.close())
            if first == "client":
                await eventually(lambda: conversation.end != "")  # noqa: B023
                await conversation.close()
            await eventually(lambda: not len(self.house.core._allocations.connections))

    async def test_nobody_calls_himself(self) -> None:
        """His own relayed address is no peer, with or without a permission: 447."""
        client, relayed = await self.tcp_client()
        await client.permit(relayed)
        assert code_of(await client.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, relayed)])) == 447

    async def test_a_neighbour_without_permission(self) -> None:
        """Reached through the kernel, he hears nothing of it and hangs up."""
        client, _ = await self.tcp_client()
        neighbour, his = await self.tcp_client("bob")
        announced = self.announced_to(neighbour)
        number = await self.connect(client, his)
        wire = await self.data(number)
        await eventually(lambda: wire.end in ("closed", "reset"))
        assert announced == []

    async def test_both_families(self) -> None:
        """One allocation with two relayed addresses reaches peers of either family and is reached by them, until one
        half of it is deleted.
        """
        client = await self.client()
        await client.greet()
        answer = await client.ask(Method.ALLOCATE, [TCP_ATTRIBUTE, (a.ADDITIONAL_ADDRESS_FAMILY, 2)])
        relayed = answer.get_all(a.XOR_RELAYED_ADDRESS)
        assert [len(address.ip) for address in relayed] == [4, 16]
        announced = self.announced_to(client)
        hosts = "127.0.0.1", "::1"
        for host in hosts:
            assert code_of(await client.permit(TransportAddress.parse(host, 9))) == 0
        wires, callers = [], []
        for host, address in zip(hosts, relayed, strict=True):
            self.host, before = host, self.host
            peer = self.tcp_peer()
            self.host = before
            wires.append(await self.data(await self.connect(client, peer.address)))
            assert (await peer.next()).remote == address
            callers.append(await call(address))
            await eventually(lambda: len(announced) == len(wires))
            assert announced[-1].get(a.XOR_PEER_ADDRESS) == callers[-1].local
        only6 = [(a.LIFETIME, 0), (a.REQUESTED_ADDRESS_FAMILY, 2)]
        assert code_of(await client.ask(Method.REFRESH, only6)) == 0
        await eventually(lambda: wires[1].end == "closed")
        await eventually(lambda: callers[1].end != "")
        assert (wires[0].end, callers[0].end) == ("", "")
        await all_close(callers)

    async def test_a_flood_of_callers(self) -> None:
        """No more stay than an allocation may have; the others are closed without a word. There is room again."""
        client, relayed = await self.tcp_client()
        announced = self.announced_to(client)
        await client.permit(TransportAddress.parse(self.host, 9))
        callers = [await call(relayed) for _ in range(MAX_CONNECTIONS + 4)]
        await eventually(lambda: len(announced) == MAX_CONNECTIONS)
        await eventually(lambda: sum(each.end != "" for each in callers) == 4)
        self.house.reactor.advance(30.0)  # nobody binds them
        await eventually(lambda: all(each.end != "" for each in callers))
        callers.append(await call(relayed))
        await eventually(lambda: len(announced) == MAX_CONNECTIONS + 1)
        assert not any(each.heard for each in callers)
        await all_close(callers)


class Nobody:
    """A guard that has changed its mind about everybody."""

    def may_reach(self, username: str, peer: TransportAddress) -> bool:
        return False


class TcpHairpinTest(TcpAllocationCase):
    """Behind a one-to-one NAT, where relayed addresses are told as public ones that lead nowhere from here."""

    kind = AppConnection.TCP
    settings = {"relay_address": (RelayAddress(BOUND, PUBLIC),), "allow_peer": (), "relay_ports": (1024, 65_535)}

    async def test_two_clients(self) -> None:
        """They meet inside by their public addresses, and see no other."""
        alice, alices = await self.tcp_client()
        bob, bobs = await self.tcp_client("bob")
        assert (alices.ip, bobs.ip) == (PUBLIC.ip, PUBLIC.ip)
        announced = self.announced_to(bob)
        assert code_of(await bob.permit(alices)) == 0
        wire = await self.data(await self.connect(alice, bobs))
        await eventually(lambda: announced)
        assert announced[0].get(a.XOR_PEER_ADDRESS) == alices
        bobs_wire = await self.data(announced[0].get(a.CONNECTION_ID) or 0, "bob")
        wire.write(b"hello bob")
        await eventually(lambda: bobs_wire.raw == b"hello bob")
        bobs_wire.write(b"hello alice")
        await eventually(lambda: wire.raw == b"hello alice")
        assert code_of(await alice.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, alices)])) == 447
        inside = BOUND.with_port(bobs.port)
        assert code_of(await alice.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, inside)])) == 403


class OnePortTest(TcpAllocationCase):
    """A relay with a single port to relay from."""

    kind = AppConnection.TCP

    def setUp(self) -> None:
        port = free_ports()
        self.settings = {"relay_ports": (port, port)}
        super().setUp()

    async def test_the_ports_run_out(self) -> None:
        """508 while somebody has the port, which a UDP allocation does not take away, and then it can be had again."""
        udp = await self.client()
        await udp.relayed()
        one, relayed = await self.tcp_client()
        assert relayed.port == self.settings["relay_ports"][0]
        other = await self.client("bob")
        await other.greet()
        for _ in range(3):
            assert code_of(await other.ask(Method.ALLOCATE, [TCP_ATTRIBUTE])) == 508
        wire = await self.data(await self.connect(one, self.tcp_peer().address))
        assert code_of(await one.refresh(0)) == 0
        assert code_of(await other.ask(Method.ALLOCATE, [TCP_ATTRIBUTE])) == 0
        await eventually(lambda: wire.end == "closed")


class TlsBoundsTest(TcpAllocationCase):
    """TLS with peers: one that is a client of this relay too, and some that say nothing at all."""

    kind = AppConnection.TCP
    settings = {
        "peer_ca": certificate().certificate,
        "peer_certificate": certificate().certificate,
        "peer_key": certificate().key,
    }

    async def test_a_neighbour_with_tls(self) -> None:
        """One client asks for TLS with the other's relayed address, which takes nothing else: they do not meet inside,
        and the relay shakes hands with itself.
        """
        bob = await self.client("bob")
        await bob.greet()
        allocated = await bob.ask(Method.ALLOCATE, [TCP_ATTRIBUTE, (a.PEER_TLS, "")])
        bobs = cast(TransportAddress, allocated.get(a.XOR_RELAYED_ADDRESS))
        alice, alices = await self.tcp_client()
        announced = self.announced_to(bob)
        await bob.permit(alices)
        plain = await self.data(await self.connect(alice, bobs))
        answer = await alice.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, bobs), (a.PEER_TLS, "localhost")])
        assert code_of(answer) == 446
        plain.write(b"no TLS at all\r\n\r\n")
        await eventually(lambda: plain.end != "")
        await eventually(lambda: not len(self.house.core._allocations.connections))
        answer = await alice.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, bobs), (a.PEER_TLS, "localhost")])
        assert code_of(answer) == 0
        await eventually(lambda: announced)
        wire = await self.data(answer.get(a.CONNECTION_ID) or 0)
        bobs_wire = await self.data(announced[0].get(a.CONNECTION_ID) or 0, "bob")
        wire.write(b"hello bob")
        await eventually(lambda: bobs_wire.raw == b"hello bob")
        bobs_wire.write(b"hello alice")
        await eventually(lambda: wire.raw == b"hello alice")
        bridged = [relay.counters.bridged for each in self.house.core.sessions() for relay, _ in cast(Any, each).relays]
        assert bridged == [0, 0]

    async def test_a_peer_that_accepts_and_says_nothing(self) -> None:
        """447 after 8 seconds, which leaves a client that waits 39.5 its answer; the peer is hung up on."""
        peer = self.tcp_peer()
        client, _ = await self.tcp_client()
        answer = client.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, peer.address), (a.PEER_TLS, "localhost")])
        conversation = await peer.next()
        await eventually(lambda: conversation.heard)  # a ClientHello
        self.house.reactor.advance(8.0)
        assert code_of(await answer) == 447
        await eventually(lambda: conversation.end == "reset")

    async def test_a_peer_that_calls_and_says_nothing(self) -> None:
        """It is hung up on after 8 seconds, and nobody hears of it; of a flood of them no more stay than may."""
        client = await self.client()
        await client.greet()
        allocated = await client.ask(Method.ALLOCATE, [TCP_ATTRIBUTE, (a.PEER_TLS, "")])
        relayed = cast(TransportAddress, allocated.get(a.XOR_RELAYED_ADDRESS))
        announced = self.announced_to(client)
        await client.permit(relayed)
        callers: list[Conversation] = [await call(relayed) for _ in range(MAX_CONNECTIONS + 4)]
        await eventually(lambda: sum(each.end != "" for each in callers) == 4)
        self.house.reactor.advance(8.0)
        await eventually(lambda: all(each.end != "" for each in callers))
        assert announced == []
        relay: Any = next(iter(self.house.core.sessions())).relays[0][0]
        assert relay.connections == set()
        await all_close(callers)
