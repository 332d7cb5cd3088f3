"""The invariant: whatever clients, peers and the shell do, in whatever order, no verb of the core raises, nothing is
held for a client that proved nothing, and after the last deadline nothing is left.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relayd.address import AppConnection, TransportAddress
from relayd.stun import attributes as a
from relayd.stun.attributes import ATTRIBUTES, Attribute
from relayd.stun.message import Class, Method, decode, encode
from relayd.turn import outputs as out
from relayd.turn.settings import TurnSettings
from tests.unit.turn.parties import BOTH, OTHER_PEER, PEER, PEER6, REALM, Client, Shell

QUOTA = 2
METHODS = [Method.BINDING, Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND, Method.SEND]
PEERS = [PEER, OTHER_PEER, PEER6, PEER.with_port(1), PEER.with_port(0)]
RAW = {code: Attribute(code, "", lambda raw, _: raw, lambda raw, _: raw) for code in [*ATTRIBUTES, 0x7777, 0xF777]}
RAW_ATTRIBUTES = st.lists(st.tuples(st.sampled_from(list(RAW.values())), st.binary(max_size=24)), max_size=6)


@given(data=st.binary(max_size=200))
@settings(max_examples=300)
def test_arbitrary_bytes(data: bytes) -> None:
    """Bytes that are no STUN message get no answer and leave nothing; on a path with an allocation they change
    nothing.
    """
    shell = Shell()
    client = Client(shell)
    client.send(data)
    shell.assert_nothing_left()
    client.allocate()
    client.send(data)
    assert len(list(shell.core.sessions())) == 1


@given(
    method=st.sampled_from(METHODS), cls=st.sampled_from(list(Class)), attributes=RAW_ATTRIBUTES, signed=st.booleans()
)
@settings(max_examples=300)
def test_arbitrary_attributes(method: Method, cls: Class, attributes: list[tuple[Any, bytes]], signed: bool) -> None:
    """Well-formed messages with any attributes, signed or not, before and after an Allocate: at most one answer."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    for _ in range(2):
        key = client.key if signed else None
        pairs = [*attributes, *(client.credentials() if signed else ())]
        answers = client.send(encode(method, cls, client.transaction_id(), pairs, key=key))
        assert len(answers) <= (cls is Class.REQUEST)
        assert all(decode(answer).method == method for answer in answers)
        if shell.core.allocation_of(client.path) is None:
            client.allocate()
    shell.core.shutdown(shell.now)
    shell.run()
    shell.assert_nothing_left()


