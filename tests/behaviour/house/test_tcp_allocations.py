"""TCP allocations through the whole relay (RFC 6062), over every kind of connection that carries them."""

from __future__ import annotations

import os
import socket
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, serverFromString, wrapClientTLS
from twisted.internet.ssl import Certificate as TrustRoot
from twisted.internet.ssl import optionsForClientTLS

from relayd.address import AppConnection, TransportAddress
from relayd.listeners.connection import CLOSE_GRACE
from relayd.peers.connection import PeerConnection
from relayd.pipe.stream_end import MAX_BUFFERED
from relayd.stun import attributes as a
from relayd.stun.framing import encode_channel_data
from relayd.stun.message import Class, Message, Method, decode, encode
from tests.support.tcp_peer import Conversation, Conversations, TcpPeer, call
from tests.support.turn_client import TurnClient, code_of, eventually, pause
from tests.support.wires import patiently

from .suite import HouseCase, certificate

TCP_ATTRIBUTE = (a.REQUESTED_TRANSPORT, 6)
MEGABYTE = 1 << 20


class TcpAllocationCase(HouseCase):
    """A relay, and how its clients come to TCP allocations and data connections."""

    async def tcp_client(self, username: str = "alice") -> tuple[TurnClient, TransportAddress]:
        """A client with a TCP allocation, and its relayed address."""
        client = await self.client(username)
        await client.greet()
        answer = await client.ask(Method.ALLOCATE, [TCP_ATTRIBUTE, *self.family_attributes])
        assert code_of(answer) == 0
        relayed = answer.get(a.XOR_RELAYED_ADDRESS)
        assert relayed is not None
        return client, relayed

    def tcp_peer(self) -> TcpPeer:
        made = TcpPeer(self.host)
        self.addCleanup(made.close)
        return made

    def announced_to(self, client: TurnClient) -> list[Message]:
        """The ConnectionAttempt indications that a client gets from now on, as they come."""
        announced: list[Message] = []
        receive = client.wire.received

        def received(data: bytes) -> None:
            message = decode(data)
            if message.cls is Class.INDICATION:
                announced.append(message)
            else:
                receive(data)

        client.wire.received = received
        return announced

    async def connect(self, client: TurnClient, peer: TransportAddress) -> int:
        """A Connect that succeeds; the CONNECTION-ID."""
        answer = await client.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, peer)])
        assert code_of(answer) == 0, code_of(answer)
        number = answer.get(a.CONNECTION_ID)
        assert number is not None
        return number

    async def data(self, number: int, username: str = "alice", behind: bytes = b"") -> Any:
        """A data connection on which that id is bound, and `behind` sent without waiting for the answer."""
        client = await self.client(username)
        await client.greet()
        granted = client.send(client.request(Method.CONNECTION_BIND, [(a.CONNECTION_ID, number)]))
        if behind:
            client.wire.write(behind)
        assert code_of(await granted) == 0
        await eventually(lambda: client.wire.raw is not None)
        return client.wire

    async def pair(self) -> tuple[TurnClient, Any, Conversation]:
        """A control connection, a data connection, and the peer's end of it."""
        peer = self.tcp_peer()
        client, relayed = await self.tcp_client()
        wire = await self.data(await self.connect(client, peer.address))
        conversation = await peer.next()
        assert conversation.remote == relayed
        return client, wire, conversation


