"""Allocate: what is granted, what is refused and with which code (RFC 8656 section 7.2)."""

from __future__ import annotations

from typing import Any

import pytest

from relayd.address import AppConnection, Family, TransportAddress
from relayd.stun import attributes as a
from relayd.stun.attributes import AddressError, Attribute
from relayd.stun.message import Method, decode
from relayd.turn import outputs as out
from relayd.turn.reservations import MAX_RESERVATIONS_PER_USER
from relayd.turn.settings import TurnSettings
from tests.unit.turn.parties import BOTH, PEER, PEER6, REALM, UDP_ATTRIBUTE, Client, Shell, code_of

Pair = tuple[Attribute[Any], Any]
V4, V6 = int(Family.IPV4), int(Family.IPV6)
BOTH_FAMILIES = (a.ADDITIONAL_ADDRESS_FAMILY, V6)


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ([], 400),
        ([(a.REQUESTED_TRANSPORT, 6)], 442),
        ([(a.REQUESTED_TRANSPORT, 99)], 442),
        ([UDP_ATTRIBUTE, (a.RESERVATION_TOKEN, bytes(8))], 508),
        ([UDP_ATTRIBUTE, (a.RESERVATION_TOKEN, bytes(8)), (a.EVEN_PORT, False)], 400),
        ([UDP_ATTRIBUTE, (a.RESERVATION_TOKEN, bytes(8)), (a.REQUESTED_ADDRESS_FAMILY, V4)], 400),
        ([UDP_ATTRIBUTE, (a.RESERVATION_TOKEN, bytes(8)), BOTH_FAMILIES], 400),
        ([UDP_ATTRIBUTE, (a.REQUESTED_ADDRESS_FAMILY, V4), BOTH_FAMILIES], 400),
        ([UDP_ATTRIBUTE, (a.ADDITIONAL_ADDRESS_FAMILY, V4)], 400),
        ([UDP_ATTRIBUTE, (a.EVEN_PORT, True), BOTH_FAMILIES], 400),
        ([UDP_ATTRIBUTE, (a.REQUESTED_ADDRESS_FAMILY, 3)], 440),
    ],
)
def test_refused(attributes: list[Pair], code: int) -> None:
    """Requests that make no sense, or ask for what there is not, get their code, signed, and leave nothing."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    answer = client.ask(Method.ALLOCATE, attributes)
    assert code_of(answer) == code
    assert answer.has_integrity
    assert shell.told[-1] == out.RequestRefused(client.path, Method.ALLOCATE, code, "alice")
    shell.assert_nothing_left()


@pytest.mark.parametrize("code", [0x000D, 0x0017, 0x0018, 0x0019, 0x001A, 0x0022, 0x8000])
def test_malformed_attribute(code: int) -> None:
    """An attribute of the wrong size is a 400, whichever it is."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    broken: Attribute[bytes] = Attribute(code, "BROKEN", lambda value, _: value, lambda value, _: value)
    assert code_of(client.ask(Method.ALLOCATE, [(broken, b"123"), UDP_ATTRIBUTE])) == 400
    shell.assert_nothing_left()


@pytest.mark.parametrize(
    ("asked", "granted"), [(None, 600), (0, 600), (1, 600), (600, 600), (1800, 1800), (3600, 3600), (2**32 - 1, 3600)]
)
def test_lifetime(asked: int | None, granted: int) -> None:
    """At least the default of 600 s, at most 3600 s, and what is granted is what happens."""
    shell = Shell()
    client = Client(shell)
    answer = client.allocate([] if asked is None else [(a.LIFETIME, asked)])
    assert answer.get(a.LIFETIME) == granted
    shell.advance(granted - 1)
    assert shell.core.allocation_of(client.path) is not None
    shell.advance(1)
    shell.assert_nothing_left()


