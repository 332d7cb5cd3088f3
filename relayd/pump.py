"""The one pump for all cores: drains a core's outputs, then arms one delayed call for its next deadline.

It decides nothing. Whoever feeds the core calls one of its verbs and then `Pump.run`. This is on the path of every
request, so a deadline that moves later (each refresh moves one) costs nothing here: the delayed call fires early, and
is then set anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from relayd.core import Core

_PAUSE_AFTER_FAULT = 1.0  # seconds until a core whose timer raised is asked again: a bug must not spin the reactor

Output = TypeVar("Output")


class Pump(Generic[Output]):
    """Carries what `core` puts out to `perform`, and the time of `clock` into `core`.

    An exception out of `perform` is a bug in that one output: it is logged, and the outputs behind it are performed.
    """

    _log = Logger()

    def __init__(self, core: Core[Output], clock: IReactorTime, perform: Callable[[Output], Any]) -> None:
        self._core = core
        self._clock = clock
        self._perform = perform
        self._call: IDelayedCall | None = None
        self._due = 0.0
        self._running = False
        self._stopped = False

    def run(self) -> None:
        """Perform every output, then arm the timer. To be called after each verb of the core.

        `perform` may answer the core at once and call `run` again: the loop that is already going takes those outputs
        too, so that they keep their order.
        """
        if self._running:
            return
        self._running = True
        next_output = self._core.next_output
        perform = self._perform
        try:
            while (output := next_output()) is not None:
                try:
                    perform(output)
                except Exception:
                    self._log.failure("could not perform {kind}", kind=type(output).__name__)
        finally:
            self._running = False
            if not self._stopped:
                self._arm()

    def stop(self) -> None:
        """Cancel the timer for good. `run` still drains what a closing core puts out."""
        self._stopped = True
        self._disarm()

    def _arm(self) -> None:
        due = self._core.next_timer()
        if due is None:
            self._disarm()
        elif self._call is None:
            self._due = due
            self._call = self._clock.callLater(max(0.0, due - self._clock.seconds()), self._fire)
        elif due < self._due:
            self._due = due
            self._call.reset(max(0.0, due - self._clock.seconds()))

    def _disarm(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _fire(self) -> None:
        self._call = None
        now = self._clock.seconds()
        try:
            self._core.handle_timer(now)
        except Exception:
            self._log.failure("a core failed at its deadline")
            self._call = self._clock.callLater(_PAUSE_AFTER_FAULT, self._fire)
            self._due = -math.inf  # so that nothing, least of all the deadline that failed, brings this call forward
        self.run()
