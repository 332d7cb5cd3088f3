"""Makes listeners of the kinds `web` and `any`. Loads neither Autobahn nor twisted.web before one is wanted."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from twisted.python.reflect import namedAny
from zope.interface import implementer

from relayd.config import ListenerSettings
from relayd.interfaces import IDataPlane, IListener, IListenerFactory, IRelayService
from relayd.listeners.stream import open_stream


@implementer(IPlugin, IListenerFactory)
class WebListenerFactory:
    """`pages` names what makes the root of a site from its listener's settings: this room does not know the pages."""

    kind = "web"
    argument_format = (
        "any stream endpoint of Twisted, such as tcp:PORT:interface=ADDRESS or ssl:PORT:privateKey=FILE:certKey=FILE"
    )
    help = (
        "A web site with TURN over WebSocket at /turn, in binary messages of one STUN or ChannelData message each, and "
        "with a status page, /demo and /healthz. Pages of other web sites may use it if --web-origin names them."
    )

    _listener = "relayd.listeners.web.WebListener"

    def __init__(self, pages: str) -> None:
        self._pages = pages

    def listen(
        self, endpoint: str, reactor: Any, service: IRelayService, data_plane: IDataPlane, settings: ListenerSettings
    ) -> Deferred[IListener]:
        """See `IListenerFactory.listen`."""
        pages: Any = namedAny(self._pages)
        # Autobahn and twisted.web take a fifth of a second and twenty megabytes, which a relay without WebSocket need
        # not have.
        listener: Any = namedAny(self._listener)
        opened: Deferred[Any] = open_stream(
            listener(endpoint, reactor, service, settings, pages(settings)), endpoint, reactor
        )
        return opened


class AnyListenerFactory(WebListenerFactory):
    """The same for ports on which TURN is spoken beside HTTP."""

    kind = "any"
    help = (
        "All on one port: TURN over TCP, and the site of the kind web with WebSocket; on an ssl: endpoint both over "
        "TLS, and TURN over TCP without it as well. They are told apart by ALPN and the first byte."
    )
    _listener = "relayd.listeners.mixed.AnyListener"
