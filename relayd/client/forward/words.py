"""What is forwarded where, in words: `[ADDRESS:]PORT=PEER:PORT` going out, `PEER=[HOST:]PORT` coming in. Resolves and
opens nothing.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from relayd.errors import ConfigurationError

# On this host: nobody else's datagrams go through the user's relay, and a peer reaches nobody else, unless asked for.
DEFAULT_HOST = "127.0.0.1"

_HOST = r"\[[0-9a-fA-F:.]+\]|[^\[\]:=\s]+"
_FORWARD = re.compile(
    rf"(?:(?P<interface>{_HOST}):)?(?P<port>[0-9]{{1,5}})=(?P<host>{_HOST}):(?P<peer_port>[0-9]{{1,5}})"
)
_WELCOME = re.compile(rf"(?P<peer>{_HOST})=(?:(?P<host>{_HOST}):)?(?P<port>[0-9]{{1,5}})")
_GRAMMAR = "write PORT=PEER:PORT or ADDRESS:PORT=PEER:PORT, with IPv6 addresses in brackets"
_WELCOME_GRAMMAR = "write PEER=PORT or PEER=HOST:PORT, with IPv6 addresses in brackets"


class Forward(NamedTuple):
    """One local port and the peer behind it: `host` is an address or a name. `port` may be 0: any that is free."""

    interface: str
    port: int
    host: str
    peer_port: int

    @classmethod
    def parse(cls, text: str) -> Forward:
        """From text. Raises ConfigurationError."""
        match = _FORWARD.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"{text!r} says not what to forward: {_GRAMMAR}")
        port, peer_port = int(match["port"]), int(match["peer_port"])
        if port > 0xFFFF or not 0 < peer_port <= 0xFFFF:
            raise ConfigurationError(f"{text!r}: a port is a number from 1 to 65535, a local one may be 0 for any")
        interface = match["interface"] or DEFAULT_HOST
        try:
            address = ipaddress.ip_address(interface.strip("[]"))
        except ValueError:
            raise ConfigurationError(
                f"{text!r}: {interface} is not an IP address of this host to listen on: {_GRAMMAR}"
            ) from None
        return cls(str(address), port, match["host"].strip("[]"), peer_port)


class Welcome(NamedTuple):
    """A peer, by its address or name alone, and where its connections lead: `host` is an address or a name."""

    peer: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Welcome:
        """From text. Raises ConfigurationError."""
        match = _WELCOME.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"{text!r} says not who is accepted: {_WELCOME_GRAMMAR}")
        port = int(match["port"])
        if not 0 < port <= 0xFFFF:
            raise ConfigurationError(f"{text!r}: a port is a number from 1 to 65535")
        return cls(match["peer"].strip("[]"), (match["host"] or DEFAULT_HOST).strip("[]"), port)

    @property
    def local(self) -> str:
        """Where the connections lead, in words."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
