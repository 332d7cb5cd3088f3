"""The client core against the real server core, over a network that may lose, duplicate and reorder."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.address import AppConnection, Family
from relayd.errors import DecodeError, RemoteError, ServerUnavailable
from relayd.stun import attributes as a
from relayd.stun.integrity import PasswordAlgorithm
from relayd.stun.message import Class, Message, Method, decode, encode
from relayd.turn import outputs as server_out
from relayd.turn.client import CLOSE_PATIENCE, KEEPALIVE, OUTAGE, SILENCE, ClientSettings, TurnClientCore
from relayd.turn.client_outputs import (
    Allocated,
    Answered,
    ChannelLost,
    DataReceived,
    Ended,
    IcmpReceived,
    PermissionLost,
    Redirected,
)
from relayd.turn.client_peers import MAX_DATA, MAX_WAITING
from relayd.turn.client_requests import MAX_CHALLENGES
from relayd.turn.settings import TurnSettings
from tests.simulation.network import Weather
from tests.simulation.parties import Simulation
from tests.unit.turn.client_party import ClientParty
from tests.unit.turn.parties import BOTH, OTHER_PEER, PEER, PEER6, REALM, SERVER4

FAIR = Weather()
STORM = Weather(loss=0.2, duplication=0.2, delay=0.4)
WAYS = [AppConnection.UDP, AppConnection.TCP, AppConnection.TLS, AppConnection.DTLS, AppConnection.WSS]


def simulate(weather: Weather = FAIR, seed: int = 1, **options: Any) -> Simulation:
    return Simulation(seed, weather, TurnSettings(REALM, transports=BOTH, **options))


def requests(party: ClientParty, method: int | None = None) -> list[Message]:
    """The requests that the party sent, retransmissions too."""
    messages = [decode(data) for _, data in party.sent if data[0] < 0x40]
    return [m for m in messages if m.cls is Class.REQUEST and method in (None, m.method)]


def error_of(told: Any) -> Any:
    assert isinstance(told, Ended)
    return told.error


# --- the whole life -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_whole_life(way: AppConnection) -> None:
    """Allocate, data by indication, a channel, data by channel, deletion: and neither side has anything left."""
    world = simulate()
    party = ClientParty(world, way)
    allocated = party.allocate()
    assert isinstance(allocated, Allocated)
    assert allocated.relayed == tuple(world.open.values())
    assert allocated.mapped == party.path.client
    assert allocated.lifetime == 600
    assert party.permit(PEER) is None
    party.send(PEER, b"by indication")
    party.wait(1)
    assert party.bind(PEER) is None
    party.send(PEER, b"by channel")
    party.send(PEER, b"")
    party.wait(1)
    assert [data for _, data in world.peer.received] == [b"by indication", b"by channel", b""]
    echoes = [DataReceived(PEER, data) for data in (b"by indication", b"by channel", b"")]
    assert party.of(DataReceived) == echoes
    assert {data[0] for _, data in party.sent[-2:]} == {0x40}
    party.close()
    assert error_of(party.told[-1]) is None
    party.assert_nothing_left()
    world.assert_nothing_left()


@pytest.mark.parametrize("seed", range(12))
def test_hours_in_a_storm(seed: int) -> None:
    """Over a network that loses a fifth of everything, the allocation, permissions and channels last for hours."""
    world = simulate(STORM, seed)
    party = ClientParty(world)
    assert isinstance(party.allocate(), Allocated)
    assert party.permit(OTHER_PEER) is None
    assert party.bind(PEER) is None
    for _ in range(6):
        party.wait(1800)
        allocation = world.core.allocation_of(party.path)
        assert allocation is not None
        assert allocation.permits(OTHER_PEER.ip, world.now)
        assert allocation.channel_to(PEER, world.now) is not None
    assert party.of(Ended) == []
    before = len(party.of(DataReceived))
    for number in range(60):
        party.send(PEER, b"%d" % number)
    party.wait(5)
    assert len(party.of(DataReceived)) - before > 10
    party.close()
    party.assert_nothing_left()


def test_renewals_are_sparing() -> None:
    """In just under an hour of talk: a Refresh and a channel every nine minutes, a permission every four."""
    world = simulate()
    party = ClientParty(world)
    party.allocate(5)
    party.bind(PEER, 5)
    party.sent.clear()
    for _ in range(85):
        party.send(PEER, b"to be echoed")
        party.wait(40)
    asked = {message.transaction_id: message.method for message in requests(party)}
    assert Counter(asked.values()) == {Method.REFRESH: 6, Method.CHANNEL_BIND: 6, Method.CREATE_PERMISSION: 12}
    party.close()
    world.assert_nothing_left()


def test_both_families() -> None:
    """Asked for both families, the client gets both addresses, and reaches peers of either."""
    world = simulate()
    party = ClientParty(world, families=(Family.IPV4, Family.IPV6))
    allocated = party.allocate()
    assert [address.family for address in allocated.relayed] == [Family.IPV4, Family.IPV6]
    assert party.permit(PEER6) is None
    only6 = ClientParty(world, families=(Family.IPV6,), port=40_001)
    assert [address.family for address in only6.allocate().relayed] == [Family.IPV6]
    error = only6.permit(PEER)
    assert isinstance(error, RemoteError)
    assert error.code == 443


# --- transactions ---------------------------------------------------------------------------------------------------


def test_retransmissions() -> None:
    """On datagrams a request is sent seven times at the times of RFC 8489 section 6.2.1, and given up after 39.5 s."""
    party = ClientParty(simulate())
    party.is_cut_off = True
    begin = party.now
    party.core.allocate(begin)
    party.run()
    party.wait(39.4)
    assert party.told == []
    assert [when - begin for when, _ in party.sent] == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert len({data for _, data in party.sent}) == 1
    party.wait(0.2)
    assert isinstance(error_of(party.told[0]), ServerUnavailable)
    party.assert_nothing_left()


def test_a_stream_needs_no_retransmission() -> None:
    """On a stream a request is sent once, and given up after Ti."""
    party = ClientParty(simulate(), AppConnection.TCP)
    party.is_cut_off = True
    party.core.allocate(party.now)
    party.run()
    party.wait(39.4)
    assert len(party.sent) == 1
    assert party.told == []
    party.wait(0.2)
    assert isinstance(error_of(party.told[0]), ServerUnavailable)


def forge(party: ClientParty, kind: Class, *attributes: Any, key: bytes | None = None) -> None:
    """Answer the last request in the server's place."""
    last = requests(party)[-1]
    party.receive(encode(last.method, kind, last.transaction_id, attributes, key=key))


