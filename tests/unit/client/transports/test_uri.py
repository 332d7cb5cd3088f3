"""TURN URIs are read as RFC 7065 has them, and anything else is a clear error."""

from __future__ import annotations

import pytest

from relayd.address import AppConnection
from relayd.client.transports.uri import TurnUri
from relayd.errors import ConfigurationError

UDP, TCP, TLS, DTLS = AppConnection.UDP, AppConnection.TCP, AppConnection.TLS, AppConnection.DTLS
WS, WSS = AppConnection.WS, AppConnection.WSS


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
        ("ws://example.org", ("example.org", 80, WS, True, "/turn")),
        ("wss://example.org", ("example.org", 443, WSS, True, "/turn")),
        ("wss://example.org/", ("example.org", 443, WSS, True, "/")),
        ("WSS://[2001:DB8::1]:8443/a/b?c=d", ("2001:db8::1", 8443, WSS, True, "/a/b?c=d")),
        ("ws://192.0.2.1:8080?c=d", ("192.0.2.1", 8080, WS, True, "/?c=d")),
    ],
)
def test_good(text: str, expected: tuple[object, ...]) -> None:
    """The examples of RFC 7065 section 3, WebSocket URLs, and their kin; what is printed again means the same."""
    uri = TurnUri.parse(text)
    assert uri == TurnUri(*expected)  # type: ignore[arg-type]
    again = TurnUri.parse(str(uri))
    assert (again[:3], again.resource) == (uri[:3], uri.resource)


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
        "ws:example.org",
        "ws://",
        "wss:///turn",
        "wss://example.org/turn#part",
        "wss://example.org/a b",
        "wss://example.org/a\r\nHost: b",
        "wss://example.org:0/turn",
        "wss://[::1/turn",
        "https://example.org/turn",
        "turn:exam ple.org",
        "turn:example.org\n",
    ],
)
def test_bad(text: str) -> None:
    """What is neither TURN URI nor WebSocket URL is an error that says how to write one, or what is wrong with it."""
    with pytest.raises(ConfigurationError):
        TurnUri.parse(text)


@pytest.mark.parametrize("text", ["turn:alice:sesame@example.org", "wss://alice:sesame@example.org/turn"])
def test_a_password_is_not_repeated(text: str) -> None:
    """Somebody who writes user and password into the URI finds neither in the error."""
    with pytest.raises(ConfigurationError) as caught:
        TurnUri.parse(text)
    assert "sesame" not in str(caught.value)
    assert "alice" not in str(caught.value)
