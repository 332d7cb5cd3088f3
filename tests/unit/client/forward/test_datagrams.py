"""Datagrams of each sender go to the peer, and its answers back to that sender; all of it within limits, on a stepped
clock.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError, MessageLengthError
from twisted.internet.task import Clock

from relayd.address import TransportAddress
from relayd.client.forward.datagrams import IDLE_TIMEOUT, MAX_SENDERS, RECYCLE_AFTER, SWEEP, Audience, Forwarding, Route
from relayd.client.forward.mappings import MAX_WAITING
from relayd.client.forward.narration import INTERVAL, Narration
from relayd.client.relayed import RelayedPort
from relayd.client.succession import FIRST_PAUSE
from relayd.client.transports.uri import TurnUri
from relayd.errors import ConfigurationError, RelaydError, RemoteError, ServerUnavailable
from tests.unit.client.test_lasting import FakeClient, FakeSession

PEER = TransportAddress.parse("192.0.2.9", 53)
OTHER_PEER = TransportAddress.parse("192.0.2.10", 53)
URI = TurnUri.parse("turn:192.0.2.1")
GONE = ServerUnavailable("gone")
FORBIDDEN = RemoteError(403, "Forbidden")


class FakePort:
    """A local socket: `receive` is what an application sends, `written` what it is sent."""

    def __init__(self, port: int, protocol: Any, interface: str) -> None:
        self.port = port
        self.protocol = protocol
        self.interface = interface
        self.written: list[tuple[bytes, Any]] = []
        self.fault: Exception | None = None
        self.is_open = True

    def getHost(self) -> IPv4Address:
        return IPv4Address("UDP", self.interface, self.port)

    def receive(self, data: bytes, sender: int) -> None:
        self.protocol.datagramReceived(data, ("127.0.0.1", sender))

    def write(self, data: bytes, sender: Any) -> None:
        if self.fault is not None:
            raise self.fault
        self.written.append((data, sender[1]))

    def stopListening(self) -> Deferred[None]:
        self.is_open = False
        return succeed(None)


class FakeReactor(Clock):
    """A clock with local ports."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[FakePort] = []

    def listenUDP(self, port: int, protocol: Any, interface: str, size: int) -> FakePort:
        if port == 1:
            raise CannotListenError(interface, port, PermissionError(13, "Permission denied"))
        self.ports.append(FakePort(port or 40_000 + len(self.ports), protocol, interface))
        return self.ports[-1]


class Recorder(Audience):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def opened(self, local: TransportAddress, peer: TransportAddress) -> None:
        self.told.append(("opened", str(local), str(peer)))

    def allocated(self, port: RelayedPort) -> None:
        self.told.append(("allocated", *map(str, port.relayed_addresses)))

    def waiting(self, error: RelaydError, pause: float) -> None:
        self.told.append(("waiting", str(error), pause))

    def sender_refused(self, error: RelaydError) -> None:
        self.told.append(("sender refused", str(error)))

    def crowded(self) -> None:
        self.told.append(("crowded",))

    def peer_refused(self, peer: TransportAddress, error: RelaydError) -> None:
        self.told.append(("peer refused", str(peer), str(error)))


class Party:
    """A forwarding of one local port or more, with everything around it."""

    def __init__(self, *peers: TransportAddress) -> None:
        self.reactor = FakeReactor()
        self.client = FakeClient()
        self.audience = Recorder()
        self.forwarding = Forwarding(self.reactor, self.client, self.audience, lambda size: b"\xff" * size)
        self.over: list[Any] = []
        routes = [Route("127.0.0.1", 0, peer) for peer in peers or (PEER,)]
        Deferred.fromCoroutine(self.forwarding.serve(routes)).addBoth(self.over.append)

    @property
    def local(self) -> FakePort:
        return self.reactor.ports[0]

    def succeed(self) -> FakeSession:
        """The latest attempt gets an allocation, and every peer is granted."""
        session = self.client.succeed()
        grant(session)
        return session

    def stop(self) -> list[Any]:
        done: list[Any] = []
        Deferred.fromCoroutine(self.forwarding.stop()).addBoth(done.append)
        return done

    def assert_nothing_left(self) -> None:
        assert self.reactor.getDelayedCalls() == []
        assert not any(port.is_open for port in self.reactor.ports)
        assert self.forwarding.senders == 0