def challenged(way: AppConnection = AppConnection.UDP) -> ClientParty:
    """A party that has sent its signed Allocate, which nobody answers."""
    party = ClientParty(simulate(), way)
    party.is_cut_off = True
    party.core.allocate(party.now)
    party.run()
    forge(party, Class.ERROR, (a.ERROR_CODE, a.ErrorCode(401, "")), (a.REALM, REALM), (a.NONCE, b"once"))
    assert requests(party)[-1].has_integrity
    return party


@pytest.mark.parametrize("key", [None, b"not the key"])
def test_a_forged_answer_is_as_if_it_never_came(key: bytes | None) -> None:
    """On datagrams, an answer without valid integrity changes nothing; it is told of if no genuine one follows."""
    party = challenged()
    forge(party, Class.SUCCESS, (a.XOR_RELAYED_ADDRESS, PEER), key=key)
    forge(party, Class.ERROR, (a.ERROR_CODE, a.ErrorCode(400, "")), key=key)
    assert party.told == []
    party.wait(40)
    assert "without valid integrity" in str(error_of(party.told[0]))
    assert "400" in str(error_of(party.told[0]))


def test_a_forged_answer_on_a_stream_ends_it() -> None:
    """On a stream no other answer can follow: integrity was violated, and that is said at once."""
    party = challenged(AppConnection.TCP)
    forge(party, Class.SUCCESS, (a.XOR_RELAYED_ADDRESS, PEER))
    assert isinstance(error_of(party.told[0]), ServerUnavailable)
    party.assert_nothing_left()


def test_answers_that_cannot_be_used() -> None:
    """A success without an address, and one with an attribute that must be understood and is not, are errors."""
    for attributes in ([(a.LIFETIME, 600)], [(a.XOR_RELAYED_ADDRESS, PEER), (a.Attribute(0x7777, "", *RAW), b"")]):
        party = challenged()
        signature = party.core._authentication.signature
        assert signature is not None
        forge(party, Class.SUCCESS, *attributes, key=signature.key)
        assert isinstance(error_of(party.told[0]), ServerUnavailable)
        party.assert_nothing_left()


RAW: Any = (lambda raw, _: raw, lambda raw, _: raw)


