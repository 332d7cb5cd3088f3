"""Promises of relayd.listeners.udp: which ports are opened, that they know each other, and that nothing stays open."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from relayd.address import TransportAddress
from relayd.errors import ConfigurationError
from relayd.interfaces import IDatagramReceiver, IListener
from relayd.listeners.udp import UdpListener, open_udp
from tests.unit.listeners.fakes import FakeDataPlane, FakeService


def make(description: str, plane: Any = None) -> tuple[UdpListener, FakeDataPlane, FakeService]:
    service: Any = FakeService()
    plane = plane or FakeDataPlane()
    return open_udp(description, service, plane), plane, service


def test_one_port() -> None:
    """One endpoint, one port, with the app_connection of UDP, and described for the operator."""
    listener, plane, _ = make("udp:3478:interface=127.0.0.1")
    address = TransportAddress.parse("127.0.0.1", 3478)
    assert list(plane.ports) == listener.addresses == [address]
    assert plane.ports[address].app_connection == listener.app_connection == "udp"
    assert listener.description == "udp 127.0.0.1:3478"
    assert verifyObject(IListener, listener)
    assert verifyObject(IDatagramReceiver, listener)


def test_datagrams_go_to_the_service() -> None:
    """What no flow takes reaches the service unchanged."""
    listener, _, service = make("udp:0:interface=\\:\\:1")
    client: Any = object()
    listener.datagram_received(client, b"hello")
    assert service.received == [(client, b"hello")]


def test_four_ports_for_behaviour_discovery() -> None:
    """RFC 5780 section 6: both addresses with both ports, all siblings of each other."""
    listener, plane, _ = make("udp:3478:interface=127.0.0.1:alternateInterface=127.0.0.2:alternatePort=4000")
    assert {str(address) for address in plane.ports} == {
        f"127.0.0.{host}:{port}" for host in (1, 2) for port in (3478, 4000)
    }
    assert {str(address) for address in listener.addresses} == {str(address) for address in plane.ports}
    for port in plane.ports.values():
        assert {id(sibling) for sibling in port.siblings} == {id(other) for other in plane.ports.values()}


def test_the_alternate_port_is_the_next_one_by_default() -> None:
    """Without alternatePort= the second port number is one more than the first."""
    _, plane, _ = make("udp:3478:interface=127.0.0.1:alternateInterface=127.0.0.2")
    assert {address.port for address in plane.ports} == {3478, 3479}


def test_any_port_is_the_same_on_both_addresses() -> None:
    """Port 0 gives two numbers, each on both addresses."""
    _, plane, _ = make("udp:0:interface=127.0.0.1:alternateInterface=127.0.0.2")
    ports = {address.port for address in plane.ports}
    assert len(plane.ports) == 4
    assert len(ports) == 2
    assert 0 not in ports


def test_a_port_in_use_opens_none() -> None:
    """If one of the four cannot be opened the error names it, and the others are closed again."""
    plane = FakeDataPlane()
    plane.taken.add(TransportAddress.parse("127.0.0.2", 3479))
    with pytest.raises(ConfigurationError, match=r"^udp:3478:.*: 127\.0\.0\.2:3479: .* in use; choose another port"):
        make("udp:3478:interface=127.0.0.1:alternateInterface=127.0.0.2", plane)
    assert not plane.ports


def test_a_foreign_address_is_refused() -> None:
    """An address that is not of this machine is named."""
    plane = FakeDataPlane()
    plane.error = errno.EADDRNOTAVAIL
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1:3478.*give an address of this machine"):
        make("udp:3478:interface=192.0.2.1", plane)


@pytest.mark.parametrize(
    "arguments",
    [
        "alternatePort=3480",
        "alternateInterface=127.0.0.2",
        "interface=127.0.0.1:alternateInterface=127.0.0.1",
        "interface=127.0.0.1:alternateInterface=0.0.0.0",
        "interface=127.0.0.1:alternateInterface=\\:\\:1",
        "interface=127.0.0.1:alternateInterface=127.0.0.2:alternatePort=3478",
        "interface=127.0.0.1:alternateInterface=127.0.0.2:alternatePort=x",
    ],
)
def test_alternates_that_cannot_work_are_refused(arguments: str) -> None:
    """RFC 5780 needs two real addresses of one family and two port numbers."""
    plane = FakeDataPlane()
    with pytest.raises(ConfigurationError):
        make(f"udp:3478:{arguments}", plane)
    assert not plane.ports


def test_close_leaves_nothing() -> None:
    """After close no port is open, and closing again is harmless."""
    listener, plane, _ = make("udp:3478:interface=127.0.0.1:alternateInterface=127.0.0.2")
    listener.close()
    listener.close()
    assert not plane.ports
