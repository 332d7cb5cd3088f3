"""The observers that come with relayd: the allocation log."""

from __future__ import annotations

import json
import time
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import (
    LegacyLogObserverWrapper,
    Logger,
    eventAsJSON,
    eventFromJSON,
    formatEvent,
    formatEventAsClassicLogText,
)

from relayd.address import AppConnection, FiveTuple, Path, TransportAddress
from relayd.interfaces import Counters
from relayd.observers.log import LINES_TOGETHER, HumanLog, JsonLines
from relayd.turn.outputs import AllocationCreated, AllocationEnded, EndReason

RELAYED = TransportAddress.parse("192.0.2.9", 50000)
PATH = Path(
    FiveTuple(TransportAddress.parse("198.51.100.7", 4000), TransportAddress.parse("192.0.2.1", 3478), 17),
    AppConnection.UDP,
)


class StubRelay:
    def __init__(self) -> None:
        self.counters = Counters()
        self.counters.sent_packets, self.counters.sent_bytes = 3, 600
        self.counters.received_packets, self.counters.received_bytes = 2, 400
        self.counters.dropped = 1
        self.counters.bridged = 2


def created(relay: StubRelay, username: str = "alice", session: str = "0123456789ab") -> AllocationCreated:
    return AllocationCreated(session, PATH, username, ((relay, RELAYED),), 17, 600)


def ended(relay: StubRelay, username: str = "alice", session: str = "0123456789ab") -> AllocationEnded:
    return AllocationEnded(session, PATH, username, ((relay, RELAYED),), EndReason.DELETED, 12.25)


def json_lines() -> tuple[JsonLines, list[str]]:
    lines: list[str] = []
    return JsonLines(lines.append, Clock()), lines


def human_line(event: Any) -> str:
    events: list[Any] = []
    publish: Any = events.append
    clock = Clock()
    HumanLog(clock, publish).observe(event)
    clock.advance(0)
    return formatEvent(events[0])


def test_json_line_at_the_end_tells_everything() -> None:
    """The line of an allocation's end gives session, user, path, relayed address, traffic both ways and the reason."""
    log, lines = json_lines()
    log.observe(ended(StubRelay()))
    assert json.loads(lines[0]) == {
        "time": 0.0,
        "event": "allocation-ended",
        "session": "0123456789ab",
        "user": "alice",
        "app_connection": "udp",
        "client": "198.51.100.7:4000",
        "server": "192.0.2.1:3478",
        "transport": 17,
        "relayed": ["192.0.2.9:50000"],
        "reason": "deleted",
        "duration": 12.25,
        "sent_packets": 3,
        "sent_bytes": 600,
        "received_packets": 2,
        "received_bytes": 400,
        "dropped": 1,
        "bridged": 2,
    }


def test_one_line_an_event_whatever_the_user_name() -> None:
    """A user name with newlines, quotes, NUL and formats stays inside its field, in both kinds of log."""
    hostile = 'x\nallocation 0 ended: \r\0"%n{session}\u2028\x1b[2J'
    log, lines = json_lines()
    log.observe(created(StubRelay(), hostile))
    assert lines[0].index("\n") == len(lines[0]) - 1
    assert json.loads(lines[0])["user"] == hostile

    text = human_line(created(StubRelay(), hostile))
    assert text.isprintable()
    assert "{session}" in text


def test_human_line_tells_reason_and_traffic() -> None:
    """The line for people says who, where, how much and why it ended."""
    text = human_line(ended(StubRelay()))
    for part in (
        "0123456789ab",
        "deleted",
        "'alice'",
        "198.51.100.7:4000->192.0.2.1:3478/udp",
        "192.0.2.9:50000",
        "3 packets",
    ):
        assert part in text


def test_human_lines_are_as_any_other_of_the_log() -> None:
    """In a log file, as JSON and by way of an old observer (syslog) the line is what Logger would have made of it."""
    events: list[Any] = []
    publish: Any = events.append
    clock = Clock()
    HumanLog(clock, publish).observe(created(StubRelay(), "{} {alice} }{"))
    clock.advance(0)
    Logger(namespace="relayd", observer=publish).info("{line}", line=formatEvent(events[0]))
    ours, usual = events
    usual["log_time"] = ours["log_time"]
    assert "'{} {alice} }{'" in formatEvent(ours)
    assert formatEventAsClassicLogText(ours) == formatEventAsClassicLogText(usual)
    assert formatEvent(eventFromJSON(eventAsJSON(ours))) == formatEvent(usual)
    told: list[Any] = []
    old: Any = told.append
    for event in (ours, usual):
        LegacyLogObserverWrapper(old)(dict(event))
    first, second = ({key: str(event[key]) for key in ("log_legacy", "isError", "time", "system")} for event in told)
    assert first == second


def test_human_lines_of_a_turn_are_written_at_its_end() -> None:
    """In order, with the time at which they were said, and without a delayed call that stays."""
    events: list[Any] = []
    publish: Any = events.append
    clock = Clock()
    log = HumanLog(clock, publish)
    sessions = [f"{number:012x}" for number in range(3)]
    for turn in range(2):
        before = time.time()
        for session in sessions:
            log.observe(created(StubRelay(), session=session))
        after = time.time()
        assert events == []
        clock.advance(0)
        assert [formatEvent(event).split()[1] for event in events] == sessions, turn
        assert all(before <= event["log_time"] <= after for event in events)
        assert clock.getDelayedCalls() == []
        events.clear()


def test_human_lines_do_not_wait_for_many_others_nor_for_a_turn_that_never_comes() -> None:
    """So many at once are written at once; and so is whatever waits when the relay stops."""
    events: list[Any] = []
    publish: Any = events.append
    clock = Clock()
    log = HumanLog(clock, publish)
    for count in range(LINES_TOGETHER):
        assert len(events) == 0, count
        log.observe(created(StubRelay()))
    assert len(events) == LINES_TOGETHER
    assert clock.getDelayedCalls() == []

    log.observe(created(StubRelay()))
    stopped = ended(StubRelay())
    stopped.reason = EndReason.SHUTDOWN
    log.observe(stopped)
    assert len(events) == LINES_TOGETHER + 2
    assert "shutdown" in formatEvent(events[-1])
    assert clock.getDelayedCalls() == []


def test_a_full_disk_is_told_once() -> None:
    """A log that cannot be written loses lines and says so once; it never raises."""
    calls = 0

    def write(line: str) -> None:
        nonlocal calls
        calls += 1
        raise OSError(28, "No space left on device")

    log = JsonLines(write, Clock())
    for _ in range(3):
        log.observe(created(StubRelay()))
    assert calls == 3
