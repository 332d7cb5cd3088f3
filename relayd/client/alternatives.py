"""Several ways to one relay as if they were one: the first that works. When it stops working, the others are tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Timeout
from twisted.internet.protocol import AbstractDatagramProtocol

from relayd.client.relayed import RelayedPort
from relayd.client.turn import TurnClient
from relayd.client.uri import TurnUri
from relayd.errors import ConfigurationError, RelaydError, ServerUnavailable


class Alternatives:
    """Allocates as a `TurnClient` does, over one of several. The way that worked last is tried first."""

    def __init__(
        self, clock: Any, clients: Sequence[TurnClient], patience: float, trying: Callable[[TurnUri], None]
    ) -> None:
        """`patience` is the seconds that each may take; `trying` is called before each."""
        self._clock = clock
        self._clients = list(clients)
        self._patience = patience
        self._trying = trying

    def allocate(self, protocol: AbstractDatagramProtocol) -> Deferred[RelayedPort]:
        """Fails with RemoteError as soon as a relay refuses, and where no way works with ServerUnavailable that says
        what is wrong with each; with ConfigurationError where none can work.
        """
        return Deferred.fromCoroutine(self._allocate(protocol))

    async def _allocate(self, protocol: AbstractDatagramProtocol) -> RelayedPort:
        errors: list[RelaydError] = []
        for client in list(self._clients):
            self._trying(client.uri)
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
        if len(errors) == 1:
            raise errors[0]
        kind = ConfigurationError if all(isinstance(each, ConfigurationError) for each in errors) else ServerUnavailable
        # The order of `errors` is that of the clients: nothing is moved where nothing works.
        each = zip((client.uri for client in self._clients), errors, strict=False)
        raise kind("no way to the relay works: " + "; ".join(f"{uri}: {error}" for uri, error in each))