class Session(RuleBasedStateMachine):
    """Three clients of one user, peers, a slow shell and a clock, against what must always hold."""

    def __init__(self) -> None:
        super().__init__()
        self.shell = Shell(TurnSettings(REALM, transports=BOTH, user_quota=QUOTA))
        kinds = (AppConnection.UDP, AppConnection.TCP, AppConnection.UDP)
        self.clients = [Client(self.shell, 40_000 + at, app_connection=kind) for at, kind in enumerate(kinds)]
        self.tokens: list[bytes] = [bytes(8)]

    @rule(who=st.integers(0, 2), lifetime=st.sampled_from([None, 0, 700]), even=st.sampled_from([None, False, True]))
    def allocate(self, who: int, lifetime: int | None, even: bool | None) -> None:
        pairs: list[tuple[Attribute[Any], Any]] = []
        if lifetime is not None:
            pairs.append((a.LIFETIME, lifetime))
        if even is not None:
            pairs.append((a.EVEN_PORT, even))
        self.ask(who, Method.ALLOCATE, [(a.REQUESTED_TRANSPORT, 17), *pairs])

    @rule(who=st.integers(0, 2))
    def allocate_both_families(self, who: int) -> None:
        self.ask(who, Method.ALLOCATE, [(a.REQUESTED_TRANSPORT, 17), (a.ADDITIONAL_ADDRESS_FAMILY, 2)])

    @rule(who=st.integers(0, 2), data=st.data())
    def claim(self, who: int, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(self.tokens))
        self.ask(who, Method.ALLOCATE, [(a.REQUESTED_TRANSPORT, 17), (a.RESERVATION_TOKEN, token)])

    @rule(who=st.integers(0, 2), lifetime=st.sampled_from([0, 1, 900]), family=st.sampled_from([None, 1, 2]))
    def refresh(self, who: int, lifetime: int, family: int | None) -> None:
        named = [] if family is None else [(a.REQUESTED_ADDRESS_FAMILY, family)]
        self.ask(who, Method.REFRESH, [(a.LIFETIME, lifetime), *named])

    @rule(who=st.integers(0, 2), peers=st.lists(st.sampled_from(PEERS), max_size=3))
    def permit(self, who: int, peers: list[TransportAddress]) -> None:
        self.ask(who, Method.CREATE_PERMISSION, [(a.XOR_PEER_ADDRESS, peer) for peer in peers])

    @rule(who=st.integers(0, 2), number=st.integers(0x4000, 0x4003), peer=st.sampled_from(PEERS))
    def bind(self, who: int, number: int, peer: TransportAddress) -> None:
        self.ask(who, Method.CHANNEL_BIND, [(a.CHANNEL_NUMBER, number), (a.XOR_PEER_ADDRESS, peer)])

    @rule(who=st.integers(0, 2), peer=st.sampled_from(PEERS), number=st.integers(0x4000, 0x4003))
    def send(self, who: int, peer: TransportAddress, number: int) -> None:
        self.clients[who].indicate(peer, b"x")
        self.clients[who].send(number.to_bytes(2, "big") + b"\0\1x")

    @rule(peer=st.sampled_from(PEERS))
    def hear(self, peer: TransportAddress) -> None:
        for relay in list(self.shell.open):
            self.shell.from_peer(relay, peer, b"y")

    @rule(at_once=st.booleans())
    def shell_mood(self, at_once: bool) -> None:
        self.shell.answers_at_once = at_once
        self.shell.answer_all()
        self.shell.run()

    @rule(refuse=st.booleans())
    def shell_refuses(self, refuse: bool) -> None:
        self.shell.refusal = out.RelayRefused(508) if refuse else None

    @rule(who=st.integers(0, 2))
    def close(self, who: int) -> None:
        self.shell.core.path_closed(self.clients[who].path, self.shell.now)
        self.shell.run()

    @rule(data=st.data())
    def break_relay(self, data: st.DataObject) -> None:
        if self.shell.open:
            self.shell.core.relay_failed(data.draw(st.sampled_from(sorted(self.shell.open))), self.shell.now)
            self.shell.run()

    @rule(refused=st.sets(st.sampled_from([PEER.ip, OTHER_PEER.ip, PEER6.ip])))
    def change_rules(self, refused: set[bytes | TransportAddress]) -> None:
        self.shell.rules.refused = refused
        self.shell.core.peer_rules_changed(self.shell.now)
        self.shell.run()

    @rule(seconds=st.sampled_from([1, 29, 40, 300, 599, 700]))
    def wait(self, seconds: int) -> None:
        self.shell.advance(seconds)

    @invariant()
    def quota_is_exact(self) -> None:
        """Allocations and those under way are as many as places taken, and never more than allowed."""
        core = self.shell.core
        opening = sum(type(waiting).__name__ == "_WaitsForRelay" for _, waiting in core._requests._pending.all())
        assert len(list(core.sessions())) + opening == core._allocations.quota.taken <= QUOTA

    @invariant()
    def flows_are_channels(self) -> None:
        """Exactly the bound channels have a flow, each to a peer that may be reached."""
        bound = {
            (str(binding.relay), binding.number): binding.peer
            for allocation in self.shell.core.sessions()
            for binding in allocation.channels.values()
        }
        assert {key: flow.peer for key, flow in self.shell.flows.items()} == bound
        assert not any(peer.ip in self.shell.rules.refused for peer in bound.values())

    def ask(self, who: int, method: Method, pairs: list[tuple[Attribute[Any], Any]]) -> None:
        client = self.clients[who]
        if client.nonce is None or self.shell.now > 4000:
            client.greet()
        for answer in client.send(client.encode(method, pairs)):
            token = decode(answer).get(a.RESERVATION_TOKEN)
            if token is not None:
                self.tokens.append(token)

    def teardown(self) -> None:
        """Let everybody go quiet: after the longest lifetime there is nothing."""
        self.shell.advance(40)
        self.shell.answer_all()
        self.shell.run()
        self.shell.advance(3600)
        self.shell.assert_nothing_left()


TestSession = Session.TestCase
TestSession.settings = settings(max_examples=60, stateful_step_count=40)
