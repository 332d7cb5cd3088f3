"""Reads for whom a web proxy passes a request on: Forwarded (RFC 7239), X-Forwarded-For and X-Forwarded-Proto.

Whoever sends a request can write these headers, so only what trusted proxies added is read: from the right, where the
nearest proxy wrote, as far to the left as the addresses there are trusted proxies themselves. The first other address
is the client; what stands to the left of it is the client's own word.

Proxies that write one of the two headers pass the other one on as they got it. So where both are there they have to
agree, or a client behind such a proxy could choose its address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from relayd.address import TransportAddress
from relayd.errors import DecodeError
from relayd.listeners.handshake import RequestHeaders

# RFC 7239 section 4, with the token and the quoted-string of RFC 9110 section 5.6. Nothing is given back once it has
# matched (the + behind), or a header of blanks would be tried in as many ways as the square of its length.
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_PAIR = re.compile(rb"[ \t]*+(?:(%b)=(?:(%b)|\"((?:[^\"\\]|\\.)*+)\"))?+[ \t]*+(;|,|\Z)" % (_TOKEN, _TOKEN), re.DOTALL)
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)
# RFC 7239 section 6: an address, in brackets if it is IPv6, and a port, which may be hidden. IPv6 without either is
# what X-Forwarded-For has.
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}|_[0-9A-Za-z._-]+))?")
_NO_ADDRESS = re.compile(r"(?:unknown|_[0-9A-Za-z._-]+)(?::.*)?", re.IGNORECASE)  # section 6.2 and 6.3

_IS_SECURE = {"https": True, "wss": True, "http": False, "ws": False}


class Forwarded(NamedTuple):
    """What trusted proxies say. `client` is None where they say nothing of it, and has port 0 where they name none;
    `secure` says whether the client came over TLS, and is None likewise.
    """

    client: TransportAddress | None
    secure: bool | None


class _Hop(NamedTuple):
    """One proxy's word on whom it served, and how. Texts as they came."""

    node: str | None
    scheme: str | None


def read_forwarded(headers: RequestHeaders, trusts: Callable[[TransportAddress], bool]) -> Forwarded:
    """The client of a request that a trusted proxy sent. Raises DecodeError where that cannot be told.

    Beside headers that break the grammar that is where the two of them name different addresses.
    """
    old = _walk(_x_forwarded(headers), trusts)
    new = _walk(_forwarded(headers), trusts)
    client, secure = old or new or Forwarded(None, None)
    if old is not None and new is not None:
        if _ip(old) != _ip(new):
            raise DecodeError("X-Forwarded-For and Forwarded name different clients")
        if client is not None and not client.port:
            client = new.client
        if secure is None:
            secure = new.secure
    return Forwarded(client, _nearest_scheme(headers) if secure is None else secure)


def _ip(forwarded: Forwarded) -> bytes | None:
    return None if forwarded.client is None else forwarded.client.ip


def _walk(hops: Iterator[_Hop], trusts: Callable[[TransportAddress], bool]) -> Forwarded | None:
    """Follow the hops, the nearest one first; None if there are none."""
    found = None
    for hop in hops:
        client = _address(hop.node)
        found = Forwarded(client, _IS_SECURE.get((hop.scheme or "").lower()))
        if client is None or not trusts(client):
            break
    return found


def _x_forwarded(headers: RequestHeaders) -> Iterator[_Hop]:
    nodes = _members(headers, b"x-forwarded-for")
    schemes = _members(headers, b"x-forwarded-proto")
    if len(schemes) != len(nodes):  # most proxies write one for all; of several the nearest one's can be believed
        schemes = schemes[-1:] * len(nodes) or [""] * len(nodes)
    return (_Hop(node, scheme) for node, scheme in zip(reversed(nodes), reversed(schemes), strict=True))


def _nearest_scheme(headers: RequestHeaders) -> bool | None:
    """What the proxy in front of us says of TLS, if nobody said it of the client."""
    schemes = _members(headers, b"x-forwarded-proto")
    return _IS_SECURE.get(schemes[-1].lower()) if schemes else None


def _members(headers: RequestHeaders, name: bytes) -> list[str]:
    """The members of a list, which may stand on several lines, without empty ones (RFC 9110 section 5.6.1)."""
    lines = headers.getRawHeaders(name) or ()
    members = [member.strip().decode("latin-1") for line in lines for member in line.split(b",")]
    return [member for member in members if member]


def _forwarded(headers: RequestHeaders) -> Iterator[_Hop]:
    # Line by line, so that what a client wrote ahead of our proxies is not even read.
    for line in reversed(headers.getRawHeaders(b"forwarded") or ()):
        for element in reversed(_elements(line)):
            yield _Hop(element.get(b"for"), element.get(b"proto"))


def _elements(line: bytes) -> Sequence[dict[bytes, str]]:
    """The elements of one line, each with its pairs. Raises DecodeError."""
    elements: list[dict[bytes, str]] = [{}]
    at = 0
    while True:
        match = _PAIR.match(line, at)
        if match is None:
            raise DecodeError("a Forwarded header that does not read")
        name, token, quoted, separator = match.groups()
        if name is not None:
            name = name.lower()
            if name in elements[-1]:
                raise DecodeError("a Forwarded header that says something twice")
            value = token if quoted is None else _QUOTED_PAIR.sub(rb"\1", quoted)
            elements[-1][name] = value.decode("latin-1")
        if not separator:
            return [element for element in elements if element]
        if separator == b",":
            elements.append({})
        at = match.end()


def _address(node: str | None) -> TransportAddress | None:
    """The address in a node; None for one that hides it. Raises DecodeError for what is none of them."""
    if node is None or _NO_ADDRESS.fullmatch(node):
        return None
    match = _NODE.fullmatch(node)
    host, port = (node, "") if match is None else (match[1] or match[2], match[3] or "")
    try:
        return TransportAddress.parse(host, int(port) if port.isdigit() else 0)
    except DecodeError:  # which would repeat what is written there
        raise DecodeError("a forwarding header with an address that does not read") from None
