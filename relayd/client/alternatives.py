"""Several ways to one relay as if they were one: the first that works. When it stops working, the others are tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Timeout
from twisted.internet.protocol import AbstractDatagramProtocol

from relayd.client.relayed import RelayedPort
from relayd.client.turn import TurnClient
from relayd.client.uri import TurnUri
from relayd.errors import ConfigurationError, RelaydError, ServerUnavailable


class Progress:
    """Told which way is tried. Does nothing by itself."""

    def trying(self, uri: TurnUri) -> None:
        """This one is tried now."""

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
        return Deferred.fromCoroutine(self._allocate(protocol))

    async def _allocate(self, protocol: AbstractDatagramProtocol) -> RelayedPort:
        errors: list[RelaydError] = []
        clients = list(self._clients)
        for client in clients:
            self._progress.trying(client.uri)
            try:
                port = await client.allocate(protocol).addTimeout(self._patience, self._clock)
            except Timeout:
                errors.append(ServerUnavailable(f"no answer within {self._patience:g} seconds"))
            except (ServerUnavailable, ConfigurationError) as error:
                errors.append(error)
            else:
                # Another allocation may have found another way meanwhile: the last one counts.
                self._clients.remove(client)
                self._clients.insert(0, client)
                return port
            self._progress.failed(client.uri, errors[-1])
        if len(errors) == 1:
            raise errors[0]
        kind = ConfigurationError if all(isinstance(each, ConfigurationError) for each in errors) else ServerUnavailable
        each = zip((client.uri for client in clients), errors, strict=True)
        raise kind("no way to the relay works: " + "; ".join(f"{uri}: {error}" for uri, error in each))
