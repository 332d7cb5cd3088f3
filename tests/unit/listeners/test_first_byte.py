"""Promises of relayd.listeners.first_byte: one byte tells, and inside TLS what was agreed is what may be spoken."""

from __future__ import annotations

from http import HTTPMethod

import pytest

from relayd.dtls import ALPN
from relayd.listeners.first_byte import Spoken, spoken_from, spoken_within_tls
from relayd.stun.message import Class, Method, encode

TURN, HTTP, TLS = Spoken.TURN, Spoken.HTTP, Spoken.TLS


def test_what_clients_begin_with() -> None:
    """Each STUN method, each HTTP method, HTTP/2, and each version of TLS that is spoken."""
    for method in Method:
        assert spoken_from(encode(method, Class.REQUEST, bytes(12))[0]) is TURN
    for name in (*HTTPMethod, "PROPFIND", "PRI"):
        assert spoken_from(name.encode()[0]) is HTTP
    assert spoken_from(b"\x16\x03\x01"[0]) is TLS


@pytest.mark.parametrize(
    "beginning",
    [
        b"\x80\x2e\x01\x00\x02",  # SSL 2
        b"\x15\x03\x01",  # an alert of TLS, which cannot come first
        b"\x17\x03\x03",  # data of TLS, likewise
        b"\x40\x00\x00\x04",  # ChannelData, likewise
        b"\r\n\r\n\0\r\nQUIT\n",  # a PROXY header where none belongs
        b"get / HTTP/1.1",
        b"\xff",
        b" ",
    ],
)
def test_what_nobody_begins_with(beginning: bytes) -> None:
    """All else is nothing."""
    assert spoken_from(beginning[0]) is None
    assert spoken_within_tls(beginning[0], None) is None


def test_every_byte_has_one_meaning() -> None:
    """The ranges do not overlap, and most bytes mean nothing."""
    found = [spoken_from(first) for first in range(256)]
    assert [found.count(each) for each in (TURN, HTTP, TLS, None)] == [4, 26, 1, 225]


@pytest.mark.parametrize("protocol", [None, b"http/1.1", *ALPN])
def test_within_tls(protocol: bytes | None) -> None:
    """Without ALPN either may be spoken; with it only what was agreed; TLS within TLS never."""
    turn, http = spoken_within_tls(0x00, protocol), spoken_within_tls(ord("G"), protocol)
    assert turn is (TURN if protocol != b"http/1.1" else None)
    assert http is (HTTP if protocol not in ALPN else None)
    assert spoken_within_tls(0x16, protocol) is None
