"""The plugins behind `--observe`: `json:PATH` writes the allocation log as JSON lines."""

from __future__ import annotations

import sys
from typing import Any

from twisted.plugin import IPlugin
from zope.interface import implementer

from relayd.errors import ConfigurationError
from relayd.interfaces import IAllocationObserver, IAllocationObserverFactory
from relayd.observers.log import HumanLog, JsonLines


@implementer(IPlugin, IAllocationObserverFactory)
class JsonLinesFactory:
    observer_type = "json"
    help = (
        "One JSON object a line when an allocation starts and when it ends, appended to a file ('-': standard output)."
    )
    argument_format = "json:PATH"

    def make(self, arguments: str, reactor: Any) -> IAllocationObserver:
        if arguments == "-":
            if sys.__stdout__ is None:  # what Python makes of a descriptor that was closed before it started
                raise ConfigurationError("JSON lines on standard output: it is closed; take --observe json:PATH")
            return JsonLines(_to_stdout, reactor)
        if not arguments:
            raise ConfigurationError("--observe json: needs a file, as in json:/var/log/relayd/allocations.json")
        try:
            file = open(arguments, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  (open as long as we run)
        except OSError as error:
            raise ConfigurationError(
                f"--observe json:{arguments}: cannot be written ({error.strerror}); give a file in a "
                "directory that exists and that relayd may write"
            ) from None
        return JsonLines(file.write, reactor)


@implementer(IPlugin, IAllocationObserverFactory)
class HumanLogFactory:
    observer_type = "log"
    help = "One line in the Twisted log when an allocation starts and when it ends; what --log-format human gives."
    argument_format = "log:"

    def make(self, arguments: str, reactor: Any) -> IAllocationObserver:
        if arguments:
            raise ConfigurationError(f"--observe log:{arguments}: takes no argument; write log:")
        return HumanLog(reactor)


def _to_stdout(line: str) -> None:
    # Looked up each time: twistd replaces sys.stdout, and its replacement would wrap each line in a log entry.
    sys.__stdout__.write(line)  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]
