"""TCP allocations in the client core (RFC 6062) against the real server core, over a link in memory."""

from __future__ import annotations

import random
from typing import Any

import pytest

from relayd.address import AppConnection, Family, FiveTuple, Path, TransportAddress
from relayd.errors import RemoteError, ServerUnavailable
from relayd.stun import attributes as a
from relayd.stun.message import Class, Method, decode, encode
from relayd.turn import client_outputs as out
from relayd.turn import outputs as server_out
from relayd.turn.client import ClientSettings, TurnClientCore
from relayd.turn.client_connections import Bound, NotBound
from relayd.turn.client_requests import TI
from relayd.turn.outputs import PeerTls
from relayd.turn.settings import TCP, TurnSettings

from .parties import OTHER_PEER, PEER, REALM, SERVER4, Shell

FAMILIES = (Family.IPV4, Family.IPV6)


class Link:
    """A client core and a server core, whose messages reach each other at once."""

    def __init__(
        self, password: str = "secret", seed: int = 3, wants_tls: bool = False, has_certificate: bool = False
    ) -> None:
        transports = {17: FAMILIES, 6: FAMILIES}
        self.shell = Shell(TurnSettings(REALM, transports=transports, accepts_tls=has_certificate))
        self.entropy = random.Random(seed).randbytes
        self.path = self.new_path(40_000)
        settings = ClientSettings(AppConnection.TCP, "alice", password, transport=TCP, accepts_tls=wants_tls)
        self.core = TurnClientCore(settings, self.entropy)
        self.sent: list[bytes] = []
        self.told: list[Any] = []
        self.is_cut_off = False
        self._seen = 0

    def new_path(self, port: int) -> Path:
        return Path(FiveTuple(TransportAddress.parse("203.0.7.7", port), SERVER4, 6), AppConnection.TCP)

    def run(self) -> None:
        """Carry everything to and fro until both are quiet."""
        busy = True
        while busy:
            busy = False
            while (output := self.core.next_output()) is not None:
                busy = True
                if isinstance(output, out.Transmit | out.TransmitData):
                    self.sent.append(output.data)
                    if not self.is_cut_off:
                        self.from_client(self.path, output.data)
                else:
                    self.told.append(output)
            for data in self.to(self.path):
                busy = True
                self.core.receive(data, self.shell.now)

    def from_client(self, path: Path, data: bytes) -> None:
        self.shell.core.receive(path, data, self.shell.now)
        self.shell.run()

    def to(self, path: Path) -> list[bytes]:
        """What came for one connection since the last time; for others it stays."""
        mine = [each for each in self.shell.sent if each.path == path]
        for each in mine:
            self.shell.sent.remove(each)
        return [each.data for each in mine]

    def allocate(self) -> Any:
        self.core.allocate(self.shell.now)
        self.run()
        return self.told[0]

    def connect(self, peer: TransportAddress = PEER, tls: PeerTls | None = None) -> Any:
        """What is told of it."""
        asked = self.core.connect(peer, tls, self.shell.now)
        self.run()
        (told,) = [each for each in self.told if getattr(each, "id", None) == asked]
        return told

    def number(self, peer: TransportAddress = PEER) -> int:
        told = self.connect(peer)
        assert isinstance(told, out.PeerConnected)
        return told.number

    def bind(self, number: int, behind: bytes = b"", step: int = 1 << 20, path: Path | None = None) -> list[Any]:
        """A data connection: what its core told, with `behind` right behind each answer, in pieces of `step` bytes."""
        path = path or self.new_path(41_000)
        core = self.core.connection_bind(number)
        told: list[Any] = []
        core.begin(self.shell.now)
        for _ in range(10):
            while (output := core.next_output()) is not None:
                if isinstance(output, out.Transmit):
                    self.from_client(path, output.data)
                else:
                    told.append(output)
            stream = b"".join(self.to(path))
            if not stream:
                break
            if self.shell.joined:
                stream += behind
            for at in range(0, len(stream), step):
                core.receive(stream[at : at + step], self.shell.now)
        assert core.next_timer() is None
        return told

    def close(self) -> None:
        self.core.close(self.shell.now)
        self.run()
        assert self.core.next_timer() is None
        assert len(self.core._requests) == 0
        assert self.core._connections._waiting == set()
        assert isinstance(self.told[-1], out.Ended)
        self.shell.assert_nothing_left()


