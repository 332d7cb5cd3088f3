"""What a process used, as the operating system accounts for it: CPU time of all its threads, and resident memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from bench.errors import BenchError

_PROC = Path("/proc")


class CpuTime(NamedTuple):
    """CPU time in nanoseconds: `run` spent, `wait` spent runnable while others had the core; `at` says when."""

    run: int
    wait: int
    at: int

    def since(self, earlier: CpuTime) -> CpuTime:
        """What came on top; `at` becomes the time between."""
        return CpuTime(self.run - earlier.run, self.wait - earlier.wait, self.at - earlier.at)

    @property
    def busy(self) -> float:
        """Share of the time in which the process ran or wanted to: near 1 for a server that is loaded to the full."""
        return (self.run + self.wait) / self.at if self.at else 0.0


def parse_schedstat(text: str) -> tuple[int, int]:
    """Nanoseconds run and waited, of ``/proc/PID/task/TID/schedstat``. Raises ValueError."""
    run, wait, _slices = text.split()
    return int(run), int(wait)


def parse_rss(text: str) -> int:
    """Resident bytes of ``/proc/PID/smaps_rollup``. Raises ValueError."""
    for line in text.splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no Rss line")


def cpu_time(pid: int) -> CpuTime:
    """CPU time so far of all threads. schedstat counts nanoseconds, where ``stat`` counts ticks of 10 ms.

    A thread that is on the core this moment is up to a tick behind: read it while the process is idle.
    """
    run = wait = 0
    try:
        for task in (_PROC / str(pid) / "task").iterdir():
            task_run, task_wait = parse_schedstat((task / "schedstat").read_text())
            run += task_run
            wait += task_wait
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read the CPU time of process {pid}: {error}") from error
    return CpuTime(run, wait, time.monotonic_ns())


def resident(pid: int) -> int:
    """Resident memory in bytes; exact, where ``statm`` lags behind by up to 64 pages per thread."""
    try:
        return parse_rss((_PROC / str(pid) / "smaps_rollup").read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read the memory of process {pid}: {error}") from error
