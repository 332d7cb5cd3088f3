"""The kind `web`: an HTTP site on a stream endpoint, on which TURN is spoken over WebSocket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relayd.config import ListenerSettings
from relayd.interfaces import IRelayService
from relayd.listeners.connection import ClientConnection
from relayd.listeners.http import WebSite
from relayd.listeners.stream import StreamListener
from relayd.listeners.websocket import WebClient, make_frames_factory


class WebListener(StreamListener):
    """One endpoint of the site, and its connections."""

    kind = "web"
    connection: type[ClientConnection] = WebClient
    alpn: Sequence[bytes] = (b"http/1.1",)

    def __init__(
        self, description: str, clock: Any, service: IRelayService, settings: ListenerSettings, pages: Any
    ) -> None:
        """`pages` is the root of the site, a `twisted.web.resource.Resource` that is this listener's own."""
        super().__init__(description, clock, service, settings)
        self.site = WebSite(pages, settings.web_origins, clock)
        self.frames_factory = make_frames_factory(clock)
