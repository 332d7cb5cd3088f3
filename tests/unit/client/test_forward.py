"""What is to be forwarded is read as users write it, and anything else is a clear error."""

from __future__ import annotations

import pytest

from relayd.client.forward import Forward
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
