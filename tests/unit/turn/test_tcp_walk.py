"""The invariant: whatever clients, peers and the shell do with TCP allocations, in whatever order, no verb of the core
raises, the core knows exactly the connections that are open and joined, and after the last deadline nothing is left.

A seeded walk, and not a state machine of hypothesis's: what is of interest takes an allocation, a connection and a data
connection one behind the other, which that hardly ever comes upon.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from relayd.address import AppConnection, Family
from relayd.stun import attributes as a
from relayd.stun.message import Method, decode
from relayd.turn import outputs as out
from relayd.turn.peer_connections import State
from relayd.turn.settings import TurnSettings

from .parties import OTHER_PEER, PEER, PEER6, REALM, Client, Shell, code_of

FAMILIES = (Family.IPV4, Family.IPV6)
PEERS = [PEER, OTHER_PEER, PEER6, PEER.with_port(1), PEER.with_port(0)]
STEPS = 1000


class Walk:
    """Three clients, four connections for data, two users, peers that call and are called, a slow shell and a clock."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.shell = Shell(TurnSettings(REALM, transports={17: FAMILIES, 6: FAMILIES}), seed)
        owners = ["alice", "alice", "bob", "alice", "alice", "alice", "bob"]
        self.clients = [
            Client(self.shell, 40_000 + at, who, self.shell.passwords[who], app_connection=AppConnection.TCP)
            for at, who in enumerate(owners)
        ]
        self.numbers = [(7, "alice")]  # and who may bind them
        self.handles = ["a connection that never was"]
        self.granted = Counter[int]()
        self.likely: list[Callable[[], None]] = [self.connect, self.call, self.bind, self.bind, self.permit]
        self.likely += [self.serve, self.peer_hangs_up, self.data_client_hangs_up]
        self.unlikely: list[Callable[[], None]] = [
            self.refresh,
            self.shell_lets_wait,
            self.shell_tells_again_of_an_end,
            self.client_hangs_up,
            self.peers_change,
            self.rules_change,
            self.revoke,
            self.wait,
        ]

    # --- steps ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        self.allocate()
        self.random.choice(self.likely if self.random.random() < 0.85 else self.unlikely)()
        self.learn()
        self.assert_connections_are_those_of_the_shell()

    def allocate(self) -> None:
        """Whoever has no allocation."""
        for at, client in enumerate(self.clients[:3]):
            if self.shell.core.allocation_of(client.path) is None:
                both = [(a.ADDITIONAL_ADDRESS_FAMILY, 2)] if at == 1 else []
                self.ask(client, Method.ALLOCATE, [(a.REQUESTED_TRANSPORT, 6), *both])

    def refresh(self) -> None:
        family = self.random.choice([[], [(a.REQUESTED_ADDRESS_FAMILY, 1)], [(a.REQUESTED_ADDRESS_FAMILY, 2)]])
        self.ask(self.some_client(), Method.REFRESH, [(a.LIFETIME, self.random.choice([0, 900])), *family])

    def permit(self) -> None:
        self.ask(self.some_client(), Method.CREATE_PERMISSION, [(a.XOR_PEER_ADDRESS, self.random.choice(PEERS))])

    def connect(self) -> None:
        tls = self.random.choice([[], [], [(a.PEER_TLS, "peer.example")]])
        self.ask(self.some_client(), Method.CONNECT, [(a.XOR_PEER_ADDRESS, self.random.choice(PEERS)), *tls])

    def bind(self) -> None:
        number, owner = self.random.choice(self.numbers[-3:])
        clients = self.clients
        if self.random.random() < 0.8:
            clients = [each for each in self.clients[3:] if each.username == owner]
        self.ask(self.random.choice(clients), Method.CONNECTION_BIND, [(a.CONNECTION_ID, number)])

    def call(self) -> None:
        relays = [str(relay) for each in self.shell.core.sessions() for relay, _ in each.relays]
        if relays:
            self.handles.append(self.shell.arrive(self.random.choice(relays), self.random.choice(PEERS)))

    def peer_hangs_up(self) -> None:
        if self.shell.connections:
            self.shell.hang_up(self.random.choice(sorted(self.shell.connections)))

    def shell_tells_again_of_an_end(self) -> None:
        handle = self.random.choice(self.handles)
        if handle not in self.shell.connections:
            self.shell.core.peer_connection_closed(handle, self.shell.now)
            self.shell.run()

    def client_hangs_up(self) -> None:
        self.hang_up(self.some_client())

    def data_client_hangs_up(self) -> None:
        self.hang_up(self.random.choice(self.clients[3:]))

    def peers_change(self) -> None:
        self.shell.unreachable = self.random.choice([set(), {PEER}])
        self.shell.impostors = self.random.choice([set(), {OTHER_PEER}])

    def rules_change(self) -> None:
        self.shell.rules.refused = self.random.choice([set(), set(), {PEER.ip}, {PEER6.ip}])
        self.shell.core.peer_rules_changed(self.shell.now)
        self.shell.run()

    def revoke(self) -> None:
        self.shell.core.end_user(self.random.choice(["alice", "bob"]), out.EndReason.REVOKED, self.shell.now)
        self.shell.run()

    def shell_lets_wait(self) -> None:
        self.shell.answers_at_once = False

    def serve(self) -> None:
        self.shell.answers_at_once = True
        self.shell.answer_all()
        self.shell.run()

    def wait(self) -> None:
        self.shell.advance(self.random.choice([1, 10, 29, 31, 300, 700]))

    # --- what holds -----------------------------------------------------------------------------------------------

    def assert_connections_are_those_of_the_shell(self) -> None:
        """What is open is pending or bound, what is joined is bound, each with a peer that may be reached; observers
        heard of each beginning and end.
        """
        shell, connections = self.shell, self.shell.core._allocations.connections
        known = [each for allocation in shell.core.sessions() for each in connections.of(allocation)]
        assert len(known) == len(connections)
        there = {str(each.handle): each.peer for each in known if each.state is not State.CONNECTING}
        assert there == shell.connections
        assert {str(each.handle) for each in known if each.state is State.BOUND} == set(shell.joined)
        assert not any(each.peer.ip in shell.rules.refused for each in known)
        opened, ended = shell.events(out.PeerConnectionOpened), shell.events(out.PeerConnectionEnded)
        assert len(opened) - len(ended) == len(there)

    def end(self) -> None:
        """Let everybody go quiet: after the longest lifetime there is nothing."""
        self.serve()
        self.shell.advance(3700)
        self.shell.assert_nothing_left()
        tried = self.granted[Method.CONNECT], self.granted[Method.CONNECTION_BIND]
        assert min(tried) >= 8, tried  # else this has shown nothing

    # --- within ---------------------------------------------------------------------------------------------------

    def some_client(self) -> Client:
        return self.random.choice(self.clients[:3])

    def ask(self, client: Client, method: Method, pairs: list[Any]) -> None:
        if self.shell.core.is_data_connection(client.path):
            return  # what comes there is no TURN
        if client.nonce is None:
            client.greet()
        client.send(client.encode(method, pairs))

    def hang_up(self, client: Client) -> None:
        client.nonce = None  # as that of the next connection
        self.shell.core.path_closed(client.path, self.shell.now)
        self.shell.run()

    def learn(self) -> None:
        """Take ids from what came, and a nonce from whom it is stale for."""
        for sent in self.shell.sent:
            message = decode(sent.data)
            (client,) = [each for each in self.clients if each.path == sent.path]
            number = message.get(a.CONNECTION_ID)
            if number is not None:
                self.numbers.append((number, client.username))
            if message.get(a.ERROR_CODE) is None:
                self.granted[message.method] += 1
            elif code_of(message) == 438:
                client.nonce = None
        self.shell.sent.clear()


@pytest.mark.parametrize("seed", range(8))
def test_a_walk(seed: int) -> None:
    """See the module."""
    walk = Walk(seed)
    for _ in range(STEPS):
        walk.step()
    walk.end()
