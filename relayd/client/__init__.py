"""The TURN client for Twisted: datagrams to and from peers through a relay, over UDP, TCP and TLS.

`TurnClient`, `TurnUri` and, to be told of reconnections, `Observer` are what applications need; `docs/client.rst` shows how.
"""

from relayd.client.lasting import Observer
from relayd.client.turn import TurnClient
from relayd.client.uri import TurnUri

__all__ = ["Observer", "TurnClient", "TurnUri"]
