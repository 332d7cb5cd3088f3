"""Permissions, channels, indications and ChannelData (RFC 8656 sections 9 to 12), and peers that are refused on every
path.
"""

from __future__ import annotations

from typing import Any

import pytest

from relayd.address import AppConnection, TransportAddress
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute, Icmp
from relayd.stun.message import Class, Method, decode, encode
from relayd.turn import outputs as out
from relayd.turn.allocation import MAX_CHANNELS, MAX_PERMISSIONS
from tests.unit.turn.parties import OTHER_PEER, PEER, PEER6, Client, Shell, code_of


def ready(app_connection: AppConnection = AppConnection.UDP) -> tuple[Shell, Client]:
    shell = Shell()
    client = Client(shell, app_connection=app_connection)
    client.allocate([(a.LIFETIME, 3600)])
    return shell, client


# --- permissions --------------------------------------------------------------------------------------------------


def test_nothing_without_permission() -> None:
    """Without a permission nothing passes, either way."""
    shell, client = ready()
    client.indicate(PEER, b"out")
    assert shell.from_peer(client.relay, PEER, b"in") == []
    assert shell.to_peers == []


def test_permission_is_by_address() -> None:
    """A permission holds for every port of its address, and for no other address."""
    shell, client = ready()
    client.permit(PEER)
    client.indicate(PEER.with_port(9), b"out")
    assert len(shell.to_peers) == 1
    assert len(shell.from_peer(client.relay, PEER.with_port(10), b"in")) == 1
    assert shell.from_peer(client.relay, OTHER_PEER, b"in") == []


def test_permission_lasts_300_seconds() -> None:
    """300 s from the last CreatePermission, and not a second more."""
    shell, client = ready()
    client.permit(PEER)
    shell.advance(200)
    client.permit(PEER)
    shell.advance(299)
    assert len(shell.from_peer(client.relay, PEER, b"in")) == 1
    shell.advance(1)
    assert shell.from_peer(client.relay, PEER, b"in") == []
    client.indicate(PEER, b"out")
    assert shell.to_peers == []
    assert len(shell.events(out.PermissionInstalled)) == 1
    client.permit(PEER)
    assert len(shell.events(out.PermissionInstalled)) == 2


def test_several_peers_at_once() -> None:
    """One CreatePermission may name several peers; one that is named twice is one permission."""
    shell, client = ready()
    assert code_of(client.permit(PEER, OTHER_PEER, PEER.with_port(1))) == 0
    assert len(shell.events(out.PermissionInstalled)) == 2
    assert len(shell.from_peer(client.relay, OTHER_PEER, b"in")) == 1


@pytest.mark.parametrize(("bad", "code"), [(OTHER_PEER, 403), (PEER6, 443)])
def test_all_or_nothing(bad: TransportAddress, code: int) -> None:
    """One refused peer among several, wherever it stands, and none of them gets a permission."""
    shell, client = ready()
    shell.rules.refused.add(OTHER_PEER.ip)
    for peers in ((PEER, bad), (bad, PEER)):
        assert code_of(client.permit(*peers)) == code
        assert shell.from_peer(client.relay, PEER, b"in") == []
    assert shell.events(out.PermissionInstalled) == []


def test_permission_without_peer() -> None:
    """CreatePermission without XOR-PEER-ADDRESS, or with a malformed one behind a good one, is a 400."""
    _, client = ready()
    assert code_of(client.permit()) == 400
    broken: Attribute[bytes] = Attribute(0x0012, "XOR-PEER-ADDRESS", lambda raw, _: raw, lambda raw, _: raw)
    answer = client.ask(Method.CREATE_PERMISSION, [(a.XOR_PEER_ADDRESS, PEER), (broken, b"\0\x09\0\0")])
    assert code_of(answer) == 400


def test_permissions_are_bounded() -> None:
    """A session cannot hold more than so many: 508, nothing half done; those that expired make room."""
    shell, client = ready()
    peers = [TransportAddress(bytes((8, 8, at >> 8, at & 255)), 1) for at in range(MAX_PERMISSIONS + 2)]
    assert code_of(client.permit(*peers[:MAX_PERMISSIONS])) == 0
    assert code_of(client.permit(*peers[-2:])) == 508
    assert code_of(client.permit(*peers[:3])) == 0
    shell.advance(300)
    assert code_of(client.permit(*peers[-2:])) == 0
    allocation = shell.core.allocation_of(client.path)
    assert allocation is not None
    assert len(allocation.permissions) == 2


