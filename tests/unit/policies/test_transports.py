"""The policy `transports:`."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from relayd.address import AppConnection, Family, FiveTuple, Path, TransportAddress
from relayd.errors import ConfigurationError
from relayd.policies.transports import TransportsFactory
from relayd.turn.outputs import OpenRelay, RelayRefused

CLIENT, SERVER = TransportAddress.parse("198.51.100.1", 5000), TransportAddress.parse("192.0.2.1", 3478)


def request(transport: int) -> OpenRelay:
    path = Path(FiveTuple(CLIENT, SERVER, 6), AppConnection.TCP)
    return OpenRelay(id=1, path=path, username="alice", transport=transport, families=(Family.IPV4,))


@pytest.mark.parametrize(("arguments", "allowed", "refused"), [("udp", 17, 6), ("tcp", 6, 17)])
def test_one_transport_is_relayed(arguments: str, allowed: int, refused: int) -> None:
    """The one that is named is relayed; the other is refused as where there is none, however the client comes."""
    policy = TransportsFactory().make(arguments, Clock())
    assert policy.may_allocate(request(allowed)) is None
    assert policy.may_allocate(request(refused)) == RelayRefused(442)


def test_nothing_else_is_touched() -> None:
    """It has no opinion on peers and bandwidth."""
    policy = TransportsFactory().make("udp", Clock())
    assert policy.may_reach("alice", SERVER)
    assert policy.bandwidth("alice") is None


@pytest.mark.parametrize("arguments", ["", "sctp", "UDP", "udp,tcp", "17"])
def test_bad_arguments(arguments: str) -> None:
    """Anything else is refused at the start, with what to write."""
    with pytest.raises(ConfigurationError, match="write transports:udp or transports:tcp"):
        TransportsFactory().make(arguments, Clock())
