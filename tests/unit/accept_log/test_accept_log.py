"""Promises of relayd.accept_log: one line for a run of trouble, and no port that it cannot cope with."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, capturedLogs

from relayd.accept_log import QUIET, AcceptLog


class Port:
    """A listening port with Twisted's logger."""

    def __init__(self) -> None:
        self._logger = Logger()


def test_a_run_of_trouble_is_one_line() -> None:
    """Trouble that goes on is not repeated; after a quiet time it is told again."""
    clock, port = Clock(), Port()
    AcceptLog("tcp 192.0.2.1:3478", clock).attach(port)
    told = []
    for pause in (0.0, QUIET / 2, QUIET / 2, QUIET / 2, QUIET):
        clock.advance(pause)
        with capturedLogs() as events:
            port._logger.info("EMFILE")
            port._logger.info("again")
        told.append(len(events))
    assert told == [1, 0, 0, 0, 1]
    assert events[0]["where"] == "tcp 192.0.2.1:3478"
    assert events[0]["reason"] == "EMFILE"


def test_other_ports_stay_as_they_are() -> None:
    """A port of somebody else's making need not log in this way."""
    port: Any = object()
    AcceptLog("custom", Clock()).attach(port)
