"""Where an HTTP proxy is and who we are to it. How it is asked is in `relayd.client.transports.tunnel`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from urllib.parse import unquote
from urllib.request import getproxies_environment, proxy_bypass

from relayd.address import AppConnection
from relayd.client.transports.uri import TurnUri, bracketed, host_of
from relayd.errors import ConfigurationError

DEFAULT_PORT = 80  # that of the scheme http, as any URL has it

_URL = re.compile(
    r"(?:http://)?(?:(?P<user>[^:@/?#\s]*)(?::(?P<password>[^@/?#\s]*))?@)?"
    r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:/?#@\s]+)(?::(?P<port>[0-9]{1,5}))?/?",
    re.IGNORECASE,
)
_GRAMMAR = "write http://HOST:PORT, or http://USER@HOST:PORT"
_SCHEMES = {AppConnection.WS: "http", AppConnection.WSS: "https"}  # whose variables of the environment hold


@dataclass(frozen=True, slots=True)
class HttpProxy:
    """A proxy that is asked to CONNECT us to servers. `username` is None where it wants nobody's."""

    host: str
    port: int
    username: str | None = None
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> HttpProxy:
        """From a URL, perhaps with user and password. Raises ConfigurationError, which repeats nothing of them."""
        if re.match(r"(?!http://)[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
            raise ConfigurationError(f"only proxies that speak HTTP are used, without TLS of their own: {_GRAMMAR}")
        match = _URL.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"that is not the URL of an HTTP proxy: {_GRAMMAR}")
        port = int(match["port"] or DEFAULT_PORT)
        if not 0 < port <= 0xFFFF:
            raise ConfigurationError(f"{port} is not the port of a proxy: give a number from 1 to 65535")
        proxy = cls(host_of("the proxy", match["host"]), port)
        if match["user"] is None:
            return proxy
        return proxy.with_user(unquote(match["user"]), unquote(match["password"] or ""))

    def with_user(self, username: str, password: str) -> HttpProxy:
        """The same, used by somebody. Raises ConfigurationError where RFC 7617 cannot say who that is."""
        if ":" in username or any(ord(each) < 0x20 or ord(each) == 0x7F for each in username + password):
            raise ConfigurationError(
                "the user name or the password for the proxy has characters that HTTP cannot carry (a colon in the "
                "name, or control characters)"
            )
        return replace(self, username=username, password=password)

    def __str__(self) -> str:
        return f"http://{bracketed(self.host)}:{self.port}"


def proxy_from_environment(uri: TurnUri) -> HttpProxy | None:
    """The proxy that the environment names for a WebSocket: `http_proxy` for ws, `https_proxy` for wss, `all_proxy` for
    both, and `no_proxy` for the hosts that are reached without.

    Other ways in are not the web's, and go straight. Raises ConfigurationError for a proxy that cannot be used.
    """
    scheme = _SCHEMES.get(uri.app_connection)
    proxies = getproxies_environment()
    text = proxies.get(scheme or "") or (proxies.get("all") if scheme else None)
    if not text or any(proxy_bypass(host) for host in {uri.host, bracketed(uri.host)}):
        return None
    try:
        return HttpProxy.parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{scheme}_proxy or all_proxy in the environment: {error}") from None
