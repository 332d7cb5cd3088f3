"""The kind `turn`, STUN and TURN over datagrams or a byte stream: picks the listener that an endpoint needs."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.plugin import IPlugin
from zope.interface import implementer

from relayd.config import ListenerSettings
from relayd.interfaces import IDataPlane, IListener, IListenerFactory, IRelayService
from relayd.listeners.dtls import open_dtls
from relayd.listeners.stream import listen_stream
from relayd.listeners.udp import open_udp


@implementer(IPlugin, IListenerFactory)
class TurnListenerFactory:
    """Dispatches on the word before the endpoint's first colon: `udp` and `dtls` are ours, the rest is Twisted's."""

    kind = "turn"
    argument_format = (
        "udp:PORT[:interface=ADDRESS][:alternateInterface=ADDRESS[:alternatePort=PORT]], "
        "dtls:PORT:privateKey=FILE:certKey=FILE[:extraCertChain=FILE][:interface=ADDRESS], "
        "or any stream endpoint of Twisted, such as tcp:PORT:interface=ADDRESS or ssl:PORT:privateKey=FILE:certKey=FILE"
    )
    help = (
        "STUN and TURN over UDP, TCP, TLS and DTLS. Without interface= an endpoint listens on every IPv4 address (udp "
        "and dtls: on those that the host has at the start; one that comes later takes a restart); "
        "colons in an IPv6 address are written \\:, as in interface=\\:\\:1. alternateInterface= adds the second "
        "address that NAT behaviour discovery (RFC 5780) needs; alternatePort= defaults to the port after PORT. "
        "Clients of unix: endpoints have no address and are shown as members of 100::/64."
    )

    def listen(
        self, endpoint: str, reactor: Any, service: IRelayService, data_plane: IDataPlane, settings: ListenerSettings
    ) -> Deferred[IListener]:
        """See `IListenerFactory.listen`."""
        prefix = endpoint.partition(":")[0]
        if prefix == "udp":
            return execute(open_udp, endpoint, service, data_plane)
        if prefix == "dtls":
            return execute(open_dtls, endpoint, reactor, service, data_plane, settings)
        opened: Deferred[Any] = listen_stream(endpoint, reactor, service, settings)
        return opened