@pytest.fixture
def party() -> Party:
    return Party()


def grant(session: FakeSession) -> None:
    for _, _, answer in list(session.asked):
        if not answer.called:
            answer.callback(None)


def sent(session: FakeSession) -> list[bytes]:
    return [data for _, data in session.sent]


def test_to_and_fro(party: Party) -> None:
    """What a sender says before there is a relayed address waits, and what the peer answers comes back."""
    party.local.receive(b"early", 1)
    session = party.succeed()
    party.local.receive(b"late", 1)
    assert session.sent == [(PEER, b"early"), (PEER, b"late")]
    assert session.asked[0][:2] == ("bind", PEER)
    session.owner.data_received(PEER, b"answer")
    assert party.local.written == [(b"answer", 1)]
    forwarding = party.forwarding
    assert (forwarding.sent, forwarding.received, forwarding.dropped, forwarding.senders) == (2, 1, 0, 1)
    assert party.audience.told == [
        ("opened", "127.0.0.1:40000", "192.0.2.9:53"),
        ("allocated", "192.0.2.1:50001"),
    ]


def test_too_much_waits(party: Party) -> None:
    """What waits is bounded; the rest is counted as dropped."""
    for _ in range(MAX_WAITING + 3):
        party.local.receive(b"early", 1)
    session = party.succeed()
    assert len(session.sent) == MAX_WAITING
    assert party.forwarding.dropped == 3


def test_each_sender_hears_its_own_answers(party: Party) -> None:
    """Two senders to one peer have a relayed address each: the peer can tell them apart, and so can we."""
    first = party.succeed()
    party.local.receive(b"one", 1)
    party.local.receive(b"two", 2)
    second = party.succeed()
    assert (sent(first), sent(second)) == ([b"one"], [b"two"])
    second.owner.data_received(PEER, b"to two")
    first.owner.data_received(PEER, b"to one")
    assert party.local.written == [(b"to two", 2), (b"to one", 1)]


def test_peers_share_a_relayed_address() -> None:
    """Senders to different peers need but one; what comes from each peer goes to its sender."""
    party = Party(PEER, OTHER_PEER)
    session = party.client.succeed()
    grant(session)
    grant(session)
    party.reactor.ports[0].receive(b"one", 1)
    party.reactor.ports[1].receive(b"two", 2)
    assert len(party.client.attempts) == 1
    assert session.sent == [(PEER, b"one"), (OTHER_PEER, b"two")]
    session.owner.data_received(OTHER_PEER, b"to two")
    assert party.reactor.ports[1].written == [(b"to two", 2)]
    assert party.reactor.ports[0].written == []


def test_a_sender_that_falls_silent(party: Party) -> None:
    """Its mapping ends, its allocation is deleted unless it is the first, and the next sender takes the first again."""
    first = party.succeed()
    party.local.receive(b"one", 1)
    party.local.receive(b"two", 2)
    second = party.succeed()
    party.reactor.pump([SWEEP] * int(IDLE_TIMEOUT / SWEEP))
    assert party.forwarding.senders == 0
    assert (first.closed, second.closed) == (0, 1)
    first.owner.data_received(PEER, b"too late")
    assert party.local.written == []
    assert party.forwarding.dropped == 1
    party.local.receive(b"three", 3)
    assert len(party.client.attempts) == 2
    assert sent(first) == [b"one", b"three"]


def test_whoever_is_used_stays(party: Party) -> None:
    """What a sender sends and what its peer sends keep its mapping."""
    session = party.succeed()
    party.local.receive(b"one", 1)
    for number in range(40):
        party.reactor.pump([SWEEP] * int(IDLE_TIMEOUT / SWEEP - 1))
        if number % 2:
            party.local.receive(b"more", 1)
        else:
            session.owner.data_received(PEER, b"more")
    assert party.forwarding.senders == 1


