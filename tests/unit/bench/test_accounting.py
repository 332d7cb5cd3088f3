"""What the bench reads from the operating system."""

from __future__ import annotations

import os

import pytest

from bench.accounting import CpuTime, cpu_time, parse_rss, parse_schedstat, resident
from bench.errors import BenchError


def test_schedstat_is_read_in_nanoseconds() -> None:
    """Time run and time waited are the first two numbers; the third, time slices, is not time."""
    assert parse_schedstat("516046537 91771 5\n") == (516046537, 91771)


def test_schedstat_of_another_kind_is_refused() -> None:
    """A kernel that writes something else is an error, not a figure."""
    with pytest.raises(ValueError, match="values to unpack"):
        parse_schedstat("1 2\n")


def test_resident_memory_is_in_bytes() -> None:
    """The kernel says kB and means 1,024 bytes; Pss and the rest are not what is asked."""
    text = (
        "5631801be000-7ffee73ca000 ---p 00000000 00:00 0   [rollup]\nPss:  271 kB\nRss:   1708 kB\nShared_Clean: 1 kB\n"
    )
    assert parse_rss(text) == 1708 * 1024


def test_resident_memory_that_is_not_there_is_an_error() -> None:
    """No Rss line must not read as no memory."""
    with pytest.raises(ValueError, match="Rss"):
        parse_rss("Pss:  271 kB\n")


def test_busy_counts_waiting_for_the_core() -> None:
    """A server that was kept off its core by others was as loaded as one that ran."""
    used = CpuTime(run=700, wait=400, at=2000).since(CpuTime(run=100, wait=100, at=1000))
    assert used == CpuTime(run=600, wait=300, at=1000)
    assert used.busy == pytest.approx(0.9)


def test_an_empty_interval_is_not_busy() -> None:
    """No time passed: no division by zero."""
    assert CpuTime(0, 0, 0).busy == 0.0


def test_the_own_process_can_be_read() -> None:
    """The real files have the form that the parsers expect, and time only grows."""
    first, second = cpu_time(os.getpid()), cpu_time(os.getpid())
    assert second.run >= first.run > 0
    assert resident(os.getpid()) > 1 << 20


def test_a_process_that_is_gone_is_named() -> None:
    """The operator learns which process could not be read. PID 0 is never in /proc."""
    with pytest.raises(BenchError, match="process 0"):
        cpu_time(0)
    with pytest.raises(BenchError, match="process 0"):
        resident(0)
