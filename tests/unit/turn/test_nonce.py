"""Nonces: stateless, bound to client, realm and time."""

from __future__ import annotations

import random

from relayd.address import TransportAddress
from relayd.turn.nonce import Nonces

CLIENT = TransportAddress.parse("203.0.7.7", 40_000)


def make(realm: str = "example.org", seed: int = 1) -> Nonces:
    return Nonces(realm, 100, False, random.Random(seed).randbytes)


def test_lifetime() -> None:
    """A nonce is good until its lifetime is over, to the second."""
    nonces = make()
    nonce = nonces.mint(CLIENT, 50.0)
    assert nonces.is_valid(nonce, CLIENT, 50.0)
    assert nonces.is_valid(nonce, CLIENT, 149.9)
    assert not nonces.is_valid(nonce, CLIENT, 150.0)


def test_every_change_is_noticed() -> None:
    """No character can be changed, dropped or added."""
    nonces = make()
    nonce = nonces.mint(CLIENT, 0.0)
    for at in range(len(nonce)):
        changed = nonce[:at] + bytes((nonce[at] ^ 1,)) + nonce[at + 1 :]
        assert not nonces.is_valid(changed, CLIENT, 1.0)
        assert not nonces.is_valid(nonce[:at], CLIENT, 1.0)
    assert not nonces.is_valid(nonce + b"0", CLIENT, 1.0)


def test_bound_to_realm_and_key() -> None:
    """The nonce of another realm, or of a server with another key, is worth nothing."""
    nonce = make().mint(CLIENT, 0.0)
    assert make().is_valid(nonce, CLIENT, 1.0)
    assert not make(realm="example.com").is_valid(nonce, CLIENT, 1.0)
    assert not make(seed=2).is_valid(nonce, CLIENT, 1.0)


def test_key_rotation() -> None:
    """Keys change once in a lifetime, and no nonce dies of it before its time."""
    nonces = make()
    keys = set()
    minted = []
    for now in range(0, 1000, 10):
        minted.append((now, nonces.mint(CLIENT, float(now))))
        keys.add(nonces._key)
        for since, nonce in minted:
            assert nonces.is_valid(nonce, CLIENT, float(now)) is (now < since + 100)
    assert len(keys) == 10


def test_clock_that_wraps() -> None:
    """Expiries count modulo 2**32, and being past the end of that range does not matter."""
    nonces = make()
    start = 2.0**32 - 50
    nonce = nonces.mint(CLIENT, start)
    assert nonces.is_valid(nonce, CLIENT, start + 99)
    assert not nonces.is_valid(nonce, CLIENT, start + 100)


def test_fits_the_attribute() -> None:
    """A nonce is printable ASCII without quotes or backslash, far below the limit of 763 bytes."""
    nonce = make().mint(CLIENT, 12345.0)
    assert len(nonce) == 53
    assert nonce.decode("ascii").isalnum()
