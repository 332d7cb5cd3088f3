"""A lasting port goes on with another allocation when one ends, in good time, and gives up where that is of no use."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IUDPTransport
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from relayd.address import TransportAddress
from relayd.client.lasting import LastingPort, Observer
from relayd.client.relayed import RelayedPort
from relayd.client.succession import FIRST_PAUSE, LONGEST_PAUSE, STEADY, is_permanent, pause_before
from relayd.client.transports.uri import TurnUri
from relayd.errors import ConfigurationError, RelaydError, RemoteError, ServerUnavailable
from relayd.turn.client_outputs import Allocated

GONE = ServerUnavailable("gone")
PEER = ("192.0.2.7", 5000)
URI = TurnUri.parse("turn:192.0.2.1")


class FakeSession:
    """One allocation: keeps what is asked of it, and is answered by the test."""

    def __init__(self) -> None:
        self.owner: Any = None
        self.dropped = 0
        self.asked: list[tuple[str, TransportAddress, Deferred[None]]] = []
        self.sent: list[tuple[TransportAddress, bytes]] = []
        self.stopped: Deferred[None] = Deferred()
        self.closed = 0

    def permit(self, peer: TransportAddress) -> Deferred[None]:
        return self._ask("permit", peer)

    def bind(self, peer: TransportAddress) -> Deferred[None]:
        return self._ask("bind", peer)

    def send(self, peer: TransportAddress, data: bytes) -> None:
        self.sent.append((peer, data))

    def close(self) -> Deferred[None]:
        self.closed += 1
        self.end(None)
        return self.stopped

    def end(self, error: RelaydError | None) -> None:
        """The allocation ends: those who wait are told first, as by the core."""
        for _, _, answer in self.asked:
            if not answer.called:
                answer.errback(error or GONE)
        self.owner.session_ended(error)

    def _ask(self, verb: str, peer: TransportAddress) -> Deferred[None]:
        answer: Deferred[None] = Deferred()
        self.asked.append((verb, peer, answer))
        return answer


class FakeClient:
    """Attempts wait for the test, which lets them succeed or fail. Cancelled, they may fail of something else."""

    def __init__(self, when_cancelled: Exception | None = None) -> None:
        self.when_cancelled = when_cancelled
        self.attempts: list[tuple[DatagramProtocol, Deferred[RelayedPort]]] = []

    def allocate(self, protocol: Any) -> Deferred[RelayedPort]:
        waiting: Deferred[RelayedPort] = Deferred(self._cancel)
        self.attempts.append((protocol, waiting))
        return waiting

    def succeed(self) -> FakeSession:
        """The latest attempt gets an allocation. Each has another relayed address."""
        protocol, waiting = self.attempts[-1]
        session: Any = FakeSession()
        relayed = TransportAddress.parse("192.0.2.1", 50_000 + len(self.attempts))
        port = RelayedPort(session, Allocated((relayed,), None, 600), protocol, URI)
        port.start()
        waiting.callback(port)
        made: FakeSession = session
        return made

    def _cancel(self, waiting: Deferred[RelayedPort]) -> None:
        if self.when_cancelled is not None:
            waiting.errback(self.when_cancelled)

    def fail(self, error: Exception) -> None:
        self.attempts[-1][1].errback(error)


class Recorder(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.relayed: list[str] = []
        self.pauses: list[tuple[RelaydError, float]] = []

    def allocated(self, port: RelayedPort) -> None:
        self.relayed.append(str(port.relayed_addresses[0]))

    def waiting(self, error: RelaydError, pause: float) -> None:
        self.pauses.append((error, pause))


class Protocol(DatagramProtocol):
    """An application: keeps what it receives, and counts its starts and stops."""

    noisy = False

    def __init__(self) -> None:
        self.received: list[tuple[bytes, Any]] = []
        self.life: list[str] = []

    def startProtocol(self) -> None:
        self.life.append("start")

    def stopProtocol(self) -> None:
        self.life.append("stop")

    def connectionRefused(self) -> None:
        self.life.append("refused")

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.received.append((datagram, addr))


class Party:
    """A lasting port with everything around it. Its dice always fall on the highest number."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.client = FakeClient()
        self.protocol = Protocol()
        self.observer = Recorder()
        self.port = LastingPort(self.clock, self.client, self.protocol, self.observer, lambda size: b"\xff" * size)
        self.started = Deferred.fromCoroutine(self.port.start())

    def over(self) -> list[RelaydError | None]:
        """What it ended with, if it did."""
        told: list[RelaydError | None] = []
        self.port.when_ended().addCallback(told.append)
        return told