def test_families() -> None:
    """REQUESTED-ADDRESS-FAMILY decides; without it IPv4, or 440 where there is none (section 7.2, step 7)."""
    shell = Shell()
    assert code_of(client := Client(shell).allocate([(a.REQUESTED_ADDRESS_FAMILY, V6)])) == 0
    assert client.get(a.XOR_RELAYED_ADDRESS) == next(iter(shell.open.values()))
    only6 = Shell(TurnSettings(REALM, transports={17: (Family.IPV6,)}))
    assert code_of(Client(only6).allocate()) == 440
    only4 = Shell(TurnSettings(REALM))
    assert code_of(Client(only4).allocate([(a.REQUESTED_ADDRESS_FAMILY, V6)])) == 440


@pytest.mark.parametrize("attribute", [a.ADDITIONAL_ADDRESS_FAMILY, a.ADDITIONAL_ADDRESS_FAMILY_DRAFT])
def test_dual(attribute: Attribute[int]) -> None:
    """One Allocate gets both families, under the RFC's number and under the draft's; each peer is reached from its
    own.
    """
    shell = Shell()
    client = Client(shell)
    answer = client.allocate([(attribute, V6)])
    assert [address.family for address in answer.get_all(a.XOR_RELAYED_ADDRESS)] == [Family.IPV4, Family.IPV6]
    assert a.ADDRESS_ERROR_CODE not in answer
    assert code_of(client.permit(PEER, PEER6)) == 0
    client.indicate(PEER, b"4")
    client.indicate(PEER6, b"6")
    assert [(sent.relay, sent.data) for sent in shell.to_peers] == [("relay 1", b"4"), ("relay 2", b"6")]
    assert client.delete().get(a.LIFETIME) == 0
    assert len(shell.events(out.AllocationEnded)[0].relays) == 2
    shell.assert_nothing_left()


def test_dual_where_one_family_is_missing() -> None:
    """A family that is not configured, or cannot be opened, is reported beside the one that is there."""
    only4 = Shell(TurnSettings(REALM))
    answer = Client(only4).allocate([BOTH_FAMILIES])
    assert answer.get(a.ADDRESS_ERROR_CODE) == AddressError(Family.IPV6, 440, "Address Family not Supported")
    exhausted = Shell()
    exhausted.failed = (Family.IPV4, 508)
    answer = Client(exhausted).allocate([BOTH_FAMILIES])
    assert answer.get(a.ADDRESS_ERROR_CODE) == AddressError(Family.IPV4, 508, "Insufficient Capacity")
    assert [address.family for address in answer.get_all(a.XOR_RELAYED_ADDRESS)] == [Family.IPV6]


@pytest.mark.parametrize("code", [403, 440, 486, 508, 500])
def test_refused_by_the_shell(code: int) -> None:
    """Policies and exhausted ranges refuse with their code; the place in the quota is free again."""
    shell = Shell(TurnSettings(REALM, user_quota=1))
    client = Client(shell)
    shell.refusal = out.RelayRefused(code)
    assert code_of(client.allocate()) == code
    shell.assert_nothing_left()
    shell.refusal = None
    assert code_of(client.allocate()) == 0


def test_try_alternate() -> None:
    """A 300 brings ALTERNATE-SERVER and ALTERNATE-DOMAIN, signed so that nobody else can redirect our clients."""
    shell = Shell()
    alternate = TransportAddress.parse("198.51.9.9", 3478)
    shell.refusal = out.RelayRefused(300, alternate, "turn.example.net")
    answer = Client(shell).allocate()
    assert code_of(answer) == 300
    assert answer.get(a.ALTERNATE_SERVER) == alternate
    assert answer.get(a.ALTERNATE_DOMAIN) == "turn.example.net"
    assert answer.has_integrity
    shell.assert_nothing_left()