def test_as_many_senders_as_there_may_be(party: Party) -> None:
    """Another one is turned away as long as all others talk, and then takes the place of the one idle for longest: with
    an allocation of its own, so that it does not hear that one's late answers.
    """
    party.succeed()
    sessions = {}
    for sender in range(MAX_SENDERS):
        party.local.receive(b"hello", sender)
        if sender:
            sessions[sender] = party.succeed()
    party.local.receive(b"crowded out", 1000)
    assert party.audience.told[-1] == ("crowded",)
    assert party.forwarding.dropped == 1
    party.reactor.advance(RECYCLE_AFTER)
    for sender in range(MAX_SENDERS):
        if sender != 7:
            party.local.receive(b"again", sender)
    party.local.receive(b"in", 1000)
    assert [sender for sender, session in sessions.items() if session.closed] == [7]
    assert party.forwarding.senders == MAX_SENDERS
    session = party.succeed()
    assert sent(session) == [b"in"]
    sessions[7].owner.data_received(PEER, b"too late")
    assert party.local.written == []
    party.local.receive(b"crowded out", 7)
    assert party.audience.told[-1] == ("crowded",)


def test_a_sender_without_a_relayed_address(party: Party) -> None:
    """Where the relay grants no other allocation, that is told once, the others go on, and the sender may try again."""
    party.succeed()
    party.local.receive(b"one", 1)
    party.local.receive(b"two", 2)
    party.client.fail(RemoteError(486, "Allocation Quota Reached"))
    party.local.receive(b"two", 2)
    assert party.audience.told[-1] == ("sender refused", "486 Allocation Quota Reached")
    assert len(party.client.attempts) == 2
    party.reactor.advance(SWEEP)
    party.local.receive(b"two", 2)
    assert sent(party.succeed()) == [b"two"]
    assert party.forwarding.dropped == 2
    assert party.over == []


def test_another_relayed_address_is_lost_for_good(party: Party) -> None:
    """That ends the mappings on it, and nothing else."""
    party.succeed()
    party.local.receive(b"one", 1)
    party.local.receive(b"two", 2)
    party.succeed().end(GONE)
    party.reactor.advance(FIRST_PAUSE)
    party.client.fail(RemoteError(401, "Unauthorized"))
    assert party.audience.told[-1] == ("sender refused", "401 Unauthorized")
    party.reactor.advance(SWEEP)
    assert party.forwarding.senders == 1
    assert party.over == []


def test_the_relay_is_lost(party: Party) -> None:
    """The first relayed address comes back with its peers; when it is lost for good, that is the end."""
    party.local.receive(b"one", 1)
    party.succeed().end(GONE)
    party.local.receive(b"lost", 1)
    party.reactor.advance(FIRST_PAUSE)
    session = party.succeed()
    assert session.asked[0][:2] == ("bind", PEER)
    session.owner.data_received(PEER, b"answer")
    assert party.local.written == [(b"answer", 1)]
    assert party.forwarding.dropped == 1
    session.end(GONE)
    party.reactor.advance(2 * FIRST_PAUSE)
    refused = RemoteError(401, "Unauthorized")
    party.client.fail(refused)
    assert party.over == [refused]
    assert [told[0] for told in party.audience.told] == ["opened", "allocated", "waiting", "allocated", "waiting"]
    assert party.stop() == [None]
    party.assert_nothing_left()


def test_a_peer_that_the_relay_refuses(party: Party) -> None:
    """At the beginning that is the end, and later it is told."""
    session = party.client.succeed()
    session.asked[0][2].errback(FORBIDDEN)
    error = party.over[0].value
    assert isinstance(error, ConfigurationError)
    assert str(error) == "the relay does not let us reach 192.0.2.9:53: 403 Forbidden"
    party.stop()
    party.assert_nothing_left()
    later = Party()
    later.succeed()
    later.local.receive(b"one", 1)
    later.local.receive(b"two", 2)
    later.client.succeed().asked[0][2].errback(FORBIDDEN)
    assert later.audience.told[-1] == ("peer refused", "192.0.2.9:53", "403 Forbidden")


