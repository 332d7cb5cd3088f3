"""Three parties on a stepped clock: clients that speak TURN, a `TurnServer`, and the shell around it that has the
peers.

The shell here does what it is asked at once and at random never: relays are strings, users are a dictionary.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from relayd.address import AppConnection, Family, FiveTuple, Path, TransportAddress
from relayd.stun import attributes as a
from relayd.stun.attributes import ALGORITHMS_OFFERED, Attribute
from relayd.stun.integrity import PasswordAlgorithm, long_term_key, userhash
from relayd.stun.message import Class, Message, Method, decode, encode
from relayd.turn import outputs as out
from relayd.turn.server import TurnServer
from relayd.turn.settings import TurnSettings

REALM = "example.org"
SERVER4 = TransportAddress.parse("192.0.9.1", 3478)
RELAY4 = TransportAddress.parse("192.0.9.1", 0)
RELAY6 = TransportAddress.parse("2a00::9", 0)
PEER = TransportAddress.parse("198.51.7.1", 5000)
OTHER_PEER = TransportAddress.parse("198.51.7.2", 5000)
PEER6 = TransportAddress.parse("2a00::7", 5000)
BOTH = {17: (Family.IPV4, Family.IPV6)}
UDP_ATTRIBUTE = (a.REQUESTED_TRANSPORT, 17)

Pairs = Iterable[tuple[Attribute[Any], Any]]


class Rules:
    """A guard with a list of refused peers, by address or by address and port, and a record of what was asked."""

    def __init__(self) -> None:
        self.refused: set[bytes | TransportAddress] = set()
        self.asked: list[tuple[str, TransportAddress]] = []

    def may_reach(self, username: str, peer: TransportAddress) -> bool:
        self.asked.append((username, peer))
        return peer.ip not in self.refused and peer not in self.refused


class Shell:
    """Carries out what the core asks for, and keeps book: relays that are open, flows that are installed, what was
    said.
    """

    def __init__(self, settings: TurnSettings | None = None, seed: int = 1) -> None:
        self.now = 1000.0
        self.rules = Rules()
        self.settings = settings or TurnSettings(REALM, transports=BOTH)
        self.entropy = random.Random(seed)
        self.core = TurnServer(self.settings, self.entropy.randbytes, self.rules)
        self.passwords = {"alice": "secret", "bob": "hunter2"}
        self.waiting: list[out.AuthenticateUser | out.OpenRelay | out.ConnectToPeer] = []
        self.answers_at_once = True
        self.refusal: out.RelayRefused | None = None
        self.failed: tuple[Family, int] | None = None
        self.open: dict[str, TransportAddress] = {}
        self.flows: dict[tuple[str, int], out.InstallFlow] = {}
        self.sent: list[out.Send | out.Deliver] = []
        self.to_peers: list[out.SendToPeer] = []
        self.told: list[Any] = []
        self.ports = 0
        self.unreachable: set[TransportAddress] = set()
        self.connections: dict[str, TransportAddress] = {}  # those with peers that are open
        self.joined: dict[str, Path] = {}
        self.impostors: set[TransportAddress] = set()
        self.asked_tls: list[out.PeerTls] = []
        self.opened_for: list[out.OpenRelay] = []

    # --- doing ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Carry out everything that the core wants by now."""
        while (output := self.core.next_output()) is not None:
            self._perform(output)

    def _perform(self, output: Any) -> None:
        if isinstance(output, out.Send | out.Deliver):
            self.sent.append(output)
        elif isinstance(output, out.SendToPeer):
            assert output.relay in self.open
            self.to_peers.append(output)
        elif isinstance(output, out.ClosePeerConnection):
            del self.connections[str(output.connection)]
            self.joined.pop(str(output.connection), None)
        elif isinstance(output, out.JoinConnections):
            assert output.connection in self.connections
            self.joined[str(output.connection)] = output.path
        elif isinstance(output, out.AuthenticateUser | out.OpenRelay | out.ConnectToPeer):
            self.waiting.append(output)
            if self.answers_at_once:
                self.answer_all()
        elif isinstance(output, out.CloseRelay):
            relay = str(output.relay)
            assert all(name != relay for name, _ in self.flows), "a flow outlived its relay"
            self.open.pop(relay, None)
        elif isinstance(output, out.InstallFlow):
            assert output.relay in self.open
            self.flows[str(output.relay), output.number] = output
        elif isinstance(output, out.RemoveFlow):
            del self.flows[str(output.relay), output.number]
        else:
            self.told.append(output)

    def answer_all(self) -> None:
        """Answer what waits, in order."""
        waiting, self.waiting = self.waiting, []
        for request in waiting:
            self.core.answer(request.id, self.result(request), self.now)

    def result(self, request: out.AuthenticateUser | out.OpenRelay | out.ConnectToPeer) -> Any:
        if isinstance(request, out.OpenRelay):
            return self._opened(request)
        if isinstance(request, out.ConnectToPeer):
            if request.peer in self.unreachable:
                return out.PeerNotConnected()
            if request.tls is None:
                return out.PeerConnected(self.connection_with(request.peer))
            self.asked_tls.append(request.tls)
            if request.peer in self.impostors:
                return out.PeerNotConnected(460)
            protocol = request.tls.protocols[0] if request.tls.protocols else None
            return out.PeerConnected(self.connection_with(request.peer), protocol)
        for username, password in self.passwords.items():
            if request.username == username or request.userhash == userhash(username, REALM):
                key = long_term_key(request.algorithm, username, request.realm, password)
                if request.proof.matches(key):
                    return out.Authenticated(username, key)
        return out.NotAuthenticated()

    def _opened(self, request: out.OpenRelay) -> Any:
        self.opened_for.append(request)
        if self.refusal is not None:
            return self.refusal
        if request.reservation is not None:
            relay = str(request.reservation)
            return out.RelayOpened(((relay, self.open[relay]),))
        failed = self.failed
        families = [family for family in request.families if failed is None or family != failed[0]]
        relays = tuple(self._open_one(family) for family in families)
        reserved = self._open_one(families[0])[0] if request.reserve_next else None
        return out.RelayOpened(relays, failed=failed, reserved=reserved)

    def _open_one(self, family: Family) -> tuple[str, TransportAddress]:
        self.ports += 1
        address = (RELAY4 if family is Family.IPV4 else RELAY6).with_port(50_000 + self.ports)
        relay = f"relay {self.ports}"
        self.open[relay] = address
        return relay, address

    def connection_with(self, peer: TransportAddress) -> str:
        """A TCP connection with a peer, opened by whomever."""
        self.ports += 1
        connection = f"connection {self.ports}"
        self.connections[connection] = peer
        return connection

    def arrive(self, relay: str, peer: TransportAddress) -> str:
        """A peer connects to a relayed address; gives the handle of the connection."""
        connection = self.connection_with(peer)
        self.core.peer_arrived(relay, peer, connection, self.now)
        self.run()
        return connection

    def hang_up(self, connection: str) -> None:
        """A connection with a peer ends by itself."""
        del self.connections[connection]
        self.joined.pop(connection, None)
        self.core.peer_connection_closed(connection, self.now)
        self.run()

    # --- time and peers -------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass, from deadline to deadline."""
        until = self.now + seconds
        while (due := self.core.next_timer()) is not None and due <= until:
            self.now = max(self.now, due)
            self.core.handle_timer(self.now)
            self.run()
        self.now = until

    def from_peer(self, relay: str, peer: TransportAddress, data: bytes) -> list[out.Send | out.Deliver]:
        """A datagram from a peer; gives what went to clients."""
        before = len(self.sent)
        self.core.receive_from_peer(relay, peer, data, self.now)
        self.run()
        return self.sent[before:]

    def events(self, kind: type) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]

    def assert_nothing_left(self) -> None:
        """No allocation, pending request, reservation, deadline, output, open relay or flow, and no quota in use."""
        core = self.core
        assert list(core.sessions()) == []
        assert core.next_timer() is None
        assert core.next_output() is None
        assert self.open == {}
        assert self.flows == {}
        assert self.connections == {}
        assert self.joined == {}
        assert len(core._allocations.connections) == 0
        assert len(core._requests._pending) == 0
        assert len(core._allocations._reservations) == 0
        assert core._allocations.quota.taken == 0
        assert not any(core.count(app_connection) for app_connection in AppConnection)