# --- credentials ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "sha256"),
    [((PasswordAlgorithm.SHA256, PasswordAlgorithm.MD5), True), ((PasswordAlgorithm.MD5,), True)],
)
def test_algorithms(offered: tuple[PasswordAlgorithm, ...], sha256: bool) -> None:
    """The first algorithm that the server offers makes the key, and whoever offers any is asked with SHA-256 only."""
    world = simulate(password_algorithms=offered)
    party = ClientParty(world)
    assert isinstance(party.allocate(), Allocated)
    signed = requests(party)[-1]
    assert signed.get(a.PASSWORD_ALGORITHM) == offered[0]
    assert signed.get(a.PASSWORD_ALGORITHMS) == offered
    assert signed.has_sha256 is sha256
    party.close()
    world.assert_nothing_left()


def test_an_older_server() -> None:
    """A server that names no algorithm is asked as RFC 5389 has it: MD5 key, SHA-1 integrity."""
    signed = requests(challenged())[-1]
    assert a.PASSWORD_ALGORITHM not in signed
    assert not signed.has_sha256
    assert signed.get(a.USERNAME) == "alice"


def test_userhash() -> None:
    """Where the nonce says that user names are to be hashed, the name itself is never sent."""
    world = simulate(supports_userhash=True)
    party = ClientParty(world)
    assert isinstance(party.allocate(), Allocated)
    assert all(b"alice" not in data for _, data in party.sent)
    party.close()
    world.assert_nothing_left()


def test_bid_down() -> None:
    """A challenge whose nonce tells of algorithms that somebody took out gets no second request."""
    party = ClientParty(simulate())
    party.is_cut_off = True
    party.core.allocate(party.now)
    party.run()
    nonce = b"obMatJos2gAAA" + b"0" * 20
    forge(party, Class.ERROR, (a.ERROR_CODE, a.ErrorCode(401, "")), (a.REALM, REALM), (a.NONCE, nonce))
    assert "bid-down" in str(error_of(party.told[0]))
    assert len(party.sent) == 1
    party.assert_nothing_left()


@pytest.mark.parametrize("weather", [FAIR, STORM])
def test_wrong_password(weather: Weather) -> None:
    """A wrong password is tried once, and no more."""
    world = simulate(weather)
    party = ClientParty(world, password="wrong")
    error = error_of(party.allocate())
    assert isinstance(error, RemoteError)
    assert error.code == 401
    assert len({message.transaction_id for message in requests(party)}) == 2
    assert b"wrong" not in b"".join(data for _, data in party.sent)
    party.assert_nothing_left()
    world.assert_nothing_left()


def test_stale_nonce() -> None:
    """A nonce that expired costs one more round trip, whatever it was used for, and nothing else."""
    world = simulate(nonce_lifetime=30)
    party = ClientParty(world)
    party.allocate()
    assert party.bind(PEER) is None
    assert party.permit(OTHER_PEER) is None
    party.wait(4000)
    assert party.of(Ended) == []
    party.close()
    world.assert_nothing_left()
    party.assert_nothing_left()


def test_a_nonce_that_is_always_stale() -> None:
    """A server that never accepts a nonce is given up."""
    party = challenged()
    for _ in range(MAX_CHALLENGES + 1):
        if party.told:
            break
        forge(party, Class.ERROR, (a.ERROR_CODE, a.ErrorCode(438, "")), (a.REALM, REALM), (a.NONCE, b"again"))
    error = error_of(party.told[0])
    assert isinstance(error, RemoteError)
    assert error.code == 438


def test_unusable_credentials() -> None:
    """What the OpaqueString profile disallows is an error before anything is sent."""
    with pytest.raises(DecodeError):
        TurnClientCore(ClientSettings(AppConnection.UDP, "alice", ""), os.urandom)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [403, 440, 486, 508])
def test_refused_allocations(code: int) -> None:
    """What the server refuses is told with its code."""
    world = simulate()
    world.refusal = server_out.RelayRefused(code)
    party = ClientParty(world)
    error = error_of(party.allocate())
    assert isinstance(error, RemoteError)
    assert error.code == code
    assert error.reason
    party.assert_nothing_left()


def test_allocation_mismatch() -> None:
    """A 5-tuple that is in use already is told as 437."""
    world = simulate()
    ClientParty(world).allocate()
    error = error_of(ClientParty(world).allocate())
    assert isinstance(error, RemoteError)
    assert error.code == 437


