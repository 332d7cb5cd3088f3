"""TCP allocations in the core (RFC 6062): Connect, ConnectionAttempt, ConnectionBind, and how connections end."""

from __future__ import annotations

from typing import Any

import pytest

from relayd.address import AppConnection, Family, TransportAddress
from relayd.stun import attributes as a
from relayd.stun.message import Class, Message, Method, decode
from relayd.turn import outputs as out
from relayd.turn.outputs import EndReason
from relayd.turn.peer_connections import BIND_TIMEOUT, MAX_CONNECTIONS
from relayd.turn.settings import TurnSettings

from .parties import OTHER_PEER, PEER, PEER6, REALM, Client, Shell, code_of

FAMILIES = (Family.IPV4, Family.IPV6)
TCP_ATTRIBUTE = (a.REQUESTED_TRANSPORT, 6)
STREAMS = [AppConnection.TCP, AppConnection.TLS, AppConnection.WS, AppConnection.WSS]


def new_shell() -> Shell:
    return Shell(TurnSettings(REALM, transports={17: FAMILIES, 6: FAMILIES}))


def allocated(shell: Shell, app_connection: AppConnection = AppConnection.TCP, port: int = 40_000) -> Client:
    """A client with a TCP allocation."""
    client = Client(shell, port, app_connection=app_connection)
    client.greet()
    assert code_of(client.ask(Method.ALLOCATE, [TCP_ATTRIBUTE])) == 0
    return client


def connect(client: Client, peer: TransportAddress = PEER) -> Message:
    return client.ask(Method.CONNECT, [(a.XOR_PEER_ADDRESS, peer)])


def connected(client: Client, peer: TransportAddress = PEER) -> int:
    """A successful Connect; gives the CONNECTION-ID."""
    number = connect(client, peer).get(a.CONNECTION_ID)
    assert number is not None
    return number


def data_connection(client: Client, port: int = 41_000, username: str = "alice") -> Client:
    """Another connection of the same kind, that has a nonce."""
    password = client.shell.passwords[username]
    other = Client(client.shell, port, username, password, app_connection=client.path.app_connection)
    other.greet()
    return other


def bind(client: Client, number: int | None) -> Message:
    return client.ask(Method.CONNECTION_BIND, [] if number is None else [(a.CONNECTION_ID, number)])


def finished(shell: Shell, *clients: Client) -> None:
    for client in clients:
        shell.core.path_closed(client.path, shell.now)
    shell.run()
    shell.assert_nothing_left()


# --- Allocate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app_connection", [AppConnection.UDP, AppConnection.DTLS, AppConnection.DC])
def test_a_datagram_client_gets_no_tcp_allocation(app_connection: AppConnection) -> None:
    """RFC 6062 section 5.1: 400, and nothing was opened."""
    shell = new_shell()
    client = Client(shell, app_connection=app_connection)
    client.greet()
    assert code_of(client.ask(Method.ALLOCATE, [TCP_ATTRIBUTE])) == 400
    shell.assert_nothing_left()


@pytest.mark.parametrize("attribute", [(a.EVEN_PORT, False), (a.DONT_FRAGMENT, True), (a.RESERVATION_TOKEN, bytes(8))])
def test_what_makes_sense_for_udp_only_is_refused(attribute: tuple[a.Attribute[object], object]) -> None:
    """RFC 6062 section 5.1: EVEN-PORT, DONT-FRAGMENT and RESERVATION-TOKEN are 400."""
    shell = new_shell()
    client = Client(shell, app_connection=AppConnection.TCP)
    client.greet()
    assert code_of(client.ask(Method.ALLOCATE, [TCP_ATTRIBUTE, attribute])) == 400
    shell.assert_nothing_left()


def test_a_relay_without_tcp_says_so() -> None:
    """RFC 8656 section 7.2: 442."""
    shell = Shell()
    client = Client(shell, app_connection=AppConnection.TCP)
    client.greet()
    assert code_of(client.ask(Method.ALLOCATE, [TCP_ATTRIBUTE])) == 442


