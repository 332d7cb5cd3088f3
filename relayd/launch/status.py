"""What the pages for the operator show, gathered in one place: see `relayd.interfaces.IRelayStatus`."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from relayd import __version__
from relayd.config import RelayAddress
from relayd.interfaces import IListener, IRelayStatus
from relayd.observers.statistics import Statistics
from relayd.tls.certificates import Certificates


@implementer(IRelayStatus)
class RelayStatus:
    """Of one relay, from its launch to its end."""

    version = __version__

    def __init__(
        self,
        clock: IReactorTime,
        data_plane: str,
        relay_addresses: Sequence[RelayAddress],
        certificates: Certificates,
    ) -> None:
        self.data_plane = data_plane
        self.relay_addresses = relay_addresses
        self.listeners: Sequence[IListener] = ()
        self.certificates = certificates
        self.statistics = Statistics(clock)
        self._clock = clock
        self.started = clock.seconds()

    def seconds(self) -> float:
        return self._clock.seconds()
