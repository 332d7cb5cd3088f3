"""The service that twistd starts and stops: opens every way in, says so, and closes everything again.

A start that fails ends the process with one line on standard error and exit status 1, and no traceback.
"""

from __future__ import annotations

import atexit
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from relayd.config import ListenerSettings
from relayd.errors import ConfigurationError
from relayd.interfaces import IDataPlane, IListener, IListenerFactory, IPeerTransport
from relayd.service import RelayService
from relayd.tls.certificates import Certificates


def complaint(message: str) -> str:
    """The one line on standard error. Line breaks and control characters, which an option may hold, become spaces."""
    return "relayd: " + "".join(each if each.isprintable() else " " for each in message)


class StartFailed(SystemExit, Exception):
    """Ends the process with status 1.

    SystemExit, so that nobody prints a traceback; Exception, so that twistd removes its pid file and tells the process
    that waits for the daemon.
    """


class Console:
    """The standard output and error that the operator sees, kept until the start is over.

    twistd redirects both into the log before it starts us, and a daemon loses them; what is said here must not go to a
    log.
    """

    def __init__(self, stdout: TextIO | None, stderr: TextIO | None) -> None:
        self._streams = [_duplicate(stdout), _duplicate(stderr)]

    def say(self, line: str) -> None:
        self._write(0, line)

    def complain(self, line: str) -> None:
        self._write(1, line)

    def close(self) -> None:
        for stream in self._streams:
            if stream is not None:
                stream.close()
        self._streams = [None, None]

    def _write(self, index: int, line: str) -> None:
        stream = self._streams[index]
        if stream is None:
            return
        try:
            stream.write(f"{line}\n")
            stream.flush()
        except OSError:  # a closed pipe: nobody reads it
            self._streams[index] = None


def _duplicate(stream: TextIO | None) -> TextIO | None:
    if stream is None:  # what Python makes of a descriptor that was closed before it started
        return None
    try:
        return open(os.dup(stream.fileno()), "w", encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError):  # one that has no descriptor
        return None


class RelayDaemon(Service):
    """Everything that runs, in the order in which it is closed: service, listeners, peer transports, data plane."""

    name = "relayd"
    _log = Logger(namespace="relayd")

    def __init__(
        self,
        reactor: Any,
        ways_in: Sequence[tuple[IListenerFactory, str]],  # with the endpoint that each is to open
        relay_service: RelayService,
        peer_transports: Sequence[IPeerTransport],
        data_plane: IDataPlane,
        listener_settings: ListenerSettings,
        opened: Callable[[Sequence[IListener]], list[str]],
        console: Console,
        is_daemon: bool = False,
    ) -> None:
        """`opened` is told all listeners whenever another one is open, and gives the lines to print after the last."""
        self.relay_service = relay_service
        self.data_plane = data_plane
        self.listeners: list[IListener] = []
        self.certificates = listener_settings.certificates
        self._reactor = reactor
        self._ways_in = ways_in
        self._peer_transports = peer_transports
        self._listener_settings = listener_settings
        self._opened = opened
        self._console = console
        self._is_daemon = is_daemon
        self._failure: str | None = None
        self._starting = False
        self._stopped = False

    def privilegedStartService(self) -> None:
        """Open all listeners: here, because twistd's --uid takes effect afterwards, and ports below 1024 need root."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        raise_descriptor_limit()
        self._starting = True
        for factory, endpoint in self._ways_in:
            opening = maybeDeferred(
                factory.listen, endpoint, self._reactor, self.relay_service, self.data_plane, self._listener_settings
            )
            opening.addCallbacks(self._listening, self._not_listening)
            if self._failure is not None:
                self._close_now()
                raise StartFailed(1)
        self._starting = False

    def startService(self) -> None:
        """Begin to look for renewed certificates: here, because it is told at once if only root could read them."""
        super().startService()  # type: ignore[no-untyped-call]
        self.certificates.start(self._reactor)

    def stopService(self) -> Deferred[None]:
        """Close everything. Fires when no socket and no delayed call is left."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._stopped = True
        self.certificates.stop()
        # Before the listeners, so that allocations end because of the shutdown and not because their connection closed.
        self.relay_service.close()
        closing = DeferredList(
            [maybeDeferred(listener.close) for listener in self.listeners], fireOnOneErrback=False, consumeErrors=True
        )
        self.listeners = []
        return closing.addCallback(self._close_rest)

    def _close_rest(self, results: list[tuple[bool, Any]]) -> Deferred[Any]:
        for succeeded, failure in results:
            if not succeeded:
                self._log.failure("a listener could not be closed", failure)
        closing = DeferredList(
            [maybeDeferred(transport.close) for transport in self._peer_transports],
            fireOnOneErrback=False,
            consumeErrors=True,
        )
        self.data_plane.close()
        self._console.close()
        return closing

    def _close_now(self) -> None:
        self.stopService()

    def _listening(self, listener: IListener) -> None:
        if self._stopped:
            listener.close()
            return
        self.listeners.append(listener)
        # Told about each one at once, not only when all are open: peers must not reach it in the meantime.
        lines = self._opened(self.listeners)
        if len(self.listeners) == len(self._ways_in):
            for line in lines:
                self._console.say(line)
            self._console.close()

    def _not_listening(self, failure: Failure) -> None:
        if failure.check(ConfigurationError, OSError) is None:
            self._log.failure(
                "a listener could not be opened", failure
            )  # a bug, or a third party's: the log shows where
        self._failure = complaint(failure.getErrorMessage())
        self._console.complain(self._failure)
        if self._is_daemon:  # twistd sends whoever starts one to its log; in the foreground one line is enough
            self._log.error("{complaint}", complaint=self._failure)
        if not self._starting and self.running:
            self._end_process()

    def _end_process(self) -> None:
        # An endpoint that takes its time has failed while the reactor runs. From there twistd can only end with status
        # 0, so the last thing that the interpreter does is to leave with ours.
        atexit.register(_leave_with_failure)
        self._reactor.stop()


def _leave_with_failure() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def end_on_hangup(reactor: Any) -> None:
    """Have SIGHUP (the terminal is gone) end the process as SIGTERM does, with every allocation closed and logged.

    Python alone would die of it at once. Where it is ignored, as under nohup, it stays so.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, reactor.sigTerm)


def look_on_signal(reactor: Any, certificates: Certificates) -> None:
    """Have SIGUSR2 take renewed certificates at once. Hooks send it to coturn for that; SIGHUP is taken."""
    signal.signal(signal.SIGUSR2, lambda number, frame: reactor.callFromThread(certificates.look))


def raise_descriptor_limit() -> None:
    """Allow ourselves as many descriptors as the system lets us: each relayed address takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
