"""Of several ways to a relay, the first that works is used; the reasons of those that do not are told."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock

from relayd.client.alternatives import STAGGER, Alternatives, Progress
from relayd.client.transports.uri import TurnUri
from relayd.errors import ConfigurationError, RelaydError, RemoteError, ServerUnavailable

UDP, TCP, TLS = (
    TurnUri.parse(f"{each}:192.0.2.1?transport={way}")
    for each, way in (("turn", "udp"), ("turn", "tcp"), ("turns", "tcp"))
)


class FakeClient:
    """A way to the relay that the test lets work or fail."""

    def __init__(self, uri: TurnUri) -> None:
        self.uri = uri
        self.asked: list[Deferred[Any]] = []
        self.cancelled = 0

    def allocate(self, protocol: Any) -> Deferred[Any]:
        self.asked.append(Deferred(self._cancel))
        return self.asked[-1]

    def _cancel(self, _: Any) -> None:
        self.cancelled += 1


class Party(Progress):
    """Alternatives, and what they tell."""

    def __init__(self, *uris: TurnUri) -> None:
        self.clock = Clock()
        self.clients = [FakeClient(uri) for uri in uris]
        self.tried: list[TurnUri] = []
        self.failures: list[tuple[TurnUri, str]] = []
        clients: Any = self.clients
        self.alternatives = Alternatives(self.clock, clients, 5.0, self)

    def trying(self, uri: TurnUri) -> None:
        self.tried.append(uri)

    def failed(self, uri: TurnUri, error: RelaydError) -> None:
        self.failures.append((uri, str(error)))

    def allocate(self) -> list[Any]:
        """Filled with what comes of it."""
        results: list[Any] = []
        self.alternatives.allocate(DatagramProtocol()).addBoth(results.append)
        return results


def error_of(results: list[Any]) -> RelaydError:
    error = results[0].value
    assert isinstance(error, RelaydError)
    return error


def test_the_first_that_works() -> None:
    """A way that fails is left for the next; the one that worked is the first to be tried again."""
    party = Party(UDP, TCP)
    results = party.allocate()
    party.clients[0].asked[0].errback(ServerUnavailable("refused"))
    party.clients[1].asked[0].callback("a port")
    assert results == ["a port"]
    again = party.allocate()
    party.clients[1].asked[1].errback(ServerUnavailable("gone"))
    party.clients[0].asked[1].callback("another port")
    assert again == ["another port"]
    assert party.tried == [UDP, TCP, TCP, UDP]
    assert party.failures == [(UDP, "refused"), (TCP, "gone")]
    assert party.clock.getDelayedCalls() == []


def test_a_slow_way() -> None:
    """A way that takes its time is not waited for: the next one begins, and whichever works first wins."""
    for winner, loser in ((0, 1), (1, 0)):
        party = Party(UDP, TCP, TLS)
        results = party.allocate()
        party.clock.advance(STAGGER)
        assert party.tried == [UDP, TCP]
        party.clients[winner].asked[0].callback("a port")
        assert results == ["a port"]
        assert party.clients[loser].cancelled == 1
        assert party.clients[2].asked == []
        assert party.failures == []
        assert party.clock.getDelayedCalls() == []


def test_a_way_that_is_slower_than_its_patience() -> None:
    """Each way has as long as any other, however late it began."""
    party = Party(UDP, TCP)
    results = party.allocate()
    party.clock.advance(STAGGER)
    party.clock.advance(5.0 - STAGGER)
    assert party.failures == [(UDP, "no answer within 5 seconds")]
    assert party.clients[0].cancelled == 1
    assert results == []
    party.clients[1].asked[0].callback("a port")
    assert results == ["a port"]
    assert party.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([ServerUnavailable("refused"), ConfigurationError("no such way")], ServerUnavailable),
        ([ConfigurationError("one"), ConfigurationError("other")], ConfigurationError),
    ],
)
def test_no_way(errors: list[RelaydError], kind: type) -> None:
    """Where nothing works, the error says what is wrong with each, and whether it is of use to try again."""
    party = Party(UDP, TCP)
    results = party.allocate()
    for client, error in zip(party.clients, errors, strict=True):
        client.asked[0].errback(error)
    error = error_of(results)
    assert type(error) is kind
    assert str(error) == f"no way to the relay works: {UDP}: {errors[0]}; {TCP}: {errors[1]}"


def test_the_only_way() -> None:
    """The error of an only way is told as it is; silence is one."""
    party = Party(UDP)
    results = party.allocate()
    party.clock.advance(5.0)
    assert str(error_of(results)) == "no answer within 5 seconds"


def test_a_refusal() -> None:
    """What a relay refuses it refuses on every way: no other is tried, and those on their way are cancelled."""
    party = Party(UDP, TCP, TLS)
    results = party.allocate()
    party.clock.advance(STAGGER)
    refused = RemoteError(401, "Unauthorized")
    party.clients[0].asked[0].errback(refused)
    assert error_of(results) is refused
    assert party.clients[1].cancelled == 1
    assert party.clients[2].asked == []
    assert party.clock.getDelayedCalls() == []


def test_cancelling() -> None:
    """Attempts that are no longer wanted are cancelled, and no other way is tried."""
    party = Party(UDP, TCP, TLS)
    waiting = party.alternatives.allocate(DatagramProtocol())
    party.clock.advance(STAGGER)
    waiting.addErrback(lambda failure: None)
    waiting.cancel()
    assert [client.cancelled for client in party.clients] == [1, 1, 0]
    assert party.clients[2].asked == []
    assert party.clock.getDelayedCalls() == []
