"""Relayed TCP connections keep their promises whatever both ends do in whatever order: scripts drawn by seed.

Our own client is at one end of each, over every way in; a peer over TCP or TLS, or a second client, is at the other.
All sockets have small buffers, so that little is enough to make everybody wait for everybody.
"""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Any, NamedTuple

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import AppConnection
from relayd.client import PeerTls, TcpAllocation
from relayd.pipe.stream_end import StreamEnd
from tests.behaviour.house.suite import certificate
from tests.behaviour.house.test_client import ClientCase
from tests.support.turn_client import pause
from tests.support.wires import patiently, reactor

SCRIPTS = 8  # for each pair of transports
BUFFER = 8_192  # bytes that the system keeps for a socket each way, which it doubles
PATIENCE = 600  # turns of 5 ms without any progress after which there is none to come
PATTERN = random.Random(1).randbytes(1 << 21)  # what both say, from its beginning; longer than any script
POURED = 400_000  # bytes that a producer has to say, as fast as it may
PIECE = 16_384  # bytes of that at a time
WAIT = 3.0  # seconds of the relay's clock; the waits of a script are less than any grace of the relay's
MOST_WAITS = 3
VERBS = ("say", "say", "say", "say", "pour", "pause", "resume", "wait", "leave", "abort")
SIZES = (1, 125, 126, 4_096, 16_384, 16_385, 65_535, 65_536, 65_537, 150_000)
TURNS = (0, 0, 1, 3, 10)
ENDS = {"leave", "abort"}


class Step(NamedTuple):
    """Who of the two does what, and how many turns of the reactor later the next step comes."""

    party: int
    verb: str
    size: int
    turns: int


def script_of(seed: int) -> list[Step]:
    """Always the same one for a seed."""
    chance = random.Random(seed)
    script = [
        Step(chance.randrange(2), chance.choice(VERBS), chance.choice(SIZES), chance.choice(TURNS))
        for _ in range(chance.choice((3, 6, 12)))
    ]
    waits = [step for step in script if step.verb == "wait"]
    return [step for step in script if step not in waits[MOST_WAITS:]]


