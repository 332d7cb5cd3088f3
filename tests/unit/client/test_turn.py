"""`TurnClient` follows servers that name others, though not for ever, and knows whose certificate it wants to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock

from relayd.address import AppConnection, Family, TransportAddress
from relayd.client.transports.proxy import HttpProxy
from relayd.client.transports.server import Server
from relayd.client.turn import MAX_REDIRECTIONS, TurnClient
from relayd.errors import ConfigurationError, RelaydError, ServerUnavailable
from relayd.turn.client_outputs import Redirected


class FakeSession:
    """Counts how often it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> Deferred[None]:
        self.closed += 1
        return succeed(None)


class RedirectedClient(TurnClient):
    """Asks nobody: every server names the next one of `answers`."""

    def __init__(self, uri: str, answers: Iterator[Redirected], proxy: HttpProxy | None = None) -> None:
        super().__init__(Clock(), uri, "alice", "secret", proxy=proxy)
        self.answers = answers
        self.asked: list[Server] = []
        self.sessions: list[FakeSession] = []

    async def _attempt(self, settings: Any, server: Server, connected: Callable[[], None]) -> tuple[Any, Any]:
        self.asked.append(server)
        self.sessions.append(FakeSession())
        return self.sessions[-1], next(self.answers)


def failure_of(waiting: Deferred[Any]) -> RelaydError:
    """What an operation fails with, at once."""
    failures: list[Any] = []
    waiting.addErrback(failures.append)
    (failure,) = failures
    assert isinstance(failure.value, RelaydError)
    return failure.value


def elsewhere(number: int, domain: str | None = None) -> Redirected:
    return Redirected(TransportAddress.parse(f"192.0.2.{number}", 3478), domain)


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([elsewhere(1), elsewhere(1)], 2),
        ([elsewhere(1), elsewhere(2), elsewhere(1)], 3),
        ([elsewhere(number) for number in range(1, 20)], MAX_REDIRECTIONS + 1),
    ],
)
def test_a_circle(answers: list[Redirected], asked: int) -> None:
    """Nobody is asked twice, nor more servers than a sane operator has; and every one of them is left in order."""
    client = RedirectedClient("turn:192.0.2.99", iter(answers))
    error = failure_of(client.allocate(DatagramProtocol()))
    assert isinstance(error, ServerUnavailable)
    assert "circle" in str(error)
    assert len(client.asked) == asked
    assert [session.closed for session in client.sessions] == [1] * asked


def test_whose_certificate() -> None:
    """The next server has to prove the name that came with its address, or else the name of the one before."""
    answers = [elsewhere(1), elsewhere(2, "two.example.org"), elsewhere(3), elsewhere(3)]
    client = RedirectedClient("turns:relay.example.org", iter(answers))
    failure_of(client.allocate(DatagramProtocol()))
    assert [server.tls_name for server in client.asked] == [
        *("relay.example.org", "relay.example.org", "two.example.org", "two.example.org")
    ]


def test_the_way_to_the_next_server() -> None:
    """It is reached as the first one was: over the same kind of connection, at the same resource, by the same proxy."""
    proxy = HttpProxy("proxy.example.org", 3128)
    client = RedirectedClient("wss://relay.example.org:8443/a?b", iter([elsewhere(1), elsewhere(1)]), proxy)
    failure_of(client.allocate(DatagramProtocol()))
    first, second = client.asked
    assert first == Server("relay.example.org", 8443, AppConnection.WSS, "relay.example.org", "/a?b", proxy)
    assert second == first._replace(host="192.0.2.1", port=3478)


@pytest.mark.parametrize(("username", "password"), [("alice", ""), ("", "secret"), ("a\x00", "secret")])
def test_unusable_credentials(username: str, password: str) -> None:
    """Credentials that STUN cannot carry are an error before anything is opened, and are not repeated in it."""
    error = failure_of(TurnClient(Clock(), "turn:192.0.2.1", username, password).allocate(DatagramProtocol()))
    assert isinstance(error, ConfigurationError)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        ([Family.IPV6], (Family.IPV6,)),
        ((Family.IPV6, Family.IPV4), (Family.IPV4, Family.IPV6)),
        ({Family.IPV4}, (Family.IPV4,)),
        ((Family.IPV4, Family.IPV4), (Family.IPV4,)),
    ],
)
def test_families(families: Any, expected: tuple[Family, ...]) -> None:
    """Whatever they come in, and in whatever order, they are what is asked for."""
    client = TurnClient(Clock(), "turn:192.0.2.1", "alice", "secret", families=families)
    assert client._settings.families == expected


@pytest.mark.parametrize("families", [(), (4,), ("ipv6",)])
def test_no_families(families: Any) -> None:
    """What is none is an error, and not silently IPv4."""
    with pytest.raises(ConfigurationError, match="families"):
        TurnClient(Clock(), "turn:192.0.2.1", "alice", "secret", families=families)


def test_the_url_of_a_proxy() -> None:
    """A proxy may be given as its URL, as the server is."""
    client = TurnClient(Clock(), "wss://192.0.2.1", "alice", "secret", proxy="http://carol:word@192.0.2.8:3128")
    assert client.proxy == HttpProxy("192.0.2.8", 3128, "carol", "word")
    with pytest.raises(ConfigurationError):
        TurnClient(Clock(), "wss://192.0.2.1", "alice", "secret", proxy="socks5://192.0.2.8")


@pytest.mark.parametrize(
    ("name", "password"), [("a" * 509, "secret"), ("", "secret"), ("alice", ""), ("a\0", "secret")]
)
def test_users_that_cannot_be(name: str, password: str) -> None:
    """They are refused here, since no server could answer (RFC 8489 section 14.3)."""
    waiting = TurnClient(Clock(), "turn:192.0.2.1", name, password).allocate(DatagramProtocol())
    assert isinstance(failure_of(waiting), ConfigurationError)


@pytest.mark.parametrize("uri", ["turn:a..b", "turns:a..b?transport=udp", f"turn:{'a' * 64}.example"])
def test_hosts_that_cannot_be(uri: str) -> None:
    """They are refused before they are looked up."""
    waiting = TurnClient(Clock(), uri, "alice", "secret").allocate(DatagramProtocol())
    assert isinstance(failure_of(waiting), ConfigurationError)


@pytest.mark.parametrize("trust_root", ["certificate.pem", [], object()])
def test_a_trust_root_that_is_none(trust_root: Any) -> None:
    """It is refused at once: nobody hears of it where connections are made."""
    with pytest.raises(ConfigurationError, match="trust_root"):
        TurnClient(Clock(), "turns:192.0.2.1", "alice", "secret", trust_root=trust_root)