class TcpAllocationSuite(TcpAllocationCase):
    """The promises. Subclasses say over which connections."""

    __test__ = False

    async def test_bytes_go_both_ways(self) -> None:
        """As they are: a few, many, and none that belong to TURN."""
        _, wire, conversation = await self.pair()
        wire.write(b"hello")
        await conversation.hears(b"hello")
        conversation.say(b"hello yourself")
        await eventually(lambda: wire.raw == b"hello yourself")
        conversation.heard, wire.raw = b"", b""
        much = os.urandom(MEGABYTE)
        for at in range(0, MEGABYTE, 50_000):
            wire.write(much[at : at + 50_000])
        conversation.say(much)
        await eventually(lambda: len(wire.raw) + len(conversation.heard) == 2 * MEGABYTE)
        assert wire.raw == conversation.heard == much

    async def test_bytes_that_look_like_turn_are_none(self) -> None:
        """ChannelData, STUN and a ConnectionBind go to the peer as everything else does."""
        _, wire, conversation = await self.pair()
        messages = [
            encode_channel_data(0x4000, b"payload", padded=False),
            encode(Method.BINDING, Class.REQUEST, bytes(12)),
            encode(Method.CONNECTION_BIND, Class.REQUEST, bytes(12), [(a.CONNECTION_ID, 7)]),
        ]
        for message in messages:
            wire.write(message)
        await conversation.hears(b"".join(messages))

    async def test_bytes_behind_the_bind_are_not_lost(self) -> None:
        """Those of a client that does not wait for the answer, and those of a peer that spoke before anybody listened
        (RFC 6062 section 5.4).
        """
        peer = self.tcp_peer()
        client, _ = await self.tcp_client()
        number = await self.connect(client, peer.address)
        conversation = await peer.next()
        conversation.say(b"peer first")
        wire = await self.data(number, behind=b"\xffclient first")
        await conversation.hears(b"\xffclient first")
        await eventually(lambda: wire.raw == b"peer first")

    async def test_a_peer_that_calls(self) -> None:
        """With permission it is announced and can be bound; without one it is closed."""
        client, relayed = await self.tcp_client()
        stranger = await call(relayed)
        await eventually(lambda: stranger.end in ("all", "closed", "reset"))
        await stranger.close()
        announced = self.announced_to(client)
        await client.permit(TransportAddress.parse(self.host, 9))
        caller = await call(relayed)
        await eventually(lambda: announced)
        assert announced[0].method == Method.CONNECTION_ATTEMPT
        assert announced[0].get(a.XOR_PEER_ADDRESS) == caller.local
        number = announced[0].get(a.CONNECTION_ID)
        assert number is not None
        wire = await self.data(number)
        caller.say(b"ring")
        await eventually(lambda: wire.raw == b"ring")
        await caller.close()
        await eventually(lambda: wire.end == "closed")

    async def test_a_refused_bind_leaves_the_connection_to_turn(self) -> None:
        """What came behind it is served as what it is."""
        client = await self.client()
        await client.greet()
        refused = client.send(client.request(Method.CONNECTION_BIND, [(a.CONNECTION_ID, 7)]))
        behind = client.ask(Method.BINDING)
        assert code_of(await refused) == 400
        assert code_of(await behind) == 0
        assert code_of(await client.allocate(*self.family_attributes)) == 0

    async def test_what_was_sent_before_a_close_arrives(self) -> None:
        """From either side, and the other end is closed behind it."""
        _, wire, conversation = await self.pair()
        wire.write(bytes(MEGABYTE // 2))
        wire.write(b"last")
        wire.close()
        await eventually(lambda: conversation.end != "")
        assert conversation.heard == bytes(MEGABYTE // 2) + b"last"
        await conversation.close()
        _, wire, conversation = await self.pair()
        conversation.say(bytes(MEGABYTE // 2) + b"last")
        await conversation.close()
        await eventually(lambda: wire.end == "closed")
        assert wire.raw == bytes(MEGABYTE // 2) + b"last"

    async def test_a_reset_of_the_peer_is_no_orderly_end(self) -> None:
        """The client's connection is reset too."""
        _, wire, conversation = await self.pair()
        conversation.reset()
        await eventually(lambda: wire.end == "reset")

    async def test_a_client_that_is_reset_resets_the_peer(self) -> None:
        """The peer does not take half a message for a whole one."""
        _, wire, conversation = await self.pair()
        wire.abort()
        await eventually(lambda: conversation.end == "reset")

    async def test_the_end_of_the_allocation_closes_everything(self) -> None:
        """The data connection and the peer's, when the control connection goes (RFC 6062 section 5.5)."""
        client, wire, conversation = await self.pair()
        await client.close()
        await eventually(lambda: wire.end == "closed")
        await eventually(lambda: conversation.end != "")
        assert self.house.sessions() == 0

    async def test_ends_that_do_not_close_hold_up_no_shutdown(self) -> None:
        """Those of a client and a peer that do not read are cut, after the grace of every other connection."""
        _, wire, conversation = await self.pair()
        ends: list[Any] = [wire, conversation]
        for end in ends:
            end.transport.pauseProducing()
        stopping = Deferred.fromCoroutine(self.house.stop())
        self.house.reactor.advance(CLOSE_GRACE)
        await patiently(stopping)

    async def test_unreachable_and_refused_peers(self) -> None:
        """447 where nobody listens, 403 where the peer rules say no, 446 for a second one."""
        client, _ = await self.tcp_client()
        gone = self.tcp_peer()
        nobody = gone.address
        await gone.close()
        assert code_of(await client.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, nobody)])) == 447
        private = TransportAddress.parse("10.0.0.1" if self.host == "127.0.0.1" else "fd00::1", 80)
        assert code_of(await client.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, private)])) == 403
        peer = self.tcp_peer()
        await self.connect(client, peer.address)
        assert code_of(await client.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, peer.address)])) == 446

    async def test_a_silent_peer(self) -> None:
        """447 after the 30 seconds of RFC 6062 section 5.2, and other peers can be reached meanwhile."""
        client, _ = await self.tcp_client()
        silent = socket.create_server(
            (self.host, 0), family=socket.AF_INET if self.host == "127.0.0.1" else socket.AF_INET6, backlog=0
        )
        waiting = []  # whoever fills the queue, so that the system answers no further SYN
        for _ in range(3):
            waiting.append(socket.socket(silent.family))
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(silent.getsockname())
        for each in (silent, *waiting):
            self.addCleanup(each.close)
        address = TransportAddress.parse(*silent.getsockname()[:2])
        answer = client.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, address)])
        await self.connect(client, self.tcp_peer().address)
        self.house.reactor.advance(30.0)
        assert code_of(await answer) == 447

    async def test_a_foreign_id_is_refused(self) -> None:
        """Another user cannot bind it, and does not spoil it for its owner."""
        peer = self.tcp_peer()
        client, _ = await self.tcp_client()
        number = await self.connect(client, peer.address)
        thief = await self.client("bob")
        await thief.greet()
        assert code_of(await thief.ask(Method.CONNECTION_BIND, [(a.CONNECTION_ID, number)])) == 400
        wire = await self.data(number)
        wire.write(b"mine")
        await (await peer.next()).hears(b"mine")

    async def test_a_slow_peer_slows_the_client(self) -> None:
        """The relay keeps no more than its buffers of what is not taken: the rest waits with the sender."""
        _, wire, conversation = await self.pair()
        conversation.transport.pauseProducing()  # type: ignore[union-attr]
        counters = next(iter(self.house.core.sessions())).relays[0][0].counters  # type: ignore[attr-defined]
        much = bytes(50_000)
        for _ in range(24 * MEGABYTE // len(much)):
            wire.write(much)
        stalled = -1
        while stalled != counters.sent_bytes:
            stalled = counters.sent_bytes
            await pause(0.2)
        assert counters.sent_bytes < 20 * MEGABYTE  # the system keeps some of it; the rest waits with the sender
        transports: set[Any] = {*reactor.getReaders(), *reactor.getWriters()}
        ours = [each for each in transports if isinstance(getattr(each, "protocol", None), PeerConnection)]
        assert len(ours) == 1
        assert all(len(each.dataBuffer) - each.offset + each._tempDataLen <= MAX_BUFFERED for each in ours)
        conversation.transport.resumeProducing()  # type: ignore[union-attr]
        await eventually(lambda: len(conversation.heard) == 24 * MEGABYTE // len(much) * len(much), turns=4000)

    async def test_two_clients_of_one_relay(self) -> None:
        """They meet inside it, each with what the other's permission allows, and notice no difference."""
        alice, alices_address = await self.tcp_client()
        bob, bobs_address = await self.tcp_client("bob")
        announced = self.announced_to(bob)
        await bob.permit(alices_address)
        number = await self.connect(alice, bobs_address)
        await eventually(lambda: announced)
        assert announced[0].get(a.XOR_PEER_ADDRESS) == alices_address
        bobs_wire = await self.data(announced[0].get(a.CONNECTION_ID) or 0, "bob")
        bobs_wire.write(b"bob first")
        alices_wire = await self.data(number)
        await eventually(lambda: alices_wire.raw == b"bob first")
        much = os.urandom(MEGABYTE)
        for at in range(0, MEGABYTE, 50_000):
            alices_wire.write(much[at : at + 50_000])
        await eventually(lambda: bobs_wire.raw == much)
        alices_wire.close()
        await eventually(lambda: bobs_wire.end == "closed")
        bridged = [relay.counters.bridged for each in self.house.core.sessions() for relay, _ in cast(Any, each).relays]
        assert len(bridged) == 2
        assert all(bridged)

    async def test_indications_do_nothing(self) -> None:
        """A Send indication is for UDP (RFC 6062 section 4.1), and so is a channel."""
        client, _ = await self.tcp_client()
        peer = self.tcp_peer()
        await client.permit(peer.address)
        client.wire.write(
            encode(Method.SEND, Class.INDICATION, bytes(12), [(a.XOR_PEER_ADDRESS, peer.address), (a.DATA, b"x")])
        )
        assert code_of(await client.bind(0x4000, peer.address)) == 403


class TcpTest(TcpAllocationSuite):
    """Over TCP."""

    __test__ = True
    kind = AppConnection.TCP

    async def test_one_direction_ends_alone(self) -> None:
        """A half-close is carried across, both ways."""
        _, wire, conversation = await self.pair()
        wire.write(b"question")
        wire.say_all()
        await eventually(lambda: conversation.end == "all")
        assert conversation.heard == b"question"
        conversation.say(b"answer")
        conversation.say_all()
        await eventually(lambda: wire.end == "closed")
        assert wire.raw == b"answer"


class MixedTest(TcpTest):
    """Over TCP, on a port that takes several protocols."""

    mixed = True


class Tcp6Test(TcpAllocationSuite):
    """Over TCP on IPv6."""

    __test__ = True
    kind = AppConnection.TCP
    host = "::1"


class TlsTest(TcpAllocationSuite):
    """Over TLS."""

    __test__ = True
    kind = AppConnection.TLS


class WsTest(TcpAllocationSuite):
    """Over WebSocket: each end is carried in binary messages, and a close in Close frames."""

    __test__ = True
    kind = AppConnection.WS

    async def test_a_peer_may_take_its_time(self) -> None:
        """A connection is not taken for dead because one end makes the other wait, for longer than any ping does."""
        _, wire, conversation = await self.pair()
        conversation.transport.pauseProducing()  # type: ignore[union-attr]
        much = bytes(50_000)
        for _ in range(20 * MEGABYTE // len(much)):
            wire.write(much)
        for _ in range(8):
            await pause(0.05)
            self.house.reactor.advance(15.0)
        assert wire.end == ""
        conversation.transport.resumeProducing()  # type: ignore[union-attr]
        await eventually(lambda: len(conversation.heard) == 20 * MEGABYTE // len(much) * len(much), turns=4000)


class WssTest(TcpAllocationSuite):
    """Over WebSocket on TLS."""

    __test__ = True
    kind = AppConnection.WSS


class DatagramsOnlyTest(TcpAllocationCase):
    """A relay whose operator wants no TCP to peers."""

    kind = AppConnection.TCP
    settings = {"policy": (("transports", "udp"),)}

    async def test_a_tcp_allocation(self) -> None:
        """It is refused, and leaves room for one of UDP on the same connection."""
        client = await self.client()
        await client.greet()
        assert code_of(await client.ask(Method.ALLOCATE, [TCP_ATTRIBUTE])) == 442
        assert code_of(await client.allocate()) == 0


class TlsPeersTest(TcpAllocationCase):
    """A client on a WebSocket, and peers with TLS: the relay trusts the certificate of the tests, and shows it."""

    kind = AppConnection.WS
    settings = {
        "peer_ca": certificate().certificate,
        "peer_certificate": certificate().certificate,
        "peer_key": certificate().key,
    }

    async def test_a_peer_with_tls(self) -> None:
        """Reached under its own name, refused with 460 under another; the client speaks in the clear."""
        files = certificate()
        endpoint: Any = serverFromString(
            reactor, f"ssl:0:interface=127.0.0.1:privateKey={files.key}:certKey={files.certificate}"
        )
        peers = Conversations()
        port = await endpoint.listen(peers)
        address = TransportAddress.parse("127.0.0.1", port.getHost().port)
        client, _ = await self.tcp_client()

        def ask(name: str) -> Any:
            return client.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, address), (a.PEER_TLS, name)])

        assert code_of(await ask("other.example")) == 460
        answer = await ask("localhost")
        assert code_of(answer) == 0
        wire = await self.data(answer.get(a.CONNECTION_ID) or 0)
        wire.write(b"in the clear")
        await peers.next()  # the one that was refused
        conversation = await peers.next()
        await conversation.hears(b"in the clear")
        conversation.say(b"all right")
        await eventually(lambda: wire.raw == b"all right")
        await conversation.close()
        await eventually(lambda: wire.end == "closed")
        await port.stopListening()

    async def test_a_peer_that_calls_with_tls(self) -> None:
        """It sees the relay's certificate, and the client hears of it after the handshake."""
        client = await self.client()
        await client.greet()
        allocated = await client.ask(Method.ALLOCATE, [TCP_ATTRIBUTE, (a.PEER_TLS, "")])
        relayed = allocated.get(a.XOR_RELAYED_ADDRESS)
        assert relayed is not None
        assert allocated.get(a.PEER_TLS) == ""
        announced = self.announced_to(client)
        await client.permit(relayed)
        trusted = TrustRoot.loadPEM(certificate().certificate.read_bytes())
        endpoint = wrapClientTLS(
            optionsForClientTLS("localhost", trustRoot=trusted),
            TCP4ClientEndpoint(reactor, relayed.host, relayed.port),
        )
        caller = await connectProtocol(endpoint, Conversation())
        await eventually(lambda: announced)
        wire = await self.data(announced[0].get(a.CONNECTION_ID) or 0)
        caller.say(b"ring")
        await eventually(lambda: wire.raw == b"ring")
        await caller.close()
        await eventually(lambda: wire.end == "closed")


class BatchedTest(TcpAllocationSuite):
    """Beside the other data plane."""

    __test__ = True
    kind = AppConnection.WS
    data_plane = "batched"
    host = "::1"