@pytest.fixture
def party() -> Party:
    return Party()


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the port logs."""
    events: list[Any] = []
    monkeypatch.setattr(LastingPort, "_log", Logger(observer=cast(ILogObserver, events.append)))
    return events


def errors_of(waiting: Deferred[Any]) -> list[BaseException]:
    """Filled as soon as it fails."""
    errors: list[BaseException] = []

    def keep(failure: Failure) -> None:
        if failure.value is not None:
            errors.append(failure.value)

    waiting.addErrback(keep)
    return errors


def test_it_is_a_udp_transport(party: Party) -> None:
    """It has all that Twisted asks of a UDP transport, its address as long as there is one, and no broadcast."""
    session = party.client.succeed()
    assert verifyObject(IUDPTransport, party.port)
    assert party.port.getHost() == IPv4Address("UDP", "192.0.2.1", 50_001)
    assert not party.port.getBroadcastAllowed()
    party.port.setBroadcastAllowed(False)
    with pytest.raises(ServerUnavailable):
        party.port.setBroadcastAllowed(True)
    session.end(GONE)
    assert party.port.relayed_addresses == ()
    assert party.port.mapped_address is None
    with pytest.raises(ServerUnavailable):
        party.port.getHost()


def test_the_first_attempt(party: Party) -> None:
    """A first attempt that fails is told at once, whatever the reason, and is the last."""
    errors = errors_of(party.started)
    party.client.fail(GONE)
    assert errors == [GONE]
    assert party.clock.getDelayedCalls() == []
    assert party.protocol.life == []


def test_from_one_allocation_to_the_next(party: Party) -> None:
    """One application runs through allocations that end in various ways; its observer knows at which address."""
    ends: list[RelaydError] = [GONE, RemoteError(437, "Allocation Mismatch"), RemoteError(401, "Unauthorized")]
    session = party.client.succeed()
    for error in ends:
        party.clock.advance(STEADY)
        session.end(error)
        party.clock.advance(FIRST_PAUSE)
        session = party.client.succeed()
        session.owner.data_received(TransportAddress.parse(*PEER), b"heard")
    assert party.observer.relayed == [f"192.0.2.1:{50_001 + number}" for number in range(4)]
    assert [error for error, _ in party.observer.pauses] == ends
    assert party.protocol.received == [(b"heard", PEER)] * 3
    assert party.protocol.life == ["start"]
    assert party.over() == []


def test_pauses_grow(party: Party) -> None:
    """Failures double the pause up to a limit; an allocation of a moment is a failure, too, a steady one ends it."""
    party.client.succeed().end(GONE)
    for _ in range(9):
        party.clock.advance(LONGEST_PAUSE)
        party.client.fail(GONE)
    party.clock.advance(LONGEST_PAUSE)
    session = party.client.succeed()
    party.clock.advance(STEADY - 1)
    session.end(GONE)
    party.clock.advance(LONGEST_PAUSE)
    session = party.client.succeed()
    party.clock.advance(STEADY)
    session.end(GONE)
    expected = [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 1]
    assert [pause for _, pause in party.observer.pauses] == pytest.approx(expected)


def test_pauses_are_spread() -> None:
    """The clients of a server that restarts come back spread over the whole pause."""
    entropy = random.Random(1).randbytes
    pauses = [pause_before(3, entropy) for _ in range(1000)]
    assert all(0 <= pause < 8 for pause in pauses)
    for eighth in range(8):
        assert 90 < sum(eighth <= pause < eighth + 1 for pause in pauses) < 160
    assert pause_before(10**6, entropy) <= LONGEST_PAUSE


@pytest.mark.parametrize("code", [400, 401, 403, 420, 440, 441, 442])
def test_what_is_refused_for_good(party: Party, code: int) -> None:
    """Where another attempt is of no use, none is made, and everybody is told why."""
    refused = RemoteError(code, "no")
    party.client.succeed().end(GONE)
    waiting = errors_of(party.port.permit("192.0.2.7"))
    over = party.over()
    party.clock.advance(FIRST_PAUSE)
    party.client.fail(refused)
    assert over == party.over() == waiting == [refused]
    assert errors_of(party.port.bind(*PEER)) == [refused]
    assert party.protocol.life == ["start", "stop"]
    assert party.clock.getDelayedCalls() == []


@pytest.mark.parametrize("error", [RemoteError(437, ""), RemoteError(486, ""), RemoteError(508, ""), GONE])
def test_what_passes(error: RelaydError) -> None:
    """A quota that the lost allocation still holds, a full server and silence are no reasons to give up."""
    assert not is_permanent(error)


def test_what_never_works() -> None:
    """What was configured wrongly does not get better by itself."""
    assert is_permanent(ConfigurationError("no such way"))


def test_a_bug_is_told(party: Party, logged: list[Any]) -> None:
    """An error that nobody expected ends the port, is logged, and is no silent standstill."""
    party.client.succeed().end(GONE)
    over = party.over()
    party.clock.advance(FIRST_PAUSE)
    party.client.fail(ZeroDivisionError())
    assert isinstance(over[0], ServerUnavailable)
    assert len(logged) == 1


def test_peers_are_restored(party: Party) -> None:
    """What was asked for is asked of every allocation to come, but for what was refused."""
    session = party.client.succeed()
    answers = [party.port.permit("192.0.2.7"), party.port.bind(*PEER), party.port.bind("192.0.2.8", 1)]
    refused = errors_of(answers[2])
    for _, _, answer in session.asked[:2]:
        answer.callback(None)
    session.asked[2][2].errback(RemoteError(403, "Forbidden"))
    assert [answer.called for answer in answers] == [True] * 3
    assert [str(error) for error in refused] == ["403 Forbidden"]
    party.port.connect(*PEER)
    for _ in range(2):
        session.end(GONE)
        party.clock.advance(LONGEST_PAUSE)
        session = party.client.succeed()
        peer = TransportAddress.parse(*PEER)
        assert [(verb, where.host) for verb, where, _ in session.asked] == [("permit", peer.host), ("bind", peer.host)]
    session.owner.data_received(TransportAddress.parse("192.0.2.8", 1), b"from another")
    session.owner.data_received(peer, b"from the one")
    assert party.protocol.received == [(b"from the one", PEER)]
    party.port.write(b"to the one")
    assert session.sent == [(peer, b"to the one")]


def test_whoever_waits_when_the_allocation_ends(party: Party) -> None:
    """They are told that it ended; who asks in between waits for the next allocation; both are asked of that one."""
    session = party.client.succeed()
    early = errors_of(party.port.permit("192.0.2.7"))
    session.end(GONE)
    assert early == [GONE]
    late = party.port.bind(*PEER)
    party.clock.advance(FIRST_PAUSE)
    session = party.client.succeed()
    assert [verb for verb, _, _ in session.asked] == ["permit", "bind"]
    assert not late.called
    session.asked[1][2].callback(None)
    assert late.called


def test_writing_to_nobody(party: Party) -> None:
    """What is written between two allocations is dropped, and counted together with what the others dropped."""
    session = party.client.succeed()
    session.dropped = 2
    session.end(GONE)
    party.port.write(b"lost", PEER)
    assert party.port.dropped == 3
    party.clock.advance(FIRST_PAUSE)
    party.client.succeed().dropped = 4
    assert party.port.dropped == 7


def test_bad_arguments(party: Party) -> None:
    """What is no peer is an error on the spot, whether there is an allocation or not."""
    session = party.client.succeed()
    for _ in range(2):
        with pytest.raises(ValueError, match="not an IP address"):
            party.port.permit("example.org")
        with pytest.raises(ValueError, match="port 0"):
            party.port.bind("192.0.2.7", 0)
        with pytest.raises(ValueError, match="not an IP address"):
            party.port.connect("example.org", 1)
        session.end(GONE)


@pytest.mark.parametrize("when", ["allocated", "paused", "attempting", "attempting, which fails"])
def test_stopping(party: Party, when: str) -> None:
    """It can be stopped at any time, once or twice, and then nothing is left to happen."""
    party.client.when_cancelled = GONE if "fails" in when else None
    session = party.client.succeed()
    over = party.over()
    if when != "allocated":
        session.end(GONE)
    if "attempting" in when:
        party.clock.advance(FIRST_PAUSE)
    waiting = errors_of(party.port.permit("192.0.2.7"))
    stopped = party.port.stopListening()
    if when == "allocated":
        assert not stopped.called
        session.stopped.callback(None)
    assert stopped.called
    assert over == [None]
    assert isinstance(waiting[0], ServerUnavailable)
    assert party.protocol.life == ["start", "stop"]
    assert party.clock.getDelayedCalls() == []
    assert party.port.stopListening().called


def test_an_application_that_fails(party: Party, logged: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of the application at its end, or in its observer, is logged and ends nothing."""
    monkeypatch.setattr(party.observer, "allocated", lambda port: 1 / 0)
    monkeypatch.setattr(party.observer, "waiting", lambda error, pause: 1 / 0)
    monkeypatch.setattr(party.protocol, "doStop", lambda: 1 / 0)
    session = party.client.succeed()
    over = party.over()
    session.end(GONE)
    party.clock.advance(FIRST_PAUSE)
    party.client.succeed()
    party.port.stopListening()
    assert over == [None]
    assert len(logged) == 4


