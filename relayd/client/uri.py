"""TURN URIs (RFC 7065): where a server is and how it is reached. Resolves nothing."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from relayd.address import AppConnection
from relayd.errors import ConfigurationError

# Deviation: RFC 5928 section 3 looks for SRV and NAPTR records first, where a URI has no port or no transport. Only
# addresses are looked up here.
DEFAULT_PORT = 3478  # RFC 8656 section 5
DEFAULT_TLS_PORT = 5349

_URI = re.compile(
    r"(?P<scheme>turns?):(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:/?#@\s]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?:\?transport=(?P<transport>[A-Za-z]+))?",
    re.IGNORECASE,
)
_CONNECTIONS = {
    ("turn", "udp"): AppConnection.UDP,
    ("turn", "tcp"): AppConnection.TCP,
    ("turns", "tcp"): AppConnection.TLS,
    ("turns", "udp"): AppConnection.DTLS,
}
_DEFAULT_TRANSPORT = {"turn": "udp", "turns": "tcp"}
_GRAMMAR = (
    "write turn:HOST, turn:HOST?transport=tcp or turns:HOST, with :PORT behind HOST where it is not the usual one"
)


class TurnUri(NamedTuple):
    """`host` is a name or an address without brackets; `app_connection` is how messages get there.

    `says_transport` is whether the URI chose a transport by itself.
    """

    host: str
    port: int
    app_connection: AppConnection
    says_transport: bool = True

    @classmethod
    def parse(cls, text: str) -> TurnUri:
        """From text. Raises ConfigurationError, which does not repeat what may be a password."""
        if "@" in text:
            raise ConfigurationError(f"a TURN URI carries neither user nor password: {_GRAMMAR}")
        match = _URI.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"{text!r} is not a TURN URI: {_GRAMMAR}")
        scheme = match["scheme"].lower()
        transport = (match["transport"] or _DEFAULT_TRANSPORT[scheme]).lower()
        connection = _CONNECTIONS.get((scheme, transport))
        if connection is None:
            raise ConfigurationError(f"{text}: transport={transport} is unknown: use udp or tcp")
        port = int(match["port"]) if match["port"] else DEFAULT_PORT if scheme == "turn" else DEFAULT_TLS_PORT
        if not 0 < port <= 0xFFFF:
            raise ConfigurationError(f"{text}: {port} is not a port: give a number from 1 to 65535")
        return cls(_host(text, match["host"]), port, connection, match["transport"] is not None)

    def __str__(self) -> str:
        scheme = "turns" if self.app_connection in (AppConnection.TLS, AppConnection.DTLS) else "turn"
        transport = "udp" if self.app_connection.is_datagram else "tcp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}:{host}:{self.port}?transport={transport}"


def _host(uri: str, text: str) -> str:
    if not text.startswith("["):
        return text
    try:
        return str(ipaddress.IPv6Address(text[1:-1]))
    except ValueError:
        raise ConfigurationError(f"{uri}: {text} is not an IPv6 address") from None