def test_more_peers_than_may_be_permitted() -> None:
    """A message that names more peers than an allocation may have costs no question about any of them."""
    shell, client = ready()
    asked = len(shell.rules.asked)
    assert code_of(client.permit(*[PEER] * (MAX_PERMISSIONS + 1))) == 508
    assert len(shell.rules.asked) == asked
    assert shell.from_peer(client.relay, PEER, b"in") == []


# --- channels -----------------------------------------------------------------------------------------------------


def test_channel_holds_its_permission_up() -> None:
    """A bound channel keeps data flowing for its own 600 s; CreatePermission in between does not shorten that."""
    shell, client = ready()
    client.bind(0x4000, PEER)
    shell.advance(100)
    client.permit(PEER)
    shell.advance(499)
    assert shell.from_peer(client.relay, PEER, b"in")[0].data.startswith(b"\x40\x00")
    assert list(shell.flows)
    shell.advance(1)
    assert shell.from_peer(client.relay, PEER, b"in") == []
    assert shell.flows == {}
    assert client.send(b"\x40\x00\x00\x00") == []
    assert shell.to_peers == []


def test_channel_refreshed_every_500_seconds() -> None:
    """A client that does nothing but refresh its channel every 500 s is never without it; one flow is installed."""
    shell, client = ready()
    for _ in range(5):
        assert code_of(client.bind(0x4000, PEER)) == 0
        assert code_of(client.refresh((a.LIFETIME, 3600))) == 0
        shell.advance(500)
        assert len(shell.from_peer(client.relay, PEER, b"in")) == 1
    assert len(shell.events(out.ChannelBound)) == 1
    assert len(shell.flows) == 1


@pytest.mark.parametrize("number", [0x4000, 0x4FFF, 0x5000, 0x7FFF])
def test_channel_numbers(number: int) -> None:
    """Every number of RFC 8656 and RFC 5766 can be bound, and its ChannelData passes."""
    shell, client = ready()
    assert code_of(client.bind(number, PEER)) == 0
    client.send(number.to_bytes(2, "big") + b"\x00\x01x")
    assert [sent.data for sent in shell.to_peers] == [b"x"]


@pytest.mark.parametrize("number", [0, 0x3FFF, 0x8000, 0xFFFF])
def test_channel_number_out_of_range(number: int) -> None:
    """Numbers outside 0x4000 to 0x7FFF are a 400."""
    _, client = ready()
    assert code_of(client.bind(number, PEER)) == 400


def test_channel_bind_incomplete() -> None:
    """ChannelBind needs a number and a peer with a port."""
    _, client = ready()
    assert code_of(client.ask(Method.CHANNEL_BIND, [(a.XOR_PEER_ADDRESS, PEER)])) == 400
    assert code_of(client.ask(Method.CHANNEL_BIND, [(a.CHANNEL_NUMBER, 0x4000)])) == 400
    assert code_of(client.bind(0x4000, PEER.with_port(0))) == 400


def test_rebinding() -> None:
    """Neither another peer for a number nor another number for a peer, until the channel expired; the same again is
    fine.
    """
    shell, client = ready()
    assert code_of(client.bind(0x4000, PEER)) == 0
    assert code_of(client.bind(0x4000, PEER)) == 0
    assert code_of(client.bind(0x4000, OTHER_PEER)) == 400
    assert code_of(client.bind(0x4001, PEER)) == 400
    assert code_of(client.bind(0x4001, PEER.with_port(1))) == 0
    assert code_of(client.bind(0x4000, PEER.with_port(1))) == 400
    shell.advance(600)
    assert code_of(client.bind(0x4000, OTHER_PEER)) == 0
    assert code_of(client.bind(0x4001, PEER)) == 0


def test_channels_are_bounded() -> None:
    """So many channels for one session, then 508; those there are can still be refreshed."""
    shell, client = ready()
    for at in range(MAX_CHANNELS):
        assert code_of(client.bind(0x4000 + at, PEER.with_port(1000 + at))) == 0
    assert code_of(client.bind(0x4FFF, PEER)) == 508
    assert code_of(client.bind(0x4000, PEER.with_port(1000))) == 0
    client.delete()
    shell.assert_nothing_left()


