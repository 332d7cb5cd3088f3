"""Message protocols through the relay, which knows nothing of them, in the topologies of draft-chenxin section 3: floor
control (BFCP, RFC 8855) over TCP, TLS and UDP, and MSRP (RFC 4975) over TCP and TLS.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import DeferredQueue
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.ssl import Certificate as TrustRoot
from twisted.internet.ssl import optionsForClientTLS

from relayd.address import AppConnection, TransportAddress
from relayd.stun import attributes as a
from relayd.stun.message import Message, Method, decode
from tests.behaviour.house.suite import certificate
from tests.behaviour.house.topologies import TO_ALICE, TO_BOB, TopologyCase
from tests.support import bfcp, msrp
from tests.support.bfcp import RELIABLE, UNRELIABLE, AttributeType, ErrorCode, Primitive, RequestStatus
from tests.support.floor_control import FloorControlServer, FloorParticipant, Standing, standing
from tests.support.house import USERS, House
from tests.support.msrp import Content, Session
from tests.support.tcp_peer import Conversation, TcpPeer
from tests.support.turn_client import TurnClient, code_of, eventually
from tests.support.wires import connect, patiently

if sys.platform != "linux":
    pytest.skip("only Linux can make a socket deaf", allow_module_level=True)

NAME = "localhost"  # what the certificate of the tests is for
CONFERENCE, ALICE, CAROL, FLOOR = 4321, 1, 2, 543
ATTEMPT = bytes.fromhex("001c")  # the type of a ConnectionAttempt indication (RFC 6062 section 6.1)


@dataclass(frozen=True)
class End:
    """One end of a connection, or of an exchange of datagrams: who reads it, and how to write."""

    read_by: Callable[[Callable[[bytes], None]], None]
    write: Callable[[bytes], None]
    close: Callable[[], Any]
    how_it_ended: Callable[[], str]


def end_of(connection: Any) -> End:
    """That of a peer's connection, or of a client's data connection."""
    write = connection.say if isinstance(connection, Conversation) else connection.write
    return End(connection.read_by, write, connection.close, lambda: str(connection.end))


class TcpParty:
    """A client with a TCP allocation, and the ids of the connections that were announced to it."""

    def __init__(self, case: GenericRelayCase, house: House, client: TurnClient) -> None:
        self._case = case
        self._house = house
        self.client = client
        self.announced: DeferredQueue[int] = DeferredQueue()
        self._received = client.wire.received
        client.wire.received = self._sort
        self.relayed: TransportAddress

    async def allocate(self, *attributes: Any) -> None:
        await self.client.greet()
        answer = await self.client.ask(Method.ALLOCATE, [(a.REQUESTED_TRANSPORT, 6), *attributes])
        assert code_of(answer) == 0, code_of(answer)
        assert answer.get(a.PEER_TLS) == dict(attributes).get(a.PEER_TLS)
        relayed = answer.get(a.XOR_RELAYED_ADDRESS)
        assert relayed is not None
        self.relayed = relayed

    async def connect(self, peer: TransportAddress, *attributes: Any) -> int:
        """A Connect that succeeds; the CONNECTION-ID."""
        answer = await self.client.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, peer), *attributes])
        assert code_of(answer) == 0, code_of(answer)
        return answer.get(a.CONNECTION_ID) or 0

    async def data(self, number: int) -> End:
        """A further connection of the same kind, on which that id is bound."""
        client = await self._case.come(self._house, self.client.username)
        await client.greet()
        assert code_of(await client.ask(Method.CONNECTION_BIND, [(a.CONNECTION_ID, number)])) == 0
        return end_of(client.wire)

    async def accepted(self) -> End:
        """The next connection of a peer."""
        return await self.data(await patiently(self.announced.get()))

    def _sort(self, data: bytes) -> None:
        if data.startswith(ATTEMPT):
            message: Message = decode(data)
            self.announced.put(message.get(a.CONNECTION_ID) or 0)
        else:
            self._received(data)


class GenericRelayCase(TopologyCase):
    """`kind` is the way in of all clients; with `tls` what leaves a relay, or comes to it, is TLS.

    Subclasses have `streams`, which makes a new connection through the relay, and gives Alice's end of it and that of
    whoever she talks with; and, for `DatagramSuite`, `datagrams`, which does the same for datagrams.
    """

    kind = AppConnection.WS
    tls = False
    settings = {
        "peer_ca": certificate().certificate,
        "peer_certificate": certificate().certificate,
        "peer_key": certificate().key,
    }

    def sessions(self, near: End, far: End) -> tuple[Session, Session]:
        """Two ends of a session that talk over those of a connection."""
        scheme = "msrps" if self.tls else "msrp"
        alice, bob = f"{scheme}://alice.example:2855/s1;tcp", f"{scheme}://bob.example:2855/s2;tcp"
        made = Session(alice, bob, near.write), Session(bob, alice, far.write)
        for end, session in zip((near, far), made, strict=True):
            end.read_by(session.received)
        return made

    async def come(self, house: House, name: str) -> TurnClient:
        wire = await connect(self.kind, house.address(self.kind, self.host), certificate())
        client = TurnClient(wire, self.kind, name, USERS[name])
        self.addCleanup(client.close)
        return client

    async def tcp_party(self, name: str, house: House, *attributes: Any) -> TcpParty:
        party = TcpParty(self, house, await self.come(house, name))
        await party.allocate(*self.family_attributes, *attributes)
        return party

    @property
    def outgoing(self) -> list[Any]:
        """What asks a Connect for TLS."""
        return [(a.PEER_TLS, NAME)] if self.tls else []

    @property
    def incoming(self) -> list[Any]:
        """What asks an Allocate for TLS."""
        return [(a.PEER_TLS, "")] if self.tls else []


class StreamSuite:
    """The promises to what needs a connection. Mixed into `GenericRelayCase`."""

    async def test_floor_control(self: Any) -> None:
        """Two participants share a floor, and hear of it when the server says so and they did not ask."""
        await floor_control(self.streams, RELIABLE)

    async def test_messages(self: Any) -> None:
        """What a chat sends arrives both ways, and each chunk of it is answered."""
        alice, bob = self.sessions(*await self.streams())
        for number, body in enumerate((b"Hi Bob", "こんにちは".encode(), b"", b"\r\n-------end$\r\n")):
            for sender, receiver in ((alice, bob), (bob, alice)):
                content = Content(f"message{number}", "text/plain", body)
                (chunk,) = sender.chunks_of(content)
                assert await patiently(sender.transmit(chunk)) == 200
                assert await patiently(receiver.contents.get()) == content

    async def test_chunks(self: Any) -> None:
        """A file of many chunks both ways at once, with a short message in the middle, arrives and is reported."""
        alice, bob = self.sessions(*await self.streams())
        file, note = Content("file1", "image/png", os.urandom(300_001)), Content("note1", "text/plain", b"it is coming")
        waiting = []
        for sender in (alice, bob):
            chunks = list(sender.chunks_of(file, reported=True))
            assert len(chunks) == 147
            chunks[40:40] = sender.chunks_of(note)
            waiting += [sender.transmit(chunk) for chunk in chunks]
        for receiver in (alice, bob):
            assert await patiently(receiver.contents.get()) == note
            assert await patiently(receiver.contents.get()) == file
            assert await patiently(receiver.reports.get()) == ("file1", "000 200 OK")
            assert receiver.chunks == 148
        assert [await patiently(answer) for answer in waiting] == [200] * 296

    async def test_large_chunks(self: Any) -> None:
        """Chunks that are longer than any TURN message, as an interruptible sender writes them."""
        alice, bob = self.sessions(*await self.streams())
        file = Content("file2", "application/octet-stream", os.urandom(400_000))
        for chunk in alice.chunks_of(file, 150_000):
            assert await patiently(alice.transmit(chunk)) == 200
        assert await patiently(bob.contents.get()) == file
        assert bob.chunks == 3

    async def test_an_aborted_message(self: Any) -> None:
        """What its sender gives up in the middle is no message, and the session goes on."""
        alice, bob = self.sessions(*await self.streams())
        first, second, _ = alice.chunks_of(Content("file3", "text/plain", bytes(5000)))
        assert await patiently(alice.transmit(first)) == 200
        assert await patiently(alice.transmit(msrp.abort(second))) == 200
        (chunk,) = alice.chunks_of(Content("after", "text/plain", b"never mind"))
        await patiently(alice.transmit(chunk))
        assert (await patiently(bob.contents.get())).number == "after"
        assert bob.aborted == ["file3"]

    async def test_the_last_message_before_a_close(self: Any) -> None:
        """A message arrives whole though its sender hangs up behind it, and so does the orderly end."""
        for index in (0, 1):
            ends = await self.streams()
            sender, receiver = self.sessions(*ends)[:: 1 - 2 * index]
            file = Content("last", "text/plain", os.urandom(200_000))
            for chunk in sender.chunks_of(file, answered=False):  # whoever closes before it reads answers resets
                sender.transmit(chunk)
            ends[index].close()
            assert await patiently(receiver.contents.get()) == file
            await eventually(lambda ends=ends, index=index: ends[1 - index].how_it_ended() in ("all", "closed"))


class DatagramSuite:
    """The promises to what needs datagrams. Mixed into `GenericRelayCase`."""

    async def test_floor_control_over_udp(self: Any) -> None:
        """The same as over TCP, where a server's word has to be acknowledged."""
        await floor_control(self.datagrams, UNRELIABLE)


