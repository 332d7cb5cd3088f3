"""Raw sockets hold the server to the RFCs where tools do not look: refusals, order, retransmission, framing.

The client here is written from the RFCs alone (tests.support.wire) and shares nothing with relayd's own codec.

coturn 4.6.1 fails some of these, and should: it acts on attributes after the integrity, answers 400 for 437 and 442 and
404 for 508, keeps a deleted allocation for a moment, refuses no private or own address unless told, and pads with old
bytes.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.support import wire
from tests.support.servers import ON_BOTH_DATA_PLANES, PASSWORD, REALM, USER, TurnServer
from tests.support.wire import StrangeClient

pytestmark = ON_BOTH_DATA_PLANES

QUIET = 0.3  # seconds in which nothing may come; on loopback an answer takes well under a millisecond

CHANGE_REQUEST = 0x0003
RESPONSE_ORIGIN = 0x802B
UNKNOWN_REQUIRED = 0x7F42  # comprehension-required, assigned to nothing
FORBIDDEN_PEER = ("10.1.2.3", 4000)  # RFC 1918: refused unless the operator allows it


@pytest.fixture(params=["udp", "tcp"])
def client(request: pytest.FixtureRequest, server: TurnServer) -> Iterator[StrangeClient]:
    """A client that has not said anything yet, over UDP and over TCP."""
    with StrangeClient(("127.0.0.1", server.plain), USER, PASSWORD, tcp=request.param == "tcp") as connected:
        yield connected


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """A peer's UDP socket on 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.settimeout(5.0)
        yield opened


def relayed(client: StrangeClient) -> wire.Address:
    """Make an allocation; its relayed address."""
    answer = client.allocate()
    assert answer.kind == wire.SUCCESS, answer
    return answer.address(wire.XOR_RELAYED_ADDRESS)


def hears_nothing(peer: socket.socket) -> bool:
    peer.settimeout(QUIET)
    try:
        peer.recv(65536)
    except TimeoutError:
        return True
    return False


# --- Binding ----------------------------------------------------------------------------------------------------------


def test_binding_tells_the_address(client: StrangeClient, still_serves: None) -> None:
    """A Binding request needs no credentials and is answered with the address that it came from."""
    answer = client.ask(wire.BINDING, [], fingerprint=True)
    assert answer.kind == wire.SUCCESS
    assert answer.address(wire.XOR_MAPPED_ADDRESS) == client.local


def test_unknown_required_attribute(client: StrangeClient, still_serves: None) -> None:
    """420 names the attribute that was not understood (RFC 8489 section 6.3.1)."""
    answer = client.ask(wire.BINDING, [(UNKNOWN_REQUIRED, b"what?")])
    assert answer.error == 420
    assert answer.value(wire.UNKNOWN_ATTRIBUTES)[:2] == struct.pack("!H", UNKNOWN_REQUIRED)


def test_unknown_optional_attribute(client: StrangeClient, still_serves: None) -> None:
    """An attribute that may be ignored is ignored."""
    assert client.ask(wire.BINDING, [(0xFF42, b"never mind")]).kind == wire.SUCCESS


def test_wrong_fingerprint(server: TurnServer, still_serves: None) -> None:
    """A message with a wrong FINGERPRINT is no STUN message: silence."""
    with StrangeClient(("127.0.0.1", server.plain), USER, PASSWORD) as client:
        message = bytearray(client.request(wire.BINDING, [], os.urandom(12), fingerprint=True))
        message[-1] ^= 1
        client.send(bytes(message))
        assert client.is_silent(QUIET)


