"""Promises of relayd.listeners.told_addresses: no two clients have one address at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relayd.address import TransportAddress
from relayd.listeners.told_addresses import ToldAddresses, local_address

CLIENT = TransportAddress.parse("198.51.100.7", 50000)


def test_a_port_that_is_taken() -> None:
    """The next one is given; a port that came free is given again; another address has ports of its own."""
    told = ToldAddresses()
    assert told.take(CLIENT) == CLIENT
    assert told.take(CLIENT) == CLIENT.with_port(50001)
    assert told.take(TransportAddress.parse("198.51.100.8", 50000)) == TransportAddress.parse("198.51.100.8", 50000)
    told.free(CLIENT)
    assert told.take(CLIENT) == CLIENT


def test_the_ports_go_round() -> None:
    """From 65535 to 1; 0, which is none, stands for any and is never given; and there is an end to them."""
    told = ToldAddresses()
    assert told.take(CLIENT.with_port(65535)) == CLIENT.with_port(65535)
    assert told.take(CLIENT.with_port(65535)) == CLIENT.with_port(1)
    assert [told.take(CLIENT.with_port(0)) for _ in range(3)] == [CLIENT.with_port(port) for port in (2, 3, 4)]
    for port in range(5, 65535):
        assert told.take(CLIENT.with_port(port)) == CLIENT.with_port(port)
    assert told.take(CLIENT) is told.take(CLIENT.with_port(0)) is None


@given(st.lists(st.one_of(st.integers(0, 3), st.none()), max_size=40))
def test_unique_and_forgotten(steps: list[int | None]) -> None:
    """Whatever the order in which clients come and go, theirs differ, and nothing is kept at the end."""
    told = ToldAddresses()
    held: list[TransportAddress] = []
    for step in steps:
        if step is not None:
            taken = told.take(CLIENT.with_port(step))
            assert taken is not None
            assert taken not in held
            held.append(taken)
        elif held:
            told.free(held.pop(0))
    for address in held:
        told.free(address)
    assert len(told) == 0


def test_endpoints_without_an_address() -> None:
    """Each Unix socket has a stand-in of its own, so that clients of two of them never share a 5-tuple."""
    assert local_address("unix:/run/a") == local_address("unix:/run/a") != local_address("unix:/run/b")
    assert local_address("unix:/run/a").host.startswith("100::")
