"""The policy `redirect:ADDRESS`: sends every Allocate to another server (300 Try Alternate).

RFC 8489 section 10 wants the alternate server in the address family of the request, so clients of the other family are
served here unless a second `redirect:` names a server for them.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.plugin import IPlugin
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.config import DEFAULT_PORT
from relayd.errors import ConfigurationError, DecodeError
from relayd.interfaces import IPolicy, IPolicyFactory
from relayd.turn.outputs import OpenRelay, RelayRefused

_DOMAIN = re.compile(r"[0-9A-Za-z]([-.0-9A-Za-z]{0,251}[0-9A-Za-z])?")  # RFC 1035 section 2.3.4: at most 253 characters
_ARGUMENTS = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<ipv4>[^:,\[\]]+))(?::(?P<port>[0-9]{1,5}))?(?:,(?P<domain>.+))?")


@implementer(IPolicy)
class Redirect:
    """Refuses allocations of clients in the family of `alternate`, and says where to go instead."""

    def __init__(self, alternate: TransportAddress, domain: str | None = None) -> None:
        self._alternate = alternate
        self._domain = domain

    def may_allocate(self, request: OpenRelay) -> RelayRefused | None:
        if request.path.client.family is not self._alternate.family:
            return None
        return RelayRefused(300, alternate=self._alternate, domain=self._domain)

    def may_reach(self, username: str, peer: TransportAddress) -> bool:
        return True

    def bandwidth(self, username: str) -> int | None:
        return None


@implementer(IPlugin, IPolicyFactory)
class RedirectFactory:
    policy_type = "redirect"
    help = (
        "Answers every Allocate with 300 Try Alternate and this server: for an address that clients still know, but "
        "are not to use. Clients of the other address family are served here: give it twice to send both away. DOMAIN "
        "is the name in the other server's certificate, for clients that come over TLS or DTLS."
    )
    argument_format = "redirect:ADDRESS[:PORT][,DOMAIN], such as redirect:[2001:db8::1]:3478,relay2.example.org"

    def make(self, arguments: str, reactor: Any) -> IPolicy:
        match = _ARGUMENTS.fullmatch(arguments)
        try:
            if match is None:
                raise DecodeError("not ADDRESS[:PORT][,DOMAIN]")
            alternate = TransportAddress.parse(match["ipv6"] or match["ipv4"], int(match["port"] or DEFAULT_PORT))
            domain = match["domain"]
            if alternate.port == 0 or (domain is not None and not _DOMAIN.fullmatch(domain)):
                raise DecodeError("no server can be at port 0" if alternate.port == 0 else f"not a domain: {domain!r}")
        except DecodeError as why:
            raise ConfigurationError(
                f"--policy redirect:{arguments}: {why}: write redirect:192.0.2.1:3478 or redirect:[2001:db8::1]:3478"
            ) from None
        return Redirect(alternate, domain)