def test_answer_from_the_other_port(server: TurnServer, still_serves: None) -> None:
    """CHANGE-REQUEST for the port alone is answered from the same address and the other port (RFC 5780 section 6.1)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.settimeout(5.0)
        change_port = [(CHANGE_REQUEST, struct.pack("!I", 2))]
        request = wire.encode(wire.BINDING, wire.REQUEST, change_port, transaction=os.urandom(12))
        client.sendto(request, ("127.0.0.1", server.plain))
        raw, source = client.recvfrom(2048)
    assert source == ("127.0.0.1", server.alternate)
    origin = wire.decode(raw).value(RESPONSE_ORIGIN)
    assert origin == struct.pack("!xBH4B", 1, server.alternate, 127, 0, 0, 1)


def test_messages_in_pieces(server: TurnServer, still_serves: None) -> None:
    """On a stream messages may come a byte at a time, and several at once."""
    with StrangeClient(("127.0.0.1", server.plain), USER, PASSWORD, tcp=True) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        first, second, third = (os.urandom(12) for _ in range(3))
        for byte in client.request(wire.BINDING, [], first):
            client.send(bytes([byte]))
        client.send(client.request(wire.BINDING, [], second) + client.request(wire.BINDING, [], third))
        for transaction in (first, second, third):
            assert client.answer_to(transaction).kind == wire.SUCCESS


# --- credentials ------------------------------------------------------------------------------------------------------


def test_challenge(client: StrangeClient, still_serves: None) -> None:
    """Allocate without credentials: 401 with REALM and NONCE, and no integrity (RFC 8489 section 9.2.4)."""
    challenge = client.ask(wire.ALLOCATE, [(wire.REQUESTED_TRANSPORT, wire.UDP)])
    assert challenge.error == 401
    assert challenge.value(wire.REALM) == REALM.encode()
    assert challenge.get(wire.NONCE)
    assert challenge.get(wire.MESSAGE_INTEGRITY) is None


def test_stale_nonce(client: StrangeClient, still_serves: None) -> None:
    """A nonce that the server did not make gets 438 with REALM and a fresh NONCE, which then serves."""
    client.learn(client.ask(wire.ALLOCATE, [(wire.REQUESTED_TRANSPORT, wire.UDP)]))
    client.nonce = b"0123456789abcdef0123456789abcdef"
    stale = client.ask(wire.ALLOCATE, [(wire.REQUESTED_TRANSPORT, wire.UDP)])
    assert stale.error == 438
    client.learn(stale)
    assert client.allocate().kind == wire.SUCCESS


def test_wrong_password_and_unknown_user_look_alike(server: TurnServer, still_serves: None) -> None:
    """Both get 401 with the same attributes: nobody learns which names exist."""
    answers = []
    for user, password in ((USER, "wrong"), ("nobody-of-that-name", PASSWORD)):
        with StrangeClient(("127.0.0.1", server.plain), user, password) as client:
            answers.append(client.allocate())
    assert [answer.error for answer in answers] == [401, 401]
    wrong, unknown = ([number for number, _ in answer.attributes] for answer in answers)
    assert wrong == unknown
    assert answers[0].value(wire.ERROR_CODE) == answers[1].value(wire.ERROR_CODE)


def test_answers_are_signed(client: StrangeClient, still_serves: None) -> None:
    """A success and an error to an authenticated request both carry MESSAGE-INTEGRITY made with the user's key."""
    granted = client.allocate()
    refused = client.bind_channel(0x3FFF, ("127.0.0.1", 9))
    assert client.key is not None
    assert granted.kind == wire.SUCCESS
    assert granted.integrity_holds(client.key)
    assert refused.error == 400
    assert refused.integrity_holds(client.key)


def test_attributes_after_integrity_are_ignored(client: StrangeClient, still_serves: None) -> None:
    """What comes after MESSAGE-INTEGRITY was signed by nobody: a LIFETIME of 0 there does not end the allocation."""
    relayed(client)
    transaction = os.urandom(12)
    signed = client.request(wire.REFRESH, [(wire.LIFETIME, struct.pack("!I", 600))], transaction)
    trailing = struct.pack("!HHI", wire.LIFETIME, 4, 0)
    client.send(signed[:2] + struct.pack("!H", len(signed) - 20 + len(trailing)) + signed[4:] + trailing)
    answer = client.answer_to(transaction)
    assert answer.kind == wire.SUCCESS
    assert struct.unpack("!I", answer.value(wire.LIFETIME))[0] >= 600


