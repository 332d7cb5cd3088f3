"""What a relay on the open Internet must withstand, on real sockets. The table in docs/abuse.rst says which test shows
what; what can be shown without sockets is shown in the unit tests.
"""

from __future__ import annotations

import json
import random
from typing import Any, ClassVar

from OpenSSL import SSL
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher
from zope.interface import implementer

from relayd.address import AppConnection
from relayd.dtls import is_client_hello
from relayd.stun import attributes as a
from relayd.stun.integrity import PasswordAlgorithm, long_term_key
from relayd.stun.message import Class, Method, encode
from relayd.turn.outputs import AllocationCreated
from tests.behaviour.house.suite import NUMBER, HouseCase, certificate
from tests.support.house import REALM, USERS, descriptors
from tests.support.turn_client import UDP_ATTRIBUTE, TurnClient, code_of, eventually, pause
from tests.support.wires import UdpWire, connect, patiently

STREAMS = (AppConnection.TCP, AppConnection.TLS)
ALL = (AppConnection.UDP, AppConnection.TCP, AppConnection.TLS, AppConnection.DTLS)
FIRST_BYTES = (b"\x00\x01", b"\x00\x03", b"\x40\x00", b"\x4f\xff", b"\x16\xfe\xfd", b"\x17\xfe\xfd", b"")
HALF_A_MESSAGE = bytes.fromhex("0003fffc2112a442") + bytes(12)  # an Allocate of 65,532 bytes, of which none follow


class SilenceTests(HouseCase):
    """Clients that connect and do not get on with it."""

    async def stream(self, kind: AppConnection) -> Any:
        wire = await connect(kind, self.house.address(kind, self.host), certificate())
        self.addCleanup(wire.close)
        return wire

    def connections(self) -> int:
        listeners: Any = self.house.daemon.listeners
        return sum(listener.admission.total for listener in listeners if hasattr(listener, "admission"))

    async def pass_seconds(self, count: int, then: Any = lambda: None) -> None:
        """Let the relay live through so many seconds, one by one."""
        for _ in range(count):
            self.house.reactor.advance(1)
            then()
            await pause(0.002)

    async def test_silent_connections_are_closed(self) -> None:
        """Whoever connects over TCP or TLS and says nothing is disconnected, and nothing of him is kept."""
        wires = [await self.stream(kind) for kind in STREAMS for _ in range(5)]
        await eventually(lambda: self.connections() == 10)
        await self.pass_seconds(20)
        for wire in wires:
            await patiently(wire.closed)
        await eventually(lambda: self.connections() == 0)
        self.house.assert_holds_nothing()
        assert self.house.pending() == []

    async def test_one_byte_a_second_is_silence(self) -> None:
        """A drip of bytes that never completes a message keeps no connection open."""
        wires = [await self.stream(kind) for kind in STREAMS]
        drip = iter(HALF_A_MESSAGE)

        def write() -> None:
            for wire in wires:
                wire.write(bytes((next(drip, 0),)))

        await self.pass_seconds(20, write)
        for wire in wires:
            await patiently(wire.closed)
        await eventually(lambda: self.connections() == 0)

    async def test_a_message_that_never_ends_is_bounded(self) -> None:
        """What is held of one incomplete message is less than the longest message, and goes with its connection."""
        wire = await self.stream(AppConnection.TCP)
        wire.write(HALF_A_MESSAGE + bytes(65_000))
        listener: Any = self.house.daemon.listeners[1]
        (held,) = listener._clients
        await eventually(lambda: held._splitter.pending == 65_020)
        await self.pass_seconds(20)
        await patiently(wire.closed)

    async def test_garbage_ends_a_connection(self) -> None:
        """Bytes that no TURN client sends end the connection at once."""
        for kind in STREAMS:
            for garbage in (b"\xff" * 20, b"\x80\x00\x00\x01", b"\x00\x01\x00\x00 no magic cookie"):
                wire = await self.stream(kind)
                wire.write(garbage)
                await patiently(wire.closed)

    async def test_another_protocol_ends_a_connection(self) -> None:
        """So does what begins as ChannelData would, such as HTTP, though no channel can be bound yet."""
        for kind in STREAMS:
            wire = await self.stream(kind)
            wire.write(b"GET / HTTP/1.1\r\n\r\n")
            await patiently(wire.closed)

    async def test_half_a_tls_handshake_is_given_up(self) -> None:
        """A TCP connection to the TLS port that never shakes hands is closed in time, too."""
        wire = await connect(AppConnection.TCP, self.house.address(AppConnection.TLS, self.host), certificate())
        wire.write(b"\x16\x03\x01\x02\x00")
        await self.pass_seconds(20)
        await patiently(wire.closed)
        await eventually(lambda: self.connections() == 0)

    async def test_an_allocation_keeps_a_quiet_connection(self) -> None:
        """Silence is no abuse where an allocation hangs on the connection."""
        client = await self.client(kind=AppConnection.TCP)
        await client.relayed()
        await self.pass_seconds(20)
        self.house.reactor.advance(120)
        await pause(0.01)
        assert code_of(await client.refresh(600)) == 0


