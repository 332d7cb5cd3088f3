"""The start and the end of the daemon, with ways in that exist only on paper."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from relayd.config import ListenerSettings
from relayd.errors import ConfigurationError
from relayd.launch import daemon


class Pen:
    """Collects what is said on a console."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.complained: list[str] = []
        self.is_closed = False

    def say(self, line: str) -> None:
        self.said.append(line)

    def complain(self, line: str) -> None:
        self.complained.append(line)

    def close(self) -> None:
        self.is_closed = True


class Part:
    """A listener, service, peer transport or data plane: writes down when it is closed."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.name = name
        self.order = order
        self.closing: Deferred[None] | None = None

    def close(self) -> Deferred[None] | None:
        self.order.append(self.name)
        return self.closing


class WayIn:
    def __init__(self, result: Any) -> None:
        self.result = result

    def listen(self, *arguments: Any) -> Any:
        if isinstance(self.result, Exception):
            return fail(self.result)
        return self.result if isinstance(self.result, Deferred) else succeed(self.result)


@pytest.fixture(autouse=True)
def _descriptor_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "raise_descriptor_limit", lambda: None)


class House:
    """A daemon with all its parts."""

    def __init__(self, *results: Any) -> None:
        self.order: list[str] = []
        self.pen = Pen()
        self.clock = Clock()
        parts: Any = [Part(name, self.order) for name in ("service", "transport", "plane")]
        ways_in: Any = [(WayIn(result), "tcp:1") for result in results]
        pen: Any = self.pen
        self.daemon = daemon.RelayDaemon(
            self.clock,
            ways_in,
            parts[0],
            [parts[1]],
            parts[2],
            ListenerSettings(),
            lambda listeners: [f"open: {len(listeners)}"],
            pen,
        )


def test_start_is_announced_when_all_is_open() -> None:
    """Nothing is said before the last way in is open; then once, and the console is let go."""
    slow: Deferred[Part] = Deferred()
    house = House(Part("a", []), slow)
    house.daemon.privilegedStartService()
    house.daemon.startService()
    assert house.pen.said == []
    slow.callback(Part("b", []))
    assert house.pen.said == ["open: 2"]
    assert house.pen.is_closed


def test_listener_that_opens_too_late() -> None:
    """A way in that opens only after the end is closed again at once."""
    order: list[str] = []
    slow: Deferred[Part] = Deferred()
    house = House(slow)
    house.daemon.privilegedStartService()
    house.daemon.stopService()
    slow.callback(Part("late", order))
    assert order == ["late"]
    assert house.pen.said == []


@pytest.mark.parametrize("error", [ConfigurationError("tcp:1: in use\nhere"), OSError(98, "Address already in use")])
def test_failed_start_is_one_line(error: Exception) -> None:
    """A way in that does not open ends the process with status 1, one line, and everything closed again."""
    order: list[str] = []
    house = House(Part("first", order), error, Part("never", order))
    house.order = order
    with pytest.raises(daemon.StartFailed) as stopped:
        house.daemon.privilegedStartService()
    assert stopped.value.code == 1
    assert len(house.pen.complained) == 1
    assert "\n" not in house.pen.complained[0]
    assert order == ["first"]
    assert house.pen.said == []


def test_failed_start_reaches_twistd() -> None:
    """twistd's own `except Exception` sees it, and so removes its pid file; Python prints no traceback for it."""
    assert issubclass(daemon.StartFailed, Exception)
    assert issubclass(daemon.StartFailed, SystemExit)


def test_late_failure_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that takes its time and then fails stops the reactor, and the process ends with status 1."""
    last_words: list[Any] = []
    stopped: list[bool] = []
    monkeypatch.setattr("relayd.launch.daemon.atexit.register", last_words.append)
    slow: Deferred[Part] = Deferred()
    house = House(slow)
    house.clock.stop = lambda: stopped.append(True)  # type: ignore[attr-defined]
    house.daemon.privilegedStartService()
    house.daemon.startService()
    slow.errback(ConfigurationError("onion:1: no such circuit"))
    assert house.pen.complained == ["relayd: onion:1: no such circuit"]
    assert stopped == [True]
    assert len(last_words) == 1


def test_everything_is_closed_in_order() -> None:
    """The service first, so that allocations end because of it; the listeners, and completely; the data plane last."""
    order: list[str] = []
    listener = Part("listener", order)
    listener.closing = Deferred()
    house = House(listener)
    house.order.clear()
    house.daemon.privilegedStartService()
    house.daemon.startService()
    ended = house.daemon.stopService()
    assert order == ["listener"]
    assert house.order == ["service"]
    listener.closing.callback(None)
    assert house.order == ["service", "transport", "plane"]
    assert ended.called


def test_console_outlives_redirection(tmp_path: Any) -> None:
    """What is said goes to the stream as it was, even if that was closed since; without a descriptor nobody hears."""
    with open(tmp_path / "out", "w", encoding="utf-8") as out:
        console = daemon.Console(out, io.StringIO())
    console.say("hello")
    console.complain("nobody hears")
    console.close()
    assert (tmp_path / "out").read_text(encoding="utf-8") == "hello\n"


def test_nobody_reads_the_console() -> None:
    """A reader that is gone does not hinder the start."""
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as out:
        console = daemon.Console(out, out)
    os.close(reader)
    console.say("hello")
    console.say("hello again")
    console.close()
