"""Promises of relayd.listeners.handshake: who may open a WebSocket, and what the others are told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http_headers import Headers

from relayd.listeners.handshake import Handshake, Refusal, is_allowed_origin, judge

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
GOOD = {
    b"Host": [b"relay.example.org"],
    b"Upgrade": [b"websocket"],
    b"Connection": [b"Upgrade"],
    b"Sec-WebSocket-Version": [b"13"],
    b"Sec-WebSocket-Key": [KEY],
}


def verdict(changed: dict[bytes, list[bytes]] | None = None, *origins: str, **request: Any) -> Handshake | Refusal:
    headers = {**GOOD, **(changed or {})}
    given_headers = Headers({name: values for name, values in headers.items() if values})
    return judge(request.get("method", b"GET"), request.get("version", b"HTTP/1.1"), given_headers, origins)


def status(*arguments: Any, **request: Any) -> int:
    """The status of a refusal, 101 for none."""
    found = verdict(*arguments, **request)
    return found.status if isinstance(found, Refusal) else 101


def test_a_good_one() -> None:
    """What RFC 6455 asks for is enough, and nobody needs a subprotocol or an Origin."""
    assert verdict() == Handshake(KEY, None)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({b"Upgrade": []}, 426),
        ({b"Upgrade": [b"h2c"]}, 426),
        ({b"Connection": []}, 426),
        ({b"Connection": [b"keep-alive"]}, 426),
        ({b"Sec-WebSocket-Version": []}, 426),
        ({b"Sec-WebSocket-Version": [b"8"]}, 426),
        ({b"Sec-WebSocket-Version": [b"13", b"8"]}, 426),
        ({b"Sec-WebSocket-Key": []}, 400),
        ({b"Sec-WebSocket-Key": [b"short"]}, 400),
        ({b"Sec-WebSocket-Key": [KEY, KEY]}, 400),
        ({b"Sec-WebSocket-Key": [b"dGhlIHNhbXBsZSBub25jZQ=\r"]}, 400),
        ({b"Host": []}, 400),
        ({b"Host": [b"a", b"b"]}, 400),
        ({b"Upgrade": [b"foo, WebSocket"], b"Connection": [b"keep-alive, Upgrade"]}, 101),
        ({b"Upgrade": [b"foo", b"WEBSOCKET"], b"Connection": [b"keep-alive", b"upgrade"]}, 101),
    ],
)
def test_header_by_header(changed: dict[bytes, list[bytes]], expected: int) -> None:
    """Each header that has to be there is asked for; lists are read as lists, and without regard to case."""
    assert status(changed) == expected


def test_method_and_version() -> None:
    """Only GET in HTTP/1.1 opens a WebSocket."""
    assert status(method=b"POST") == 405
    assert status(version=b"HTTP/1.0") == 400


def test_the_version_is_named() -> None:
    """A client of another version is told ours (RFC 6455 section 4.4)."""
    refusal = verdict({b"Sec-WebSocket-Version": [b"7"]})
    assert isinstance(refusal, Refusal)
    assert (b"sec-websocket-version", b"13") in refusal.headers


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        ([b"turn"], "turn"),
        ([b"chat, turn"], "turn"),
        ([b"chat", b"turn"], "turn"),
        ([b"chat"], None),
        ([b"turning"], None),
    ],
)
def test_subprotocols(offered: list[bytes], chosen: str | None) -> None:
    """A client that offers ours gets it; one that offers others only gets none, and decides for itself."""
    assert verdict({b"Sec-WebSocket-Protocol": offered}) == Handshake(KEY, chosen)


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (b"https://relay.example.org", 101),
        (b"http://relay.example.org", 101),
        (b"HTTPS://RELAY.example.org", 101),
        (b"https://app.example.org", 101),
        (b"https://app.example.org:444", 403),
        (b"http://app.example.org", 403),
        (b"https://relay.example.org:8443", 403),
        (b"https://relay.example.org.evil.example", 403),
        (b"https://evil.example", 403),
        (b"file://", 403),
        (b"null", 403),
        (b"", 403),
        (b"relay.example.org", 403),
        (b"chrome-extension://relay.example.org", 403),
        (b"\xff\xfe", 403),
    ],
)
def test_pages(origin: bytes, expected: int) -> None:
    """Pages under the relay's own name and those that are listed may come; a hostile page gets 403."""
    assert status({b"Origin": [origin]}, "https://app.example.org") == expected


def test_two_origins_are_none() -> None:
    """A request with more than one Origin is nobody's whom we know."""
    assert status({b"Origin": [b"https://relay.example.org"] * 2}) == 403


def test_any_page() -> None:
    """A `*` lets every page in, that of a file and a sandbox too."""
    for origin in (b"https://evil.example", b"null"):
        assert status({b"Origin": [origin]}, "*") == 101


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (b"https://relay.example.org", b"relay.example.org:443", True),
        (b"http://relay.example.org", b"relay.example.org:80", True),
        (b"http://127.0.0.1:8080", b"127.0.0.1:8080", True),
        (b"http://[::1]:8080", b"[::1]:8080", True),
        (b"http://127.0.0.1:8080", b"127.0.0.1:8081", False),
        (b"https://", b"", False),
    ],
)
def test_our_own_name(origin: bytes, host: bytes, allowed: bool) -> None:
    """Browsers leave the scheme's own port out of the Origin; any other one counts."""
    assert is_allowed_origin(origin, host, ()) is allowed


@given(st.dictionaries(st.sampled_from(list(GOOD)), st.lists(st.binary(max_size=30), max_size=2)), st.binary())
def test_any_headers(changed: dict[bytes, list[bytes]], origin: bytes) -> None:
    """Whatever the headers hold: a verdict, and of their text nothing in it but a key that is one."""
    found = verdict({**changed, b"Origin": [origin]})
    if isinstance(found, Refusal):
        assert found.text.isascii()
    else:
        assert len(found.key) == 24