def test_channels_and_send_indications_are_for_udp() -> None:
    """A TCP allocation refuses ChannelBind with 403, and sends nothing for a Send indication."""
    shell = new_shell()
    client = allocated(shell)
    assert code_of(client.permit(PEER)) == 0
    assert code_of(client.bind(0x4000, PEER)) == 403
    client.indicate(PEER, b"data")
    assert shell.to_peers == []
    assert shell.flows == {}
    finished(shell, client)


# --- Connect --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app_connection", STREAMS)
def test_connect_bind_and_end(app_connection: AppConnection) -> None:
    """The whole way, from each kind of connection: the answer to ConnectionBind goes out before the bytes."""
    shell = new_shell()
    client = allocated(shell, app_connection)
    number = connected(client)
    data = data_connection(client)
    assert code_of(bind(data, number)) == 0
    ((connection, path),) = shell.joined.items()
    assert path == data.path
    assert shell.connections == {connection: PEER}
    assert shell.core.is_data_connection(data.path)
    shell.hang_up(connection)
    assert not shell.core.is_data_connection(data.path)
    assert [event.peer for event in shell.events(out.PeerConnectionOpened)] == [PEER]
    assert [event.peer for event in shell.events(out.PeerConnectionEnded)] == [PEER]
    finished(shell, client, data)


def test_connect_asks_the_peer_rules() -> None:
    """RFC 6062 section 5.2: the peer rules are asked (403), permissions are for peers who call."""
    shell = new_shell()
    client = allocated(shell)
    shell.rules.refused.add(OTHER_PEER.ip)
    assert code_of(connect(client, OTHER_PEER)) == 403
    assert shell.connections == {}
    assert code_of(connect(client, PEER)) == 0
    finished(shell, client)


def test_a_refused_connect_names_what_is_wrong() -> None:
    """400 without a peer or with port 0, 443 for the other family, 437 without allocation, 403 with a UDP one."""
    shell = new_shell()
    client = allocated(shell)
    assert code_of(client.ask(Method.CONNECT)) == 400
    assert code_of(connect(client, PEER.with_port(0))) == 400
    assert code_of(connect(client, PEER6)) == 443
    stranger = data_connection(client)
    assert code_of(connect(stranger)) == 437
    for_udp = Client(shell, 42_000, app_connection=AppConnection.TCP)
    assert code_of(for_udp.allocate()) == 0
    assert code_of(connect(for_udp)) == 403
    finished(shell, client, for_udp)


def test_one_connection_for_each_peer() -> None:
    """RFC 6062 section 5.2: 446 while one is under way, pending or bound, and then again from the start."""
    shell = new_shell()
    client = allocated(shell)
    shell.answers_at_once = False
    assert client.send(client.encode(Method.CONNECT, [(a.XOR_PEER_ADDRESS, PEER)])) == []
    assert code_of(connect(client)) == 446
    shell.answer_all()
    shell.run()
    number = decode(shell.sent[-1].data).get(a.CONNECTION_ID)
    shell.answers_at_once = True
    assert code_of(connect(client)) == 446
    data = data_connection(client)
    assert code_of(bind(data, number)) == 0
    assert code_of(connect(client)) == 446
    shell.hang_up(next(iter(shell.connections)))
    assert code_of(connect(client)) == 0
    finished(shell, client)


def test_a_peer_that_cannot_be_reached_is_447() -> None:
    """And may be tried again."""
    shell = new_shell()
    client = allocated(shell)
    shell.unreachable.add(PEER)
    assert code_of(connect(client)) == 447
    shell.unreachable.clear()
    assert code_of(connect(client)) == 0
    finished(shell, client)


def test_the_shell_that_never_answers_is_given_up() -> None:
    """What it brings later is closed."""
    shell = new_shell()
    client = allocated(shell)
    shell.answers_at_once = False
    client.send(client.encode(Method.CONNECT, [(a.XOR_PEER_ADDRESS, PEER)]))
    shell.advance(100)
    shell.answer_all()
    shell.run()
    assert shell.connections == {}
    shell.answers_at_once = True
    assert code_of(connect(client)) == 0
    finished(shell, client)