async def floor_control(road: Callable[[], Any], version: int) -> None:
    """Alice and Carol come to a floor control server, each over that road."""
    server = FloorControlServer(CONFERENCE, {FLOOR}, {ALICE, CAROL})
    alice, carol = [join(server, user, version, *await road()) for user in (ALICE, CAROL)]
    for participant in (alice, carol):
        greeted = await patiently(participant.ask(Primitive.HELLO))
        assert greeted.primitive == Primitive.HELLO_ACK
        assert Primitive.FLOOR_REQUEST in greeted.get(AttributeType.SUPPORTED_PRIMITIVES).value
    assert await patiently(alice.request(FLOOR)) == Standing(1, RequestStatus.GRANTED, 0)
    assert await patiently(carol.request(FLOOR)) == Standing(2, RequestStatus.ACCEPTED, 1)
    assert server.queue(FLOOR) == [ALICE, CAROL]
    assert await patiently(alice.release(1)) == Standing(1, RequestStatus.RELEASED, 0)
    granted = await patiently(carol.told.get())
    assert standing(granted) == Standing(2, RequestStatus.GRANTED, 0)
    assert (granted.transaction == 0) == (version == RELIABLE)
    refused = await patiently(alice.ask(Primitive.FLOOR_RELEASE, bfcp.identifier(AttributeType.FLOOR_REQUEST_ID, 2)))
    assert refused.get(AttributeType.ERROR_CODE).value == bytes([ErrorCode.NO_SUCH_FLOOR_REQUEST])
    assert (await patiently(carol.ask(Primitive.GOODBYE))).primitive == Primitive.GOODBYE_ACK
    assert server.queue(FLOOR) == []
    assert server.unacknowledged == set()