class FloodTests(HouseCase):
    """Many datagrams that cost their senders nothing."""

    def strangers(self, count: int, kind: AppConnection) -> list[UdpWire]:
        """Sockets of their own, that is, sources of their own."""
        made = [UdpWire(self.house.address(kind, self.host)) for _ in range(count)]
        for wire in made:
            self.addCleanup(wire.close)
        return made

    async def assert_still_serves(self) -> None:
        """A client with credentials gets through to a peer on every way in."""
        for kind in ALL:
            client, peer = await self.client(kind=kind), self.peer()
            relayed = await client.relayed()
            assert code_of(await client.bind(NUMBER, peer.address)) == 0
            client.channel_data(NUMBER, b"hello")
            assert await peer.next() == (b"hello", relayed)
            await client.refresh(0)

    async def test_allocates_without_credentials(self) -> None:
        """A 401 is all that an Allocate without credentials leaves behind, however many sources ask."""
        await pause()  # the reactor opens what it needs for itself
        before = descriptors()
        wires = self.strangers(50, AppConnection.UDP)
        answered = [0]

        def count(data: bytes) -> None:
            answered[0] += 1

        for wire in wires:
            wire.received = count
            for number in range(10):
                request = encode(Method.ALLOCATE, Class.REQUEST, bytes(8) + number.to_bytes(4), [UDP_ATTRIBUTE])
                wire.write(request)
        await eventually(lambda: answered[0] == 500)
        self.house.assert_holds_nothing()
        assert len(descriptors() - before) == 50  # the sockets of the flood itself
        assert self.house.pending() == []
        await self.assert_still_serves()

    async def test_forged_integrity(self) -> None:
        """Requests that are signed with a wrong key are 401, whatever they ask for, and leave nothing behind."""
        for kind in ALL:
            client = await self.client("mallory", kind=kind)
            await client.greet()
            for method in (Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND):
                for _ in range(5):
                    assert code_of(await client.ask(method, [UDP_ATTRIBUTE])) == 401
            self.house.assert_holds_nothing()
        await self.assert_still_serves()

    async def test_a_stolen_path(self) -> None:
        """Who sends from a client's own address but does not know its key cannot touch its allocation."""
        client, peer = await self.client(), self.peer()
        await client.relayed()
        right, client.password = client.password, "guessed"
        assert code_of(await client.refresh(0)) == 401
        assert code_of(await client.permit(peer.address)) == 401
        assert code_of(await client.bind(NUMBER, peer.address)) == 401
        client.password = right
        assert code_of(await client.refresh(600)) == 0

    async def test_client_hellos(self) -> None:
        """Before its cookie came back nothing is kept of a DTLS client: no session, timer, descriptor or place."""
        await pause()  # the reactor opens what it needs for itself
        wires = self.strangers(20, AppConnection.DTLS)
        before = descriptors()
        listener: Any = next(each for each in self.house.daemon.listeners if each.app_connection == "dtls")
        answers: list[bytes] = []
        sent = 0
        for wire in wires:
            wire.received = answers.append
            for _ in range(15):
                hello = client_hello()
                assert is_client_hello(hello)
                sent += len(hello)
                wire.write(hello)
        await eventually(lambda: len(answers) == 300)
        assert sum(map(len, answers)) < sent  # no amplification
        assert listener._clients == {}
        assert listener._handshakes == {}
        assert listener.admission.total == 0
        assert descriptors() == before
        assert self.house.pending() == []
        await self.assert_still_serves()

    async def test_garbage_on_every_port(self) -> None:
        """Random datagrams, also such as begin like STUN, ChannelData or DTLS, do no harm and get less back."""
        seeded = random.Random(8656)
        for kind in (AppConnection.UDP, AppConnection.DTLS):
            (wire,) = self.strangers(1, kind)
            answers: list[bytes] = []
            wire.received = answers.append
            sent = 0
            for size in (0, 1, 3, 4, 8, 19, 20, 28, 100, 1200, 9000):
                for first in (
                    b"\x00\x01",
                    b"\x00\x03",
                    b"\x40\x00",
                    b"\x4f\xff",
                    b"\x16\xfe\xfd",
                    b"\x17\xfe\xfd",
                    b"",
                ):
                    datagram = (first + seeded.randbytes(size))[:size]
                    sent += len(datagram)
                    wire.write(datagram)
            await pause(0.05)
            assert sum(map(len, answers)) < sent
        self.house.assert_holds_nothing()
        await self.assert_still_serves()


class BatchedFloodTests(FloodTests):
    data_plane = "batched"