def test_channel_data_before_the_answer() -> None:
    """ChannelData right behind its ChannelBind passes even if the shell has performed nothing yet: no slow step
    between.
    """
    shell, client = ready()
    shell.answers_at_once = False
    bind = client.encode(Method.CHANNEL_BIND, [(a.CHANNEL_NUMBER, 0x4000), (a.XOR_PEER_ADDRESS, PEER)])
    shell.core.receive(client.path, bind, shell.now)
    shell.core.receive(client.path, b"\x40\x00\x00\x01x", shell.now)
    shell.run()
    assert [sent.data for sent in shell.to_peers] == [b"x"]
    assert shell.waiting == []


@pytest.mark.parametrize(
    ("data", "relayed"),
    [
        (b"\x40\x00\x00\x00", [b""]),
        (b"\x40\x00\x00\x03abc\0", [b"abc"]),
        (b"\x40\x00\x00\x04abc", []),
        (b"\x40\x00\x00", []),
        (b"\x40\x01\x00\x01x", []),
        (b"\x7f\xff\x00\x01x", []),
    ],
)
def test_channel_data(data: bytes, relayed: list[bytes]) -> None:
    """The length field counts: padding is tolerated, lies are dropped, and nothing ever comes back."""
    shell, client = ready()
    client.bind(0x4000, PEER)
    assert client.send(data) == []
    assert [sent.data for sent in shell.to_peers] == relayed


def test_channel_data_is_padded_on_streams() -> None:
    """On a stream ChannelData to the client is padded to four bytes; the count of payload bytes is not."""
    shell, client = ready(AppConnection.TCP)
    client.bind(0x4000, PEER)
    (delivered,) = shell.from_peer(client.relay, PEER, b"abcde")
    assert delivered == out.Deliver(client.path, client.relay, b"\x40\x00\x00\x05abcde\0\0\0", 5)


# --- indications --------------------------------------------------------------------------------------------------


def test_empty_data() -> None:
    """Empty datagrams are datagrams, both ways."""
    shell, client = ready()
    client.permit(PEER)
    client.indicate(PEER, b"")
    assert shell.to_peers == [out.SendToPeer(client.relay, PEER, b"")]
    (delivered,) = shell.from_peer(client.relay, PEER, b"")
    assert decode(delivered.data).get(a.DATA) == b""


def test_dont_fragment_indication() -> None:
    """DONT-FRAGMENT in a Send indication goes along."""
    shell, client = ready()
    client.permit(PEER)
    client.indicate(PEER, b"x", (a.DONT_FRAGMENT, True))
    assert shell.to_peers == [out.SendToPeer(client.relay, PEER, b"x", dont_fragment=True)]


@pytest.mark.parametrize(
    "attributes",
    [
        [(a.XOR_PEER_ADDRESS, PEER)],
        [(a.DATA, b"x")],
        [(a.XOR_PEER_ADDRESS, PEER6), (a.DATA, b"x")],
        [(a.XOR_PEER_ADDRESS, PEER.with_port(0)), (a.DATA, b"x")],
        [(a.XOR_PEER_ADDRESS, PEER), (a.DATA, b"x"), (Attribute(0x7777, "", lambda v, _: v, lambda v, _: v), b"")],
        [(Attribute(0x0012, "", lambda v, _: v, lambda v, _: v), b"\0\1"), (a.DATA, b"x")],
    ],
)
def test_bad_indications_are_dropped(attributes: list[tuple[Attribute[Any], Any]]) -> None:
    """Indications that lack something, or carry what must be understood and is not, vanish without an answer."""
    shell, client = ready()
    client.permit(PEER)
    assert client.send(encode(Method.SEND, Class.INDICATION, bytes(12), attributes)) == []
    assert shell.to_peers == []


def test_other_messages_are_ignored() -> None:
    """Binding indications keep NATs open, responses are not for servers, unknown methods have no answer."""
    shell, client = ready()
    for method, cls in [
        (1, Class.INDICATION),
        (7, Class.INDICATION),
        (1, Class.SUCCESS),
        (3, Class.ERROR),
        (0xABC, Class.REQUEST),
    ]:
        assert client.send(encode(method, cls, bytes(12))) == []
    assert shell.to_peers == []