@implementer(IHalfCloseableProtocol, IPushProducer)
class Party(Protocol):
    """One of the two. `end`: "", "all" where the other one has said all, "closed" or "reset"."""

    def __init__(self) -> None:
        self.said = self.heard = 0  # bytes
        self.is_garbled = False
        self.end = ""
        self.did: list[str] = []  # of `ENDS`
        self.left_early = False  # before the other one did, or before all that it had said was heard
        self._to_pour = 0
        self._is_held = False

    def connectionMade(self) -> None:
        shrink(socket_of(self.transport))

    def dataReceived(self, data: bytes) -> None:
        self.is_garbled |= PATTERN[self.heard : self.heard + len(data)] != data
        self.heard += len(data)

    def readConnectionLost(self) -> None:
        self.end = "all"
        self._close_if_done()

    def writeConnectionLost(self) -> None:
        """We said all."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        assert reason is not None
        self.end = "closed" if reason.check(ConnectionDone) else "reset"

    # --- as a producer ---

    def resumeProducing(self) -> None:
        self._is_held = False
        if self._to_pour:
            reactor.callLater(0, self._pour)

    def pauseProducing(self) -> None:
        self._is_held = True

    def stopProducing(self) -> None:
        self._to_pour = 0

    def _pour(self) -> None:
        if self._is_held or not self._to_pour:
            return
        self._say(min(PIECE, self._to_pour))
        self._to_pour -= min(PIECE, self._to_pour)
        if self._to_pour:
            reactor.callLater(0, self._pour)
        else:
            self.transport.unregisterProducer()  # type: ignore[union-attr]

    def _say(self, size: int) -> None:
        self.transport.write(PATTERN[self.said : self.said + size])  # type: ignore[union-attr]
        self.said += size

    # --- what is done ---

    @property
    def half_closes(self) -> bool:
        """Whether one direction can end alone."""
        return bool(getattr(self.transport, "can_half_close", isinstance(self.transport, Connection)))

    @property
    def is_gone(self) -> bool:
        return self.end in ("closed", "reset")

    def do(self, verb: str, size: int = 0) -> None:
        transport: Any = self.transport
        if self.is_gone or "abort" in self.did or ("leave" in self.did and verb in ("say", "pour", "leave")):
            return
        if verb == "say":
            self._say(size)
        elif verb == "pour":
            if not self._to_pour:
                self._to_pour = POURED
                transport.registerProducer(self, True)
                self.resumeProducing()
        elif verb == "pause":
            transport.pauseProducing()
        elif verb == "resume":
            transport.resumeProducing()
        elif verb == "abort":
            self.did.append(verb)
            transport.abortConnection()
        else:
            self.did.append(verb)
            if self._to_pour:
                self._to_pour = 0
                transport.unregisterProducer()
            if self.half_closes:
                transport.loseWriteConnection()
                self._close_if_done()
            else:
                transport.loseConnection()

    def _close_if_done(self) -> None:
        if self.end == "all" and "leave" in self.did:
            self.transport.loseConnection()  # type: ignore[union-attr]


def socket_of(transport: Any) -> socket.socket:
    """The one at the bottom of a transport."""
    while not isinstance(transport, Connection):
        transport = transport._carrier.stream if hasattr(transport, "_carrier") else transport.transport
    return transport.socket


def shrink(opened: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        opened.setsockopt(socket.SOL_SOCKET, option, BUFFER)


class Called(Factory):
    """Builds the one party that is called."""

    noisy = False
    party: Party

    def buildProtocol(self, addr: Any) -> Party:
        self.party = Party()
        return self.party


class StreamModelSuite(ClientCase):
    """The promises. Subclasses say over what the client comes."""

    __test__ = False
    settings = {"peer_ca": certificate().certificate}

    async def test_peers_over_tcp(self) -> None:
        """The peer's directions end one by one."""
        called = Called()
        port = reactor.listenTCP(0, called, interface="127.0.0.1")
        await self.check_all(port, called, None)

    async def test_peers_over_tls(self) -> None:
        """TLS is between the relay and the peer."""
        called, files = Called(), certificate()
        context = DefaultOpenSSLContextFactory(str(files.key), str(files.certificate))
        port = reactor.listenSSL(0, called, context, interface="127.0.0.1")
        await self.check_all(port, called, PeerTls("localhost"))

    async def test_clients_of_one_relay(self) -> None:
        """Both come the same way."""
        called = Called()
        allocation = await self.allocation()
        allocation.listen(called)
        await patiently(allocation.permit("127.0.0.1"))
        await self.check_all(allocation, called, None)

    async def allocation(self) -> TcpAllocation:
        made: TcpAllocation = await patiently(self.turn_client(clock=self.house.reactor).allocate_tcp())
        self.addCleanup(made.close)
        return made

    async def check_all(self, place: Any, called: Called, tls: PeerTls | None) -> None:
        """Play all scripts between a client and whoever is called at that place."""
        for listener in self.house.daemon.listeners:
            port: Any = getattr(listener, "_port", None)
            if isinstance(getattr(port, "socket", None), socket.socket):
                shrink(port.socket)  # what it accepts takes after it
        if not isinstance(place, TcpAllocation):
            shrink(place.socket)
            self.addCleanup(place.stopListening)
        allocation = await self.allocation()
        endpoint = allocation.endpoint("127.0.0.1", place.getHost().port, tls)
        for seed in range(SCRIPTS):
            caller: Party = await patiently(endpoint.connect(Factory.forProtocol(Party)))
            await self.until(lambda: hasattr(called, "party") and called.party.transport is not None)
            ends = caller, called.party
            del called.party
            for relay in self.relays():
                for connection in relay.connections:
                    if getattr(connection, "transport", None) is not None:
                        shrink(socket_of(connection.transport))
            script = script_of(seed)
            try:
                await self.play(script, ends)
                check(ends)
            except AssertionError as error:
                lines = [*map(str, script), *(str({**vars(end), "transport": end.half_closes}) for end in ends)]
                raise AssertionError("\n  ".join([f"script {seed}: {error}", *lines])) from None

    async def play(self, script: list[Step], ends: tuple[Party, Party]) -> None:
        """The script, and what remains to be done until both are gone."""
        for step in script:
            if step.verb == "wait":
                self.house.reactor.advance(WAIT)
            else:
                self.do(ends, step.party, step.verb, step.size)
            for _ in range(step.turns):
                await pause()
        for end in ends:
            end.do("resume")
        if not any(end.did for end in ends):
            self.do(ends, 0, "leave")

        def are_gone() -> bool:
            for number, end in enumerate(ends):
                if end.end == "all":
                    self.do(ends, number, "leave")
            return all(end.is_gone for end in ends) and not self.left()

        while True:
            heard = [end.heard for end in ends]
            with contextlib.suppress(AssertionError):
                return await self.until(are_gone)
            assert heard != [end.heard for end in ends], f"it never ended; the relay has {self.left()}"

    def do(self, ends: tuple[Party, Party], number: int, verb: str, size: int = 0) -> None:
        party, other = ends[number], ends[1 - number]
        if verb in ENDS and not party.did and not party.is_gone:
            party.left_early = not ("leave" in other.did and party.heard == other.said)
        party.do(verb, size)

    async def until(self, holds: Any) -> None:
        for _ in range(PATIENCE):
            if holds():
                return
            await pause(0.005)
        raise AssertionError("it never came to pass")

    def relays(self) -> list[Any]:
        return [relay for each in self.house.core.sessions() for relay, _ in each.relays]

    def left(self) -> list[Any]:
        """What the relay still has of a connection."""
        deadlines = [
            call
            for call in self.house.reactor.pending()
            if isinstance(getattr(getattr(call, "func", None), "__self__", None), StreamEnd)
        ]
        clients: list[Any] = [
            client
            for listener in self.house.daemon.listeners
            for client in getattr(listener, "_clients", ())
            if getattr(client, "_data", None) is not None
        ]
        return [*deadlines, *clients, *(each for relay in self.relays() for each in relay.connections)]


def check(ends: tuple[Party, Party]) -> None:
    """Hold what came of it against the promises."""
    carried = all(end.half_closes for end in ends)
    for party, other in (ends, ends[::-1]):
        assert not party.is_garbled, "something came that was not sent"
        assert party.heard <= other.said, "more came than was sent"
        if "leave" in other.did and "abort" not in party.did + other.did and (carried or not party.left_early):
            assert party.heard == other.said, "what was sent before an orderly end did not come"
        if "abort" not in party.did + other.did:
            assert party.end == "closed", "an orderly end came as a reset"
        if other.did == ["abort"] and not party.did:
            assert party.end == "reset", "a reset came as an orderly end"


class TcpTest(StreamModelSuite):
    """Over TCP."""

    __test__ = True
    kind = AppConnection.TCP


class TlsTest(StreamModelSuite):
    """Over TLS."""

    __test__ = True
    kind = AppConnection.TLS


class WsTest(StreamModelSuite):
    """Over WebSocket."""

    __test__ = True
    kind = AppConnection.WS


class WssTest(StreamModelSuite):
    """Over WebSocket on TLS."""

    __test__ = True
    kind = AppConnection.WSS
