"""Peers refused by default, in every disguise; allow lists, deny lists, and our own endpoints."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.address import TransportAddress
from relayd.errors import ConfigurationError
from relayd.turn.peer_rules import REFUSED_BY_DEFAULT, Network, PeerRules, canonical, parse_cidr

DEFAULT = PeerRules()
REFUSED4 = [network for network in REFUSED_BY_DEFAULT if isinstance(network, ipaddress.IPv4Network)]
REFUSED6 = [network for network in REFUSED_BY_DEFAULT if isinstance(network, ipaddress.IPv6Network)]


def reach(host: str, rules: PeerRules = DEFAULT, port: int = 5000) -> bool:
    packed = ipaddress.ip_address(host).packed  # not through TransportAddress.parse, which unmaps
    return rules.may_reach("alice", TransportAddress(packed, port))


@pytest.mark.parametrize("network", REFUSED_BY_DEFAULT, ids=str)
def test_refused_by_default(network: Network) -> None:
    """The first and the last address of every range are refused."""
    assert not reach(str(network[0]))
    assert not reach(str(network[-1]))


@pytest.mark.parametrize("network", REFUSED4, ids=str)
@pytest.mark.parametrize("prefix", ["0" * 20 + "ffff", "0" * 24, "0064ff9b" + "0" * 16])
def test_disguised_at_the_end(network: ipaddress.IPv4Network, prefix: str) -> None:
    """An IPv4 address inside an IPv6 one (mapped, compatible, NAT64) is refused like the IPv4 address."""
    for address in (network[0], network[-1]):
        packed = bytes.fromhex(prefix) + address.packed
        assert not DEFAULT.may_reach("alice", TransportAddress(packed, 1))


@pytest.mark.parametrize("network", REFUSED4, ids=str)
def test_disguised_as_6to4(network: ipaddress.IPv4Network) -> None:
    """A 6to4 address leads to the IPv4 address in it, and is refused with it."""
    for address in (network[0], network[-1]):
        assert not DEFAULT.may_reach("alice", TransportAddress(b"\x20\x02" + address.packed + bytes(10), 1))


@pytest.mark.parametrize(
    "host",
    ["1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
     "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0",
     "223.255.255.255",
     "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "2001:200::1", "2a00::1", "2606:4700::1111", "fbff::1"],
)  # fmt: skip
def test_the_internet_is_open(host: str) -> None:
    """Public addresses beside the refused ranges are reached, in every form."""
    assert reach(host)


def test_special_ipv6_addresses_are_not_ipv4() -> None:
    """:: and ::1 are themselves, not 0.0.0.0 and 0.0.0.1: they can be allowed by their own names."""
    assert canonical(bytes(16)) == bytes(16)
    assert reach("::1", PeerRules(allow=[parse_cidr("::1")]))
    assert not reach("::1", PeerRules(allow=[parse_cidr("0.0.0.0/8")]))


def test_allow_wins() -> None:
    """An allow wins over the built-in list and over the operator's deny, and holds for disguised addresses too."""
    rules = PeerRules(allow=[parse_cidr("10.1.0.0/16")], deny=[parse_cidr("10.0.0.0/8"), parse_cidr("8.8.8.0/24")])
    assert reach("10.1.2.3", rules)
    assert reach("::ffff:10.1.2.3", rules)
    assert not reach("10.2.2.3", rules)
    assert not reach("8.8.8.8", rules)
    assert not reach("64:ff9b::8.8.8.8", rules)
    assert reach("8.8.9.8", rules)
    assert not reach("192.168.0.1", rules)


def test_rules_about_wrapped_ranges() -> None:
    """A rule may also name the wrapping range itself."""
    assert not reach("2002:808:808::1", PeerRules(deny=[parse_cidr("2002::/16")]))
    assert reach("2002:a00:1::1", PeerRules(allow=[parse_cidr("2002::/16")]))


def test_own_endpoints() -> None:
    """Our own endpoints are refused even where their address is allowed, in every form; other ports are not."""
    own = [TransportAddress.parse("127.0.0.1", 3478), TransportAddress.parse("2a00::9", 3478)]
    rules = PeerRules(allow=[parse_cidr("127.0.0.0/8")], own=own)
    assert not reach("127.0.0.1", rules, 3478)
    assert not reach("::ffff:127.0.0.1", rules, 3478)
    assert not reach("2a00::9", rules, 3478)
    assert reach("127.0.0.1", rules, 50_000)
    assert reach("127.0.0.2", rules, 3478)
    assert reach("2a00::9", rules, 50_000)
    assert reach("127.0.0.1", rules, 0)


@given(
    address=st.ip_addresses(),
    allow=st.lists(st.ip_addresses(), max_size=4),
    deny=st.lists(st.ip_addresses(), max_size=4),
    widths=st.lists(st.integers(0, 32), min_size=8, max_size=8),
)
def test_against_the_plain_definition(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    allow: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
    deny: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
    widths: list[int],
) -> None:
    """For any lists and any address the answer is that of looking through every range one by one."""

    def networks(addresses: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address], at: int) -> list[Network]:
        return [
            ipaddress.ip_network((each, widths[at + number]), strict=False) for number, each in enumerate(addresses)
        ]

    allowed, denied = networks(allow, 0), networks(deny, 4)
    forms = [address, ipaddress.ip_address(canonical(address.packed))]

    def within(ranges: Iterable[Network]) -> bool:
        return any(form in network for network in ranges for form in forms)

    expected = within(allowed) or not within([*denied, *REFUSED_BY_DEFAULT])
    assert PeerRules(allowed, denied).may_reach("alice", TransportAddress(address.packed, 1)) is expected


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        (" 192.0.2.1 ", "192.0.2.1/32"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
    ],
)
def test_parse_cidr(text: str, network: str) -> None:
    """Ranges and single addresses are read; a mapped range is the IPv4 one."""
    assert str(parse_cidr(text)) == network


@pytest.mark.parametrize("text", ["", "10.0.0.0/33", "10.0.0/8", "localhost", "10.0.0.1/8", "2001:db8::1/32", "*"])
def test_parse_cidr_refuses(text: str) -> None:
    """What is no range is refused in one line that shows it; a range with bits beyond its prefix comes with a guess."""
    with pytest.raises(ConfigurationError) as caught:
        parse_cidr(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)