def test_another_server() -> None:
    """A 300 names another server, and the name for its certificate."""
    world = simulate()
    world.refusal = server_out.RelayRefused(300, SERVER4, "relay.example.org")
    party = ClientParty(world)
    assert party.allocate() == Redirected(SERVER4, "relay.example.org")
    party.assert_nothing_left()
    assert party.of(Ended) == []


def test_a_refused_peer() -> None:
    """A peer that the server refuses is told as 403, to whoever asked; data for it goes nowhere."""
    world = simulate()
    world.rules.refused.add(PEER.ip)
    party = ClientParty(world)
    party.allocate()
    for error in (party.permit(PEER), party.bind(PEER)):
        assert isinstance(error, RemoteError)
        assert error.code == 403
    party.send(PEER, b"lost")
    party.wait(60)
    assert world.peer.received == []
    assert len(party.of(PermissionLost)) == 2
    assert party.permit(OTHER_PEER) is None
    party.close()
    world.assert_nothing_left()


def test_a_peer_refused_later() -> None:
    """A permission and a channel that are not renewed are told of, and the allocation goes on."""
    world = simulate()
    party = ClientParty(world)
    party.allocate()
    party.bind(PEER)
    world.rules.refused.add(PEER.ip)
    party.wait(600)
    assert [lost.ip for lost in party.of(PermissionLost)] == [PEER.ip]
    assert [lost.peer for lost in party.of(ChannelLost)] == [PEER]
    assert party.of(Ended) == []
    party.close()
    party.assert_nothing_left()


def test_the_server_forgets() -> None:
    """An allocation that the server ended is told of within a minute of silence."""
    world = simulate()
    party = ClientParty(world)
    party.allocate()
    world.core.end_user("alice", server_out.EndReason.REVOKED, world.now)
    world.run()
    party.wait(SILENCE + 5)
    error = error_of(party.told[-1])
    assert isinstance(error, RemoteError)
    assert error.code == 437
    party.assert_nothing_left()


@pytest.mark.parametrize("verb", ["permit", "bind"])
def test_the_server_forgets_and_is_asked(verb: str) -> None:
    """Whoever asks for a peer of an allocation that the server ended is told at once, and that it ended."""
    world = simulate()
    party = ClientParty(world)
    party.allocate()
    world.core.end_user("alice", server_out.EndReason.REVOKED, world.now)
    world.run()
    for error in (getattr(party, verb)(PEER, 5), error_of(party.told[-1])):
        assert isinstance(error, RemoteError)
        assert error.code == 437
    party.assert_nothing_left()


@pytest.mark.parametrize("way", WAYS)
def test_silence(way: AppConnection) -> None:
    """A server that has long said nothing is asked. Without an answer, what is no plain UDP is given up within a minute
    and a half, while UDP outlives as much and is given up soon after two minutes.
    """
    party = ClientParty(simulate(), way)
    party.allocate(5)
    party.sent.clear()
    party.wait(10 * SILENCE)
    asked = {message.transaction_id for message in requests(party)}
    assert len(asked) in (9, 10)
    party.is_cut_off = True
    party.wait(SILENCE + 41)
    assert party.core.is_allocated is (way is AppConnection.UDP)
    party.is_cut_off = False
    party.wait(10)
    assert party.core.is_allocated is (way is AppConnection.UDP)
    if way is AppConnection.UDP:
        party.is_cut_off = True
        party.wait(OUTAGE - 10)
        assert party.core.is_allocated
        party.wait(20)
    error = error_of(party.told[-1])
    assert isinstance(error, ServerUnavailable)
    party.assert_nothing_left()


# --- data -----------------------------------------------------------------------------------------------------------


def test_data_waits_for_its_permission() -> None:
    """What is sent before there is a permission asks for one and waits for it, in order, up to a limit."""
    world = simulate()
    party = ClientParty(world)
    party.allocate()
    for number in range(MAX_WAITING + 1):
        party.send(PEER, b"%d" % number)
    assert len(requests(party, Method.CREATE_PERMISSION)) == 1
    party.wait(10)
    assert [data for _, data in world.peer.received] == [b"%d" % number for number in range(1, MAX_WAITING + 1)]


