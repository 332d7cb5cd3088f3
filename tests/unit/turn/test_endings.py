"""How things end: Refresh, expiry, closed paths, broken relays, revoked users, shutdown; and that nothing is left
each time.
"""

from __future__ import annotations

import pytest

from relayd.address import AppConnection, Family
from relayd.stun import attributes as a
from relayd.stun.message import Method, decode
from relayd.turn import outputs as out
from relayd.turn.pending import MAX_PENDING_PER_PATH, PENDING_LIFETIME
from relayd.turn.settings import TurnSettings
from tests.unit.turn.parties import BOTH, PEER, PEER6, REALM, UDP_ATTRIBUTE, Client, Shell, code_of

V6 = int(Family.IPV6)


@pytest.mark.parametrize("method", [Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
def test_no_allocation(method: Method) -> None:
    """Requests on a path that has no allocation get 437, signed, once they are authenticated."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    answer = client.ask(method)
    assert code_of(answer) == 437
    assert answer.has_integrity
    shell.assert_nothing_left()


def test_deleted_twice() -> None:
    """A retransmitted delete finds nothing and says 437, which clients take for success."""
    shell = Shell()
    client = Client(shell)
    client.allocate()
    request = client.encode(Method.REFRESH, [(a.LIFETIME, 0)])
    assert code_of(decode(client.send(request)[0])) == 0
    assert code_of(decode(client.send(request)[0])) == 437
    assert len(shell.events(out.AllocationEnded)) == 1
    shell.assert_nothing_left()


def test_refresh_sets_the_time() -> None:
    """Each Refresh counts anew from its own time, also when it asks for less than is left."""
    shell = Shell()
    client = Client(shell)
    client.allocate([(a.LIFETIME, 3600)])
    assert client.refresh().get(a.LIFETIME) == 600
    shell.advance(599)
    assert client.refresh((a.LIFETIME, 1000)).get(a.LIFETIME) == 1000
    shell.advance(999)
    assert shell.core.allocation_of(client.path) is not None
    shell.advance(1)
    ended = shell.events(out.AllocationEnded)[0]
    assert ended.reason is out.EndReason.EXPIRED
    assert ended.duration == pytest.approx(599 + 1000)
    shell.assert_nothing_left()


def test_refresh_repeated() -> None:
    """A retransmitted Refresh succeeds again."""
    shell = Shell()
    client = Client(shell)
    client.allocate()
    request = client.encode(Method.REFRESH)
    assert client.send(request) == client.send(request)


def test_refresh_of_another_family() -> None:
    """REQUESTED-ADDRESS-FAMILY that the allocation does not have is a 443."""
    client = Client(Shell())
    client.allocate()
    assert code_of(client.refresh((a.REQUESTED_ADDRESS_FAMILY, V6))) == 443
    assert code_of(client.refresh((a.REQUESTED_ADDRESS_FAMILY, 77))) == 443
    assert code_of(client.refresh((a.REQUESTED_ADDRESS_FAMILY, 1))) == 0


def test_half_of_a_dual_allocation() -> None:
    """A delete that names a family ends that half with its channels and permissions; the other goes on as it was."""
    shell = Shell()
    client = Client(shell)
    client.allocate([(a.ADDITIONAL_ADDRESS_FAMILY, V6)])
    client.permit(PEER, PEER6)
    client.bind(0x4000, PEER)
    client.bind(0x4001, PEER6)
    assert code_of(client.refresh((a.REQUESTED_ADDRESS_FAMILY, V6))) == 0
    assert code_of(client.refresh((a.REQUESTED_ADDRESS_FAMILY, V6), (a.LIFETIME, 0))) == 0
    assert list(shell.flows) == [("relay 1", 0x4000)]
    assert list(shell.open) == ["relay 1"]
    allocation = shell.core.allocation_of(client.path)
    assert allocation is not None
    assert list(allocation.permissions) == [PEER.ip]
    assert shell.from_peer("relay 2", PEER6, b"in") == []
    assert len(shell.from_peer("relay 1", PEER, b"in")) == 1
    assert code_of(client.refresh((a.REQUESTED_ADDRESS_FAMILY, V6))) == 443
    assert code_of(client.permit(PEER6)) == 443
    assert code_of(client.refresh((a.REQUESTED_ADDRESS_FAMILY, 1), (a.LIFETIME, 0))) == 0
    assert [relay for relay, _ in shell.events(out.AllocationEnded)[0].relays] == ["relay 1", "relay 2"]
    shell.assert_nothing_left()


def test_events_before_relays_close() -> None:
    """AllocationEnded comes after the flows are taken back and before the relays close, so that counters are
    complete.
    """
    shell = Shell()
    client = Client(shell)
    client.allocate()
    client.bind(0x4000, PEER)
    shell.core.receive(client.path, client.encode(Method.REFRESH, [(a.LIFETIME, 0)]), shell.now)
    kinds = []
    while (output := shell.core.next_output()) is not None:
        kinds.append(type(output))
    assert kinds == [out.Send, out.RemoveFlow, out.AllocationEnded, out.CloseRelay]


def test_path_closed() -> None:
    """With its connection an allocation ends; another connection's does not. Closing a path that has none is
    harmless.
    """
    shell = Shell()
    client, other = (Client(shell, port, app_connection=AppConnection.TCP) for port in (40_000, 40_001))
    client.allocate()
    client.bind(0x4000, PEER)
    other.allocate()
    for _ in range(2):
        shell.core.path_closed(client.path, shell.now)
        shell.run()
    assert [event.reason for event in shell.events(out.AllocationEnded)] == [out.EndReason.CONNECTION_CLOSED]
    assert not shell.core.holds(client.path)
    assert shell.core.holds(other.path)
    other.delete()
    shell.assert_nothing_left()


@pytest.mark.parametrize("steps", [0, 1])
def test_path_closed_while_waiting(steps: int) -> None:
    """A path that closes while the shell is busy gets nothing; relays that come too late are closed, quota is free."""
    shell = Shell(TurnSettings(REALM, user_quota=1))
    client = Client(shell, app_connection=AppConnection.TLS)
    client.greet()
    shell.answers_at_once = False
    client.send(client.encode(Method.ALLOCATE, [UDP_ATTRIBUTE, (a.EVEN_PORT, True)]))
    for _ in range(steps):
        shell.answer_all()
        shell.run()
    before = len(shell.sent)
    shell.core.path_closed(client.path, shell.now)
    shell.run()
    shell.answer_all()
    shell.run()
    assert len(shell.sent) == before
    shell.assert_nothing_left()


def test_path_closed_while_claiming_a_reservation() -> None:
    """A reserved port whose claimant vanishes is closed, whatever the shell says later."""
    for refusal in (None, out.RelayRefused(508)):
        shell = Shell()
        client, second = Client(shell, 40_000), Client(shell, 40_001)
        token = client.allocate([(a.EVEN_PORT, True)]).get(a.RESERVATION_TOKEN)
        client.delete()
        second.greet()
        shell.answers_at_once = False
        second.send(second.encode(Method.ALLOCATE, [UDP_ATTRIBUTE, (a.RESERVATION_TOKEN, token)]))
        shell.answer_all()
        shell.run()
        (opening,) = shell.waiting
        shell.core.path_closed(second.path, shell.now)
        result = refusal or out.RelayOpened((("relay 2", shell.open["relay 2"]),))
        shell.run()
        shell.core.answer(opening.id, result, shell.now)
        shell.run()
        shell.assert_nothing_left()


def test_shell_that_never_answers() -> None:
    """A request that nobody answers is given up when its client has, and an answer after that is ignored."""
    shell = Shell(TurnSettings(REALM, user_quota=1))
    client = Client(shell)
    client.greet()
    shell.answers_at_once = False
    request = client.encode(Method.ALLOCATE, [UDP_ATTRIBUTE])
    client.send(request)
    assert shell.core.next_timer() == shell.now + PENDING_LIFETIME
    shell.advance(PENDING_LIFETIME)
    assert not shell.core.holds(client.path)
    shell.answer_all()
    shell.run()
    assert len(shell.sent) == 1
    client.send(request)
    shell.answer_all()
    shell.run()
    shell.advance(PENDING_LIFETIME)
    shell.answer_all()
    shell.run()
    assert len(shell.sent) == 1
    shell.assert_nothing_left()


def test_waiting_requests_are_bounded() -> None:
    """One path cannot have more than so many requests wait: 500 beyond, and all is served when the shell is back."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    shell.answers_at_once = False
    for _ in range(MAX_PENDING_PER_PATH):
        assert client.send(client.encode(Method.REFRESH)) == []
    assert code_of(client.ask(Method.REFRESH)) == 500
    shell.answer_all()
    shell.run()
    assert [code_of(decode(sent.data)) for sent in shell.sent[-MAX_PENDING_PER_PATH:]] == [437] * MAX_PENDING_PER_PATH
    shell.assert_nothing_left()


def test_relay_failed() -> None:
    """A broken relay ends its allocation, both halves of a dual one; a broken reservation is forgotten."""
    shell = Shell()
    client = Client(shell)
    client.allocate([(a.ADDITIONAL_ADDRESS_FAMILY, V6)])
    client.bind(0x4000, PEER)
    shell.core.relay_failed("relay 2", shell.now)
    shell.core.relay_failed("relay 2", shell.now)
    shell.run()
    assert [event.reason for event in shell.events(out.AllocationEnded)] == [out.EndReason.RELAY_FAILED]
    shell.assert_nothing_left()
    client.allocate([(a.EVEN_PORT, True)])
    shell.core.relay_failed("relay 4", shell.now)
    shell.run()
    assert list(shell.open) == ["relay 3"]


def test_end_user() -> None:
    """A revoked user loses every allocation, those under way too; other users keep theirs."""
    shell = Shell()
    first, second = Client(shell, 40_000), Client(shell, 40_001)
    bob = Client(shell, 40_002, "bob", "hunter2")
    for client in (first, bob):
        client.allocate()
    second.greet()
    shell.answers_at_once = False
    second.send(second.encode(Method.ALLOCATE, [UDP_ATTRIBUTE]))
    shell.answer_all()
    shell.run()
    shell.core.end_user("alice", out.EndReason.REVOKED, shell.now)
    shell.run()
    shell.answer_all()
    shell.run()
    assert [(event.username, event.reason) for event in shell.events(out.AllocationEnded)] == [
        ("alice", out.EndReason.REVOKED)
    ]
    assert [allocation.username for allocation in shell.core.sessions()] == ["bob"]


def test_shutdown() -> None:
    """At shutdown everything ends, and whatever still arrives is ignored."""
    shell = Shell()
    first, second, third = (Client(shell, port) for port in (40_000, 40_001, 40_002))
    first.allocate([(a.EVEN_PORT, True)])
    first.bind(0x4000, PEER)
    second.greet()
    third.greet()
    shell.answers_at_once = False
    second.send(second.encode(Method.ALLOCATE, [UDP_ATTRIBUTE]))
    shell.answer_all()
    shell.run()
    third.send(third.encode(Method.ALLOCATE, [UDP_ATTRIBUTE]))
    before = len(shell.sent)
    shell.core.shutdown(shell.now)
    shell.run()
    shell.answer_all()
    shell.run()
    assert second.send(second.encode(Method.BINDING)) == []
    assert len(shell.sent) == before
    assert [event.reason for event in shell.events(out.AllocationEnded)] == [out.EndReason.SHUTDOWN]
    shell.assert_nothing_left()


def test_expired_but_not_yet_swept() -> None:
    """An allocation is over when its time is, even if the timer comes late; the request that finds it so sweeps up."""
    shell = Shell()
    client = Client(shell)
    client.allocate()
    client.bind(0x4000, PEER)
    relay = client.relay
    shell.now += 600
    client.send(b"\x40\x00\x00\x01x")
    client.indicate(PEER, b"x")
    assert shell.to_peers == []
    assert shell.from_peer(relay, PEER, b"in") == []
    assert code_of(client.permit(PEER)) == 437
    shell.assert_nothing_left()


def test_timer_called_early() -> None:
    """handle_timer before its time does nothing."""
    shell = Shell()
    client = Client(shell)
    client.allocate()
    client.bind(0x4000, PEER)
    shell.core.handle_timer(shell.now + 599)
    assert shell.core.next_output() is None
    assert len(shell.flows) == 1


def test_same_client_on_two_ways_in() -> None:
    """The path is the key: the same 5-tuple over another app_connection or virtual channel is another allocation."""
    shell = Shell(TurnSettings(REALM, transports=BOTH))
    client = Client(shell, app_connection=AppConnection.WS)
    other = Client(shell, app_connection=AppConnection.WS)
    other.path = other.path._replace(channel_id=7)
    client.allocate()
    assert code_of(other.allocate()) == 0
    client.delete()
    assert shell.core.holds(other.path)