def join(server: FloorControlServer, user: int, version: int, near: End, far: End) -> FloorParticipant:
    """A participant at the near end, with the server at the far one."""

    def messages(receive: Callable[[bfcp.Message], None]) -> Callable[[bytes], None]:
        splitter = bfcp.MessageSplitter()

        def read(data: bytes) -> None:
            for message in splitter.receive(data) if version == RELIABLE else [bfcp.decode(data)]:
                assert message.version == version
                receive(message)

        return read

    participant = FloorParticipant(CONFERENCE, user, lambda message: near.write(bfcp.encode(message)), version)
    near.read_by(messages(participant.received))
    far.read_by(messages(lambda message: server.received(message, lambda answer: far.write(bfcp.encode(answer)))))
    return participant


def read_queue(queue: DeferredQueue[Any], payload: int, reader: Callable[[bytes], None]) -> None:
    """Have a reader read what comes into a queue of pairs, of which that one is the payload."""

    def take(pair: Any) -> None:
        reader(pair[payload])
        queue.get().addCallback(take)

    queue.get().addCallback(take)


def no_end() -> str:
    """Datagrams have none."""
    return ""


# --- section 3.1: only Alice is behind a WebSocket ---


class PlainPeerCase(GenericRelayCase):
    """Alice reaches a peer that knows nothing of TURN."""

    async def streams(self) -> tuple[End, End]:
        peer = TcpPeer(self.host, certificate() if self.tls else None)
        self.addCleanup(peer.close)
        alice = await self.tcp_party("alice", self.house)
        near = await alice.data(await alice.connect(peer.address, *self.outgoing))
        return near, end_of(await peer.next())

    async def datagrams(self) -> tuple[End, End]:
        peer = self.peer()
        client = await self.come(self.house, "alice")
        relayed = await client.relayed(*self.family_attributes)
        assert code_of(await client.bind(TO_BOB, peer.address)) == 0
        return channel(client, TO_BOB), End(
            lambda reader: read_queue(peer.received, 0, reader),
            lambda data: peer.write(data, relayed),
            peer.close,
            no_end,
        )