def test_too_long() -> None:
    """A datagram that no message can carry is an error at once; the longest that can be is carried both ways."""
    world = simulate()
    party = ClientParty(world)
    party.allocate()
    party.permit(PEER)
    with pytest.raises(ValueError, match="at most"):
        party.send(PEER, bytes(MAX_DATA + 1))
    party.send(PEER, bytes(MAX_DATA))
    party.wait(1)
    assert [len(data) for _, data in world.peer.received] == [MAX_DATA]
    assert [len(each.data) for each in party.of(DataReceived)] == [MAX_DATA]


def test_strangers_are_not_heard() -> None:
    """Data that claims to be from a peer without permission, or on a channel that is not bound, is dropped."""
    party = ClientParty(simulate())
    party.allocate()
    party.permit(PEER)
    pairs: list[Any] = [(a.XOR_PEER_ADDRESS, OTHER_PEER), (a.DATA, b"forged")]
    party.receive(encode(Method.DATA, Class.INDICATION, bytes(12), pairs))
    party.receive(b"\x40\x00\x00\x01x")
    assert party.of(DataReceived) == []


def test_icmp() -> None:
    """ICMP errors about what went to a peer arrive."""
    world = simulate()
    party = ClientParty(world)
    party.allocate()
    party.permit(PEER)
    (relay,) = world.open
    world.core.peer_error(relay, PEER, 3, 3, 0, world.now)
    world.run()
    party.wait(1)
    assert [(each.peer, each.icmp[:2]) for each in party.of(IcmpReceived)] == [(PEER, (3, 3))]


def test_keepalive() -> None:
    """A silent client says something every twenty seconds, so that no NAT forgets it; one that talks does not."""
    party = ClientParty(simulate())
    party.allocate()
    party.bind(PEER)
    party.sent.clear()
    party.wait(100)
    assert [decode(data).method for _, data in party.sent].count(Method.BINDING) == 5
    party.sent.clear()
    for _ in range(50):
        party.send(PEER, b"talk")
        party.wait(KEEPALIVE / 20)
    assert {data[0] for _, data in party.sent} == {0x40}


# --- ends -----------------------------------------------------------------------------------------------------------


def test_close_without_an_answer() -> None:
    """A server that is gone holds nobody up for longer than a few seconds."""
    party = ClientParty(simulate())
    party.allocate()
    party.is_cut_off = True
    party.core.close(party.now)
    party.run()
    party.wait(CLOSE_PATIENCE - 0.1)
    assert party.of(Ended) == []
    party.wait(0.2)
    assert party.told[-1] == Ended(None)
    party.assert_nothing_left()


def test_close_while_allocating() -> None:
    """A client that changes its mind leaves no allocation that it knows it asked for."""
    world = simulate()
    party = ClientParty(world)
    party.core.allocate(party.now)
    party.run()
    while not any(message.has_integrity for message in requests(party)):
        party.wait(0.05)
    party.close()
    assert party.told == [Ended(None)]
    party.assert_nothing_left()
    early = ClientParty(world, port=40_001)
    early.core.allocate(early.now)
    early.close()
    assert early.told == [Ended(None)]


@pytest.mark.parametrize("verb", ["permit", "bind"])
def test_the_connection_goes(verb: str) -> None:
    """Who waits for an answer when the connection goes is told, and so is who asks afterwards."""
    party = ClientParty(simulate(), AppConnection.TCP)
    party.allocate()
    party.is_cut_off = True
    first = getattr(party.core, verb)(PEER, party.now)
    lost = ServerUnavailable("gone")
    party.core.connection_lost(lost, party.now)
    party.run()
    assert party.told[-2:] == [Answered(first, lost), Ended(lost)]
    party.assert_nothing_left()
    second = getattr(party.core, verb)(PEER, party.now)
    party.run()
    assert party.told[-1].id == second
    assert isinstance(party.told[-1].error, ServerUnavailable)


@settings(max_examples=200)
@given(st.lists(st.one_of(st.binary(max_size=80), st.tuples(st.integers(0, 400), st.integers(0, 255))), max_size=12))
def test_whatever_comes(noise: list[Any]) -> None:
    """No bytes from the server, made up or a genuine answer with a byte changed, raise or end an allocation."""
    world = simulate()
    party = ClientParty(world)
    party.allocate(5)
    party.bind(PEER, 5)
    genuine = [data for _, data in world.network.trace]
    for each in noise:
        if isinstance(each, bytes):
            party.receive(each)
            continue
        at, value = each
        data = bytearray(genuine[at % len(genuine)])
        data[at % len(data)] = value
        party.receive(bytes(data))
    assert party.core.is_allocated
    party.close()
    party.assert_nothing_left()
