"""The policy `redirect:`."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from relayd.address import AppConnection, Family, FiveTuple, Path, TransportAddress
from relayd.errors import ConfigurationError
from relayd.policies.redirect import RedirectFactory
from relayd.turn.outputs import OpenRelay, RelayRefused

SERVER = TransportAddress.parse("192.0.2.1", 3478)


def request(client: str) -> OpenRelay:
    path = Path(FiveTuple(TransportAddress.parse(client, 5000), SERVER, 17), AppConnection.UDP)
    return OpenRelay(id=1, path=path, username="alice", transport=17, families=(Family.IPV4,))


@pytest.mark.parametrize(
    ("arguments", "alternate", "domain"),
    [
        ("192.0.2.9", TransportAddress.parse("192.0.2.9", 3478), None),
        ("192.0.2.9:5349,relay2.example.org", TransportAddress.parse("192.0.2.9", 5349), "relay2.example.org"),
    ],
)
def test_allocations_are_sent_elsewhere(arguments: str, alternate: TransportAddress, domain: str | None) -> None:
    """Clients of the alternate's family get 300 with its address, and its domain if there is one."""
    policy = RedirectFactory().make(arguments, Clock())
    assert policy.may_allocate(request("198.51.100.1")) == RelayRefused(300, alternate=alternate, domain=domain)


def test_other_family_is_served() -> None:
    """An IPv6 client is not sent to an IPv4 server (RFC 8489 section 10), and the other way around."""
    four, six = (RedirectFactory().make(arguments, Clock()) for arguments in ("192.0.2.9", "[2001:db8::9]:3479"))
    assert four.may_allocate(request("2001:db8::1")) is None
    assert six.may_allocate(request("198.51.100.1")) is None
    refused = six.may_allocate(request("2001:db8::1"))
    assert refused == RelayRefused(300, alternate=TransportAddress.parse("2001:db8::9", 3479))


def test_nothing_else_is_touched() -> None:
    """Running allocations reach whom they reached, as fast as before."""
    policy = RedirectFactory().make("192.0.2.9", Clock())
    assert policy.may_reach("alice", TransportAddress.parse("198.51.100.2", 1))
    assert policy.bandwidth("alice") is None


@pytest.mark.parametrize(
    "arguments",
    ["", "relay2.example.org", "192.0.2.9:0", "192.0.2.9:70000", "2001:db8::9", "192.0.2.9,", "192.0.2.9,a b"],
)
def test_bad_arguments(arguments: str) -> None:
    """What is no address and port is refused at the start, with an example of what to write."""
    with pytest.raises(ConfigurationError, match=r"write redirect:192\.0\.2\.1:3478"):
        RedirectFactory().make(arguments, Clock())
