"""Says when a connection has been silent for too long. Owns no delayed call: whoever has connections asks."""

from __future__ import annotations

from relayd.config import ListenerSettings


class Liveness:
    """When a connection was last seen alive. `heard` is set with every whole message, at the cost of one assignment."""

    __slots__ = ("heard", "_since", "_spoke")

    def __init__(self, now: float) -> None:
        self.heard = False
        self._since = now
        self._spoke = False

    def has_expired(self, now: float, settings: ListenerSettings) -> bool:
        """Whether the timeout for the first message, or later for any message, is over.

        A message counts from the first call after it, so a timeout is late by at most the time between two calls.
        """
        if self.heard:
            self.heard = False
            self._spoke = True
            self._since = now
            return False
        limit = settings.idle_timeout if self._spoke else settings.first_message_timeout
        return now - self._since >= limit