class PlainPeerTests(StreamSuite, DatagramSuite, PlainPeerCase):
    """Over ws."""


class PlainPeerOverTlsTests(PlainPeerTests):
    """Over wss."""

    kind = AppConnection.WSS
    data_plane = "batched"


class PlainPeer6Tests(PlainPeerTests):
    """Over ws and IPv6."""

    host = "::1"


class TlsPeerTests(StreamSuite, PlainPeerCase):
    """The peer speaks TLS, and so the relay does."""

    tls = True


class TlsPeer6Tests(TlsPeerTests):
    """The same over wss and IPv6."""

    kind = AppConnection.WSS
    host = "::1"


class CallingPeerTests(StreamSuite, GenericRelayCase):
    """A peer that knows nothing of TURN reaches Alice."""

    async def streams(self) -> tuple[End, End]:
        alice = await self.tcp_party("alice", self.house, *self.incoming)
        await alice.client.permit(TransportAddress.parse(self.host, 9))
        kind = TCP4ClientEndpoint if self.host == "127.0.0.1" else TCP6ClientEndpoint
        endpoint: Any = kind(reactor, alice.relayed.host, alice.relayed.port)
        if self.tls:
            trusted = TrustRoot.loadPEM(certificate().certificate.read_bytes())
            endpoint = wrapClientTLS(optionsForClientTLS(NAME, trustRoot=trusted), endpoint)
        caller = await connectProtocol(endpoint, Conversation())
        self.addCleanup(caller.close)
        return await alice.accepted(), end_of(caller)


class CallingTlsPeerTests(CallingPeerTests):
    """It calls with TLS."""

    kind = AppConnection.WSS
    tls = True


# --- sections 3.2 and 3.3: Bob is behind one too ---


def channel(client: TurnClient, number: int) -> End:
    """A client's end of a bound channel."""
    return End(
        lambda reader: read_queue(client.data, 1, reader),
        lambda data: client.channel_data(number, data),
        client.close,
        no_end,
    )


class TwoRelaysTests(StreamSuite, DatagramSuite, GenericRelayCase):
    """Section 3.2: each has their own relay, and Alice's calls Bob's."""

    two_relays = True

    async def streams(self) -> tuple[End, End]:
        alice = await self.tcp_party("alice", self.house)
        bob = await self.tcp_party("bob", self.bobs_house, *self.incoming)
        assert code_of(await bob.client.permit(alice.relayed)) == 0
        number = await alice.connect(bob.relayed, *self.outgoing)
        return await alice.data(number), await bob.accepted()

    async def datagrams(self) -> tuple[End, End]:
        alice, bob = await self.alice_and_bob()
        assert code_of(await alice.client.bind(TO_BOB, bob.relayed)) == 0
        assert code_of(await bob.client.bind(TO_ALICE, alice.relayed)) == 0
        return channel(alice.client, TO_BOB), channel(bob.client, TO_ALICE)


class TwoRelays6Tests(TwoRelaysTests):
    """Over wss and IPv6."""

    kind = bobs_kind = AppConnection.WSS
    host = "::1"


class TwoRelaysWithTlsTests(TwoRelaysTests):
    """The relays speak TLS with each other."""

    tls = True


class OneRelayTests(TwoRelaysTests):
    """Section 3.3: they share one."""

    two_relays = False


class OneRelayOverTlsTests(OneRelayTests):
    """Over wss, beside the other data plane."""

    kind = bobs_kind = AppConnection.WSS
    data_plane = "batched"


class OneRelayWithTlsTests(OneRelayTests):
    """The relay speaks TLS with itself."""

    tls = True
