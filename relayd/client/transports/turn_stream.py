"""TURN over TCP and TLS from a client to its server: whole messages out of a stream (RFC 8656 section 12.5)."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from relayd.address import AppConnection
from relayd.client.transports.server import Connection, Receiver, Server
from relayd.client.transports.streams import StreamConnection, endpoint_to, silent_factory
from relayd.client.transports.wording import explain
from relayd.dtls import ALPN
from relayd.errors import DecodeError
from relayd.stun.framing import MIN_CHANNEL, StreamSplitter


class TurnStream(StreamConnection):
    """A connection on which messages follow one another."""

    def __init__(self, clock: Any, receiver: Receiver) -> None:
        super().__init__(clock, receiver)
        self._splitter = StreamSplitter()
        self._is_turn = False

    def dataReceived(self, data: bytes) -> None:
        try:
            # The first thing to come is the answer to a request: ASCII, in which most other protocols begin, would pass
            # for the beginning of very long ChannelData.
            if not self._is_turn and data[0] >= MIN_CHANNEL >> 8:
                raise DecodeError("not STUN")
            self._is_turn = True
            messages = self._splitter.receive(data)
        except DecodeError:
            self._fail("what answers there is no TURN server")
            return
        for message in messages:
            self._receiver.message_received(message)


def connect_stream(reactor: Any, server: Server, trust_root: Any, receiver: Receiver) -> Deferred[Connection]:
    """Connect over TCP, and begin TLS where the server wants it. Fails with ServerUnavailable.

    Raises ConfigurationError as `endpoint_to` does.
    """
    # RFC 7443: the first one is stun.turn
    protocols = [ALPN[0]] if server.app_connection is AppConnection.TLS else None
    endpoint = endpoint_to(reactor, server, trust_root, protocols)
    opened: Deferred[Connection] = endpoint.connect(silent_factory(lambda: TurnStream(reactor, receiver)))
    return opened.addErrback(explain, server.host)