def test_refused_peers_are_passed_on(party: Party) -> None:
    """A connected port passes on that nobody listens at its peer, to a protocol that wants to know."""
    session = party.client.succeed()
    party.port.connect(*PEER)
    session.owner.icmp_received(TransportAddress.parse(*PEER), (3, 3, 0))
    assert party.protocol.life == ["start", "refused"]


@given(st.lists(st.sampled_from(["end", "pass", "grant", "refuse", "permit", "bind", "write", "answer"]), max_size=30))
def test_whatever_happens(events: list[str]) -> None:
    """Whatever happens in whatever order, there is one attempt or pause or allocation at a time; when it is stopped,
    everybody has been told, and nothing is left.
    """
    party = Party()
    sessions = [party.client.succeed()]
    answers: list[list[Any]] = []

    def is_allocated() -> bool:
        return bool(party.port.relayed_addresses)

    def is_attempting() -> bool:
        return not party.client.attempts[-1][1].called

    for event in events:
        if event == "end" and is_allocated():
            sessions[-1].end(GONE)
        elif event == "pass":
            party.clock.advance(LONGEST_PAUSE)
        elif event == "grant" and is_attempting():
            sessions.append(party.client.succeed())
        elif event == "refuse" and is_attempting():
            party.client.fail(RemoteError(486, "Allocation Quota Reached"))
        elif event in ("permit", "bind"):
            asked = party.port.permit("192.0.2.7") if event == "permit" else party.port.bind(*PEER)
            answers.append([])
            asked.addBoth(answers[-1].append)
        elif event == "write":
            party.port.write(b"data", PEER)
        elif event == "answer":
            for _, _, answer in sessions[-1].asked:
                if not answer.called:
                    answer.callback(None)
        assert is_allocated() + is_attempting() + len(party.clock.getDelayedCalls()) == 1
    party.port.stopListening()
    assert party.over() == [None]
    assert [len(answer) for answer in answers] == [1] * len(answers)
    assert party.clock.getDelayedCalls() == []
    assert party.protocol.life == ["start", "stop"]
