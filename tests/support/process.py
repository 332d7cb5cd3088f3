"""Runs a program beside the tests: collects what it prints, waits for a word of it, ends it and tells how it ended."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

EXIT_PATIENCE = 15.0  # seconds between SIGTERM and SIGKILL


def _heed_signals() -> None:
    """Undo what a shell does to programs in the background, and nohup to all: the child may be told to end."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Process:
    """A child process. A thread reads all that it writes, on either stream, so it never blocks on a full pipe."""

    def __init__(
        self,
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str] | None = None,
        keep: Sequence[int] = (),
    ) -> None:
        """`keep` are descriptors that the child gets, beside the standard ones."""
        self._child = subprocess.Popen(
            arguments,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=keep,
            start_new_session=True,  # so that the children of a program that leaves some can be ended too
            preexec_fn=_heed_signals,
        )
        self._output = bytearray()
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()
        atexit.register(self._kill_if_running)  # a test that fails leaves it behind

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def output(self) -> str:
        """All that was printed so far."""
        with self._changed:
            return self._output.decode(errors="replace")

    def running(self) -> bool:
        return self._child.poll() is None

    def wait_until(self, ready: Callable[[], bool], patience: float) -> bool:
        """Ask `ready` after each piece of output and ten times a second; False if the process or patience (s) ends."""
        deadline = time.monotonic() + patience
        while not ready():
            with self._changed:
                if self._ended or time.monotonic() > deadline:
                    return False
                self._changed.wait(0.1)
        return True

    def stop(self, how: signal.Signals = signal.SIGTERM, again: Sequence[signal.Signals] = ()) -> int:
        """Send a signal, and `again` others right behind it, and wait. The exit status; negative if a signal ended it
        (-9: it did not go by itself).
        """
        for each in (how, *again):
            if self.running():
                self._child.send_signal(each)
        try:
            self._child.wait(EXIT_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(EXIT_PATIENCE)
        return self._child.wait()

    def kill(self) -> None:
        """End the process and whatever it started, at once."""
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._child.wait()

    def _kill_if_running(self) -> None:
        if self.running():
            self.kill()

    def _drain(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as stream:
            while piece := os.read(stream.fileno(), 65536):
                with self._changed:
                    self._output += piece
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