@pytest.mark.parametrize("ended_by", ["Refresh", "revocation", "the connection"])
def test_an_allocation_that_ends_takes_its_connect_with_it(ended_by: str) -> None:
    """Whatever ends it while the peer is being reached: the connection that comes is closed, and a client that is
    still there hears 437.
    """
    shell = new_shell()
    client = allocated(shell)
    shell.answers_at_once = False
    client.send(client.encode(Method.CONNECT, [(a.XOR_PEER_ADDRESS, PEER)]))
    if ended_by == "Refresh":
        assert code_of(client.delete()) == 0
    elif ended_by == "revocation":
        shell.core.end_user("alice", EndReason.REVOKED, shell.now)
    else:
        shell.core.path_closed(client.path, shell.now)
    shell.run()
    heard = len(shell.sent)
    shell.answer_all()
    shell.run()
    answers = [code_of(decode(sent.data)) for sent in shell.sent[heard:]]
    assert answers == ([] if ended_by == "the connection" else [437])
    shell.assert_nothing_left()


def test_a_connect_that_is_no_longer_allowed_says_why() -> None:
    """A rule that withdraws the peer meanwhile is a 403, a half of the allocation that was deleted a 443; nothing is
    left open.
    """
    shell = new_shell()
    client = Client(shell, app_connection=AppConnection.TCP)
    client.greet()
    client.ask(Method.ALLOCATE, [TCP_ATTRIBUTE, (a.ADDITIONAL_ADDRESS_FAMILY, 2)])
    shell.answers_at_once = False
    for peer in (PEER, PEER6):
        client.send(client.encode(Method.CONNECT, [(a.XOR_PEER_ADDRESS, peer)]))
    shell.rules.refused.add(PEER.ip)
    shell.core.peer_rules_changed(shell.now)
    client.refresh((a.LIFETIME, 0), (a.REQUESTED_ADDRESS_FAMILY, 2))
    heard = len(shell.sent)
    shell.answer_all()
    shell.run()
    assert [code_of(decode(sent.data)) for sent in shell.sent[heard:]] == [403, 443]
    assert shell.connections == {}
    finished(shell, client)


