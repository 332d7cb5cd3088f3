"""Promises of relayd.listeners.client_ports: a wildcard is every address of the host, on one port, or an error."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from relayd.address import TransportAddress
from relayd.errors import ConfigurationError
from relayd.listeners.client_ports import PORT_ATTEMPTS
from relayd.listeners.udp import UdpListener, open_udp
from tests.unit.listeners.fakes import FakeDataPlane, FakeService, hosts_of

PUBLIC, PRIVATE, LOOPBACK = (TransportAddress.parse(host, 0) for host in ("192.0.2.1", "10.0.0.1", "127.0.0.1"))
PUBLIC_6, LINK_LOCAL = TransportAddress.parse("2001:db8::1", 0), TransportAddress.parse("fe80::1", 0, 2)
HOSTS = hosts_of(PUBLIC, PRIVATE, LOOPBACK, PUBLIC_6, LINK_LOCAL)


def make(description: str, plane: Any, hosts: Any = HOSTS) -> UdpListener:
    service: Any = FakeService()
    return open_udp(description, service, plane, hosts)


@pytest.mark.parametrize("interface", ["", ":interface=0.0.0.0"])
def test_a_wildcard_is_one_port_for_each_address(interface: str) -> None:
    """So that answers leave from the address that the client wrote to; only of its own family; none is a sibling."""
    plane = FakeDataPlane()
    listener = make(f"udp:3478{interface}", plane)
    assert listener.addresses == list(plane.ports) == [each.with_port(3478) for each in (PUBLIC, PRIVATE, LOOPBACK)]
    assert listener.description == "udp 0.0.0.0:3478 (3 addresses)"
    assert all(port.siblings == [] for port in plane.ports.values())
    listener.close()
    assert not plane.ports


def test_ipv6_with_the_zone_of_link_local_addresses() -> None:
    """`::` stands for IPv6 addresses; a link-local one is opened on its interface."""
    plane = FakeDataPlane()
    listener = make("udp:3478:interface=\\:\\:", plane)
    assert listener.addresses == [PUBLIC_6.with_port(3478), LINK_LOCAL.with_port(3478)]
    assert listener.description == "udp [::]:3478 (2 addresses)"


def test_a_link_local_address_that_cannot_be_bound_is_left_out() -> None:
    """An interface that is down lists one; any other address that cannot be bound is an error."""
    plane = FakeDataPlane()
    plane.missing = {LINK_LOCAL}
    assert make("udp:0:interface=\\:\\:", plane).description == "udp [::]:40001 (1 address)"
    plane = FakeDataPlane()
    plane.missing = {PRIVATE}
    with pytest.raises(ConfigurationError, match=r"^udp:3478: 10\.0\.0\.1:3478: .*give an address of this machine"):
        make("udp:3478", plane)
    assert not plane.ports


def test_a_port_in_use_on_one_address_opens_none() -> None:
    """All or nothing, link-local or not, and the error names the address."""
    for interface, taken, text in (
        ("", LOOPBACK, "127.0.0.1:3478"),
        (":interface=\\:\\:", LINK_LOCAL, "[fe80::1]:3478"),
    ):
        plane = FakeDataPlane()
        plane.taken = {taken.with_port(3478)}
        with pytest.raises(ConfigurationError) as refusal:
            make(f"udp:3478{interface}", plane)
        assert f"{text}: Address already in use; choose another port" in str(refusal.value)
        assert not plane.ports


def test_any_port_is_one_that_is_free_on_all_addresses() -> None:
    """Port 0: what the system gives the first address is tried for the others, and if it is taken the next one."""
    plane = FakeDataPlane()
    plane.taken = {PRIVATE.with_port(40001), LOOPBACK.with_port(40002)}
    listener = make("udp:0", plane)
    assert listener.addresses == list(plane.ports) == [each.with_port(40003) for each in (PUBLIC, PRIVATE, LOOPBACK)]
    assert listener.description == "udp 0.0.0.0:40003 (3 addresses)"


def test_the_search_for_a_free_port_ends() -> None:
    """After some attempts it is an error like any other, and nothing stays open."""
    plane = FakeDataPlane()
    plane.taken = {PRIVATE.with_port(40001 + attempt) for attempt in range(PORT_ATTEMPTS)}
    with pytest.raises(ConfigurationError, match="in use"):
        make("udp:0", plane)
    assert not plane.ports


def test_no_descriptor_left_is_no_reason_to_search() -> None:
    """Only a port in use is worth another attempt."""
    plane = FakeDataPlane()
    plane.error = errno.EMFILE
    with pytest.raises(ConfigurationError, match="raise the limit of open files"):
        make("udp:0", plane)
    assert plane._next == 40001


def test_a_host_without_addresses_of_the_family() -> None:
    """It is said which family is missing."""
    with pytest.raises(ConfigurationError, match="this host has no IPv6 address"):
        make("udp:3478:interface=\\:\\:", FakeDataPlane(), hosts_of(LOOPBACK))
