"""Promises of relayd.peers.udp: which ports are tried, what is advertised, and that nothing leaks."""

from __future__ import annotations

import errno
import os
import random
import weakref
from collections.abc import Iterable
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from relayd.address import Family, TransportAddress
from relayd.config import RelayAddress, RelaySettings
from relayd.errors import ConfigurationError, RelayUnavailable
from relayd.interfaces import IPeerTransport, IPeerTransportFactory
from relayd.peers.ports import MAX_TRIES
from relayd.peers.udp import UdpPeers, UdpPeersFactory

V4 = TransportAddress.parse("192.0.2.1", 0)
V4_SECOND = TransportAddress.parse("192.0.2.2", 0)
V6 = TransportAddress.parse("2001:db8::1", 0)
PUBLIC = TransportAddress.parse("203.0.113.7", 0)


class FakeRelay:
    """An open port of `FakePlane`."""

    def __init__(self, plane: FakePlane, address: TransportAddress) -> None:
        self.address = address
        self._plane = plane

    def close(self) -> None:
        self._plane.open.pop(self.address, None)


class FakePlane:
    """Hands out addresses as an operating system does; `broken` makes chosen ports fail with an errno."""

    def __init__(self, taken: Iterable[int] = (), broken: dict[int, int] | None = None, error: int = 0) -> None:
        self.open: dict[TransportAddress, FakeRelay] = {}
        self.tries: list[TransportAddress] = []
        self.taken = set(taken)
        self.broken = broken or {}
        self.error = error

    def open_relay(self, address: TransportAddress, receiver: Any) -> FakeRelay:
        self.tries.append(address)
        number = self.error or self.broken.get(address.port, 0)
        if not number and (address in self.open or address.port in self.taken):
            number = errno.EADDRINUSE
        if number:
            raise OSError(number, os.strerror(number))
        relay = self.open[address] = FakeRelay(self, address)
        return relay


RECEIVER: Any = object()  # nobody calls it here


def make(plane: FakePlane, lowest: int, highest: int, *addresses: RelayAddress, seed: int = 1) -> UdpPeers:
    settings = RelaySettings(addresses or (RelayAddress(V4, V4),), lowest, highest)
    return UdpPeers(cast(Any, plane), settings, random.Random(seed).randbytes)


def result(deferred: Deferred[Any]) -> Any:
    """What a Deferred that has fired gives; raises what it failed with."""
    results: list[Any] = []
    deferred.addCallbacks(results.append, lambda failure: results.append(failure.value))
    assert results, "the Deferred has not fired"
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def test_provides_its_interfaces() -> None:
    """The transport and its factory are what the seams ask for."""
    assert verifyObject(IPeerTransport, make(FakePlane(), 1, 2))
    assert verifyObject(IPeerTransportFactory, UdpPeersFactory())


def test_a_relay_comes_from_the_configured_address_and_range() -> None:
    """The port is in the range, and the advertised address is the configured one with that port."""
    plane = FakePlane()
    relay, advertised, reserved = result(
        make(plane, 50000, 50009, RelayAddress(V4, PUBLIC)).open(Family.IPV4, RECEIVER)
    )
    assert relay.address.ip == V4.ip
    assert 50000 <= relay.address.port <= 50009
    assert advertised == PUBLIC.with_port(relay.address.port)
    assert reserved is None


def test_the_first_port_is_unpredictable() -> None:
    """Where the search begins depends on entropy only: many seeds reach many ports, over the whole range."""
    ports = {
        result(make(FakePlane(), 49152, 65535, seed=seed).open(Family.IPV4, RECEIVER))[0].address.port
        for seed in range(200)
    }
    assert len(ports) > 190
    assert min(ports) < 51000
    assert max(ports) > 64000


@pytest.mark.parametrize("free", [50000, 50001, 50002, 50003])
def test_the_last_free_port_of_a_tiny_range_is_found(free: int) -> None:
    """A range of four with three in use still gives the fourth, whatever the order of the search."""
    for seed in range(20):
        plane = FakePlane(taken={50000, 50001, 50002, 50003} - {free})
        relay, _, _ = result(make(plane, 50000, 50003, seed=seed).open(Family.IPV4, RECEIVER))
        assert relay.address.port == free
        assert len(plane.tries) == len(set(plane.tries)) <= 4


def test_every_port_can_be_had_once_and_again_after_close() -> None:
    """A range gives as many relays as it has ports, then RelayUnavailable; all again once they close."""
    plane = FakePlane()
    peers = make(plane, 50000, 50006)
    for _ in range(2):
        relays = [result(peers.open(Family.IPV4, RECEIVER))[0] for _ in range(7)]
        assert {relay.address.port for relay in relays} == set(range(50000, 50007))
        with pytest.raises(RelayUnavailable) as refusal:
            result(peers.open(Family.IPV4, RECEIVER))
        assert not refusal.value.exhausted
        for relay in relays:
            relay.close()
    assert not plane.open


def test_a_full_range_is_given_up_after_a_bounded_number_of_tries() -> None:
    """The cost of a request does not grow with the range."""
    plane = FakePlane(taken=range(65536))
    with pytest.raises(RelayUnavailable):
        result(make(plane, 1, 65535).open(Family.IPV4, RECEIVER))
    assert len(plane.tries) == MAX_TRIES


def test_even_port() -> None:
    """EVEN-PORT gives even ports only (RFC 8656 section 14.6), all of them."""
    plane = FakePlane()
    peers = make(plane, 50001, 50007)
    ports = {result(peers.open(Family.IPV4, RECEIVER, even_port=True))[0].address.port for _ in range(3)}
    assert ports == {50002, 50004, 50006}
    with pytest.raises(RelayUnavailable):
        result(peers.open(Family.IPV4, RECEIVER, even_port=True))