def test_peers_that_are_silent_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many Connects wait, of this client or of all: it refreshes its allocation, and others get theirs."""
    monkeypatch.setattr("relayd.turn.pending.MAX_PENDING", MAX_CONNECTIONS - 1)
    shell = new_shell()
    client = allocated(shell)
    shell.answers_at_once = False
    for port in range(1, MAX_CONNECTIONS):
        assert client.send(client.encode(Method.CONNECT, [(a.XOR_PEER_ADDRESS, PEER.with_port(port))])) == []
    silent, shell.waiting = shell.waiting, []
    assert len(silent) == MAX_CONNECTIONS - 1
    shell.answers_at_once = True
    assert code_of(connect(client, OTHER_PEER)) == 500
    assert code_of(client.refresh()) == 0
    other = allocated(shell, port=43_000)
    assert code_of(connect(other)) == 500
    shell.waiting = silent
    shell.answer_all()
    shell.run()
    assert code_of(connect(other)) == 0
    finished(shell, client, other)


def test_connections_of_an_allocation_are_bounded() -> None:
    """The next one is 508; of 10,000 at once no more wait for the shell than the allocation may have."""
    shell = new_shell()
    client = allocated(shell)
    for port in range(1, MAX_CONNECTIONS + 1):
        assert code_of(connect(client, PEER.with_port(port))) == 0
    assert code_of(connect(client, PEER.with_port(60_000))) == 508
    greedy = allocated(shell, port=43_000)
    shell.answers_at_once = False
    answers: list[int] = []
    for port in range(1, 10_001):
        sent = greedy.send(greedy.encode(Method.CONNECT, [(a.XOR_PEER_ADDRESS, OTHER_PEER.with_port(port))]))
        answers += [code_of(decode(answer)) for answer in sent]
    assert len(shell.waiting) == MAX_CONNECTIONS
    assert answers == [508] * (10_000 - MAX_CONNECTIONS)
    shell.core.path_closed(greedy.path, shell.now)
    shell.answer_all()
    finished(shell, client)


# --- peers that call --------------------------------------------------------------------------------------------------


def test_a_peer_with_permission_is_announced() -> None:
    """RFC 6062 section 5.3: a ConnectionAttempt indication with its address and an id that can be bound."""
    shell = new_shell()
    client = allocated(shell)
    client.permit(PEER)
    connection = shell.arrive(client.relay, PEER)
    indication = decode(shell.sent[-1].data)
    assert (indication.method, indication.cls) == (Method.CONNECTION_ATTEMPT, Class.INDICATION)
    assert indication.get(a.XOR_PEER_ADDRESS) == PEER
    data = data_connection(client)
    assert code_of(bind(data, indication.get(a.CONNECTION_ID))) == 0
    assert shell.joined == {connection: data.path}
    finished(shell, client)


def test_a_peer_without_permission_is_closed() -> None:
    """RFC 6062 section 5.3: and the client hears nothing."""
    shell = new_shell()
    client = allocated(shell)
    client.permit(PEER)
    before = len(shell.sent)
    shell.arrive(client.relay, OTHER_PEER)
    shell.advance(301)
    shell.arrive(client.relay, PEER)
    assert shell.connections == {}
    assert len(shell.sent) == before
    finished(shell, client)


def test_a_peer_that_calls_is_asked_about_with_its_port() -> None:
    """A permission is for an address; a rule or a policy that refuses the port, or changed its mind, holds here too."""
    shell = new_shell()
    client = allocated(shell)
    client.permit(PEER)
    shell.rules.refused.add(PEER)
    shell.arrive(client.relay, PEER)
    assert shell.connections == {}
    assert ("alice", PEER) in shell.rules.asked
    shell.arrive(client.relay, PEER.with_port(9))
    assert list(shell.connections.values()) == [PEER.with_port(9)]
    finished(shell, client)


def test_peers_that_call_are_bounded() -> None:
    """One permitted address has 65,535 ports; no more connections than an allocation may have stay open."""
    shell = new_shell()
    client = allocated(shell)
    client.permit(PEER)
    for port in range(1, 200):
        shell.arrive(client.relay, PEER.with_port(port))
    assert len(shell.connections) == MAX_CONNECTIONS
    finished(shell, client)


# --- ConnectionBind ---------------------------------------------------------------------------------------------------


def test_an_id_is_bound_once_by_its_owner_in_time() -> None:
    """RFC 6062 section 5.4: an id that is missing, wrong, someone else's, used or expired is 400, each alike."""
    shell = new_shell()
    client = allocated(shell)
    number = connected(client)
    assert code_of(bind(data_connection(client, 41_001), None)) == 400
    assert code_of(bind(data_connection(client, 41_002), number ^ 1)) == 400
    assert code_of(bind(data_connection(client, 41_003, "bob"), number)) == 400
    assert code_of(bind(data_connection(client, 41_004), number)) == 0
    assert code_of(bind(data_connection(client, 41_005), number)) == 400
    late = connected(client, OTHER_PEER)
    shell.advance(BIND_TIMEOUT)
    assert code_of(bind(data_connection(client, 41_006), late)) == 400
    assert list(shell.connections.values()) == [PEER]
    finished(shell, client)


def test_the_nonce_of_the_control_connection_is_good_for_the_data_connection() -> None:
    """Deployed clients use it there and take no challenge; for another id, and other requests, it is stale."""
    shell = new_shell()
    client = allocated(shell)
    number = connected(client)
    data = Client(shell, 41_000, app_connection=AppConnection.TCP)
    data.nonce = client.nonce
    assert code_of(data.ask(Method.REFRESH)) == 438
    assert code_of(bind(data, number ^ 1)) == 438
    assert code_of(bind(data, number)) == 0
    finished(shell, client)


def test_only_a_fresh_stream_is_bound() -> None:
    """The control connection itself, another one with an allocation, and datagrams are 400 (RFC 6062 section 5.4)."""
    shell = new_shell()
    client = allocated(shell)
    number = connected(client)
    assert code_of(bind(client, number)) == 400
    datagrams = Client(shell, 42_000, app_connection=AppConnection.UDP)
    datagrams.greet()
    assert code_of(bind(datagrams, number)) == 400
    assert code_of(bind(data_connection(client), number)) == 0
    finished(shell, client)