# --- Allocate and Refresh ---------------------------------------------------------------------------------------------


def test_allocate_success(client: StrangeClient, still_serves: None) -> None:
    """It carries relayed and mapped address and a lifetime of at least 600 s, also when the request named none."""
    answer = client.allocate()
    assert answer.kind == wire.SUCCESS
    assert answer.address(wire.XOR_RELAYED_ADDRESS)[0] == "127.0.0.1"
    assert answer.address(wire.XOR_MAPPED_ADDRESS) == client.local
    assert struct.unpack("!I", answer.value(wire.LIFETIME))[0] >= 600


def test_retransmitted_allocate(server: TurnServer, still_serves: None) -> None:
    """The same Allocate over UDP again gets the same relayed address; another one gets 437 (RFC 8656 section 7.2)."""
    with StrangeClient(("127.0.0.1", server.plain), USER, PASSWORD) as client:
        client.learn(client.ask(wire.ALLOCATE, [(wire.REQUESTED_TRANSPORT, wire.UDP)]))
        transaction = os.urandom(12)
        request = client.request(wire.ALLOCATE, [(wire.REQUESTED_TRANSPORT, wire.UDP)], transaction)
        given = []
        for _ in range(2):
            client.send(request)
            given.append(client.answer_to(transaction).address(wire.XOR_RELAYED_ADDRESS))
        assert given[0] == given[1]
        assert client.allocate().error == 437


def test_allocate_refusals(client: StrangeClient, still_serves: None) -> None:
    """No transport: 400; a foreign one: 442; an unknown family: 440; an unknown token: 508 (RFC 8656 section 7.2)."""
    client.learn(client.ask(wire.ALLOCATE, [(wire.REQUESTED_TRANSPORT, wire.UDP)]))
    sctp, udp = (wire.REQUESTED_TRANSPORT, struct.pack("!B3x", 132)), (wire.REQUESTED_TRANSPORT, wire.UDP)
    family, token = (wire.REQUESTED_ADDRESS_FAMILY, b"\x07\0\0\0"), (wire.RESERVATION_TOKEN, b"whatever")
    assert client.ask(wire.ALLOCATE, []).error == 400
    assert client.ask(wire.ALLOCATE, [sctp]).error == 442
    assert client.ask(wire.ALLOCATE, [udp, family]).error == 440
    assert client.ask(wire.ALLOCATE, [udp, token]).error == 508
    assert client.ask(wire.ALLOCATE, [udp, token, (wire.EVEN_PORT, b"\x80")]).error == 400
    assert client.allocate().kind == wire.SUCCESS


def test_reserved_port_pair(server: TurnServer, still_serves: None) -> None:
    """EVEN-PORT with the reservation bit gives an even port and a token, and the token the next port, once."""
    with (
        StrangeClient(("127.0.0.1", server.plain), USER, PASSWORD) as first,
        StrangeClient(("127.0.0.1", server.plain), USER, PASSWORD) as second,
        StrangeClient(("127.0.0.1", server.plain), USER, PASSWORD) as third,
    ):
        even = first.allocate((wire.EVEN_PORT, b"\x80"))
        token = even.value(wire.RESERVATION_TOKEN)
        port = even.address(wire.XOR_RELAYED_ADDRESS)[1]
        assert len(token) == 8
        assert port % 2 == 0
        assert second.allocate((wire.RESERVATION_TOKEN, token)).address(wire.XOR_RELAYED_ADDRESS)[1] == port + 1
        assert third.allocate((wire.RESERVATION_TOKEN, token)).error == 508


def test_refresh_to_zero(client: StrangeClient, still_serves: None) -> None:
    """Refresh(0) ends the allocation: after it permissions get 437."""
    relayed(client)
    assert client.refresh(0).kind == wire.SUCCESS
    assert client.permit(("127.0.0.1", 9)).error == 437


