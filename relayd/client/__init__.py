"""The TURN client for Twisted: datagrams and TCP connections to and from peers through a relay, over UDP, TCP, TLS,
DTLS and WebSocket.

`TurnClient` is what applications need. `TurnUri`, `Family` and `HttpProxy` say where things are, an `Observer` is told
of reconnections, and `RelayedPort`, `LastingPort` and `TcpAllocation` are what the client gives.
`docs/client.rst` shows how.
"""

from relayd.address import Family
from relayd.client.lasting import LastingPort, Observer
from relayd.client.relayed import RelayedPort
from relayd.client.tcp import TcpAllocation
from relayd.client.transports.proxy import HttpProxy
from relayd.client.transports.uri import TurnUri
from relayd.client.turn import TurnClient
from relayd.turn.outputs import PeerTls

__all__ = [
    "TurnClient",
    "TurnUri",
    "Family",
    "HttpProxy",
    "Observer",
    "RelayedPort",
    "LastingPort",
    "TcpAllocation",
    "PeerTls",
]
