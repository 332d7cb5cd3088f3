"""Clients, the relay's core and a peer over a network that loses, duplicates and reorders: no socket, no waiting."""

from __future__ import annotations

from collections import Counter

import pytest

from relayd.turn import outputs as out
from relayd.turn.outputs import EndReason
from relayd.turn.settings import TurnSettings
from tests.simulation.network import Weather
from tests.simulation.parties import SimulatedClient, Simulation
from tests.unit.turn.parties import BOTH, REALM

SEEDS = range(40)
# Datagrams leave 20 ms apart at the least, so with these delays their order is not kept.
BAD = Weather(loss=0.3, duplication=0.1, delay=0.2)
A_LIFE = 400.0  # seconds: more than nine requests need if each is given up at the last moment
A_LIFETIME = 601.0  # seconds: what nobody refreshes is gone by then


def assert_consistent(simulation: Simulation, client: SimulatedClient) -> None:
    """What holds for every client, however much of its traffic was lost."""
    created = [event for event in simulation.events(out.AllocationCreated) if event.path == client.path]
    assert len(created) <= 1, "a retransmission was taken for a new request"
    relayed = {address for event in created for _, address in event.relays}
    assert client.granted <= relayed
    heard = [data for source, data in simulation.peer.received if source in relayed]
    assert set(heard) <= set(client.sent)
    assert set(client.echoes) <= set(heard)


def test_a_perfect_network() -> None:
    """Without loss everything is sent once, and arrives once, in order."""
    simulation = Simulation(0, Weather())
    client = SimulatedClient(simulation, 40_000)
    simulation.run_until(simulation.now + A_LIFE)
    assert client.codes == [401, 0, 0, 0, 0, 0, 0, 0]
    assert [data for _, data in simulation.peer.received] == client.sent == client.echoes
    assert len(client.sent) == 20
    simulation.assert_nothing_left()


@pytest.mark.parametrize("seed", SEEDS)
def test_one_client_through_loss(seed: int) -> None:
    """A client that retransmits through 30 % loss gets exactly one allocation, whatever was lost or came twice, and
    when it is over nothing is left.
    """
    simulation = Simulation(seed, BAD)
    client = SimulatedClient(simulation, 40_000)
    simulation.run_until(simulation.now + A_LIFE)
    assert simulation.network.lost > 0
    assert_consistent(simulation, client)
    if not client.given_up:
        assert len(client.granted) == 1
        assert client.codes[:-1] == [401, *[0] * (len(client.codes) - 2)]
        assert client.codes[-1] in (0, 437)  # the deletion may have been done by an earlier copy of it
        assert len(client.sent) == 20
        assert client.echoes
    simulation.run_until(simulation.now + A_LIFETIME)
    simulation.assert_nothing_left()
    reasons = [event.reason for event in simulation.events(out.AllocationEnded)]
    assert len(reasons) == len(simulation.events(out.AllocationCreated))
    assert set(reasons) <= {EndReason.DELETED, EndReason.EXPIRED}
    assert client.given_up or reasons == [EndReason.DELETED]


def test_most_clients_get_through() -> None:
    """At 30 % loss retransmission is enough for nearly everyone; else the tests above would prove little."""
    given_up = 0
    for seed in SEEDS:
        simulation = Simulation(seed, BAD)
        client = SimulatedClient(simulation, 40_000)
        simulation.run_until(simulation.now + A_LIFE)
        given_up += client.given_up
    assert given_up <= len(SEEDS) // 5


@pytest.mark.parametrize("seed", range(10))
def test_a_quota_among_many(seed: int) -> None:
    """Six clients of one user with a quota of four, all at once: four allocations, never more, and two refusals."""
    simulation = Simulation(seed, BAD, TurnSettings(REALM, transports=BOTH, user_quota=4))
    clients = [SimulatedClient(simulation, 40_000 + number, deletes=False) for number in range(6)]
    simulation.run_until(simulation.now + 100)
    for client in clients:
        assert_consistent(simulation, client)
    assert len(list(simulation.core.sessions())) == len(simulation.open) == 4
    refusals = Counter(client.codes[-1] for client in clients if not client.given_up)
    assert refusals[486] <= 2
    simulation.run_until(simulation.now + A_LIFETIME)
    simulation.assert_nothing_left()


@pytest.mark.parametrize("seed", range(10))
def test_a_nonce_that_ends_in_the_middle(seed: int) -> None:
    """With nonces that last for three seconds clients are told 438, go on with the new one, and lose nothing."""
    simulation = Simulation(seed, BAD, TurnSettings(REALM, transports=BOTH, nonce_lifetime=3))
    client = SimulatedClient(simulation, 40_000)
    simulation.run_until(simulation.now + A_LIFE)
    assert_consistent(simulation, client)
    assert client.codes.count(401) == 1, "a stale nonce is no wrong password"
    assert set(client.codes) <= {0, 401, 437, 438}
    simulation.run_until(simulation.now + A_LIFETIME)
    simulation.assert_nothing_left()


@pytest.mark.parametrize("seed", range(10))
def test_a_client_that_moves_behind_its_nat(seed: int) -> None:
    """A client whose NAT gives it another port is another path: it gets an allocation of its own, and the old one
    ends in time.
    """
    simulation = Simulation(seed, BAD)
    before = SimulatedClient(simulation, 40_000, deletes=False)
    simulation.run_until(simulation.now + 100)
    del simulation.clients[before.path]
    after = SimulatedClient(simulation, 40_001, deletes=False)
    simulation.run_until(simulation.now + 100)
    for client in (before, after):
        assert_consistent(simulation, client)
    assert not before.granted & after.granted
    simulation.run_until(simulation.now + A_LIFETIME)
    simulation.assert_nothing_left()


def test_the_same_seed_is_the_same_story() -> None:
    """Two runs from one seed agree in every datagram, so that a failure can be told again."""

    def story(seed: int) -> list[tuple[float, bytes]]:
        simulation = Simulation(seed, BAD)
        SimulatedClient(simulation, 40_000)
        simulation.run_until(simulation.now + A_LIFE)
        return simulation.network.trace

    assert story(7) == story(7)
    assert story(7) != story(8)
