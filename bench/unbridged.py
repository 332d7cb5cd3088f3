"""A data plane that does not bridge: what one relayed address sends to another goes through the kernel, as to any peer.

relayd's own is compared with it, in the same relay: that is what bridging saves. It is no part of relayd.
"""

from __future__ import annotations

from typing import Any

from twisted.plugin import IPlugin
from zope.interface import implementer

from relayd.dataplane.batched import BatchedPlane
from relayd.dataplane.bridge import Bridge
from relayd.dataplane.plane import Relay
from relayd.interfaces import IDataPlane, IDataPlaneFactory


class NoBridge(Bridge):
    """Knows no relay."""

    def opened(self, relay: Relay) -> None:
        """Leave it without neighbours."""


class UnbridgedPlane(BatchedPlane):
    """The batched plane, without a bridge."""

    name = "unbridged"

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.bridge = NoBridge(reactor)


@implementer(IPlugin, IDataPlaneFactory)
class UnbridgedPlaneFactory:
    """Makes them for `--data-plane unbridged`."""

    name = "unbridged"
    preference = -1
    help = "For the bench: the batched data plane without its bridge."

    def unavailable(self) -> str | None:
        """See `IDataPlaneFactory.unavailable`."""
        return None

    def make(self, reactor: Any) -> IDataPlane:
        """See `IDataPlaneFactory.make`."""
        return UnbridgedPlane(reactor)
