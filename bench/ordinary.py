"""WebSocket as Autobahn is ordinarily used: each message comes by `onMessage` and leaves by `sendMessage`.

relayd's own listener is compared with it, in the same relay: that is what its fast path saves. It is no part of relayd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from zope.interface import implementer

from relayd.config import ListenerSettings
from relayd.interfaces import IDataPlane, IListener, IListenerFactory, IRelayService
from relayd.listeners.stream import open_stream
from relayd.listeners.web import WebListener
from relayd.listeners.websocket import Frames, WebClient
from relayd.stun.framing import encode_channel_data
from relayd.web.pages import make_pages


class OrdinaryFrames(Frames):
    """Has Autobahn collect whole messages."""

    onMessageBegin = WebSocketServerProtocol.onMessageBegin
    onMessageFrameData = WebSocketServerProtocol.onMessageFrameData
    onMessageEnd = WebSocketServerProtocol.onMessageEnd
    sendData = WebSocketServerProtocol.sendData

    @property
    def transport(self) -> Any:
        """Where each message is written by itself."""
        return self._connection.transport

    def received(self, data: bytes) -> None:
        self._dataReceived(data)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self._connection.binary_message(payload)


class OrdinaryClient(WebClient):
    """Has Autobahn frame each message by itself."""

    frames = OrdinaryFrames

    def send_channel_data_run(self, number: int, payloads: Sequence[bytes]) -> int:
        if self._paused or self._closing:
            return 0
        frames: Any = self._frames
        for payload in payloads:
            frames.sendMessage(encode_channel_data(number, payload, padded=False), isBinary=True)
        return len(payloads)


class OrdinaryListener(WebListener):
    """The site, with such connections."""

    kind = "ordinary"
    connection = OrdinaryClient


@implementer(IPlugin, IListenerFactory)
class OrdinaryListenerFactory:
    """Makes them for `--listen ordinary=ENDPOINT`."""

    kind = "ordinary"
    argument_format = "any stream endpoint of Twisted"
    help = "For the bench: TURN over WebSocket without relayd's fast path."

    def listen(
        self, endpoint: str, reactor: Any, service: IRelayService, data_plane: IDataPlane, settings: ListenerSettings
    ) -> Deferred[IListener]:
        """See `IListenerFactory.listen`."""
        listener = OrdinaryListener(endpoint, reactor, service, settings, make_pages(settings))
        opened: Deferred[Any] = open_stream(listener, endpoint, reactor)
        return opened
