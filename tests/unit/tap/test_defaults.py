"""What holds where the operator said nothing: it has to be safe on any host."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from relayd.address import Family, TransportAddress
from relayd.config import RelayAddress
from relayd.errors import ConfigurationError
from relayd.launch import defaults
from relayd.local_addresses import local_addresses, own_endpoints


def address(host: str, port: int = 0) -> TransportAddress:
    return TransportAddress.parse(host, port)


def relay(host: str) -> RelayAddress:
    return RelayAddress(address(host), address(host))


@pytest.mark.parametrize(
    ("endpoint", "interface"),
    [
        ("udp:3478", "0.0.0.0"),
        ("tcp:3478:interface=192.0.2.1", "192.0.2.1"),
        (r"dtls:5349:certKey=c\:x.pem:interface=\:\:1", "::1"),
        (r"tcp:port=3478:interface=\:\:", "::"),
        ("tcp6:3478", "::"),
        ("tcp:3478:interface=localhost", None),
        ("tcp:3478:127.0.0.1", None),
        ("unix:/run/relayd.sock", None),
        ("systemd:domain=INET:index=0", None),
        (r"haproxy:tcp\:3478\:interface\=127.0.0.1", None),
    ],
)
def test_interface_is_read_off_the_endpoint(endpoint: str, interface: str | None) -> None:
    """Where an endpoint listens is known from its text, or said to be unknown; never guessed."""
    assert defaults.interface_of(endpoint) == (address(interface) if interface else None)


def test_default_ways_in_are_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --listen nobody outside this host gets in; IPv6 is listened on where there is any."""
    for has_ipv6, hosts in ((True, {"127.0.0.1", "::1"}), (False, {"127.0.0.1"})):
        monkeypatch.setattr(defaults, "has_ipv6_loopback", lambda answer=has_ipv6: answer)
        monkeypatch.setattr(defaults, "is_free", lambda host, port: True)
        ways_in = defaults.default_ways_in()
        assert len(ways_in) == 3 * len(hosts)
        assert {defaults.interface_of(endpoint) for _, endpoint in ways_in} == {address(host) for host in hosts}


def test_port_of_the_default_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is 8080; where somebody has that, in either family, any that is free, and the relay starts all the same."""
    monkeypatch.setattr(defaults, "has_ipv6_loopback", lambda: True)
    for taken, port in ((None, 8080), ("127.0.0.1", 0), ("::1", 0)):
        monkeypatch.setattr(defaults, "is_free", lambda host, port, taken=taken: host != taken)
        sites = [endpoint for kind, endpoint in defaults.default_ways_in() if kind == "web"]
        assert sites == [f"tcp:{port}:interface=127.0.0.1", rf"tcp:{port}:interface=\:\:1"]


def test_relay_from_where_we_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A named interface is relayed from; a wildcard stands for the way out of its family; each address counts once."""
    ways_out = {Family.IPV4: address("198.51.100.1"), Family.IPV6: address("2001:db8::1")}
    monkeypatch.setattr(defaults, "default_source", ways_out.get)
    relays = defaults.default_relay_addresses
    assert relays([address("192.0.2.1"), address("192.0.2.1")]) == (relay("192.0.2.1"),)
    assert relays([address("0.0.0.0")]) == (relay("198.51.100.1"),)
    assert relays([address("::")]) == (relay("2001:db8::1"),)
    assert relays([None]) == (relay("198.51.100.1"), relay("2001:db8::1"))


def test_no_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without any route says so, and which option helps."""
    monkeypatch.setattr(defaults, "default_source", lambda family: None)
    with pytest.raises(ConfigurationError, match="--relay-address"):
        defaults.default_relay_addresses([address("0.0.0.0")])


@pytest.mark.parametrize(
    ("interfaces", "relays", "confined"),
    [
        (["127.0.0.1", "::1"], ["127.0.0.1", "::1"], True),
        (["127.0.0.1", "192.0.2.1"], ["127.0.0.1"], False),
        (["0.0.0.0"], ["127.0.0.1"], False),
        (["127.0.0.1"], ["192.0.2.1"], False),
        ([None], ["127.0.0.1"], False),
    ],
)
def test_loopback_peers_need_everything_on_loopback(
    interfaces: list[str | None], relays: list[str], confined: bool
) -> None:
    """One public listener, one relayed address of use outside, or a way in that a proxy may feed: no exception then."""
    places = [address(host) if host else None for host in interfaces]
    assert defaults.is_confined_to_loopback(places, [relay(host) for host in relays]) is confined


def test_an_address_that_the_outside_knows_is_not_loopback() -> None:
    """Whoever tells clients a public address serves more than this host, wherever the packets leave."""
    behind_nat = RelayAddress(address("127.0.0.1"), address("198.51.100.7"))
    assert not defaults.is_confined_to_loopback([address("127.0.0.1")], [behind_nat])


def test_one_user_is_never_the_same() -> None:
    """The user of a run cannot be guessed from another run's."""
    one, other = defaults.OneUser(), defaults.OneUser()
    assert one.credential != other.credential
    assert len(bytes.fromhex(one.credential)) == 16


def test_wildcard_listeners_are_every_address_of_the_host() -> None:
    """Listening on 0.0.0.0 closes 127.0.0.1 and every other IPv4 address at that port to peers, and no IPv6 one."""
    endpoints = own_endpoints([address("0.0.0.0", 3478), address("192.0.2.77", 99)])
    assert address("127.0.0.1", 3478) in endpoints
    assert address("192.0.2.77", 99) in endpoints
    assert all(len(each.ip) == 4 for each in endpoints)


def test_loopback_is_an_address_of_this_host_and_no_link_local_one_lacks_its_zone() -> None:
    """What is enumerated can be bound: it is of the family that was asked for, and tells the interface if it must."""
    assert address("127.0.0.1") in local_addresses(Family.IPV4)
    assert {each.family for each in local_addresses(Family.IPV4)} == {Family.IPV4}
    for each in local_addresses(Family.IPV6):
        assert each.family is Family.IPV6
        assert bool(each.scope) == each.host.startswith("fe80:")


def test_addresses_that_reach_furthest_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one is what clients are told if nothing else decides: not loopback, and never link-local."""
    ips = [("fe80::5", 0, 3), ("::1", 0, 0), "127.0.0.1", ("2001:db8::1", 0, 0), "192.0.2.1", "192.0.2.1"]
    adapters = [SimpleNamespace(ips=[SimpleNamespace(ip=ip) for ip in ips])]
    monkeypatch.setattr("ifaddr.get_adapters", lambda: adapters)
    assert local_addresses(Family.IPV4) == [address("192.0.2.1"), address("127.0.0.1")]
    link_local = TransportAddress.parse("fe80::5", 0, 3)
    assert local_addresses(Family.IPV6) == [address("2001:db8::1"), address("::1"), link_local]
