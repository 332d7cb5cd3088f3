"""TURN over WebSocket on real sockets, beyond what every way in promises: HTTP, origins, close codes, pings, abuse."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.ssl import Certificate as TrustRoot
from twisted.internet.ssl import optionsForClientTLS

from relayd.address import AppConnection, TransportAddress
from relayd.listeners.websocket import PING_INTERVAL, PONG_TIMEOUT
from relayd.stun import attributes as a
from relayd.stun.framing import encode_channel_data
from relayd.stun.message import MAX_MESSAGE
from tests.behaviour.house.suite import NUMBER, HouseCase, certificate
from tests.support.house import USERS
from tests.support.turn_client import TurnClient, code_of, eventually, pause
from tests.support.wires import Raw, WebSocketWire, WebSocketWireFactory, patiently, reactor


class WebCase(HouseCase):
    """Ways to reach the site of a relay."""

    kind = AppConnection.WS

    def endpoint(self) -> Any:
        server = self.house.address(self.kind, self.host)
        endpoint: Any = TCP4ClientEndpoint(reactor, server.host, server.port)
        if self.kind is AppConnection.WSS:
            trusted = TrustRoot.loadPEM(certificate().certificate.read_bytes())
            endpoint = wrapClientTLS(optionsForClientTLS("localhost", trustRoot=trusted), endpoint)
        return endpoint

    async def raw(self) -> Any:
        made: Any = await connectProtocol(self.endpoint(), Raw())
        self.addCleanup(made.close)
        return made

    async def websocket(self, path: str = "/turn", **settings: Any) -> WebSocketWire:
        """One that is open; `settings` go to Autobahn's factory. A refusal is a ConnectionError."""
        made: Any = await self.endpoint().connect(WebSocketWireFactory(path, **settings))
        self.addCleanup(made.close)
        await patiently(made.opened)
        return made  # type: ignore[no-any-return]

    async def refusal(self, **settings: Any) -> str:
        """Why no WebSocket opened."""
        try:
            await self.websocket(**settings)
        except ConnectionError as why:
            return str(why)
        raise AssertionError("it opened")

    @property
    def listener(self) -> Any:
        listeners: Any = self.house.daemon.listeners
        return next(each for each in listeners if each.app_connection == self.kind.value)

    async def pass_seconds(self, count: float) -> None:
        """Let the relay live through so many seconds, one by one."""
        for _ in range(int(count)):
            self.house.reactor.advance(1)
            await pause(0.002)


class WebTests(WebCase):
    """What a well-behaved client meets."""

    async def test_the_site(self) -> None:
        """On the same port there are pages."""
        raw = await self.raw()
        raw.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await eventually(lambda: raw.heard.endswith(b"nothing here.\n"))
        assert raw.heard.startswith(b"HTTP/1.1 200 OK\r\n")
        assert raw.heard.count(b"HTTP/1.1 404 Not Found\r\n") == 1

    async def test_a_subprotocol_is_spoken_if_offered(self) -> None:
        """A client that offers `turn` gets it, one that offers nothing gets none; `/` does as well as `/turn`."""
        assert (await self.websocket(protocols=["chat", "turn"])).websocket_protocol_in_use == "turn"
        assert (await self.websocket()).websocket_protocol_in_use is None
        assert (await self.websocket("/")).websocket_protocol_in_use is None

    async def test_messages_that_were_joined(self) -> None:
        """Several messages in one, padded to four bytes, arrive as if each had come alone, which needs no padding."""
        peer = self.peer()
        client, relayed = await self.bound(peer)
        sizes = (0, 1, 2, 3, 4, 200)
        padded = [encode_channel_data(NUMBER, bytes(size), padded=True) for size in sizes]
        client.wire.write(b"".join(padded))
        for size in sizes:
            assert await peer.next() == (bytes(size), relayed)
        client.wire.write(encode_channel_data(NUMBER, b"abc", padded=False))
        assert await peer.next() == (b"abc", relayed)

    async def test_fragments_and_pings(self) -> None:
        """A message may come in many frames with pings between them, as RFC 6455 section 5.4 has it."""
        peer = self.peer()
        client, relayed = await self.bound(peer)
        payload = bytes(range(256)) * 8
        client.wire.beginMessage(isBinary=True)
        data = encode_channel_data(NUMBER, payload, padded=False)
        for at in range(0, len(data), 100):
            client.wire.sendMessageFrame(data[at : at + 100])
            client.wire.sendPing(b"still here")
        client.wire.endMessage()
        assert await peer.next() == (payload, relayed)

    async def test_pings_keep_a_quiet_session(self) -> None:
        """A client that only answers pings keeps its allocation, and the connection never looks idle to a proxy."""
        client = await self.client()
        await client.relayed()
        before = client.wire.trafficStats.incomingOctetsWireLevel
        await self.pass_seconds(3 * PING_INTERVAL)
        assert client.wire.trafficStats.incomingOctetsWireLevel - before >= 3 * len(b"\x89\x00")
        assert code_of(await client.refresh(600)) == 0

    async def test_the_relay_stops(self) -> None:
        """Clients are told that the relay goes away."""
        client = await self.client()
        await client.relayed()
        await self.house.stop()
        await patiently(client.wire.closed)
        assert client.wire.code == 1001
        assert self.house.end_reasons == ["shutdown"]


