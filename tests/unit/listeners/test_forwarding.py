"""Promises of relayd.listeners.forwarding: trusted proxies are believed, as far as their own word goes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http_headers import Headers

from relayd.address import TransportAddress
from relayd.errors import DecodeError
from relayd.listeners.forwarding import Forwarded, read_forwarded

PROXIES = {"10.0.0.1", "10.0.0.2", "2001:db8::1"}


def read(*lines: str) -> Forwarded:
    """What a trusted proxy said with these header lines."""
    headers = Headers()
    for line in lines:
        name, _, value = line.partition(": ")
        headers.addRawHeader(name, value)
    return read_forwarded(headers, lambda address: address.host in PROXIES)


def client(*lines: str) -> str | None:
    found = read(*lines).client
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("X-Forwarded-For: 198.51.100.7", "198.51.100.7:0"),
        ("X-Forwarded-For: 198.51.100.7:4711", "198.51.100.7:4711"),
        ("X-Forwarded-For: 2001:db8:7::9", "[2001:db8:7::9]:0"),
        ("X-Forwarded-For: [2001:db8:7::9]", "[2001:db8:7::9]:0"),
        ("X-Forwarded-For: [2001:db8:7::9]:4711", "[2001:db8:7::9]:4711"),
        ("X-Forwarded-For: ::ffff:198.51.100.7", "198.51.100.7:0"),
        ("X-Forwarded-For: unknown", None),
        ("X-Forwarded-For: , 198.51.100.7 ,", "198.51.100.7:0"),
        ("X-Forwarded-For: ", None),
        ("Forwarded: for=198.51.100.7", "198.51.100.7:0"),
        ("Forwarded: FOR=198.51.100.7 ; By=10.0.0.1;proto=https", "198.51.100.7:0"),
        ('Forwarded: for="198.51.100.7:4711"', "198.51.100.7:4711"),
        ('Forwarded: for="[2001:db8:7::9]:4711"', "[2001:db8:7::9]:4711"),
        (r'Forwarded: for="[2001:db8\:7::9]:_hidden"', "[2001:db8:7::9]:0"),
        ("Forwarded: for=unknown", None),
        ('Forwarded: for="unknown:80"', None),
        ("Forwarded: for=_gazonk", None),
        ("Forwarded: by=10.0.0.1", None),
        ('Forwarded: for=198.51.100.7;ext="a, for=203.0.113.9"', "198.51.100.7:0"),
        ("Forwarded: ", None),
    ],
)
def test_how_a_client_is_written(line: str, found: str | None) -> None:
    """Every form of RFC 7239 section 6, and those of X-Forwarded-For in the wild; port 0 where there is none."""
    assert client(line) == found


@pytest.mark.parametrize(
    ("hops", "found"),
    [
        ("203.0.113.9, 198.51.100.7", "198.51.100.7:0"),
        ("203.0.113.9, 198.51.100.7, 10.0.0.2", "198.51.100.7:0"),
        ("203.0.113.9, 198.51.100.7, 2001:db8::1, 10.0.0.2", "198.51.100.7:0"),
        ("10.0.0.1, 10.0.0.2", "10.0.0.1:0"),
        ("198.51.100.7, unknown, 10.0.0.2", None),
        ("what a client wrote, 198.51.100.7", "198.51.100.7:0"),
    ],
)
def test_the_first_hop_that_is_no_trusted_proxy(hops: str, found: str | None) -> None:
    """From the right, past trusted proxies, to the first other address; what is left of that is not even read."""
    nodes = hops.split(", ")
    assert client(f"X-Forwarded-For: {hops}") == found
    assert client(*(f"X-Forwarded-For: {node}" for node in nodes)) == found
    elements = [f'for="[{node}]"' if node.count(":") > 1 else f'for="{node}"' for node in nodes]
    assert client(f"Forwarded: {', '.join(elements)}") == found
    assert client(*(f"Forwarded: {element}" for element in elements)) == found


@pytest.mark.parametrize(
    "line",
    [
        "X-Forwarded-For: example.org",
        "X-Forwarded-For: 198.51.100.7:99999",
        "X-Forwarded-For: 198.51.100.7:http",
        "X-Forwarded-For: [198.51.100.7",
        "X-Forwarded-For: 198.51.100.7, 10.0.0.300",
        "X-Forwarded-For: 198.51.100.7 10.0.0.2",
        "Forwarded: for=198.51.100.7:80",
        'Forwarded: for="198.51.100.7',
        "Forwarded: for=198.51.100.7 proto=http",
        "Forwarded: for=198.51.100.7;for=203.0.113.9",
        "Forwarded: 198.51.100.7",
        'Forwarded: x=", for="[2001:db8:7::9]"',
    ],
)
def test_what_does_not_read(line: str) -> None:
    """Where the nearest proxy's word cannot be read, nobody's is taken instead."""
    with pytest.raises(DecodeError):
        read(line)


def test_a_header_of_the_clients_own() -> None:
    """A proxy passes the header that it does not write on as the client wrote it: where they differ, none is taken."""
    for forged in ("Forwarded: for=203.0.113.9", "Forwarded: for=_hidden"):
        with pytest.raises(DecodeError):
            read("X-Forwarded-For: 198.51.100.7", forged)
    with pytest.raises(DecodeError):
        read("X-Forwarded-For: 203.0.113.9", "Forwarded: for=198.51.100.7;proto=https")


def test_both_headers_of_one_proxy() -> None:
    """A proxy may write both; what only one of them tells is taken from that."""
    assert client("X-Forwarded-For: 198.51.100.7", 'Forwarded: for="198.51.100.7:80"') == "198.51.100.7:80"
    assert read("X-Forwarded-For: 198.51.100.7", "Forwarded: for=198.51.100.7;proto=https").secure is True


@pytest.mark.parametrize(
    ("lines", "secure"),
    [
        (["X-Forwarded-Proto: https"], True),
        (["X-Forwarded-Proto: WSS"], True),
        (["X-Forwarded-Proto: http"], False),
        (["X-Forwarded-Proto: ws"], False),
        (["X-Forwarded-Proto: gopher"], None),
        (["X-Forwarded-Proto: "], None),
        (["X-Forwarded-For: 198.51.100.7"], None),
        (["X-Forwarded-For: 198.51.100.7", "X-Forwarded-Proto: https"], True),
        (["X-Forwarded-For: 198.51.100.7, 10.0.0.2", "X-Forwarded-Proto: https, http"], True),
        (["X-Forwarded-For: 198.51.100.7, 10.0.0.2", "X-Forwarded-Proto: https"], True),
        (["X-Forwarded-For: 198.51.100.7", "X-Forwarded-Proto: https, http"], False),
        (["Forwarded: for=198.51.100.7;proto=https"], True),
        (["Forwarded: for=198.51.100.7;proto=https, for=10.0.0.2;proto=http"], True),
        (["Forwarded: for=198.51.100.7", "X-Forwarded-Proto: https"], True),
        ([], None),
    ],
)
def test_whether_the_client_came_over_tls(lines: list[str], secure: bool | None) -> None:
    """The scheme counts that goes with the client's hop; a single one goes with all; of too many, the nearest one."""
    assert read(*lines).secure is secure


@pytest.mark.parametrize("piece", [" ", "a", ",", ";", "a=b,", 'a="', "\\\\", "10.0.0.1,"])
def test_long_headers_take_no_time(piece: str) -> None:
    """A header as long as they may be is read in one go: trying all ways to read it would take this test minutes."""
    for text in (piece * (16_000 // len(piece)), f"for=198.51.100.7;{piece * (16_000 // len(piece))}\x01"):
        for name in ("Forwarded", "X-Forwarded-For"):
            with suppress(DecodeError):
                read(f"{name}: {text}")


_TEXT = st.text('0123456789abcdef.:[],;="\\_ fory', max_size=60)


@given(st.lists(_TEXT, max_size=3), st.lists(_TEXT, max_size=3), st.lists(_TEXT, max_size=2))
def test_any_headers(old: list[str], new: list[str], schemes: list[str]) -> None:
    """Whatever they say, there is an answer or a DecodeError."""
    lines = [f"X-Forwarded-For: {text}" for text in old] + [f"Forwarded: {text}" for text in new]
    try:
        found = read(*lines, *(f"X-Forwarded-Proto: {text}" for text in schemes))
    except DecodeError:
        return
    assert found.client is None or isinstance(found.client, TransportAddress)