def test_requests_without_allocation(client: StrangeClient, still_serves: None) -> None:
    """CreatePermission and ChannelBind where there is no allocation get 437."""
    client.learn(client.ask(wire.ALLOCATE, [(wire.REQUESTED_TRANSPORT, wire.UDP)]))
    assert client.permit(("127.0.0.1", 9)).error == 437
    assert client.bind_channel(0x4000, ("127.0.0.1", 9)).error == 437


# --- permissions and channels -----------------------------------------------------------------------------------------


def test_nothing_without_permission(client: StrangeClient, peer: socket.socket, still_serves: None) -> None:
    """Without a permission nothing goes to the peer and nothing comes from it."""
    address = relayed(client)
    client.send_indication(peer.getsockname(), b"out")
    peer.sendto(b"in", address)
    assert client.is_silent(QUIET)
    assert hears_nothing(peer)


def test_permission_is_for_an_address(client: StrangeClient, peer: socket.socket, still_serves: None) -> None:
    """A permission for another port of the peer's address lets data through both ways, as indications."""
    address = relayed(client)
    assert client.permit(("127.0.0.1", 1)).kind == wire.SUCCESS
    client.send_indication(peer.getsockname(), b"out")
    assert peer.recvfrom(2048) == (b"out", address)
    peer.sendto(b"in", address)
    came = wire.decode(client.receive())
    assert (came.method, came.kind) == (wire.DATA, wire.INDICATION)
    assert came.value(wire.DATA_ATTRIBUTE) == b"in"
    assert came.address(wire.XOR_PEER_ADDRESS) == peer.getsockname()


def test_one_refused_peer_refuses_all(client: StrangeClient, peer: socket.socket, still_serves: None) -> None:
    """CreatePermission for a good and a forbidden peer gets 403, and the good one gets no permission either."""
    address = relayed(client)
    assert client.permit(peer.getsockname(), FORBIDDEN_PEER).error == 403
    assert client.bind_channel(0x4000, FORBIDDEN_PEER).error == 403
    peer.sendto(b"in", address)
    assert client.is_silent(QUIET)


def test_peer_of_the_other_family(client: StrangeClient, still_serves: None) -> None:
    """A peer whose family the allocation does not have gets 443."""
    relayed(client)
    assert client.permit(("::1", 9)).error == 443
    assert client.bind_channel(0x4000, ("::1", 9)).error == 443


def test_the_server_itself_is_no_peer(client: StrangeClient, server: TurnServer, still_serves: None) -> None:
    """The relay's own listening port is refused as a peer, although the operator allowed loopback."""
    relayed(client)
    assert client.bind_channel(0x4000, ("127.0.0.1", server.plain)).error == 403


def test_channel_numbers_and_peers(client: StrangeClient, still_serves: None) -> None:
    """One number for one peer; the same pair again renews it; out of range is 400 (RFC 8656 section 12.2)."""
    relayed(client)
    one, other = ("127.0.0.1", 1001), ("127.0.0.1", 1002)
    assert client.bind_channel(0x4000, one).kind == wire.SUCCESS
    assert client.bind_channel(0x4000, one).kind == wire.SUCCESS
    assert client.bind_channel(0x4000, other).error == 400
    assert client.bind_channel(0x4001, one).error == 400
    assert client.bind_channel(0x8000, other).error == 400
    assert client.bind_channel(0x7FFF, other).kind == wire.SUCCESS


def test_channel_number_of_an_older_client(client: StrangeClient, peer: socket.socket, still_serves: None) -> None:
    """RFC 5766 gave clients the numbers up to 0x7FFE, and coturn's client picks from them all: they serve both ways."""
    address = relayed(client)
    assert client.bind_channel(0x7FFE, peer.getsockname()).kind == wire.SUCCESS
    client.send(wire.channel_data(0x7FFE, b"four", padded=client.tcp))
    assert peer.recvfrom(2048) == (b"four", address)
    peer.sendto(b"back", address)
    assert client.receive() == wire.channel_data(0x7FFE, b"back")