def test_the_first_attempt_fails(party: Party) -> None:
    """Without a first allocation there is no forwarding, and the error says why."""
    party.client.fail(GONE)
    assert party.over[0].value is GONE
    party.stop()
    party.assert_nothing_left()


def test_a_local_port_that_is_taken() -> None:
    """A port that cannot be listened on is told, before the relay is asked for anything."""
    party = Party()
    forwarding = Forwarding(party.reactor, FakeClient(), Audience(), bytes)
    over: list[Any] = []
    Deferred.fromCoroutine(forwarding.serve([Route("127.0.0.1", 1, PEER)])).addErrback(over.append)
    assert isinstance(over[0].value, ConfigurationError)
    assert str(over[0].value) == "cannot listen on 127.0.0.1, UDP port 1: Permission denied"


@pytest.mark.parametrize("error", [None, GONE])
@pytest.mark.parametrize("when", ["connecting", "asking", "serving"])
def test_stopping(party: Party, when: str, error: Exception | None) -> None:
    """It can be stopped at any time, whatever attempts fail of then; it is done when the allocations are deleted, and
    nothing is left.
    """
    party.client.when_cancelled = error
    sessions = []
    if when != "connecting":
        sessions.append(party.client.succeed())
    if when == "serving":
        grant(sessions[0])
        party.local.receive(b"one", 1)
        party.local.receive(b"two", 2)
        sessions.append(party.succeed())
        party.local.receive(b"three", 3)  # still connecting
    done = party.stop()
    assert done == ([] if sessions else [None])
    for session in sessions:
        session.stopped.callback(None)
    assert done == [None]
    assert party.over == [None]
    assert [told for told in party.audience.told if "refused" in told[0]] == []
    party.assert_nothing_left()
    assert party.stop() == [None]


def test_what_cannot_be_passed_on(party: Party) -> None:
    """A datagram too long for a relay, and one that the local socket does not take, are dropped and counted."""
    session = party.succeed()

    def refuse(peer: Any, data: bytes) -> None:
        raise ValueError("too long")

    session.send = refuse  # type: ignore[method-assign]
    party.local.receive(b"long", 1)
    for fault in (OSError(105, "No buffer space available"), MessageLengthError()):
        party.local.fault = fault
        session.owner.data_received(PEER, b"answer")
    assert (party.forwarding.sent, party.forwarding.received, party.forwarding.dropped) == (0, 0, 3)


def test_ways_are_told_once(party: Party) -> None:
    """Several allocations that try the same ways at the same time make but one line of each."""
    lines: list[str] = []
    narration = Narration(party.reactor, lines.append)
    for _ in range(2):
        narration.trying(URI)
        narration.failed(URI, GONE)
    assert lines == [f"connecting: {URI}", f"that does not work: {URI}: gone"]


def test_nothing_is_said_too_often(party: Party) -> None:
    """What may happen with every datagram is told once a minute, and counts when there is something new."""
    party.succeed()
    lines: list[str] = []
    narration = Narration(party.reactor, lines.append)
    for _ in range(3):
        narration.crowded()
        narration.sender_refused(GONE)
        narration.peer_refused(PEER, FORBIDDEN)
        narration.peer_refused(OTHER_PEER, FORBIDDEN)
    assert len(lines) == 4
    party.reactor.advance(INTERVAL)
    narration.crowded()
    assert len(lines) == 5
    narration.datagrams = party.forwarding
    narration.count()
    party.reactor.advance(INTERVAL)
    assert len(lines) == 5
    party.local.receive(b"one", 1)
    party.reactor.pump([INTERVAL] * 3)
    assert lines[5:] == ["datagrams: 1 sent, 0 received, 0 dropped; senders: 1"]
    narration.end()
    narration.end()
    party.stop()
    party.assert_nothing_left()