def test_oversized_datagram_from_a_peer() -> None:
    """What no Data indication can carry is dropped; it does not raise."""
    shell, client = ready()
    client.permit(PEER)
    assert shell.from_peer(client.relay, PEER, bytes(65_535)) == []
    assert len(shell.from_peer(client.relay, PEER, bytes(65_000))) == 1


# --- refused peers ------------------------------------------------------------------------------------------------


def test_refused_peer_on_every_path() -> None:
    """403 from CreatePermission and ChannelBind, with the peer told to observers, and a Send indication is dropped."""
    shell, client = ready()
    client.permit(PEER)
    shell.rules.refused.add(PEER.ip)
    assert code_of(client.permit(PEER)) == 403
    assert shell.told[-1].peer == PEER
    assert code_of(client.bind(0x4000, PEER)) == 403
    client.indicate(PEER, b"x")
    assert shell.to_peers == []
    assert shell.flows == {}


def test_refused_port_of_a_permitted_address() -> None:
    """A permission has no port, so an endpoint that is refused by its port is caught on Send and ChannelBind."""
    shell, client = ready()
    endpoint = PEER.with_port(3478)
    shell.rules.refused.add(endpoint)
    client.permit(PEER)
    client.indicate(endpoint, b"x")
    assert shell.to_peers == []
    assert code_of(client.bind(0x4000, endpoint)) == 403


def test_rules_that_change() -> None:
    """A change of the rules takes back permissions, channels and flows that are now refused, and leaves the others."""
    shell, client = ready()
    client.permit(PEER, OTHER_PEER)
    client.bind(0x4000, PEER)
    client.bind(0x4001, OTHER_PEER)
    shell.rules.refused.add(PEER.ip)
    shell.core.peer_rules_changed(shell.now)
    shell.run()
    assert [number for _, number in shell.flows] == [0x4001]
    client.send(b"\x40\x00\x00\x01x")
    assert shell.to_peers == []
    assert shell.from_peer(client.relay, PEER, b"in") == []
    assert len(shell.from_peer(client.relay, OTHER_PEER, b"in")) == 1
    shell.rules.refused.clear()
    assert code_of(client.bind(0x4002, PEER)) == 0


@pytest.mark.parametrize("bind", [False, True])
def test_family_mismatch(bind: bool) -> None:
    """A peer of a family that the allocation has no address of is a 443."""
    _, client = ready()
    answer = client.bind(0x4000, PEER6) if bind else client.permit(PEER6)
    assert code_of(answer) == 443


# --- ICMP ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "icmp", "told"),
    [
        (PEER, Icmp(3, 3, 7), Icmp(3, 3, 0)),
        (PEER, Icmp(3, 4, 1400), Icmp(3, 4, 1400)),
        (PEER, Icmp(11, 0, 0), Icmp(11, 0, 0)),
        (PEER, Icmp(5, 0, 0), None),
        (PEER, Icmp(12, 0, 0), None),
        (OTHER_PEER, Icmp(3, 3, 0), None),
        (PEER6, Icmp(1, 4, 9), Icmp(1, 4, 0)),
        (PEER6, Icmp(2, 0, 1280), Icmp(2, 0, 1280)),
        (PEER6, Icmp(3, 0, 0), Icmp(3, 0, 0)),
        (PEER6, Icmp(11, 0, 0), None),
        (PEER6, Icmp(128, 0, 0), None),
    ],
)
def test_icmp(peer: TransportAddress, icmp: Icmp, told: Icmp | None) -> None:
    """Errors of the types in RFC 8656 section 11.5 reach the client if it may hear of that peer; data is the MTU or
    0.
    """
    shell = Shell()
    client = Client(shell)
    client.allocate([(a.ADDITIONAL_ADDRESS_FAMILY, 2)])
    client.permit(PEER, PEER6)
    before = len(shell.sent)
    shell.core.peer_error(client.relay, peer, *icmp, shell.now)
    shell.run()
    messages = [decode(sent.data) for sent in shell.sent[before:]]
    assert [(each.get(a.XOR_PEER_ADDRESS), each.get(a.ICMP)) for each in messages] == ([(peer, told)] if told else [])
    assert all(each.method == Method.DATA and a.DATA not in each for each in messages)
