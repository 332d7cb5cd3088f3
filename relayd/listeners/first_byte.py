"""Tells by its first byte what a client speaks on a port that takes several protocols. One byte is enough, always.

What a browser can be made to send never begins like STUN, and STUN never like a request or a TLS handshake; so whoever
has the first byte of a connection has no choice left, however slowly the rest comes.
"""

from __future__ import annotations

from enum import Enum

from relayd.dtls import ALPN

HTTP_ALPN = b"http/1.1"  # RFC 7301 section 6


class Spoken(Enum):
    """What can be told apart."""

    TURN = "turn"
    HTTP = "http"
    TLS = "tls"


def spoken_from(first: int) -> Spoken | None:
    """What begins with that byte; None if nothing that we know of does."""
    if first < 0x04:  # RFC 7983 section 7; ChannelData cannot come first (RFC 8656 section 12)
        return Spoken.TURN
    if first == 0x16:  # a handshake record (RFC 8446 section 5.1). SSL 2 began otherwise, and is not spoken
        return Spoken.TLS
    if 0x41 <= first <= 0x5A:  # a method: all that are registered begin with a capital letter (RFC 9110 section 16.1)
        return Spoken.HTTP
    return None


def spoken_within_tls(first: int, protocol: bytes | None) -> Spoken | None:
    """The same inside TLS, where ALPN may have chosen a protocol: then only that one may be spoken.

    Nobody can so have a browser, which asks for HTTP, send to TURN what it believes to be sent to a web site.
    """
    found = spoken_from(first)
    if found is Spoken.TLS:
        return None
    chosen = Spoken.HTTP if protocol == HTTP_ALPN else Spoken.TURN if protocol in ALPN else found
    return found if found is chosen else None