def test_connect_and_bind() -> None:
    """The whole way; the ConnectionBind needs no challenge of its own, and nothing is left on either side."""
    link = Link()
    assert isinstance(link.allocate(), out.Allocated)
    assert [event.transport for event in link.shell.events(server_out.AllocationCreated)] == [TCP]
    assert link.bind(link.number()) == [Bound(b"")]
    assert list(link.shell.joined.values()) == [link.new_path(41_000)]
    link.close()


@pytest.mark.parametrize("step", [1, 3, 20, 1 << 20])
def test_bytes_behind_the_answer(step: int) -> None:
    """Those in the same segment as the answer are the peer's, even if they look like STUN, and none is lost."""
    link = Link()
    link.allocate()
    behind = encode(Method.BINDING, Class.SUCCESS, bytes(12)) + b"\xffmore"
    number = link.number()
    told = link.bind(number, behind, step)
    (bound,) = told
    assert isinstance(bound, Bound)
    assert behind.startswith(bound.early)  # the rest comes to who is bound already
    assert step < 1 << 20 or bound.early == behind
    link.close()


def test_a_nonce_that_is_stale_on_the_data_connection() -> None:
    """438 is answered with the nonce that came with it, and the control connection keeps its own."""
    link = Link()
    link.allocate()
    number = link.number()
    before = link.core._authentication.attributes()
    core = link.core.connection_bind(number)
    core.begin(0.0)
    first = decode(core.next_output().data)  # type: ignore[union-attr]
    challenge: list[tuple[a.Attribute[Any], Any]] = [
        (a.ERROR_CODE, a.ErrorCode(438, "Stale Nonce")),
        (a.REALM, REALM),
        (a.NONCE, b"fresh"),
    ]
    core.receive(encode(Method.CONNECTION_BIND, Class.ERROR, first.transaction_id, challenge), 0.0)
    second = decode(core.next_output().data)  # type: ignore[union-attr]
    assert second.get(a.NONCE) == b"fresh"
    assert second.get(a.CONNECTION_ID) == number
    assert link.core._authentication.attributes() == before


def test_an_id_that_is_no_more() -> None:
    """The refusal is told."""
    link = Link()
    link.allocate()
    (told,) = link.bind(12_345)
    assert isinstance(told, NotBound)
    assert isinstance(told.error, RemoteError)
    assert told.error.code == 400
    link.close()