def test_a_data_connection_carries_one_peer() -> None:
    """A second ConnectionBind on it is 400, and does not take the first one's place."""
    shell = new_shell()
    client = allocated(shell)
    first, second = connected(client), connected(client, OTHER_PEER)
    data = data_connection(client)
    assert code_of(bind(data, first)) == 0
    assert code_of(bind(data, second)) == 400
    assert code_of(bind(data_connection(client, 41_001), second)) == 0
    finished(shell, client)


def test_a_bind_that_is_authenticated_too_late() -> None:
    """What counts is when it could be granted: after 30 seconds the id is gone, though the request came in time. The
    connection may bind another one.
    """
    shell = new_shell()
    client = allocated(shell)
    number, data = connected(client), data_connection(client)
    shell.advance(BIND_TIMEOUT - 0.1)
    shell.answers_at_once = False
    assert data.send(data.encode(Method.CONNECTION_BIND, [(a.CONNECTION_ID, number)])) == []
    shell.advance(0.2)
    assert shell.connections == {}
    shell.answer_all()
    shell.run()
    assert code_of(decode(shell.sent[-1].data)) == 400
    shell.answers_at_once = True
    assert code_of(bind(data, connected(client))) == 0
    finished(shell, client)


def test_an_address_may_come_again_before_the_peer_is_gone() -> None:
    """A client that closed its data connection, whose peer takes its time to close as well, binds another one from the
    same port: each ends by itself.
    """
    shell = new_shell()
    client = allocated(shell)
    numbers = connected(client), connected(client, OTHER_PEER)
    connections = list(shell.connections)
    for number in numbers:
        data = data_connection(client)
        assert code_of(bind(data, number)) == 0
        assert shell.core.is_data_connection(data.path)
        shell.core.path_closed(data.path, shell.now)
        assert not shell.core.is_data_connection(data.path)
    assert code_of(connect(client)) == 446
    for connection in connections:
        shell.hang_up(connection)
    assert code_of(connect(client)) == 0
    finished(shell, client)


def test_an_unbound_connection_lasts_thirty_seconds() -> None:
    """RFC 6062 sections 5.2 and 5.3, for both ways that it came about."""
    shell = new_shell()
    client = allocated(shell)
    connected(client)
    client.permit(OTHER_PEER)
    shell.arrive(client.relay, OTHER_PEER)
    shell.advance(BIND_TIMEOUT - 0.1)
    assert len(shell.connections) == 2
    shell.advance(0.2)
    assert shell.connections == {}
    finished(shell, client)


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ended_by", ["Refresh", "expiry", "revocation", "the control connection", "a rule", "shutdown"]
)
def test_nothing_is_left_of_connections_whose_allocation_ends(ended_by: str) -> None:
    """RFC 6062 section 5.5: pending and bound ones are closed, whatever ends the allocation; a rule that withdraws
    the peer ends just them.
    """
    shell = new_shell()
    client = allocated(shell)
    number = connected(client)
    connected(client, PEER.with_port(9))
    data = data_connection(client)
    bind(data, number)
    if ended_by == "Refresh":
        client.delete()
    elif ended_by == "expiry":
        shell.advance(601)
    elif ended_by == "revocation":
        shell.core.end_user("alice", EndReason.REVOKED, shell.now)
    elif ended_by == "the control connection":
        shell.core.path_closed(client.path, shell.now)
    elif ended_by == "a rule":
        shell.rules.refused.add(PEER.ip)
        shell.core.peer_rules_changed(shell.now)
    else:
        shell.core.shutdown(shell.now)
    shell.run()
    assert shell.connections == {}
    assert shell.joined == {}
    assert not shell.core.is_data_connection(data.path)
    if ended_by == "a rule":
        assert shell.core.allocation_of(client.path) is not None
    if ended_by != "shutdown":
        finished(shell, client)


def test_half_of_a_dual_allocation_takes_its_connections_along() -> None:
    """Refresh with LIFETIME 0 for one family closes the connections of that family, and no others."""
    shell = new_shell()
    client = Client(shell, app_connection=AppConnection.TCP)
    client.greet()
    client.ask(Method.ALLOCATE, [TCP_ATTRIBUTE, (a.ADDITIONAL_ADDRESS_FAMILY, 2)])
    connected(client, PEER)
    connected(client, PEER6)
    client.refresh((a.LIFETIME, 0), (a.REQUESTED_ADDRESS_FAMILY, 2))
    assert list(shell.connections.values()) == [PEER]
    finished(shell, client)


