"""A flow: one decision of the TURN core, in the form in which a data plane repeats it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relayd.address import TransportAddress

if TYPE_CHECKING:
    from relayd.interfaces import IClientPath, IRelay


class Flow:
    """ChannelData with `number` on `client` <-> datagrams between `relay` and `peer`, until it is removed.

    A data plane may hang what it needs to forward fast on `plane_state`; nobody else looks at it.
    """

    __slots__ = ("client", "number", "relay", "peer", "plane_state")

    def __init__(self, client: IClientPath, number: int, relay: IRelay, peer: TransportAddress) -> None:
        self.client = client
        self.number = number
        self.relay = relay
        self.peer = peer
        self.plane_state: object = None
