"""Where a server is and how it is reached: TURN URIs (RFC 7065) and WebSocket URLs (RFC 6455). Resolves nothing."""

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
DEFAULT_WEB_PORTS = {AppConnection.WS: 80, AppConnection.WSS: 443}  # RFC 6455 section 3
DEFAULT_RESOURCE = "/turn"  # where relayd has its WebSocket

_HOST_AND_PORT = r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:/?#@\s]+)(?::(?P<port>[0-9]{1,5}))?"
_TURN = re.compile(rf"(?P<scheme>turns?):{_HOST_AND_PORT}(?:\?transport=(?P<transport>[A-Za-z]+))?", re.IGNORECASE)
_WEB = re.compile(rf"(?P<scheme>wss?)://{_HOST_AND_PORT}(?P<resource>[/?][\x21\x22\x24-\x7e]*)?", re.IGNORECASE)
_CONNECTIONS = {
    ("turn", "udp"): AppConnection.UDP,
    ("turn", "tcp"): AppConnection.TCP,
    ("turns", "tcp"): AppConnection.TLS,
    ("turns", "udp"): AppConnection.DTLS,
}
_DEFAULT_TRANSPORT = {"turn": "udp", "turns": "tcp"}
_GRAMMAR = (
    "write turn:HOST, turn:HOST?transport=tcp or turns:HOST, with :PORT behind HOST where it is not the usual one, "
    "or a WebSocket URL such as wss://HOST/turn"
)


class TurnUri(NamedTuple):
    """`host` is a name or an address without brackets; `app_connection` is how messages get there.

    `says_transport` is whether the URI chose a transport by itself. `resource` is path and query of a WebSocket URL.
    """

    host: str
    port: int
    app_connection: AppConnection
    says_transport: bool = True
    resource: str = DEFAULT_RESOURCE

    @classmethod
    def parse(cls, text: str) -> TurnUri:
        """From a TURN URI or a WebSocket URL. Raises ConfigurationError, which does not repeat what may be a password.

        A WebSocket URL without a path means `DEFAULT_RESOURCE`.
        """
        if "@" in text:
            raise ConfigurationError(f"the address of a server carries neither user nor password: {_GRAMMAR}")
        web = _WEB.fullmatch(text)
        if web is not None:
            connection = AppConnection(web["scheme"].lower())
            port = _port(text, web["port"], DEFAULT_WEB_PORTS[connection])
            resource = web["resource"] or DEFAULT_RESOURCE
            if resource.startswith("?"):  # RFC 6455 section 3: the resource name begins with "/"
                resource = f"/{resource}"
            return cls(host_of(text, web["host"]), port, connection, resource=resource)
        turn = _TURN.fullmatch(text)
        if turn is None:
            raise ConfigurationError(f"{text!r} is no TURN URI, nor a WebSocket URL: {_GRAMMAR}")
        return cls._turn(text, turn)

    @classmethod
    def _turn(cls, text: str, match: re.Match[str]) -> TurnUri:
        scheme = match["scheme"].lower()
        transport = (match["transport"] or _DEFAULT_TRANSPORT[scheme]).lower()
        connection = _CONNECTIONS.get((scheme, transport))
        if connection is None:
            raise ConfigurationError(f"{text}: transport={transport} is unknown: use udp or tcp")
        port = _port(text, match["port"], DEFAULT_PORT if scheme == "turn" else DEFAULT_TLS_PORT)
        return cls(host_of(text, match["host"]), port, connection, match["transport"] is not None)

    def __str__(self) -> str:
        host = bracketed(self.host)
        if self.app_connection in DEFAULT_WEB_PORTS:
            port = "" if self.port == DEFAULT_WEB_PORTS[self.app_connection] else f":{self.port}"
            return f"{self.app_connection.value}://{host}{port}{self.resource}"
        scheme = "turns" if self.app_connection in (AppConnection.TLS, AppConnection.DTLS) else "turn"
        transport = "udp" if self.app_connection.is_datagram else "tcp"
        return f"{scheme}:{host}:{self.port}?transport={transport}"


def bracketed(host: str) -> str:
    """A host as URLs have it: brackets around an IPv6 address."""
    return f"[{host}]" if ":" in host else host


def host_of(where: str, text: str) -> str:
    """A host without its brackets. Raises ConfigurationError, which quotes `where`."""
    if not text.startswith("["):
        return text
    try:
        return str(ipaddress.IPv6Address(text[1:-1]))
    except ValueError:
        raise ConfigurationError(f"{where}: {text} is not an IPv6 address") from None


def _port(uri: str, text: str | None, default: int) -> int:
    port = default if text is None else int(text)
    if not 0 < port <= 0xFFFF:
        raise ConfigurationError(f"{uri}: {port} is not a port: give a number from 1 to 65535")
    return port
