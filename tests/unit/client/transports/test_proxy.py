"""The URL of an HTTP proxy, who uses it, and what the environment says of it."""

from __future__ import annotations

import pytest

from relayd.client.transports.proxy import HttpProxy, proxy_from_environment
from relayd.client.transports.uri import TurnUri
from relayd.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://proxy.example:3128", HttpProxy("proxy.example", 3128)),
        ("proxy.example:3128", HttpProxy("proxy.example", 3128)),
        ("HTTP://proxy.example/", HttpProxy("proxy.example", 80)),
        ("http://[2001:DB8::1]:8080", HttpProxy("2001:db8::1", 8080)),
        ("http://alice@proxy.example:1", HttpProxy("proxy.example", 1, "alice", "")),
        ("http://al%20ice:p%40ss%3A@[::1]:1/", HttpProxy("::1", 1, "al ice", "p@ss:")),
    ],
)
def test_good(text: str, expected: HttpProxy) -> None:
    """With and without scheme, port, user and password, which may be quoted."""
    assert HttpProxy.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://",
        "https://alice:sesame@proxy.example",
        "socks5://alice:sesame@proxy.example:1080",
        "http://alice:sesame@proxy.example:0",
        "http://alice:sesame@proxy.example:65536",
        "http://alice:sesame@proxy.example/path",
        "http://alice:sesame@[::1:80",
        "http://alice:sesame@[1.2.3]:80",
        "http://ali%3Ace:sesame@proxy.example",
        "http://alice:sesame%0a@proxy.example",
    ],
)
def test_bad(text: str) -> None:
    """What is no such URL is an error, in which there is neither user nor password."""
    with pytest.raises(ConfigurationError) as caught:
        HttpProxy.parse(text)
    assert "sesame" not in str(caught.value)
    assert "alice" not in str(caught.value)


def test_who_uses_it_is_not_shown() -> None:
    """Neither the text nor the representation of a proxy has its password, nor the text its user."""
    proxy = HttpProxy.parse("http://alice:sesame@[::1]:3128")
    assert str(proxy) == "http://[::1]:3128"
    assert "sesame" not in repr(proxy)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a word of proxies."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("uri", "variables", "expected"),
    [
        ("wss://relay.example", {}, None),
        ("wss://relay.example", {"https_proxy": "http://one:1", "http_proxy": "http://two:2"}, "http://one:1"),
        ("ws://relay.example", {"https_proxy": "http://one:1", "http_proxy": "http://two:2"}, "http://two:2"),
        ("wss://relay.example", {"HTTPS_PROXY": "one:1"}, "http://one:1"),
        ("wss://relay.example", {"all_proxy": "http://three:3", "http_proxy": "http://two:2"}, "http://three:3"),
        ("wss://relay.example", {"https_proxy": ""}, None),
        ("wss://relay.example", {"https_proxy": "http://one:1", "no_proxy": "other.example,.example"}, None),
        ("wss://[::1]", {"https_proxy": "http://one:1", "no_proxy": "::1"}, None),
        ("wss://[::1]", {"https_proxy": "http://one:1", "no_proxy": "[::1]"}, None),
        ("wss://relay.example", {"https_proxy": "http://one:1", "no_proxy": "*"}, None),
        ("turns:relay.example", {"https_proxy": "http://one:1", "all_proxy": "http://three:3"}, None),
        ("turn:relay.example", {"all_proxy": "http://three:3"}, None),
    ],
)
def test_environment(
    uri: str, variables: dict[str, str], expected: str | None, environment: pytest.MonkeyPatch
) -> None:
    """WebSockets go through the proxies of the web, unless no_proxy has their host; TURN on its own ports does not."""
    for name, value in variables.items():
        environment.setenv(name, value)
    found = proxy_from_environment(TurnUri.parse(uri))
    assert (None if found is None else str(found)) == expected


def test_a_bad_environment(environment: pytest.MonkeyPatch) -> None:
    """An error in a variable names it, and none of its secrets."""
    environment.setenv("https_proxy", "socks5://alice:sesame@proxy:1080")
    with pytest.raises(ConfigurationError, match="https_proxy") as caught:
        proxy_from_environment(TurnUri.parse("wss://relay.example"))
    assert "sesame" not in str(caught.value)
