"""The policy `transports:udp` or `transports:tcp`: only datagrams, or only TCP connections, are relayed to peers."""

from __future__ import annotations

from typing import Any

from twisted.plugin import IPlugin
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.errors import ConfigurationError
from relayd.interfaces import IPolicy, IPolicyFactory
from relayd.turn.outputs import OpenRelay, RelayRefused
from relayd.turn.settings import TCP, UDP

_NUMBERS = {"udp": UDP, "tcp": TCP}


@implementer(IPolicy)
class Transports:
    """Refuses allocations for every transport but one."""

    def __init__(self, allowed: int) -> None:
        """`allowed` is the IP protocol number."""
        self._allowed = allowed

    def may_allocate(self, request: OpenRelay) -> RelayRefused | None:
        # RFC 8656 section 7.2 step 3: as a server answers that has no such transport
        return None if request.transport == self._allowed else RelayRefused(442)

    def may_reach(self, username: str, peer: TransportAddress) -> bool:
        return True

    def bandwidth(self, username: str) -> int | None:
        return None


@implementer(IPlugin, IPolicyFactory)
class TransportsFactory:
    policy_type = "transports"
    help = (
        "Relays datagrams only (udp), or TCP connections only (tcp); without it both. A relay for nothing but WebRTC "
        "needs no TCP to peers. How clients come to the relay is another matter, and for --listen to say."
    )
    argument_format = "transports:udp or transports:tcp"

    def make(self, arguments: str, reactor: Any) -> IPolicy:
        if arguments not in _NUMBERS:
            raise ConfigurationError(
                f"--policy transports:{arguments}: not a transport to peers: write transports:udp or transports:tcp"
            )
        return Transports(_NUMBERS[arguments])
