"""What is to be forwarded is read as users write it, and anything else is a clear error."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred

from relayd.client.forward.command import route_of, welcome_of
from relayd.client.forward.words import Forward, Welcome
from relayd.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5353=192.0.2.9:53", ("127.0.0.1", 5353, "192.0.2.9", 53)),
        ("0=peer.example.org:65535", ("127.0.0.1", 0, "peer.example.org", 65_535)),
        ("0.0.0.0:5353=192.0.2.9:53", ("0.0.0.0", 5353, "192.0.2.9", 53)),
        ("[::1]:5353=[2001:DB8::9]:53", ("::1", 5353, "2001:DB8::9", 53)),
        ("5353=[2001:db8::9]:53", ("127.0.0.1", 5353, "2001:db8::9", 53)),
    ],
)
def test_good(text: str, expected: tuple[object, ...]) -> None:
    """A port on loopback, or on an address of this host; a peer by address or name."""
    assert tuple(Forward.parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "PORT=PEER:PORT"),
        ("5353", "PORT=PEER:PORT"),
        ("5353=192.0.2.9", "PORT=PEER:PORT"),
        ("5353:192.0.2.9:53", "PORT=PEER:PORT"),
        ("5353=2001:db8::9:53", "brackets"),
        ("5353=192.0.2.9:53 ", "PORT=PEER:PORT"),
        ("65536=192.0.2.9:53", "65535"),
        ("5353=192.0.2.9:0", "65535"),
        ("5353=192.0.2.9:65536", "65535"),
        ("localhost:5353=192.0.2.9:53", "not an IP address"),
        ("[::1.2]:5353=192.0.2.9:53", "not an IP address"),
    ],
)
def test_bad(text: str, word: str) -> None:
    """Each fault is told, and how to write it."""
    with pytest.raises(ConfigurationError, match=word):
        Forward.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.9=8000", ("192.0.2.9", "127.0.0.1", 8000)),
        ("peer.example.org=localhost:65535", ("peer.example.org", "localhost", 65_535)),
        ("[2001:db8::9]=[::1]:80", ("2001:db8::9", "::1", 80)),
    ],
)
def test_who_may_call(text: str, expected: tuple[object, ...]) -> None:
    """A peer by address or name, and a port on loopback or wherever it is said to be."""
    assert tuple(Welcome.parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "PEER=PORT"),
        ("8000", "PEER=PORT"),
        ("=8000", "PEER=PORT"),
        ("192.0.2.9", "PEER=PORT"),
        ("192.0.2.9:5000=8000", "PEER=PORT"),
        ("2001:db8::9=8000", "brackets"),
        ("192.0.2.9=::1:8000", "brackets"),
        ("192.0.2.9=8000 ", "PEER=PORT"),
        ("192.0.2.9=0", "65535"),
        ("192.0.2.9=65536", "65535"),
    ],
)
def test_bad_callers(text: str, word: str) -> None:
    """Each fault is told, and how to write it."""
    with pytest.raises(ConfigurationError, match=word):
        Welcome.parse(text)


@pytest.mark.parametrize(
    ("host", "words"), [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80"), ("localhost", "localhost:80")]
)
def test_where_callers_are_led(host: str, words: str) -> None:
    """It is told as it was written."""
    assert Welcome("192.0.2.9", host, 80).local == words


class Resolver:
    """Knows one name, and is a reactor that has it."""

    def __init__(self, *hosts: str) -> None:
        self.nameResolver = self
        self._hosts = hosts

    def resolveHostName(self, receiver: Any, name: str, **semantics: Any) -> None:
        receiver.resolutionBegan(None)
        for host in self._hosts:
            receiver.addressResolved((IPv6Address if ":" in host else IPv4Address)("UDP", host, 0))
        receiver.resolutionComplete()


@pytest.mark.parametrize(
    ("host", "addresses", "peer"),
    [
        ("192.0.2.9", [], "192.0.2.9:53"),
        ("2001:DB8::9", [], "[2001:db8::9]:53"),
        ("peer.example.org", ["2001:db8::9", "192.0.2.9", "192.0.2.10"], "192.0.2.9:53"),
        ("peer.example.org", ["2001:db8::9", "2001:db8::10"], "[2001:db8::9]:53"),
    ],
)
def test_whose_name(host: str, addresses: list[str], peer: str) -> None:
    """Of a name with several addresses the first is taken, IPv4 before IPv6."""
    routes: list[Any] = []
    Deferred.fromCoroutine(route_of(Resolver(*addresses), Forward("::1", 5353, host, 53))).addCallback(routes.append)
    assert str(routes[0].peer) == peer
    assert routes[0][:2] == ("::1", 5353)


@pytest.mark.parametrize(
    ("peer", "addresses", "expected"),
    [("2001:DB8::9", [], "2001:db8::9"), ("peer.example.org", ["2001:db8::9", "192.0.2.9"], "192.0.2.9")],
)
def test_who_calls(peer: str, addresses: list[str], expected: str) -> None:
    """A caller is known by its address, of which there is one spelling."""
    welcomes: list[Any] = []
    wanted = Welcome(peer, "localhost", 80)
    Deferred.fromCoroutine(welcome_of(Resolver(*addresses), wanted)).addCallback(welcomes.append)
    assert welcomes == [wanted._replace(peer=expected)]


def test_nobodys_name() -> None:
    """A name without an address is an error that says which."""
    errors: list[Any] = []
    Deferred.fromCoroutine(route_of(Resolver(), Forward("::1", 0, "nowhere.invalid", 53))).addErrback(errors.append)
    assert isinstance(errors[0].value, ConfigurationError)
    assert "nowhere.invalid" in str(errors[0].value)
