"""TURN URIs are read as RFC 7065 has them, and anything else is a clear error."""

from __future__ import annotations

import pytest

from relayd.address import AppConnection
from relayd.client.uri import TurnUri
from relayd.errors import ConfigurationError

UDP, TCP, TLS, DTLS = AppConnection.UDP, AppConnection.TCP, AppConnection.TLS, AppConnection.DTLS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("turn:example.org", ("example.org", 3478, UDP, False)),
        ("turns:example.org", ("example.org", 5349, TLS, False)),
        ("turn:example.org:8000", ("example.org", 8000, UDP, False)),
        ("turn:192.0.2.1?transport=tcp", ("192.0.2.1", 3478, TCP, True)),
        ("turns:example.org:443?transport=tcp", ("example.org", 443, TLS, True)),
        ("turns:example.org?transport=udp", ("example.org", 5349, DTLS, True)),
        ("TURN:[2001:DB8::1]:3479?transport=UDP", ("2001:db8::1", 3479, UDP, True)),
    ],
)
def test_good(text: str, expected: tuple[object, ...]) -> None:
    """The examples of RFC 7065 section 3 and their kin; what is printed again means the same."""
    uri = TurnUri.parse(text)
    assert tuple(uri) == expected
    assert TurnUri.parse(str(uri))[:3] == uri[:3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.org",
        "turn:",
        "turn://example.org",
        "stun:example.org",
        "turn:example.org:0",
        "turn:example.org:65536",
        "turn:example.org:x",
        "turn:example.org?transport=sctp",
        "turn:example.org?transport=",
        "turn:2001:db8::1",
        "turn:[2001:db8::1",
        "turn:[1.2.3]",
        "turn:example.org/path",
        "turn:exam ple.org",
        "turn:example.org\n",
    ],
)
def test_bad(text: str) -> None:
    """What is no TURN URI is an error that says how to write one, or what is wrong with it."""
    with pytest.raises(ConfigurationError):
        TurnUri.parse(text)


def test_a_password_is_not_repeated() -> None:
    """Somebody who writes user and password into the URI finds neither in the error."""
    with pytest.raises(ConfigurationError) as caught:
        TurnUri.parse("turn:alice:sesame@example.org")
    assert "sesame" not in str(caught.value)
    assert "alice" not in str(caught.value)
