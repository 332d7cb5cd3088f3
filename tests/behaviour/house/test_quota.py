"""Quotas, ports and descriptors, counted exactly while clients come over every way in at once."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from relayd.address import AppConnection
from relayd.stun import attributes as a
from relayd.stun.message import Method
from tests.behaviour.house.suite import HouseCase
from tests.support.house import descriptors
from tests.support.ports import is_free
from tests.support.turn_client import UDP_ATTRIBUTE, TurnClient, code_of, eventually, pause

EPHEMERAL = 32_768  # Linux gives ports from here on to whoever asks for any, such as the clients of these tests
KINDS = (AppConnection.UDP, AppConnection.TCP, AppConnection.TLS, AppConnection.DTLS)


def quiet_ports(run: int) -> int:
    """The first of a run of free ports, an even one, in the range from which none is given away meanwhile."""
    for first in range(20_000 + os.getpid() % 5_000 * 2, EPHEMERAL - run, run):
        if all(is_free(port, ["127.0.0.1", "::1"]) for port in range(first, first + run)):
            return first
    raise RuntimeError(f"no {run} free ports in a row")


class QuotaTests(HouseCase):
    settings = {"user_quota": 5}

    async def greeted(self, count: int) -> list[TurnClient]:
        """That many clients of one user on each way in, each with a nonce of its own."""
        clients = [await self.client(kind=kind) for kind in KINDS for _ in range(count)]
        for client in clients:
            await client.greet()
        return clients

    async def test_bursts_over_all_ways_in(self) -> None:
        """However many Allocates come at once, each sent three times, exactly the quota is granted, and all others are
        486; what ends makes room for exactly as many.
        """
        clients = await self.greeted(3)
        before = descriptors()
        for client in clients:
            client.answers = 0
        requests = [client.request(Method.ALLOCATE, [UDP_ATTRIBUTE]) for client in clients]
        answers = [client.send(request) for client, request in zip(clients, requests, strict=True)]
        for _ in range(2):
            for client, request in zip(clients, requests, strict=True):
                client.wire.write(request)
        codes = [code_of(await answer) for answer in answers]
        await eventually(lambda: all(client.answers == 3 for client in clients))
        assert Counter(codes) == {0: 5, 486: 7}
        assert self.house.sessions() == 5
        assert self.house.quota_taken() == 5
        granted = [client for client, code in zip(clients, codes, strict=True) if code == 0]
        refused = [client for client, code in zip(clients, codes, strict=True) if code == 486]
        for client in granted[:2]:
            await client.refresh(0)
        again = [code_of(await client.allocate()) for client in refused]
        assert Counter(again) == {0: 2, 486: 5}
        for client in clients:
            await client.refresh(0)
        self.house.assert_holds_nothing()
        assert descriptors() == before

    async def test_retransmissions_bring_the_same_answer(self) -> None:
        """At the edge of the quota a repeated Allocate gets the same relayed address, and takes no second place."""
        for client in await self.greeted(1):
            request = client.request(Method.ALLOCATE, [UDP_ATTRIBUTE])
            addresses = {(await client.send(request)).get(a.XOR_RELAYED_ADDRESS) for _ in range(3)}
            assert len(addresses) == 1
        assert self.house.quota_taken() == 4
        assert self.house.sessions() == 4

    async def test_another_user_has_a_quota_of_his_own(self) -> None:
        """One user at the limit keeps nobody else out."""
        for client in (await self.greeted(2))[:6]:
            await client.allocate()
        other = await self.client("bob")
        assert code_of(await other.allocate()) == 0

    async def test_closed_connections_give_places_back(self) -> None:
        """A place is free again when its connection is gone, also one whose Allocate was not yet answered."""
        for _ in range(3):
            clients = [await self.client(kind=AppConnection.TCP) for _ in range(5)]
            for client in clients:
                await client.greet()
                client.wire.write(client.request(Method.ALLOCATE, [UDP_ATTRIBUTE]))
                client.close()
            listener: Any = self.house.daemon.listeners[1]
            await eventually(lambda: listener.admission.total == 0)  # noqa: B023  (called within this round)
        self.house.assert_holds_nothing()


class BatchedQuotaTests(QuotaTests):
    data_plane = "batched"


class PortPoolTests(HouseCase):
    """The relay has eight ports in each family, and no quota."""

    def setUp(self) -> None:
        self.first = quiet_ports(8)
        self.settings = {"user_quota": 0, "relay_ports": (self.first, self.first + 7)}
        super().setUp()

    def ports_are_free(self) -> bool:
        return all(is_free(port, ["127.0.0.1"]) for port in range(self.first, self.first + 8))

    async def fill(self, *attributes: Any) -> tuple[list[TurnClient], list[int]]:
        """Ten clients allocate; the clients, and the codes of the answers."""
        clients = [await self.client() for _ in range(10)]
        return clients, [code_of(await client.allocate(*attributes)) for client in clients]

    async def test_the_pool_returns_to_where_it_started(self) -> None:
        """Ports are granted to the last one, then it is 508; what ends, reservations too, gives back every port."""
        await pause()  # the reactor opens what it needs for itself
        before = descriptors()
        for attributes, granted in (([], 8), ([(a.EVEN_PORT, False)], 4), ([(a.EVEN_PORT, True)], 4)):
            clients, codes = await self.fill(*attributes)
            assert Counter(codes) == {0: granted, 508: 10 - granted}, attributes
            for client in clients:
                await client.refresh(0)
                await client.close()
            self.house.reactor.advance(31)  # for what was reserved
            await eventually(lambda: self.house.core.next_timer() is None)
            self.house.assert_holds_nothing()
            assert self.ports_are_free()
        assert descriptors() == before

    async def test_a_token_is_spent_once(self) -> None:
        """A token is good for one allocation, also where two ask at the same time; the port is closed with it."""
        first, one, two = [await self.client() for _ in range(3)]
        token = (await first.allocate((a.EVEN_PORT, True))).get(a.RESERVATION_TOKEN)
        assert token is not None
        await one.greet()
        await two.greet()
        answers = [client.ask(Method.ALLOCATE, [UDP_ATTRIBUTE, (a.RESERVATION_TOKEN, token)]) for client in (one, two)]
        assert sorted([code_of(await answer) for answer in answers]) == [0, 508]
        for client in (first, one, two):
            await client.refresh(0)
        await pause()
        assert self.ports_are_free()


class BatchedPortPoolTests(PortPoolTests):
    data_plane = "batched"