class BatchedWebTests(WebTests):
    data_plane = "batched"


class WssTests(WebTests):
    kind = AppConnection.WSS


class WebAbuseTests(WebCase):
    """What others meet."""

    async def test_hostile_pages_are_refused(self) -> None:
        """A page of another site gets 403 and never a WebSocket; our own name and programs get in."""
        for origin in ("https://evil.example", "null", "http://localhost:1"):
            assert "403" in await self.refusal(origin=origin)
        await self.websocket(origin="http://localhost")
        await eventually(lambda: self.listener.admission.total == 1)

    async def test_close_codes(self) -> None:
        """Text, oversized, half and garbage messages close with 1003, 1009 and 1007, and end the allocation."""
        cases: list[tuple[bytes, bool, int]] = [
            (b"hello", False, 1003),
            (bytes(MAX_MESSAGE + 1), True, 1009),
            (bytes(5_000_000), True, 1009),
            (bytes.fromhex("0003fffc2112a442") + bytes(12), True, 1007),
            (b"", True, 1007),
            (b"\xff" * 20, True, 1007),
        ]
        for data, is_binary, code in cases:
            client = await self.client()
            await client.relayed()
            client.wire.sendMessage(data, isBinary=is_binary)
            await patiently(client.wire.closed)
            assert client.wire.code in (code, 1006 if len(data) > 1_000_000 else code)
            await eventually(lambda: self.house.sessions() == 0)
        assert set(self.house.end_reasons) == {"connection-closed"}
        await eventually(lambda: self.listener.admission.total == 0)

    async def test_slow_headers_are_silence(self) -> None:
        """A request that drips in, byte by byte, holds its connection no longer than silence would."""
        raws = [await self.raw() for _ in range(3)]
        raws[0].write(b"GET /turn HTTP/1.1\r\n")
        raws[1].write(b"POST /turn HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n")
        for _ in range(20):
            for raw in raws[:2]:
                raw.write(b"x")
            await self.pass_seconds(1)
        for raw in raws:
            await patiently(raw.closed)
        await eventually(lambda: self.listener.admission.total == 0)
        self.house.assert_holds_nothing()

    async def test_a_silent_websocket_is_closed(self) -> None:
        """Opening a WebSocket is no message: whoever then says nothing is sent away, pings or not."""
        wire = await self.websocket()
        for _ in range(20):
            if not wire.closed.called:
                wire.sendPing(b"")
            await self.pass_seconds(1)
        await patiently(wire.closed)
        assert wire.code == 1001

    async def test_a_client_that_vanished(self) -> None:
        """A client that answers no pings loses its connection, and with it the allocation, long before that expires."""
        client = await self.client()
        await client.relayed()
        client.wire.transport.pauseProducing()
        await self.pass_seconds(PING_INTERVAL + PONG_TIMEOUT + 5)
        await eventually(lambda: self.house.sessions() == 0)
        client.wire.transport.resumeProducing()
        await patiently(client.wire.closed)

    async def test_a_flood_of_pings(self) -> None:
        """Pings from a client that does not read the pongs take bounded memory, and harm nobody else."""
        flood = await self.websocket()
        flood.transport.pauseProducing()
        for _ in range(100):
            for _ in range(200):
                flood.sendPing(bytes(125))
            await pause()
            for connection in self.listener._clients:
                transport = connection.transport
                below = getattr(transport, "transport", transport)
                assert len(below.dataBuffer) + below._tempDataLen + connection._waiting_size < 512 * 1024
        client = await self.client("bob")
        assert code_of(await client.allocate()) == 0
        await client.refresh(0)
        flood.transport.abortConnection()

    async def test_garbage(self) -> None:
        """What is no HTTP closes the connection; an HTTP request on TURN's own port is not served there."""
        for garbage in (b"\xff" * 20 + b"\r\n\r\n", b"\x00\x01\x00\x00\x21\x12\xa4\x42" + b"\r\n\r\n", b"x" * 100_000):
            raw = await self.raw()
            raw.write(garbage)
            await patiently(raw.closed)
        await eventually(lambda: self.listener.admission.total == 0)