def test_retransmission_of_a_granted_allocate() -> None:
    """The same transaction gets the same success again with the time that is left; no second relay is opened."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    request = client.encode(Method.ALLOCATE, [UDP_ATTRIBUTE, (a.EVEN_PORT, True)], bytes(12))
    (first,) = client.send(request)
    assert client.send(request) == [first]
    shell.advance(10)
    again = decode(client.send(request)[0])
    assert again.get(a.LIFETIME) == 590
    assert again.get(a.XOR_RELAYED_ADDRESS) == decode(first).get(a.XOR_RELAYED_ADDRESS)
    assert again.get(a.RESERVATION_TOKEN) == decode(first).get(a.RESERVATION_TOKEN)
    assert len(shell.open) == 2
    assert len(shell.events(out.AllocationCreated)) == 1


def test_second_allocate_on_one_path() -> None:
    """Another transaction on a path that has an allocation is a 437, also for another user, and also while it opens."""
    shell = Shell()
    client = Client(shell)
    client.allocate()
    assert code_of(client.allocate()) == 437
    other = Client(shell, username="bob", password="hunter2")
    assert code_of(other.allocate()) == 437
    client.delete()
    shell.answers_at_once = False
    client.send(client.encode(Method.ALLOCATE, [UDP_ATTRIBUTE]))
    client.send(client.encode(Method.ALLOCATE, [UDP_ATTRIBUTE]))
    shell.answer_all()
    shell.run()
    assert code_of(decode(shell.sent[-1].data)) == 437
    assert [type(waiting) for waiting in shell.waiting] == [out.OpenRelay]
    shell.answer_all()
    shell.run()
    assert code_of(decode(shell.sent[-1].data)) == 0


def test_retransmissions_while_waiting() -> None:
    """A request that waits for a key, or for a relay, absorbs its retransmissions."""
    shell = Shell(TurnSettings(REALM, user_quota=1))
    client = Client(shell)
    client.greet()
    shell.answers_at_once = False
    request = client.encode(Method.ALLOCATE, [UDP_ATTRIBUTE])
    for kind in (out.AuthenticateUser, out.OpenRelay):
        for _ in range(3):
            assert client.send(request) == []
        assert [type(waiting) for waiting in shell.waiting] == [kind]
        assert shell.core.holds(client.path)
        shell.answer_all()
        shell.run()
    assert code_of(decode(shell.sent[-1].data)) == 0
    assert len(shell.open) == 1


def test_user_quota() -> None:
    """Exactly that many per user, over any way in, those under way included: 486 for the next, and none for others."""
    shell = Shell(TurnSettings(REALM, user_quota=3))
    kinds = [AppConnection.UDP, AppConnection.TCP, AppConnection.TLS, AppConnection.DTLS, AppConnection.UDP]
    clients = [Client(shell, 40_000 + at, app_connection=kind) for at, kind in enumerate(kinds)]
    for client in clients:
        client.greet()
    shell.answers_at_once = False
    for client in clients:
        client.send(client.encode(Method.ALLOCATE, [UDP_ATTRIBUTE]))
    while shell.waiting:
        shell.answer_all()
        shell.run()
    assert sorted(code_of(decode(sent.data)) for sent in shell.sent[-5:]) == [0, 0, 0, 486, 486]
    shell.answers_at_once = True
    assert code_of(Client(shell, 41_000, "bob", "hunter2").allocate()) == 0
    refused = [client for client in clients if shell.core.allocation_of(client.path) is None]
    granted = [client for client in clients if client not in refused]
    granted[0].delete()
    assert code_of(refused[0].allocate()) == 0
    assert code_of(refused[1].allocate()) == 486


def test_total_quota() -> None:
    """Beyond the total there is no capacity for anyone: 508."""
    shell = Shell(TurnSettings(REALM, total_quota=1))
    assert code_of(Client(shell, 40_000).allocate()) == 0
    assert code_of(Client(shell, 40_001).allocate()) == 508
    shell.advance(600)
    assert code_of(Client(shell, 40_001).allocate()) == 0


def test_reservation() -> None:
    """EVEN-PORT with the reservation bit gives a token, which gets the next port, once."""
    shell = Shell()
    client, second, third = (Client(shell, 40_000 + at) for at in range(3))
    answer = client.allocate([(a.EVEN_PORT, True)])
    token = answer.get(a.RESERVATION_TOKEN)
    assert token is not None
    granted = second.allocate([(a.RESERVATION_TOKEN, token)])
    relayed, reserved = answer.get(a.XOR_RELAYED_ADDRESS), granted.get(a.XOR_RELAYED_ADDRESS)
    assert relayed is not None
    assert reserved is not None
    assert reserved.port == relayed.port + 1
    assert code_of(third.allocate([(a.RESERVATION_TOKEN, token)])) == 508
    client.delete()
    second.delete()
    shell.assert_nothing_left()


def test_reservation_expires() -> None:
    """A token is good for 30 s; then its port is closed, and a 508 is all that it gets."""
    shell = Shell()
    client, second = Client(shell, 40_000), Client(shell, 40_001)
    token = client.allocate([(a.EVEN_PORT, True)]).get(a.RESERVATION_TOKEN)
    second.greet()
    client.delete()
    shell.advance(29)
    assert len(shell.open) == 1
    shell.advance(1)
    assert code_of(second.allocate([(a.RESERVATION_TOKEN, token)])) == 508
    shell.assert_nothing_left()


def test_reservation_of_someone_else() -> None:
    """A token is of no use to another user, and still there for its own."""
    shell = Shell()
    token = Client(shell, 40_000).allocate([(a.EVEN_PORT, True)]).get(a.RESERVATION_TOKEN)
    bob = Client(shell, 40_001, "bob", "hunter2")
    assert code_of(bob.allocate([(a.RESERVATION_TOKEN, token)])) == 508
    assert code_of(Client(shell, 40_002).allocate([(a.RESERVATION_TOKEN, token)])) == 0


def test_token_on_a_relay_without_ipv4() -> None:
    """A reserved port is of the family it was reserved in: a token alone asks for no IPv4."""
    shell = Shell(TurnSettings(REALM, transports={17: (Family.IPV6,)}))
    first = Client(shell).allocate([(a.EVEN_PORT, True), (a.REQUESTED_ADDRESS_FAMILY, V6)])
    granted = Client(shell, 40_001).allocate([(a.RESERVATION_TOKEN, first.get(a.RESERVATION_TOKEN))])
    assert code_of(granted) == 0
    assert [address.family for address in granted.get_all(a.XOR_RELAYED_ADDRESS)] == [Family.IPV6]


def test_token_survives_the_quota() -> None:
    """A claim that meets the quota does not spend the token; one that the shell refuses closes the port."""
    shell = Shell(TurnSettings(REALM, user_quota=1))
    client, second = Client(shell, 40_000), Client(shell, 40_001)
    token = client.allocate([(a.EVEN_PORT, True)]).get(a.RESERVATION_TOKEN)
    assert code_of(second.allocate([(a.RESERVATION_TOKEN, token)])) == 486
    client.delete()
    shell.refusal = out.RelayRefused(403)
    assert code_of(second.allocate([(a.RESERVATION_TOKEN, token)])) == 403
    shell.assert_nothing_left()


def test_reservations_are_bounded() -> None:
    """Allocating and deleting over and over does not pile up reserved ports without end."""
    shell = Shell()
    client = Client(shell)
    for _ in range(MAX_RESERVATIONS_PER_USER):
        assert code_of(client.allocate([(a.EVEN_PORT, True)])) == 0
        client.delete()
    assert code_of(client.allocate([(a.EVEN_PORT, True)])) == 508
    assert code_of(client.allocate([(a.EVEN_PORT, False)])) == 0
    client.delete()
    shell.advance(30)
    shell.assert_nothing_left()


def test_dont_fragment_is_understood() -> None:
    """DONT-FRAGMENT in an Allocate is not answered 420."""
    assert code_of(Client(Shell()).allocate([(a.DONT_FRAGMENT, True)])) == 0


def test_session_ids() -> None:
    """Each allocation is called by twelve hexadecimal digits of its own."""
    shell = Shell()
    for port in range(40_000, 40_020):
        Client(shell, port).allocate()
    names = {event.session_id for event in shell.events(out.AllocationCreated)}
    assert len(names) == 20
    assert all(len(name) == 12 and int(name, 16) >= 0 for name in names)


def test_transports_are_data() -> None:
    """Another REQUESTED-TRANSPORT is served as soon as the settings have it."""
    shell = Shell(TurnSettings(REALM, transports={**BOTH, 6: (Family.IPV4,)}))
    client = Client(shell, app_connection=AppConnection.TCP)
    client.greet()
    assert code_of(client.ask(Method.ALLOCATE, [(a.REQUESTED_TRANSPORT, 6)])) == 0
    assert shell.events(out.AllocationCreated)[0].transport == 6
