"""The opening handshake of a WebSocket as a client makes and judges it (RFC 6455 section 4.1). Does no I/O."""

from __future__ import annotations

import base64
import hashlib

from relayd.client.transports.http import Response, authority
from relayd.client.transports.server import Server
from relayd.client.transports.uri import DEFAULT_WEB_PORTS

_CAUSES = {
    401: "the web server wants a login, which TURN does not have",
    403: "the relay, or a web proxy in front of it, does not let us in",
    404: "there is no TURN at that path",
    426: "it does not speak this version of WebSocket",
    429: "there were too many connections",
    502: "a web proxy does not reach the relay",
    503: "the relay has no room, or a web proxy does not reach it",
    504: "a web proxy does not reach the relay",
}
_ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


def handshake_request(server: Server, key: bytes) -> bytes:
    """What opens a WebSocket. Raises ConfigurationError for a host that cannot be named."""
    host = authority(server.tls_name, server.port).removesuffix(f":{DEFAULT_WEB_PORTS[server.app_connection]}")
    lines = [
        f"GET {server.resource} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key.decode('ascii')}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def accept_of(key: bytes) -> str:
    """The proof that a server has read our key (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _ACCEPT, usedforsecurity=False).digest()).decode("ascii")


def refusal(response: Response, key: bytes) -> str | None:
    """Why this answer opens no WebSocket, for the user; None if it does."""
    if response.status != 101:
        if 300 <= response.status < 400:
            return f"{response}: it is elsewhere; use the URL that it has there"
        cause = _CAUSES.get(response.status, "there is no WebSocket")
        return f"{response}: {cause}"
    if "websocket" not in response.tokens("upgrade") or "upgrade" not in response.tokens("connection"):
        return "what answers there switches to something that is no WebSocket"
    if response.values("sec-websocket-accept") != [accept_of(key)]:
        return "what answers there is no WebSocket server: it has not read our key"
    if response.values("sec-websocket-extensions") or response.values("sec-websocket-protocol"):
        return "the server insists on an extension or a subprotocol that nobody offered"
    return None
