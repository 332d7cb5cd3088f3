"""The TURN client for Twisted: datagrams and TCP connections to and from peers through a relay, over UDP, TCP, TLS,
DTLS and WebSocket.

`TurnClient` is what applications need, `TurnUri` and `HttpProxy` say where things are, and an `Observer` is told of
reconnections; `docs/client.rst` shows how.
"""

from relayd.client.lasting import Observer
from relayd.client.proxy import HttpProxy
from relayd.client.tcp import TcpAllocation
from relayd.client.turn import TurnClient
from relayd.client.uri import TurnUri
from relayd.turn.outputs import PeerTls

__all__ = ["TurnClient", "TurnUri", "HttpProxy", "Observer", "TcpAllocation", "PeerTls"]