def test_even_port_with_reservation_opens_both() -> None:
    """The reserved address is the next port of the same address, advertised in the same way."""
    plane = FakePlane()
    peers = make(plane, 50000, 50010, RelayAddress(V4, PUBLIC), RelayAddress(V4_SECOND, V4_SECOND))
    relay, advertised, reserved = result(peers.open(Family.IPV4, RECEIVER, even_port=True, reserve_next=True))
    assert relay.address.port % 2 == 0
    assert reserved[0].address == relay.address.with_port(relay.address.port + 1)
    assert reserved[1] == advertised.with_port(advertised.port + 1)
    assert set(plane.open) == {relay.address, reserved[0].address}


def test_a_pair_never_leaves_the_range() -> None:
    """An even port at the upper end of the range has no successor to reserve."""
    with pytest.raises(RelayUnavailable):
        result(make(FakePlane(), 50000, 50000).open(Family.IPV4, RECEIVER, even_port=True, reserve_next=True))
    relay, _, _ = result(make(FakePlane(), 50000, 50002).open(Family.IPV4, RECEIVER, True, True))
    assert relay.address.port == 50000


def test_a_reservation_that_fails_gives_the_even_port_back() -> None:
    """Where no pair is free nothing stays open."""
    plane = FakePlane(taken={50001, 50003})
    with pytest.raises(RelayUnavailable):
        result(make(plane, 50000, 50003).open(Family.IPV4, RECEIVER, even_port=True, reserve_next=True))
    assert not plane.open


def test_a_reservation_that_meets_exhaustion_gives_the_even_port_back() -> None:
    """Running out of descriptors between the two ports of a pair leaks neither."""
    plane = FakePlane(broken={50001: errno.EMFILE})
    with pytest.raises(RelayUnavailable) as refusal:
        result(make(plane, 50000, 50001).open(Family.IPV4, RECEIVER, even_port=True, reserve_next=True))
    assert refusal.value.exhausted
    assert not plane.open


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_exhaustion_is_told_apart_and_not_retried(number: int) -> None:
    """Out of descriptors or memory another port would not help: one try, and `exhausted` is set."""
    plane = FakePlane(error=number)
    with pytest.raises(RelayUnavailable) as refusal:
        result(make(plane, 50000, 50010).open(Family.IPV4, RECEIVER))
    assert refusal.value.exhausted
    assert len(plane.tries) == 1


def test_an_address_that_vanished_is_not_exhaustion() -> None:
    """Any other error refuses the request and says where."""
    plane = FakePlane(error=errno.EADDRNOTAVAIL)
    with pytest.raises(RelayUnavailable, match=r"192\.0\.2\.1") as refusal:
        result(make(plane, 50000, 50010).open(Family.IPV4, RECEIVER))
    assert not refusal.value.exhausted
    assert len(plane.tries) == 1


def test_families() -> None:
    """Families follow from the configured addresses, IPv4 is the default where there is any."""
    both = make(FakePlane(), 1, 9, RelayAddress(V6, V6), RelayAddress(V4, V4))
    assert both.families == {Family.IPV4, Family.IPV6}
    assert both.default_family is Family.IPV4
    assert result(both.open(Family.IPV6, RECEIVER))[0].address.ip == V6.ip
    only = make(FakePlane(), 1, 9, RelayAddress(V6, V6))
    assert only.default_family is Family.IPV6
    with pytest.raises(RelayUnavailable):
        result(only.open(Family.IPV4, RECEIVER))


def test_all_addresses_of_a_family_are_used() -> None:
    """Two addresses double the pool."""
    plane = FakePlane()
    peers = make(plane, 50000, 50003, RelayAddress(V4, V4), RelayAddress(V4_SECOND, V4_SECOND))
    for _ in range(8):
        result(peers.open(Family.IPV4, RECEIVER))
    assert len(plane.open) == 8


def test_a_closed_relay_is_forgotten() -> None:
    """Nothing is kept of what was opened: not even one relay for each port, which would last as long as the process."""
    peers = make(FakePlane(), 50000, 50010)
    relay, _, reserved = result(peers.open(Family.IPV4, RECEIVER, reserve_next=True))
    opened = [relay, reserved[0], result(peers.open(Family.IPV4, RECEIVER))[0]]
    del relay, reserved
    forgotten = [weakref.ref(each) for each in opened]
    while opened:
        opened.pop().close()
    assert [each() for each in forgotten] == [None] * 3


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (RelaySettings(()), 0, "--relay-address"),
        (RelaySettings((RelayAddress(V4, V4),), 10, 9), 0, "--relay-ports"),
        (RelaySettings((RelayAddress(V4, V4),), 0, 9), 0, "--relay-ports"),
        (RelaySettings((RelayAddress(V4, V4),), 1, 65536), 0, "--relay-ports"),
        (RelaySettings((RelayAddress(V4, V4),)), errno.EADDRNOTAVAIL, "192.0.2.1"),
    ],
)
def test_the_factory_refuses_what_cannot_work(settings: RelaySettings, error: int, words: str) -> None:
    """A configuration that cannot relay is refused at the start, in one line that names the option or the address."""
    with pytest.raises(ConfigurationError) as refusal:
        UdpPeersFactory().make(None, cast(Any, FakePlane(error=error)), settings)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_factory_leaves_no_port_open() -> None:
    """Checking the addresses opens nothing for good."""
    plane = FakePlane()
    peers = UdpPeersFactory().make(None, cast(Any, plane), RelaySettings((RelayAddress(V4, V4),)))
    assert not plane.open
    assert result(peers.open(Family.IPV4, RECEIVER))[0].address.port >= 49152
