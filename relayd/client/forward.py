"""What is forwarded where, in words: `[ADDRESS:]PORT=PEER:PORT`. Resolves and opens nothing."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from relayd.errors import ConfigurationError

DEFAULT_INTERFACE = "127.0.0.1"  # nobody else's datagrams go through the user's relay unless that is asked for

_HOST = r"\[[0-9a-fA-F:.]+\]|[^\[\]:=\s]+"
_FORWARD = re.compile(
    rf"(?:(?P<interface>{_HOST}):)?(?P<port>[0-9]{{1,5}})=(?P<host>{_HOST}):(?P<peer_port>[0-9]{{1,5}})"
)
_GRAMMAR = "write PORT=PEER:PORT or ADDRESS:PORT=PEER:PORT, with IPv6 addresses in brackets"


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
        interface = match["interface"] or DEFAULT_INTERFACE
        try:
            address = ipaddress.ip_address(interface.strip("[]"))
        except ValueError:
            raise ConfigurationError(
                f"{text!r}: {interface} is not an IP address of this host to listen on: {_GRAMMAR}"
            ) from None
        return cls(str(address), port, match["host"].strip("[]"), peer_port)
