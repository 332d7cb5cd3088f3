"""Several ways to one relay as if they were one. When the one in use stops working, the others are tried.

They are tried in their order. The next begins when one fails, or has not worked for `STAGGER` seconds: where a network
swallows what it does not let through, nobody wants to wait for the end of each (RFC 8305 does the same with addresses).
The first that works wins, and the rest are cancelled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Timeout
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import AbstractDatagramProtocol
from twisted.python.failure import Failure

from relayd.client.relayed import RelayedPort
from relayd.client.tcp import TcpAllocation
from relayd.client.transports.uri import TurnUri
from relayd.client.turn import TurnClient
from relayd.errors import ConfigurationError, RelaydError, ServerUnavailable

STAGGER = 1.5  # seconds: five round trips, which an allocation over TLS takes, on a slow way


class Progress:
    """Told which ways are tried. Does nothing by itself."""

    def trying(self, uri: TurnUri) -> None:
        """This one is tried from now on."""

    def failed(self, uri: TurnUri, error: RelaydError) -> None:
        """It does not work."""


class Alternatives:
    """Allocates as a `TurnClient` does, over one of several. The way that worked last is tried first."""

    def __init__(self, clock: Any, clients: Sequence[TurnClient], patience: float, progress: Progress) -> None:
        """`patience` is the seconds that each may take."""
        self._clock = clock
        self._clients = list(clients)
        self._patience = patience
        self._progress = progress

    def allocate(self, protocol: AbstractDatagramProtocol) -> Deferred[RelayedPort]:
        """Fails with RemoteError as soon as a relay refuses, and where no way works with ServerUnavailable that says
        what is wrong with each; with ConfigurationError where none can work.
        """
        return Deferred.fromCoroutine(self._allocate(lambda client: client.allocate(protocol)))

    def allocate_tcp(self, *, accept_tls: bool = False) -> Deferred[TcpAllocation]:
        """The same for TCP."""
        return Deferred.fromCoroutine(self._allocate(lambda client: client.allocate_tcp(accept_tls=accept_tls)))

    async def _allocate(self, begin: Callable[[TurnClient], Deferred[Any]]) -> Any:
        race = _Race(self._clock, self._clients, self._patience, self._progress, begin)
        race.start_next()
        client, port = await race.won
        # Another allocation may have found another way meanwhile: the last one counts.
        self._clients.remove(client)
        self._clients.insert(0, client)
        return port


class _Race:
    """The attempts of one allocation. `won` fires with the client that works and what it gave, and can be cancelled."""

    def __init__(
        self,
        clock: Any,
        clients: Sequence[TurnClient],
        patience: float,
        progress: Progress,
        begin: Callable[[TurnClient], Deferred[Any]],
    ) -> None:
        self.won: Deferred[tuple[TurnClient, Any]] = Deferred(lambda _: self._end())
        self._clock = clock
        self._patience = patience
        self._progress = progress
        self._begin = begin
        self._clients = list(clients)
        self._waiting = deque(clients)
        self._running: dict[TurnClient, Deferred[Any]] = {}
        self._errors: dict[TurnClient, RelaydError] = {}
        self._is_over = False
        self._next: IDelayedCall | None = None

    def start_next(self) -> None:
        """Begin with the first one, or another."""
        self._stop_waiting()
        client = self._waiting.popleft()
        if self._waiting:
            self._next = self._clock.callLater(STAGGER, self.start_next)
        self._progress.trying(client.uri)
        attempt = self._begin(client).addTimeout(self._patience, self._clock)
        self._running[client] = attempt
        attempt.addCallbacks(self._succeeded, self._failed, callbackArgs=(client,), errbackArgs=(client,))

    def _succeeded(self, port: Any, client: TurnClient) -> None:
        del self._running[client]
        self._end()
        self.won.callback((client, port))

    def _failed(self, failure: Failure, client: TurnClient) -> None:
        del self._running[client]
        if self._is_over:
            return
        if failure.check(Timeout):
            error: Any = ServerUnavailable(f"no answer within {self._patience:g} seconds")
        elif failure.check(ServerUnavailable, ConfigurationError):
            error = failure.value
        else:
            self._end()
            self.won.errback(failure)
            return
        self._errors[client] = error
        self._progress.failed(client.uri, error)
        if self._waiting:
            self.start_next()
        elif not self._running:
            self.won.errback(self._nothing_works())

    def _nothing_works(self) -> RelaydError:
        errors = [(client.uri, self._errors[client]) for client in self._clients]
        if len(errors) == 1:
            return errors[0][1]
        is_hopeless = all(isinstance(error, ConfigurationError) for _, error in errors)
        kind = ConfigurationError if is_hopeless else ServerUnavailable
        return kind("no way to the relay works: " + "; ".join(f"{uri}: {error}" for uri, error in errors))

    def _end(self) -> None:
        self._is_over = True
        self._stop_waiting()
        for attempt in list(self._running.values()):
            attempt.cancel()

    def _stop_waiting(self) -> None:
        if self._next is not None and self._next.active():
            self._next.cancel()
