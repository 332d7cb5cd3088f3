"""Ways from a client to its server, by app_connection. Another way in is another row of `_CONNECTORS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail

from relayd.address import AppConnection
from relayd.client.transports.datagrams import connect_udp
from relayd.client.transports.dtls import connect_dtls
from relayd.client.transports.server import Connection, Receiver, Server
from relayd.client.transports.turn_stream import connect_stream
from relayd.client.transports.websocket import connect_websocket
from relayd.errors import ConfigurationError

_CONNECTORS: dict[AppConnection, Callable[[Any, Server, Any, Receiver], Deferred[Connection]]] = {
    AppConnection.UDP: connect_udp,
    AppConnection.TCP: connect_stream,
    AppConnection.TLS: connect_stream,
    AppConnection.DTLS: connect_dtls,
    AppConnection.WS: connect_websocket,
    AppConnection.WSS: connect_websocket,
}


def connect(reactor: Any, server: Server, trust_root: Any, receiver: Receiver) -> Deferred[Connection]:
    """Open a way to `server`. `trust_root` is Twisted's, None for the platform's.

    Fails with ServerUnavailable, or ConfigurationError for a way that is not there.
    """
    kind = server.app_connection
    connector = _CONNECTORS.get(kind)
    if connector is None:
        return fail(ConfigurationError(f"this client does not speak TURN over {kind.value}"))
    if server.proxy is not None and kind.is_datagram:
        return fail(ConfigurationError(f"an HTTP proxy carries no {kind.value}: use tcp, tls, ws or wss through it"))
    try:
        return connector(reactor, server, trust_root, receiver)
    except ConfigurationError as error:
        return fail(error)
