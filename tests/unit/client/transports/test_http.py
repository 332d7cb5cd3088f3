"""The head of an HTTP response is read whole, in pieces, with what follows it, and refused when it is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.client.transports.http import MAX_HEAD, MAX_REASON, Response, ResponseReader, authority
from relayd.errors import ConfigurationError, DecodeError

HEAD = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 squid\r\nX-Odd:  a:b \r\n\r\n"


def read(*pieces: bytes) -> tuple[Response, bytes] | None:
    """What a reader gives for the last of these pieces, and nothing for any before."""
    reader = ResponseReader()
    for piece in pieces[:-1]:
        assert reader.receive(piece) is None
    return reader.receive(pieces[-1])


def test_a_head() -> None:
    """Status, reason and headers come out; names in lower case, values without the space around them."""
    answer = read(HEAD)
    assert answer is not None
    response, rest = answer
    assert (response.status, response.reason, rest) == (200, "Connection established", b"")
    assert response.values("x-odd") == ["a:b"]
    assert str(response) == "200 Connection established"


def test_byte_by_byte() -> None:
    """However it is cut, nothing comes out early, and what follows the head is kept."""
    whole = read(HEAD)
    assert read(*(bytes([each]) for each in HEAD)) == whole
    assert whole is not None
    assert read(HEAD + b"\x00\r\n\r\nmore") == (whole[0], b"\x00\r\n\r\nmore")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"HTTP/1.0 200\n\n", 200),
        (b"HTTP/1.1 407 \r\n\r\n", 407),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 502 Bad\r\n\r\n", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 101),
    ],
)
def test_kinds(data: bytes, status: int) -> None:
    """Bare line feeds and missing reasons are taken; interim responses are passed over, except the one that counts."""
    answer = read(data)
    assert answer is not None
    assert answer[0].status == status


def test_lists() -> None:
    """The members of a list are found over several headers, in lower case."""
    answer = read(b"HTTP/1.1 101 x\r\nConnection: keep-alive, Upgrade\r\nCONNECTION: other\r\n\r\n")
    assert answer is not None
    assert answer[0].tokens("connection") == ["keep-alive", "upgrade", "other"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"SSH-2.0-OpenSSH\r\n",
        b"H\r",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 99 No\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + bytes(MAX_HEAD),
    ],
)
def test_garbage(garbage: bytes) -> None:
    """What is no HTTP/1 is refused as soon as that is certain, and so is a head without end."""
    with pytest.raises(DecodeError):
        ResponseReader().receive(garbage)


def test_a_reason_is_a_strangers_word() -> None:
    """Control characters and floods do not get into an error."""
    answer = read(b"HTTP/1.1 403 \x1b[31mred\xff" + b"x" * 1000 + b"\r\n\r\n")
    assert answer is not None
    assert answer[0].reason.startswith("[31mredxxx")
    assert len(answer[0].reason) == MAX_REASON


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("example.org", "example.org:443"),
        ("192.0.2.1", "192.0.2.1:443"),
        ("::1", "[::1]:443"),
        ("bücher.example", "xn--bcher-kva.example:443"),
    ],
)
def test_authority(host: str, named: str) -> None:
    """Hosts are named as URLs have them, IPv6 in brackets, other scripts in ASCII."""
    assert authority(host, 443) == named


@pytest.mark.parametrize("host", ["", "a\x00b", "a" * 64 + ".example"])
def test_hosts_that_cannot_be_named(host: str) -> None:
    """What is no host name does not get into a request."""
    with pytest.raises(ConfigurationError):
        authority(host, 443)


PIECES = st.sampled_from(
    [b"HTTP/1.1 ", b"HTTP/1.0 200 OK", b"101", b" ", b"\r\n", b"\n", b"\r", b"X: y", b":", b"\x00\xff"]
)


@given(st.lists(PIECES | st.binary(max_size=8), max_size=12).map(b"".join), st.integers(1, 9))
def test_any_bytes(data: bytes, size: int) -> None:
    """Whatever comes is a head, no head yet, or DecodeError, and how it is cut makes no difference."""

    def outcome(pieces: list[bytes]) -> object:
        reader = ResponseReader()
        answer: tuple[Response, bytes] | None = None
        for number, piece in enumerate(pieces):
            try:
                answer = reader.receive(piece)
            except DecodeError:
                return "none"
            if answer is not None:
                return answer[0], answer[1] + b"".join(pieces[number + 1 :])
        return None

    assert outcome([data[at : at + size] for at in range(0, len(data), size)]) == outcome([data])
