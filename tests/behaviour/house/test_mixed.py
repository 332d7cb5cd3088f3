"""The kind `any` on real sockets: the promises of every way in, and several of them on one port."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from relayd.address import AppConnection, TransportAddress
from relayd.config import ListenerSettings
from relayd.listeners.web_factory import AnyListenerFactory
from relayd.stun import attributes as a
from relayd.stun.message import Class, Method, decode, encode
from tests.behaviour.house import test_web
from tests.behaviour.house.suite import HouseCase, HouseSuite, certificate
from tests.support.house import USERS
from tests.support.turn_client import TurnClient, code_of, eventually, pause
from tests.support.wires import Raw, connect, patiently, reactor

BINDING = encode(Method.BINDING, Class.REQUEST, b"transaction!", [])
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
HTTP_ALPN = b"http/1.1"


class MixedTcpTests(HouseSuite, HouseCase):
    mixed = True
    kind = AppConnection.TCP


class MixedTlsTests(HouseSuite, HouseCase):
    mixed = True
    kind = AppConnection.TLS


class MixedWs6Tests(HouseSuite, HouseCase):
    mixed = True
    kind = AppConnection.WS
    host = "::1"


class MixedWssTests(HouseSuite, HouseCase):
    mixed = True
    data_plane = "batched"
    kind = AppConnection.WSS


class PlainBesideTlsTests(HouseSuite, HouseCase):
    """TURN over TCP, on the port on which TLS is spoken too."""

    mixed = True
    data_plane = "batched"
    kind = AppConnection.TCP

    async def client(
        self, username: str = "alice", kind: AppConnection | None = None, host: str | None = None
    ) -> TurnClient:
        wire = await connect(self.kind, self.house.address(AppConnection.TLS, host or self.host), certificate())
        made = TurnClient(wire, self.kind, username, USERS.get(username, "wrong"))
        self.addCleanup(made.close)
        return made


class MixedWebCase(test_web.WebCase):
    mixed = True

    @property
    def listener(self) -> Any:
        listeners: Any = self.house.daemon.listeners
        return next(each for each in listeners if self.house.address(self.kind, self.host) in each.addresses)


class MixedWebTests(MixedWebCase, test_web.WebTests):
    pass


class MixedWebAbuseTests(MixedWebCase, test_web.WebAbuseTests):
    kind = AppConnection.WSS

    async def test_garbage(self) -> None:
        """What is nothing that is spoken here closes the connection; so does broken HTTP, and broken TURN."""
        for garbage in (b"\xff" * 20 + b"\r\n\r\n", b"X" * 100_000, b"\x00\x01\x00\x00HTTP" + bytes(12)):
            raw = await self.raw()
            raw.write(garbage)
            await patiently(raw.closed)
        await eventually(lambda: self.listener.admission.total == 0)


class Bytes(Raw):
    """A connection, byte by byte if it is told so."""

    async def drip(self, data: bytes) -> None:
        """One byte in a segment."""
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        for at in range(len(data)):
            transport.write(data[at : at + 1])
            await pause()

    def close(self) -> Deferred[None]:
        transport: Any = self.transport
        transport.abortConnection()
        return self.closed


class OnePortTests(HouseCase):
    """All that one port takes, and what it does not take."""

    mixed = True
    kind = AppConnection.TLS

    async def raw(self, kind: AppConnection = AppConnection.TLS) -> Bytes:
        server = self.house.address(kind, self.host)
        made: Bytes = await connectProtocol(TCP4ClientEndpoint(reactor, server.host, server.port), Bytes())
        self.addCleanup(made.close)
        return made

    async def say_in_tls(
        self, raw: Bytes, data: bytes, offers: list[bytes], preface: bytes = b""
    ) -> tuple[bytes, bytes]:
        """What is answered inside TLS, every byte of which is sent in a segment of its own, and what ALPN chose."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        if offers:
            context.set_alpn_protos(offers)
        inside = SSL.Connection(context, None)
        inside.set_connect_state()
        await raw.drip(preface)
        said, answer = False, b""
        for _ in range(400):
            try:
                if not said:
                    inside.do_handshake()
                    inside.send(data)
                    said = True
                answer = inside.recv(65_536)
            except SSL.WantReadError:
                pass
            except SSL.Error:
                break
            try:
                await raw.drip(inside.bio_read(65_536))
            except SSL.WantReadError:
                await pause(0.005)
            if answer or raw.closed.called:
                break
            if raw.heard:
                inside.bio_write(raw.heard)
                raw.heard = b""
        return answer, inside.get_alpn_proto_negotiated() if said else b""

    async def test_four_ways_on_one_port(self) -> None:
        """TURN over TCP, over TLS, HTTPS and WSS, each to the same port at the same time, each with its own flag."""
        server = self.house.address(AppConnection.TLS, self.host)
        for kind in (AppConnection.TCP, AppConnection.TLS, AppConnection.WSS):
            wire = await connect(kind, server, certificate())
            client = TurnClient(wire, kind, "alice", USERS["alice"])
            self.addCleanup(client.close)
            assert (await client.allocate()).get(a.XOR_MAPPED_ADDRESS) == wire.local
            assert self.house.log[-1]["app_connection"] == kind.value
        assert self.house.sessions() == 3
        answer, _ = await self.say_in_tls(await self.raw(), HEALTH, [])
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")

    async def test_a_byte_at_a_time(self) -> None:
        """However slowly it comes, nothing is taken for something else: in the clear, and every byte of TLS."""
        for kind in (AppConnection.TCP, AppConnection.TLS):
            raw = await self.raw(kind)
            await raw.drip(BINDING)
            await eventually(lambda raw=raw: len(raw.heard) >= 20)
            assert decode(raw.heard).cls is Class.SUCCESS
        raw = await self.raw(AppConnection.TCP)
        await raw.drip(HEALTH)
        await eventually(lambda: raw.heard.endswith(b"ok\n"))
        answer, chosen = await self.say_in_tls(await self.raw(), BINDING, [])
        assert decode(answer).cls is Class.SUCCESS
        assert not chosen

    async def test_alpn(self) -> None:
        """What the client offers decides; offered both, TURN it is; and only what was agreed on is served."""
        cases: list[tuple[list[bytes], bytes, bytes]] = [
            ([HTTP_ALPN], HEALTH, HTTP_ALPN),
            ([b"h2", HTTP_ALPN], HEALTH, HTTP_ALPN),
            ([b"stun.turn"], BINDING, b"stun.turn"),
            ([b"stun.nat-discovery"], BINDING, b"stun.nat-discovery"),
            ([HTTP_ALPN, b"stun.turn"], BINDING, b"stun.turn"),
        ]
        for offers, data, expected in cases:
            answer, chosen = await self.say_in_tls(await self.raw(), data, offers)
            assert chosen == expected
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n") if data is HEALTH else decode(answer).cls is Class.SUCCESS
        for offers, data in (([HTTP_ALPN], BINDING), ([b"stun.turn"], HEALTH), ([b"h2"], HEALTH), ([b"ftp"], BINDING)):
            raw = await self.raw()
            answer, _ = await self.say_in_tls(raw, data, offers)
            assert answer == b""
            await patiently(raw.closed)

    async def test_plain_http(self) -> None:
        """Where TLS is spoken, HTTP without it is told so, and a WebSocket without it does not open."""
        for head in (b"GET / HTTP/1.1", b"GET /turn HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket"):
            raw = await self.raw()
            raw.transport.write(head + b"\r\nHost: localhost\r\n\r\n")  # type: ignore[union-attr]
            await patiently(raw.closed)
            assert raw.heard.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert b"wss://" in raw.heard

    async def test_what_belongs_elsewhere(self) -> None:
        """TLS where there is no certificate, SSL 2, a PROXY header, other protocols: closed at once, without a word."""
        beginnings = [(AppConnection.TLS, data) for data in (b"\x80\x2e\x01\0\x02", b"\r\n\r\n\0\r\nQUIT\n", b"\xff")]
        for kind, data in [(AppConnection.TCP, b"\x16\x03\x01\x02\0\x01"), *beginnings]:
            raw = await self.raw(kind)
            raw.transport.write(data)  # type: ignore[union-attr]
            await patiently(raw.closed)
            assert raw.heard == b""

    async def test_silence(self) -> None:
        """Connections that never say what they are, or stop after the first byte, in or out of TLS, are closed."""
        raws = [await self.raw() for _ in range(4)]
        for raw, beginning in zip(raws, (b"", b"\0", b"\x16", b"G"), strict=True):
            raw.transport.write(beginning)  # type: ignore[union-attr]
        await pause(0.05)
        for _ in range(15):
            self.house.reactor.advance(1)
            await pause(0.002)
        for raw in raws:
            await patiently(raw.closed)

    async def test_behind_a_proxy(self) -> None:
        """The PROXY header comes first, in any pieces; then TLS or not, and the client is the one in the header."""
        made: Any = certificate()
        keys = f"privateKey={made.key}:certKey={made.certificate}"
        factory = AnyListenerFactory("relayd.web.pages.make_pages")
        listener: Any = await factory.listen(
            f"haproxy:ssl:0:interface=127.0.0.1:{keys}",
            self.house.reactor,
            self.house.service,
            self.house.daemon.data_plane,
            ListenerSettings(),
        )
        self.addCleanup(listener.close)
        header = b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 443\r\n"
        (server,) = listener.addresses

        async def raw() -> Bytes:
            made: Bytes = await connectProtocol(TCP4ClientEndpoint(reactor, server.host, server.port), Bytes())
            self.addCleanup(made.close)
            return made

        plain = await raw()
        await plain.drip(header + BINDING)
        await eventually(lambda: len(plain.heard) >= 20)
        answers = [plain.heard, (await self.say_in_tls(await raw(), BINDING, [b"stun.turn"], header))[0]]
        for answer in answers:
            mapped = decode(answer).get(a.XOR_MAPPED_ADDRESS)
            assert mapped == TransportAddress.parse("198.51.100.7", 50000)

    async def test_stop_at_any_stage(self) -> None:
        """A stop ends what has said nothing yet, is in a handshake, or speaks, and leaves nothing behind."""
        raws = [await self.raw() for _ in range(4)]
        for raw, beginning in zip(raws, (b"", b"\x16\x03\x01", BINDING, HEALTH), strict=True):
            raw.transport.write(beginning)  # type: ignore[union-attr]
        await eventually(lambda: raws[2].heard and raws[3].heard)
        client = await self.client(kind=AppConnection.WSS)
        assert code_of(await client.allocate()) == 0
        await self.house.stop()
        for raw in raws:
            await patiently(raw.closed)
        assert self.house.end_reasons == ["shutdown"]