class Client:
    """A TURN client: signs as told, remembers realm and nonce, and gives the answer to each request."""

    def __init__(
        self,
        shell: Shell,
        port: int = 40_000,
        username: str = "alice",
        password: str = "secret",
        host: str = "203.0.7.7",
        app_connection: AppConnection = AppConnection.UDP,
        server: TransportAddress = SERVER4,
    ) -> None:
        self.shell = shell
        self.username = username
        self.password = password
        self.algorithm: PasswordAlgorithm | None = None  # None: as RFC 5389 clients, MD5 without saying so
        self.with_fingerprint = False
        self.nonce: bytes | None = None
        transport = 17 if app_connection.is_datagram else 6
        self.path = Path(FiveTuple(TransportAddress.parse(host, port), server, transport), app_connection)

    @property
    def key(self) -> bytes:
        return long_term_key(self.algorithm or PasswordAlgorithm.MD5, self.username, REALM, self.password)

    def credentials(self) -> list[tuple[Attribute[Any], Any]]:
        found: list[tuple[Attribute[Any], Any]] = [(a.USERNAME, self.username), (a.REALM, REALM), (a.NONCE, self.nonce)]
        if self.algorithm is not None:
            found += [(a.PASSWORD_ALGORITHMS, ALGORITHMS_OFFERED), (a.PASSWORD_ALGORITHM, self.algorithm)]
        return found

    def transaction_id(self) -> bytes:
        return self.shell.entropy.randbytes(12)

    def encode(self, method: int, attributes: Pairs = (), transaction_id: bytes | None = None) -> bytes:
        """A request, signed if there is a nonce."""
        signed = self.nonce is not None
        return encode(
            method,
            Class.REQUEST,
            transaction_id or self.transaction_id(),
            [*attributes, *(self.credentials() if signed else ())],
            key=self.key if signed else None,
            sha256=self.algorithm is PasswordAlgorithm.SHA256,
            with_fingerprint=self.with_fingerprint,
        )

    def send(self, data: bytes) -> list[bytes]:
        """Send bytes; gives what came back at once."""
        before = len(self.shell.sent)
        self.shell.core.receive(self.path, data, self.shell.now)
        self.shell.run()
        return [sent.data for sent in self.shell.sent[before:] if sent.path == self.path]

    def ask(self, method: int, attributes: Pairs = (), transaction_id: bytes | None = None) -> Message:
        """One request and its one answer."""
        (answer,) = self.send(self.encode(method, attributes, transaction_id))
        return decode(answer)

    def greet(self) -> None:
        """Get a nonce."""
        self.nonce = None
        self.nonce = self.ask(Method.ALLOCATE, [UDP_ATTRIBUTE]).get(a.NONCE)

    def allocate(self, attributes: Pairs = (), transaction_id: bytes | None = None) -> Message:
        """An Allocate with REQUESTED-TRANSPORT for UDP, greeting first if need be."""
        if self.nonce is None:
            self.greet()
        return self.ask(Method.ALLOCATE, [UDP_ATTRIBUTE, *attributes], transaction_id)

    def refresh(self, *attributes: tuple[Attribute[Any], Any]) -> Message:
        return self.ask(Method.REFRESH, attributes)

    def delete(self) -> Message:
        return self.refresh((a.LIFETIME, 0))

    def permit(self, *peers: TransportAddress) -> Message:
        return self.ask(Method.CREATE_PERMISSION, [(a.XOR_PEER_ADDRESS, peer) for peer in peers])

    def bind(self, number: int, peer: TransportAddress) -> Message:
        return self.ask(Method.CHANNEL_BIND, [(a.CHANNEL_NUMBER, number), (a.XOR_PEER_ADDRESS, peer)])

    def indicate(self, peer: TransportAddress, data: bytes, *attributes: tuple[Attribute[Any], Any]) -> None:
        """A Send indication."""
        pairs: list[tuple[Attribute[Any], Any]] = [(a.XOR_PEER_ADDRESS, peer), (a.DATA, data), *attributes]
        assert self.send(encode(Method.SEND, Class.INDICATION, self.transaction_id(), pairs)) == []

    @property
    def relay(self) -> str:
        """The handle of the first relay of its allocation."""
        allocation = self.shell.core.allocation_of(self.path)
        assert allocation is not None
        return str(allocation.relays[0][0])


def code_of(message: Message) -> int:
    """The error code of an answer, 0 for a success."""
    if message.cls is Class.SUCCESS:
        return 0
    error = message.get(a.ERROR_CODE)
    assert error is not None
    return error.code
