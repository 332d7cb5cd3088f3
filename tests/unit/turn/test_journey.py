"""The ordinary life of an allocation, from the first 401 to the last CloseRelay."""

from __future__ import annotations

from relayd.address import Family
from relayd.stun import attributes as a
from relayd.stun.integrity import PasswordAlgorithm
from relayd.stun.message import Class, Method, decode
from relayd.turn import outputs as out
from tests.unit.turn.parties import PEER, Client, Shell, code_of


def test_whole_life() -> None:
    """A client allocates, binds, sends and receives, and deletes; everything is told in order, and nothing is left."""
    shell = Shell()
    client = Client(shell)
    granted = client.allocate()
    assert code_of(granted) == 0
    assert granted.has_integrity
    assert granted.get(a.LIFETIME) == 600
    assert granted.get(a.XOR_MAPPED_ADDRESS) == client.path.client
    relayed = granted.get(a.XOR_RELAYED_ADDRESS)
    assert relayed is not None
    assert relayed.family is Family.IPV4
    assert code_of(client.permit(PEER)) == 0
    client.indicate(PEER, b"hello")
    assert shell.to_peers == [out.SendToPeer(client.relay, PEER, b"hello")]
    (delivered,) = shell.from_peer(client.relay, PEER, b"answer")
    data = decode(delivered.data)
    assert (data.method, data.cls) == (Method.DATA, Class.INDICATION)
    assert (data.get(a.XOR_PEER_ADDRESS), data.get(a.DATA)) == (PEER, b"answer")
    assert code_of(client.bind(0x4000, PEER)) == 0
    assert list(shell.flows) == [(client.relay, 0x4000)]
    client.send(b"\x40\x00\x00\x02hi")
    assert shell.to_peers[-1].data == b"hi"
    (delivered,) = shell.from_peer(client.relay, PEER, b"abc")
    assert isinstance(delivered, out.Deliver)
    assert (delivered.data, delivered.size, delivered.relay) == (b"\x40\x00\x00\x03abc", 3, client.relay)
    assert code_of(client.refresh()) == 0
    assert client.delete().get(a.LIFETIME) == 0
    assert [type(event) for event in shell.told if not isinstance(event, out.RequestRefused)] == [
        out.AllocationCreated,
        out.PermissionInstalled,
        out.ChannelBound,
        out.AllocationRefreshed,
        out.AllocationEnded,
    ]
    assert shell.events(out.AllocationEnded)[0].reason is out.EndReason.DELETED
    shell.assert_nothing_left()


def test_whole_life_with_sha256() -> None:
    """A client that picks SHA-256 is signed to with MESSAGE-INTEGRITY-SHA256, also on the allocation's own key."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    client.algorithm = PasswordAlgorithm.SHA256
    for answer in (client.allocate(), client.permit(PEER), client.refresh(), client.delete()):
        assert code_of(answer) == 0
        assert answer.has_sha256
        proof = answer.proof()
        assert proof is not None
        assert proof.matches(client.key)
    shell.assert_nothing_left()