def test_ids_are_unpredictable() -> None:
    """CONNECTION-ID comes from the entropy source: two relays with other seeds give others."""
    numbers = set()
    for seed in range(8):
        shell = Shell(TurnSettings(REALM, transports={6: FAMILIES}), seed=seed)
        numbers.add(connected(allocated(shell)))
    assert len(numbers) == 8


# --- TLS with peers (docs/protocol.rst) ------------------------------------------------------------------------------


def connect_tls(client: Client, name: str | None, *protocols: bytes) -> Message:
    attributes: list[tuple[a.Attribute[Any], Any]] = [(a.XOR_PEER_ADDRESS, PEER)]
    if name is not None:
        attributes.append((a.PEER_TLS, name))
    if protocols:
        attributes.append((a.PEER_ALPN, protocols))
    return client.ask(Method.CONNECT, attributes)


def test_tls_with_a_peer_is_asked_of_the_shell() -> None:
    """With the name and the protocols of the request; the answer brings what the peer chose, the event who it is."""
    shell = new_shell()
    client = allocated(shell)
    answer = connect_tls(client, "peer.example", b"msrp", b"http/1.1")
    assert code_of(answer) == 0
    assert shell.asked_tls == [out.PeerTls("peer.example", (b"msrp", b"http/1.1"))]
    assert answer.get(a.PEER_ALPN) == (b"msrp",)
    assert [event.identity for event in shell.events(out.PeerConnectionOpened)] == ["peer.example"]
    finished(shell, client)


def test_a_peer_that_is_not_who_it_should_be_is_460() -> None:
    """Told apart from one that cannot be reached, and nothing is left of it."""
    shell = new_shell()
    client = allocated(shell)
    shell.impostors.add(PEER)
    assert code_of(connect_tls(client, "peer.example")) == 460
    assert shell.events(out.PeerConnectionOpened) == []
    assert code_of(connect(client)) == 0
    finished(shell, client)


@pytest.mark.parametrize("name", ["", "peer example", "p\u00e9er.example", "a" * 254, None])
def test_a_name_that_no_certificate_can_be_for_is_400(name: str | None) -> None:
    """Also protocols without a name: never the clear instead of TLS."""
    shell = new_shell()
    client = allocated(shell)
    assert code_of(connect_tls(client, name, b"msrp")) == 400
    assert shell.connections == {}
    finished(shell, client)


def test_peers_that_call_may_have_to_speak_tls() -> None:
    """Allocate with an empty PEER-TLS: the shell is told, and the answer, a repeated one too, says that it is so."""
    shell = Shell(TurnSettings(REALM, transports={17: FAMILIES, 6: FAMILIES}, accepts_tls=True))
    client = Client(shell, app_connection=AppConnection.TCP)
    client.greet()
    for _ in range(2):
        answer = client.ask(Method.ALLOCATE, [TCP_ATTRIBUTE, (a.PEER_TLS, "")], b"transaction!")
        assert answer.get(a.PEER_TLS) == ""
    assert [request.tls for request in shell.opened_for] == [True]
    finished(shell, client)


@pytest.mark.parametrize(
    ("transport", "name", "accepts_tls", "code"), [(6, "", False, 442), (6, "name", True, 400), (17, "", True, 400)]
)
def test_tls_from_peers_where_it_cannot_be(transport: int, name: str, accepts_tls: bool, code: int) -> None:
    """A relay without a certificate says 442; a name, or TLS over UDP, makes no sense."""
    shell = Shell(TurnSettings(REALM, transports={17: FAMILIES, 6: FAMILIES}, accepts_tls=accepts_tls))
    client = Client(shell, app_connection=AppConnection.TCP)
    client.greet()
    attributes: list[tuple[a.Attribute[Any], Any]] = [(a.REQUESTED_TRANSPORT, transport), (a.PEER_TLS, name)]
    assert code_of(client.ask(Method.ALLOCATE, attributes)) == code
    shell.assert_nothing_left()