@pytest.mark.parametrize("junk", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\0 not the cookie.", b"\x80"])
def test_what_answers_is_no_turn_server(junk: bytes) -> None:
    """It is told at once."""
    link = Link()
    link.allocate()
    core = link.core.connection_bind(7)
    core.begin(0.0)
    core.next_output()
    core.receive(junk, 0.0)
    told = core.next_output()
    assert isinstance(told, NotBound)
    assert "no TURN server" in str(told.error)
    assert core.next_output() is None
    assert core.next_timer() is None


def test_a_silent_data_connection() -> None:
    """It is given up after the time of a request on a stream."""
    link = Link()
    link.allocate()
    core = link.core.connection_bind(7)
    core.begin(0.0)
    core.next_output()
    assert core.next_timer() == TI
    core.handle_timer(TI)
    told = core.next_output()
    assert isinstance(told, NotBound)
    assert isinstance(told.error, ServerUnavailable)


@pytest.mark.parametrize(("peer", "code"), [(PEER, 447), (OTHER_PEER, 403)])
def test_refused_peers(peer: TransportAddress, code: int) -> None:
    """Each refusal is told with its code, and the allocation goes on."""
    link = Link()
    link.allocate()
    link.shell.unreachable.add(PEER)
    link.shell.rules.refused.add(OTHER_PEER.ip)
    told = link.connect(peer)
    assert isinstance(told.error, RemoteError)
    assert told.error.code == code
    assert link.core.is_allocated
    link.close()


def test_one_connection_to_a_peer_at_a_time() -> None:
    """446 for the second one, and another port is another peer."""
    link = Link()
    link.allocate()
    link.number()
    assert link.connect().error.code == 446
    link.number(PEER.with_port(5001))
    link.close()


def test_tls_with_the_peer() -> None:
    """The name and the protocols go out, and the chosen protocol comes back; an impostor is 460."""
    link = Link()
    link.allocate()
    link.shell.impostors.add(OTHER_PEER)
    tls = PeerTls("peer.example.org", (b"h2", b"http/1.1"))
    told = link.connect(PEER, tls)
    assert told.protocol == b"h2"
    assert link.shell.asked_tls == [tls]
    assert link.connect(PEER.with_port(5001), PeerTls("peer.example.org")).protocol is None
    assert link.connect(OTHER_PEER, tls).error.code == 460
    link.close()


def test_peers_that_call_speak_tls() -> None:
    """The wish reaches the relay, which grants it; it is refused where the relay has no certificate."""
    link = Link(wants_tls=True, has_certificate=True)
    assert isinstance(link.allocate(), out.Allocated)
    assert [request.tls for request in link.shell.opened_for] == [True]
    link.close()
    refused = Link(wants_tls=True).allocate()
    assert isinstance(refused, out.Ended)
    assert isinstance(refused.error, RemoteError)
    assert refused.error.code == 442


def test_tls_is_not_taken_for_granted() -> None:
    """A server that allocates without a word on TLS would have peers heard in the clear: that is no allocation."""
    link = Link(wants_tls=True)
    link.core.allocate(link.shell.now)
    link.from_client(link.path, link.core.next_output().data)  # type: ignore[union-attr]
    (challenge,) = link.to(link.path)
    link.core.receive(challenge, link.shell.now)
    request = decode(link.core.next_output().data)  # type: ignore[union-attr]
    signature = link.core._authentication.signature
    assert signature is not None
    granted: list[tuple[a.Attribute[Any], Any]] = [(a.XOR_RELAYED_ADDRESS, SERVER4), (a.LIFETIME, 600)]
    named = (Method.ALLOCATE, Class.SUCCESS, request.transaction_id)
    answer = encode(*named, granted, key=signature.key, sha256=signature.sha256)
    link.core.receive(answer, link.shell.now)
    ended = link.core.next_output()
    assert isinstance(ended, out.Ended)
    assert "without TLS" in str(ended.error)
    assert not link.core.is_allocated


def test_a_peer_that_calls() -> None:
    """A permitted peer's ConnectionAttempt is told with its id, which can be bound."""
    link = Link()
    link.allocate()
    link.core.permit(PEER, link.shell.now)
    link.run()
    (relay,) = link.shell.open
    link.shell.arrive(relay, PEER)
    link.run()
    attempt = link.told[-1]
    assert isinstance(attempt, out.ConnectionAttempted)
    assert attempt.peer == PEER
    assert link.bind(attempt.number) == [Bound(b"")]
    link.close()


def test_the_end_answers_who_waits() -> None:
    """A Connect that is under way when the connection breaks is told, and one that comes after."""
    link = Link()
    link.allocate()
    link.is_cut_off = True
    asked = link.core.connect(PEER, None, link.shell.now)
    link.run()
    error = ServerUnavailable("gone")
    link.core.connection_lost(error, link.shell.now)
    link.run()
    assert link.told[-2:] == [out.Answered(asked, error), out.Ended(error)]
    assert link.connect().error is not None


def test_an_answer_without_an_id() -> None:
    """A success that says nothing is a fault of the server's."""
    link = Link()
    link.allocate()
    link.is_cut_off = True
    asked = link.core.connect(PEER, None, link.shell.now)
    link.run()
    request = decode(link.sent[-1])
    signature = link.core._authentication.signature
    assert signature is not None
    answer = encode(Method.CONNECT, Class.SUCCESS, request.transaction_id, key=signature.key, sha256=signature.sha256)
    link.core.receive(answer, link.shell.now)
    link.run()
    (told,) = [each for each in link.told if isinstance(each, out.Answered) and each.id == asked]
    assert isinstance(told.error, ServerUnavailable)