@pytest.mark.parametrize("size", [0, 1, 3, 4, 1200])
def test_channel_data_both_ways(client: StrangeClient, peer: socket.socket, size: int, still_serves: None) -> None:
    """ChannelData of any size arrives as it was; to the client it comes on the channel, padded only on a stream."""
    address = relayed(client)
    assert client.bind_channel(0x4000, peer.getsockname()).kind == wire.SUCCESS
    payload = os.urandom(size)
    client.send(wire.channel_data(0x4000, payload, padded=client.tcp))
    assert peer.recvfrom(2048) == (payload, address)
    peer.sendto(payload, address)
    came = client.receive()
    assert came[: 4 + size] == wire.channel_data(0x4000, payload)
    assert len(came) == 4 + size + (-size % 4 if client.tcp else 0)
    assert not any(came[4 + size :])


def test_channel_data_behind_the_request(client: StrangeClient, peer: socket.socket, still_serves: None) -> None:
    """ChannelData that does not wait for the ChannelBind response is relayed: requests are taken in order."""
    address = relayed(client)
    transaction = os.urandom(12)
    client.send(client.channel_bind_request(0x4000, peer.getsockname(), transaction))
    client.send(wire.channel_data(0x4000, b"early", padded=client.tcp))
    assert peer.recvfrom(2048) == (b"early", address)
    assert client.answer_to(transaction).kind == wire.SUCCESS


def test_padded_channel_data_over_udp(server: TurnServer, peer: socket.socket, still_serves: None) -> None:
    """Padding over UDP is not passed on: the length field counts, not the datagram."""
    with StrangeClient(("127.0.0.1", server.plain), USER, PASSWORD) as client:
        relayed(client)
        assert client.bind_channel(0x4000, peer.getsockname()).kind == wire.SUCCESS
        client.send(wire.channel_data(0x4000, b"12345", padded=True))
        assert peer.recv(2048) == b"12345"


def test_lying_channel_data_over_udp(server: TurnServer, peer: socket.socket, still_serves: None) -> None:
    """ChannelData that claims more than its datagram holds is dropped."""
    with StrangeClient(("127.0.0.1", server.plain), USER, PASSWORD) as client:
        relayed(client)
        assert client.bind_channel(0x4000, peer.getsockname()).kind == wire.SUCCESS
        client.send(struct.pack("!HH", 0x4000, 100) + b"short")
        assert hears_nothing(peer)


def test_unbound_channel(client: StrangeClient, peer: socket.socket, still_serves: None) -> None:
    """ChannelData on a number that is not bound goes nowhere and is not answered."""
    relayed(client)
    assert client.permit(peer.getsockname()).kind == wire.SUCCESS
    client.send(wire.channel_data(0x4000, b"lost", padded=client.tcp))
    assert client.is_silent(QUIET)
    assert hears_nothing(peer)


def test_another_client_cannot_use_it(server: TurnServer, peer: socket.socket, still_serves: None) -> None:
    """A channel belongs to one path: ChannelData from another port is not relayed."""
    with (
        StrangeClient(("127.0.0.1", server.plain), USER, PASSWORD) as owner,
        StrangeClient(("127.0.0.1", server.plain), USER, PASSWORD) as thief,
    ):
        relayed(owner)
        assert owner.bind_channel(0x4000, peer.getsockname()).kind == wire.SUCCESS
        thief.send(wire.channel_data(0x4000, b"mine now"))
        assert hears_nothing(peer)


def test_end_of_connection_ends_the_allocation(server: TurnServer, peer: socket.socket, still_serves: None) -> None:
    """When a TCP client's connection is gone its relayed address is given back."""
    with StrangeClient(("127.0.0.1", server.plain), USER, PASSWORD, tcp=True) as client:
        address = relayed(client)
    peer.connect(address)
    refused = server.process.wait_until(lambda: _is_refused(peer), patience=5.0)
    assert refused, f"{address} is still open"


def _is_refused(peer: socket.socket) -> bool:
    """Whether the system says that nobody listens where `peer` is connected to."""
    peer.settimeout(QUIET)
    try:
        peer.send(b"anybody there?")
        peer.recv(1)
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    return False
