"""The allocation log: one line when an allocation starts and one when it ends, for people or as JSON lines.

User names come from clients: they are quoted and escaped, so that none can forge a line. No secret is ever in an event.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, globalLogPublisher
from zope.interface import implementer

from relayd.interfaces import Counters, IAllocationObserver
from relayd.turn.outputs import AllocationCreated, AllocationEnded, EndReason

LINES_TOGETHER = 64
"""Lines for people that wait for one another, some milliseconds of work."""


def sum_counters(relays: Iterable[tuple[Any, Any]]) -> Counters:
    """What went through the relays of one allocation together."""
    total = Counters()
    for relay, _ in relays:
        total.add(relay.counters)
    return total


@implementer(IAllocationObserver)
class HumanLog:
    """Writes to the Twisted log, for whoever reads along.

    The lines are put together here and not by the log, whose formatting of a dozen fields costs as much as the rest of
    an allocation; and so are its events. Those of one reactor turn are written at its end: what writes one line is in
    the processor's caches for the next, and does not drive out what serves requests.
    """

    def __init__(self, reactor: IReactorTime, publish: ILogObserver = globalLogPublisher) -> None:
        self._reactor = reactor
        self._publish = publish
        self._events: list[LogEvent] = []  # that are to be written
        self._call: IDelayedCall | None = None

    def observe(self, event: Any) -> None:
        if isinstance(event, AllocationCreated):
            self._say(
                f"allocation {event.session_id} started: user {event.username!r}, {event.path}, "
                f"relayed {_addresses(event.relays)}, for {event.lifetime} s"
            )
        elif isinstance(event, AllocationEnded):
            counters = sum_counters(event.relays)
            self._say(
                f"allocation {event.session_id} ended: {event.reason} after {event.duration:.1f} s, "
                f"user {event.username!r}, {event.path}, relayed {_addresses(event.relays)}, "
                f"{counters.sent_packets} packets ({counters.sent_bytes} bytes) to peers, "
                f"{counters.received_packets} ({counters.received_bytes}) back, {counters.dropped} dropped, "
                f"{counters.bridged} bridged"
            )
            if event.reason is EndReason.SHUTDOWN:
                self._write()  # there may be no other turn

    def _say(self, line: str) -> None:
        # What Logger.info would make of it. That, and a format with a field to fill in, would cost a tenth of the
        # whole allocation: there are none here, so the event is as it would be if it had been flattened.
        self._events.append(
            {
                "log_level": LogLevel.info,
                "log_namespace": "relayd",
                "log_source": None,
                "log_format": line.replace("{", "{{").replace("}", "}}"),
                "log_flattened": {},
                "log_time": time.time(),
            }
        )
        if len(self._events) >= LINES_TOGETHER:
            self._write()
        elif self._call is None:
            self._call = self._reactor.callLater(0, self._write)

    def _write(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        events, self._events = self._events, []
        for event in events:
            self._publish(event)


@implementer(IAllocationObserver)
class JsonLines:
    """Writes one JSON object a line through `write`, with the seconds since the epoch as `time`."""

    _log = Logger()

    def __init__(self, write: Callable[[str], Any], clock: IReactorTime) -> None:
        self._write = write
        self._clock = clock
        self._failing = False

    def observe(self, event: Any) -> None:
        if isinstance(event, AllocationCreated):
            fields: dict[str, Any] = {"event": "allocation-started", "lifetime": event.lifetime}
        elif isinstance(event, AllocationEnded):
            counters = sum_counters(event.relays)
            fields = {
                "event": "allocation-ended",
                "reason": event.reason.value,
                "duration": round(event.duration, 3),
                **{name: getattr(counters, name) for name in Counters.__slots__},
            }
        else:
            return
        five_tuple = event.path.five_tuple
        line = json.dumps(
            {
                "time": round(self._clock.seconds(), 3),
                "session": event.session_id,
                "user": event.username,
                "app_connection": event.path.app_connection.value,
                "client": str(five_tuple.client),
                "server": str(five_tuple.server),
                "transport": five_tuple.transport,
                "relayed": [str(address) for _, address in event.relays],
                **fields,
            }
        )
        try:
            self._write(line + "\n")
        except OSError as error:
            if not self._failing:
                self._log.error("the allocation log cannot be written: {error}; lines are lost", error=str(error))
            self._failing = True
        else:
            self._failing = False


def _addresses(relays: Iterable[tuple[Any, Any]]) -> str:
    return ", ".join(str(address) for _, address in relays)