class WssAbuseTests(WebAbuseTests):
    kind = AppConnection.WSS


class CrowdTests(WebCase):
    """Limits of connections."""

    settings = {"max_connections_per_source": 3, "trust_proxy": ()}

    async def test_connections_per_source(self) -> None:
        """One source has so many connections and no more, whatever they speak; each one that ends makes room."""
        first = await self.websocket()
        await self.websocket()
        await self.raw()
        refused = await self.raw()
        await patiently(refused.closed)
        await first.close()
        await eventually(lambda: self.listener.admission.total == 2)
        wire = await self.websocket()
        client = TurnClient(wire, self.kind, "alice", USERS["alice"])
        assert code_of(await client.allocate()) == 0


class ForwardedTests(WebCase):
    """Behind a web proxy on this host, which is trusted unless the operator says otherwise."""

    settings = {"max_connections_per_source": 2}

    async def forwarded(self, header: str, value: str) -> TurnClient:
        wire = await self.websocket(headers={header: value})
        return TurnClient(wire, self.kind, "alice", USERS["alice"])

    async def test_the_client_is_known(self) -> None:
        """The client that the proxy names is told its address, and is the one in the log."""
        for header, value, host in (
            ("X-Forwarded-For", "203.0.113.9, 198.51.100.7:4711", "198.51.100.7"),
            ("Forwarded", 'for="[2001:db8::7]:4711";proto=http', "2001:db8::7"),
        ):
            client = await self.forwarded(header, value)
            mapped = (await client.allocate()).get(a.XOR_MAPPED_ADDRESS)
            assert mapped == TransportAddress.parse(host, 4711)
            assert self.house.log[-1]["client"] == str(mapped)
            assert self.house.log[-1]["app_connection"] == self.kind.value

    async def test_the_proxy_ended_tls(self) -> None:
        """A client that came to the proxy over TLS is a `wss` one."""
        client = await self.forwarded("X-Forwarded-Proto", "https")
        assert code_of(await client.allocate()) == 0
        assert self.house.log[-1]["app_connection"] == "wss"

    async def test_connections_per_client(self) -> None:
        """Each client behind the proxy has its own limit, and hears in HTTP when it is reached."""
        for host in ("198.51.100.7", "198.51.100.8"):
            for _ in range(2):
                await self.forwarded("X-Forwarded-For", host)
            assert "429" in await self.refusal(headers={"X-Forwarded-For": host})
        for _ in range(3):
            await self.websocket()

    async def test_a_forged_header(self) -> None:
        """A header that the proxy passes on as the client wrote it does not hide the client."""
        forged = {"X-Forwarded-For": "198.51.100.7", "Forwarded": "for=127.0.0.1"}
        assert "400" in await self.refusal(headers=forged)


class StrangersForwardedTests(WebCase):
    """Where no proxy is trusted."""

    settings = {"trust_proxy": ()}

    async def test_a_strangers_header(self) -> None:
        """Nobody's word is taken on where a client is."""
        wire = await self.websocket(headers={"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"})
        client = TurnClient(wire, self.kind, "alice", USERS["alice"])
        assert (await client.allocate()).get(a.XOR_MAPPED_ADDRESS) == wire.local
        assert self.house.log[-1]["app_connection"] == "ws"


class AnyOriginTests(WebCase):
    """`--web-origin`."""

    settings = {"web_origin": ("https://app.example.org",)}

    async def test_a_page_that_is_listed(self) -> None:
        """It gets in; others still do not."""
        await self.websocket(origin="https://app.example.org")
        assert "403" in await self.refusal(origin="https://app.example.org:8443")
