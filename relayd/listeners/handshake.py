"""Judges the opening handshake of a WebSocket client (RFC 6455 section 4.2.1), and from which pages it may come.

It is stricter than Autobahn and answers before it, with texts that repeat nothing of what the client sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

SUBPROTOCOLS = ("turn",)  # what a client may offer: one binary message is one STUN or ChannelData message
VERSION = b"13"
ANY_ORIGIN = "*"

_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")  # 16 bytes in Base64
_UPGRADE = ((b"upgrade", b"websocket"), (b"connection", b"upgrade"))  # RFC 9110 sections 7.8 and 15.5.22
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class RequestHeaders(Protocol):
    """The part of `twisted.web.http_headers.Headers` that counts here."""

    def getRawHeaders(self, name: bytes) -> Sequence[bytes] | None: ...


@dataclass(frozen=True, slots=True)
class Handshake:
    """A client that may open its WebSocket: its key, and the subprotocol to speak, or None."""

    key: bytes
    subprotocol: str | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """One that may not: the HTTP status, the text, and the headers that must go with it."""

    status: int
    text: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


def judge(method: bytes, version: bytes, headers: RequestHeaders, origins: Sequence[str]) -> Handshake | Refusal:
    """Whether this request opens a WebSocket. `origins` are those that are allowed beside our own."""
    if method != b"GET":
        return Refusal(405, "A WebSocket opens with GET.", ((b"allow", b"GET"),))
    if not is_upgrade(headers):
        return Refusal(426, "This speaks WebSocket only.", _UPGRADE)
    if _only(headers, b"sec-websocket-version") != VERSION:
        return Refusal(426, "This speaks WebSocket version 13.", (*_UPGRADE, (b"sec-websocket-version", VERSION)))
    key = _only(headers, b"sec-websocket-key")
    host = _only(headers, b"host")
    if version != b"HTTP/1.1" or host is None or key is None or not _KEY.fullmatch(key):
        return Refusal(400, "This is not a WebSocket handshake.")
    # RFC 6455 section 10.2. Programs that are no browsers send no Origin, and could send any.
    given = headers.getRawHeaders(b"origin")
    if given is not None and not (len(given) == 1 and is_allowed_origin(given[0], host, origins)):
        return Refusal(403, "Pages of this origin may not use this relay.")
    offered = _tokens(headers, b"sec-websocket-protocol")
    return Handshake(key, next((each for each in SUBPROTOCOLS if each.encode() in offered), None))


def is_upgrade(headers: RequestHeaders) -> bool:
    """Whether a request asks for WebSocket, however well."""
    return b"websocket" in _tokens(headers, b"upgrade") and b"upgrade" in _tokens(headers, b"connection")


def is_allowed_origin(origin: bytes, host: bytes, origins: Sequence[str]) -> bool:
    """Whether a page of `origin` may open a WebSocket here: it is listed, or it was served under our own name.

    `host` is the request's Host header. The scheme is not compared with ours, which a proxy in front may have changed.
    """
    if ANY_ORIGIN in origins:
        return True
    page = origin.decode("latin-1").lower()
    if page in origins:
        return True
    scheme, separator, authority = page.partition("://")
    own = host.decode("latin-1").lower().removesuffix(_DEFAULT_PORTS.get(scheme, ""))
    return scheme in _DEFAULT_PORTS and bool(separator) and bool(authority) and authority == own


def _only(headers: RequestHeaders, name: bytes) -> bytes | None:
    """The value of a header that is there exactly once."""
    values = headers.getRawHeaders(name) or ()
    return values[0].strip() if len(values) == 1 else None


def _tokens(headers: RequestHeaders, name: bytes) -> set[bytes]:
    """The members of a header that is a list, in lower case."""
    return {token.strip().lower() for value in headers.getRawHeaders(name) or () for token in value.split(b",")}
