"""Says once, not for every connection, that a port cannot accept. Twisted has the remedy, and tells of it at length."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, LogEvent, Logger, formatEvent
from zope.interface import implementer

QUIET = 60.0  # seconds without trouble after which the next one is news again


@implementer(ILogObserver)
class AcceptLog:
    """Takes what a listening port of Twisted logs, and passes on one line for each run of it.

    Out of descriptors, Twisted's port gives up a reserved one to accept and close what waits, and logs each of them.
    """

    _log = Logger()

    def __init__(self, description: str, clock: IReactorTime) -> None:
        self._description = description
        self._clock = clock
        self._quiet_until: float | None = None

    def __call__(self, event: LogEvent) -> None:
        now = self._clock.seconds()
        if self._quiet_until is None or now >= self._quiet_until:
            self._log.warn(
                "{where}: connections are refused, and the ones that are there go on: {reason}",
                where=self._description,
                reason=formatEvent(event),
            )
        self._quiet_until = now + QUIET

    def attach(self, port: Any) -> None:
        """Replace the logger of a port of Twisted's; any other port stays as it is."""
        logger = getattr(port, "_logger", None)
        if isinstance(logger, Logger):
            port._logger = Logger(namespace=logger.namespace, observer=self)