class SlowReaderTests(HouseCase):
    """A client on a stream that stops reading while a peer sends on."""

    kind = AppConnection.TCP
    SIZE: ClassVar[int] = 1200
    MOST_HELD: ClassVar[int] = 512 * 1024  # bytes; what the transport, a joined write and TLS may hold together

    async def test_its_datagrams_are_dropped_and_counted(self) -> None:
        """What does not fit is dropped and counted, memory stays bounded, others go on, and so does it later."""
        peer, other_peer = self.peer(), self.peer()
        slow, relayed = await self.bound(peer)
        other, other_relayed = await self.bound(other_peer, "bob")
        slow.wire.transport.pauseProducing()
        created = self.house.recorder.of(AllocationCreated)
        relay: Any = next(event.relays[0][0] for event in created if event.path.client == slow.wire.local)
        sent = 0
        while relay.counters.dropped < 500:
            assert sent < 100_000, "the relay keeps all of it"
            for _ in range(50):
                peer.write(bytes(self.SIZE), relayed)
            sent += 50
            await pause()
            assert self.held(slow) < self.MOST_HELD
        other_peer.write(b"meanwhile", other_relayed)
        assert await other.next_data() == (NUMBER, b"meanwhile")
        assert relay.counters.received_packets + relay.counters.dropped <= sent
        slow.wire.transport.resumeProducing()
        await eventually(lambda: len(slow.data.pending) == relay.counters.received_packets)
        peer.write(b"and on", relayed)
        await eventually(lambda: slow.data.pending[-1] == (NUMBER, b"and on"))
        slow.data.pending.clear()
        await slow.refresh(0)
        (ended,) = [line for line in self.house.log if line["event"] == "allocation-ended"]
        assert ended["dropped"] == relay.counters.dropped >= 500

    def held(self, client: TurnClient) -> int:
        """Bytes that the relay holds for one client."""
        listeners: Any = self.house.daemon.listeners
        for listener in listeners:
            for connection in getattr(listener, "_clients", ()):
                path = getattr(connection, "path", None)
                if path is not None and path.client == client.wire.local:
                    transport = connection.transport
                    below = getattr(transport, "transport", transport)  # TLS is a wrapper
                    waiting = sum(map(len, getattr(transport, "_appSendBuffer", ())))
                    return int(len(below.dataBuffer) + below._tempDataLen + connection._waiting_size + waiting)
        raise AssertionError("it has no connection")


class SlowTlsReaderTests(SlowReaderTests):
    kind = AppConnection.TLS


class SlowWsReaderTests(SlowReaderTests):
    kind = AppConnection.WS


class SlowWssReaderTests(SlowReaderTests):
    kind = AppConnection.WSS


class HostileNameTests(HouseCase):
    """User names that would like to be more than a name."""

    HOSTILE = 'x", "user": "root"} %n%s {0} {session!r} <script>' + "y" * 400
    settings = {"users": {**USERS, HOSTILE: "secret"}}

    def log_lines(self) -> list[str]:
        """What is logged from now on, as it is written."""
        lines: list[str] = []

        @implementer(ILogObserver)
        def observe(event: Any) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines

    async def test_in_the_log(self) -> None:
        """A hostile user name stays one quoted field of one line, for people and in JSON."""
        lines = self.log_lines()
        client = await self.client(self.HOSTILE)
        client.password = "secret"
        assert code_of(await client.allocate()) == 0
        await client.refresh(0)
        told = [line for line in lines if line.startswith("allocation ")]
        assert len(told) == 2
        for line in told:
            assert "\n" not in line
            assert repr(self.HOSTILE) in line
        for line in self.house._log:
            assert line.count("\n") == 1
            assert json.loads(line)["user"] == self.HOSTILE

    async def test_control_characters(self) -> None:
        """A name with NUL, newline or escape is nobody's: 401, and not a byte of it in the log."""
        lines = self.log_lines()
        for name in ("injected\nallocation", "injected\0", "injected\x1b[2J", "\u202einjected", "injected" * 60):
            client = await self.client(name)
            assert code_of(await client.allocate()) == 401
        assert not [line for line in lines if "injected" in line]
        self.house.assert_holds_nothing()

    async def test_bytes_that_are_no_text(self) -> None:
        """USERNAME and REALM that are not UTF-8, or too long, are refused like any other mistake."""
        client = await self.client()
        await client.greet()
        key = long_term_key(PasswordAlgorithm.MD5, "alice", REALM, USERS["alice"])
        for raw in (b"\xff\xfe" * 10, b"z" * 763, b""):
            attribute: Any = a.Attribute(a.USERNAME.code, "USERNAME", lambda value, _: value, lambda value, _: value)
            pairs = [UDP_ATTRIBUTE, (attribute, raw), (a.REALM, REALM), (a.NONCE, client.nonce)]
            answer = await client.send(encode(Method.ALLOCATE, Class.REQUEST, bytes(12), pairs, key=key))
            assert code_of(answer) in (400, 401)
        self.house.assert_holds_nothing()


def client_hello() -> bytes:
    """The first datagram of a DTLS client that nobody has seen before."""
    context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        pass
    return connection.bio_read(65_536)
