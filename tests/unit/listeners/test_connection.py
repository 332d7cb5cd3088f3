"""Promises of relayd.listeners.connection and .stream: framing, backpressure, limits, and nothing left behind."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ISSLTransport, ITCPTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import alsoProvides, directlyProvides
from zope.interface.verify import verifyObject

from relayd.address import AppConnection, TransportAddress
from relayd.config import ListenerSettings
from relayd.dataplane.flow import Flow
from relayd.interfaces import IClientPath, IListener, TurnedAway
from relayd.listeners.connection import CLOSE_GRACE, MAX_JOINED, MAX_OWED, REQUESTS_PER_TURN, StreamClient
from relayd.listeners.stream import StreamListener
from tests.unit.listeners.fakes import FakeRelay, FakeService

SERVER = IPv4Address("TCP", "192.0.2.1", 3478)
CLIENT = IPv4Address("TCP", "198.51.100.7", 50000)
PEER = TransportAddress.parse("203.0.113.5", 9)


def stun(kind: int = 0x0001, body: bytes = b"") -> bytes:
    return struct.pack("!HHI", kind, len(body), 0x2112A442) + b"transaction!" + body


BINDING = stun()
RESPONSE = stun(0x0101)
INDICATION = stun(0x0017)


class Transport(StringTransport):
    """A TCP transport that records each write, and loses its connection in the next turn of the clock."""

    def __init__(self, clock: Clock, peer: Any = CLIENT, host: Any = SERVER) -> None:
        super().__init__(hostAddress=host, peerAddress=peer)  # type: ignore[no-untyped-call]
        self.clock = clock
        self.client: Any = None
        self.writes: list[bytes] = []
        self.no_delay = False
        self.aborted = False
        self.stubborn = False  # does not finish a graceful close by itself

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def unregisterProducer(self) -> None:
        self.producer = None

    def resumeProducing(self) -> None:
        if not self.disconnecting:
            super().resumeProducing()  # type: ignore[no-untyped-call]

    def loseConnection(self) -> None:
        assert self.producer is None, "TLS would wait for the producer"
        if not self.disconnecting:
            self.disconnecting = True
            if not self.stubborn:
                self.clock.callLater(0, self._lost)

    def abortConnection(self) -> None:
        self.disconnecting = self.aborted = True
        self.clock.callLater(0, self._lost)

    def _lost(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            client.connectionLost(None)


class Port:
    """What a listening endpoint gives."""

    def __init__(self, clock: Clock, address: Any) -> None:
        self.address = address
        self.clock = clock
        self.open = True

    def getHost(self) -> Any:
        return self.address

    def stopListening(self) -> Deferred[None]:
        done: Deferred[None] = Deferred()

        def stop() -> None:
            self.open = False
            done.callback(None)

        self.clock.callLater(0, stop)
        return done


class Bench:
    """A listener on a simulated clock, and its connections."""

    transport_class: type[Transport] = Transport

    def __init__(self, description: str = "tcp:3478", address: Any = SERVER, **settings: Any) -> None:
        self.clock = Clock()
        self.service = FakeService()
        service: Any = self.service
        self.listener = StreamListener(description, self.clock, service, ListenerSettings(**settings))
        port: Any = Port(self.clock, address)
        self.port = port
        self.listener.listening(port)

    def connect(self, peer: Any = CLIENT, host: Any = SERVER, *, tls: bool = False) -> tuple[Any, Transport]:
        transport = self.transport_class(self.clock, peer, host)
        if not isinstance(host, UNIXAddress):
            directlyProvides(transport, ITCPTransport)
        if tls:
            alsoProvides(transport, ISSLTransport)
        client = transport.client = self.listener.buildProtocol(peer)
        client.makeConnection(transport)  # type: ignore[no-untyped-call]
        return client, transport

    def seconds(self, count: float) -> None:
        """Let time pass, a quarter of a second at a time."""
        for _ in range(int(count * 4)):
            self.clock.advance(0.25)

    def check_nothing_is_left(self) -> None:
        assert self.clock.getDelayedCalls() == []
        assert self.listener.admission.total == 0
        assert not self.listener.admission._by_source
        assert len(self.listener.told) == 0


def test_a_client_is_described() -> None:
    """The path is the 5-tuple with TCP's protocol number, and `tcp`; small messages are not delayed."""
    bench = Bench()
    client, transport = bench.connect()
    assert verifyObject(IClientPath, client)
    assert verifyObject(IListener, bench.listener)
    assert client.path.client == TransportAddress.parse("198.51.100.7", 50000)
    assert client.path.five_tuple.server == TransportAddress.parse("192.0.2.1", 3478)
    assert client.path.five_tuple.transport == 6
    assert client.path.app_connection is AppConnection.TCP
    assert transport.no_delay


def test_tls_is_told_by_the_transport() -> None:
    """Whatever the endpoint is called, a transport with TLS makes a `tls` path."""
    client, _ = Bench().connect(tls=True)
    assert client.path.app_connection is AppConnection.TLS


def test_clients_of_a_unix_socket_get_unique_addresses() -> None:
    """They have none of their own: each is a different member of 100::/64, and no limit per source applies."""
    bench = Bench("unix:/run/turn", UNIXAddress("/run/turn"), max_connections_per_source=1)
    unix = UNIXAddress(None)
    paths = {bench.connect(unix, UNIXAddress("/run/turn"))[0].path for _ in range(3)}
    assert len(paths) == 3
    assert all(path.client.host.startswith("100::") for path in paths)
    assert bench.listener.addresses == []
    assert bench.listener.description == "tcp unix:/run/turn"


def test_messages_are_cut_out_of_the_stream() -> None:
    """However the bytes arrive, the service gets whole messages in order, ChannelData without padding."""
    stream = BINDING + b"\x40\x00\x00\x03abc\0" + INDICATION + b"\x40\x01\x00\x00"
    whole = [BINDING, b"\x40\x00\x00\x03abc", INDICATION, b"\x40\x01\x00\x00"]
    for size in (1, 3, 7, len(stream)):
        bench = Bench()
        client, _ = bench.connect()
        for at in range(0, len(stream), size):
            client.dataReceived(stream[at : at + size])
        assert bench.service.received == [(client, message) for message in whole]


def test_a_client_with_many_requests_lets_others_have_their_turn() -> None:
    """Requests beyond a bound wait for the next turn, in order, with all that follows; nothing is read meanwhile."""
    bench = Bench()
    client, transport = bench.connect()
    relay: Any = FakeRelay()
    client.flows[0x4001] = Flow(client, 0x4001, relay, PEER)
    requests = [stun(body=number.to_bytes(4, "big")) for number in range(2 * REQUESTS_PER_TURN + 1)]
    client.dataReceived(b"".join(requests[:-1]) + b"\x40\x01\x00\x00")
    client.dataReceived(requests[-1])
    assert bench.service.messages == requests[:REQUESTS_PER_TURN]
    assert transport.producerState == "paused"
    assert relay.sent == []
    other, _ = bench.connect()
    other.dataReceived(BINDING)
    bench.clock.advance(0)
    assert bench.service.messages == [*requests[:REQUESTS_PER_TURN], BINDING, *requests[REQUESTS_PER_TURN:]]
    assert relay.sent == [(PEER, b"")]
    assert transport.producerState == "producing"


def test_what_a_lost_connection_still_asked_is_forgotten() -> None:
    """Requests that wait for their turn come to nothing when their connection ends or is to be closed."""
    for end in (lambda client: client.connectionLost(None), StreamClient.close):
        bench = Bench()
        client, _ = bench.connect()
        client.dataReceived(BINDING * 100)
        end(client)
        bench.seconds(1)
        assert len(bench.service.messages) == REQUESTS_PER_TURN
        bench.check_nothing_is_left()


def test_channel_data_with_a_flow_does_not_reach_the_service() -> None:
    """The payload of an installed channel goes straight to its relay; other channels go up."""
    bench = Bench()
    client, _ = bench.connect()
    relay: Any = FakeRelay()
    client.flows[0x4001] = Flow(client, 0x4001, relay, PEER)
    client.dataReceived(BINDING)
    client.dataReceived(b"\x40\x01\x00\x05hello\0\0\0" + b"\x40\x02\x00\x02up\0\0" + b"\x40\x01\x00\x00")
    assert relay.sent == [(PEER, b"hello"), (PEER, b"")]
    assert bench.service.messages == [BINDING, b"\x40\x02\x00\x02up"]


@pytest.mark.parametrize("garbage", [b"\x80\0\0\0", b"\0\1\0\0HTTP", b"\xff" * 8, b"\x16\x03\x01\x00\xa5"])
def test_garbage_ends_the_connection(garbage: bytes) -> None:
    """What is no TURN stream gets no answer and no second chance, and the service hears that the path is gone."""
    bench = Bench()
    client, transport = bench.connect()
    client.dataReceived(BINDING)
    client.dataReceived(garbage)
    assert transport.aborted
    assert transport.writes == []
    client.dataReceived(BINDING)
    bench.seconds(1)
    assert bench.service.messages == [BINDING]
    assert bench.service.closed == [client]
    bench.check_nothing_is_left()


@pytest.mark.parametrize(
    "beginning",
    [b"GET / HTTP/1.1\r\n", b"G", b"SSH-2.0-", b"PROXY TCP4 ", b"\x16\x03\x01\x02\x00\x01", b"\x40\x00\x00\x04data"],
)
def test_another_protocol_is_turned_away_at_once(beginning: bytes) -> None:
    """Its first bytes tell, without waiting for the end of what could be a long message; ChannelData comes too soon."""
    bench = Bench()
    client, transport = bench.connect()
    client.dataReceived(b"")
    client.dataReceived(beginning)
    assert transport.aborted
    assert transport.writes == []
    bench.clock.advance(0)
    assert bench.service.messages == []
    assert bench.service.closed == [client]
    bench.check_nothing_is_left()


def test_channel_data_may_follow_a_request_at_once() -> None:
    """Some clients do not wait for the answer to ChannelBind: what follows a request goes up, in one segment too."""
    bench = Bench()
    client, transport = bench.connect()
    client.dataReceived(stun(0x0009) + b"\x40\x00\x00\x04data")
    assert not transport.aborted
    assert bench.service.messages == [stun(0x0009), b"\x40\x00\x00\x04data"]


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([BINDING, b"\x40\0\xff\xff", bytes(70000)]))))
def test_no_bytes_raise_or_pile_up(segments: list[bytes]) -> None:
    """Whatever arrives, in whatever pieces: no exception, at most one message held back, and all is over at the end."""
    bench = Bench(first_message_timeout=2.0, idle_timeout=2.0)
    client, _ = bench.connect()
    for segment in segments:
        client.dataReceived(segment)
        assert client._splitter.pending <= 20 + 65535
    bench.seconds(6)
    assert bench.service.closed == [client]
    bench.check_nothing_is_left()


def test_writes_of_one_turn_are_joined() -> None:
    """All that is sent in one turn of the reactor, to several clients too, leaves as one write for each."""
    bench = Bench()
    first, first_transport = bench.connect()
    second, second_transport = bench.connect()
    assert first.send(RESPONSE)
    assert first.send_channel_data(0x4000, b"abc")
    assert second.send_channel_data(0x4001, b"")
    assert first_transport.writes == []
    bench.clock.advance(0)
    assert first_transport.writes == [RESPONSE + b"\x40\x00\x00\x03abc\0"]
    assert second_transport.writes == [b"\x40\x01\x00\x00"]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 200])
def test_a_burst_from_a_peer_is_framed_one_by_one(size: int) -> None:
    """Payloads that come together leave together, each as ChannelData of its own, padded."""
    bench = Bench()
    client, transport = bench.connect()
    payloads = [bytes([number]) * size for number in range(3)]
    assert client.send_channel_data_run(0x4001, payloads) == 3
    bench.clock.advance(0)
    expected = [b"\x40\x01\x00" + bytes([size]) + payload + bytes(-size % 4) for payload in payloads]
    assert transport.writes == [b"".join(expected)]
    client.pauseProducing()
    assert client.send_channel_data_run(0x4001, payloads) == 0


def test_neighbours_of_one_flow_leave_together() -> None:
    """A segment's ChannelData goes out in runs, one for each stretch of one flow, in the order in which it came."""
    bench = Bench()
    client, _ = bench.connect()
    client.dataReceived(BINDING)
    relays: list[Any] = [FakeRelay(), FakeRelay()]
    for number, relay in enumerate(relays, 0x4001):
        client.flows[number] = Flow(client, number, relay, PEER)
    first, second = b"\x40\x01\x00\x02", b"\x40\x02\x00\x01"
    client.dataReceived(
        first + b"ab\0\0" + first + b"cd\0\0" + second + b"e\0\0\0" + first + b"fg\0\0" + BINDING + first + b"hi\0\0"
    )
    assert [relay.runs for relay in relays] == [[2, 1, 1], [1]]
    assert [data for _, data in relays[0].sent] == [b"ab", b"cd", b"fg", b"hi"]
    assert [data for _, data in relays[1].sent] == [b"e"]
    assert bench.service.messages == [BINDING, BINDING]


def test_answers_leave_with_the_bytes_that_caused_them() -> None:
    """Answers to all that one segment brought are one write, without waiting for another turn."""
    bench = Bench()
    bench.service.answer = RESPONSE
    client, transport = bench.connect()
    client.dataReceived(BINDING * 3)
    assert transport.writes == [RESPONSE * 3]
    bench.clock.advance(0)
    assert len(transport.writes) == 1


def test_a_long_turn_does_not_collect_without_bound() -> None:
    """What waits for the end of the turn is handed on at the latest when it fills a transport's buffer."""
    bench = Bench()
    client, transport = bench.connect()
    for _ in range(100):
        client.send_channel_data(0x4000, bytes(4092))
    assert max(len(data) for data in transport.writes) <= MAX_JOINED + 4096
    assert sum(len(data) for data in transport.writes) > 100 * 4096 - MAX_JOINED


def test_datagrams_for_a_paused_client_are_dropped() -> None:
    """ChannelData and indications are refused while the client does not read; responses still pass."""
    bench = Bench()
    client, transport = bench.connect()
    client.pauseProducing()
    assert not client.send_channel_data(0x4000, b"x")
    assert not client.send(b"\x40\x00\x00\x00")
    assert not client.send(INDICATION)
    assert client.send(RESPONSE)
    bench.clock.advance(0)
    assert transport.writes == [RESPONSE]
    client.resumeProducing()
    assert client.send_channel_data(0x4000, b"x")
    assert client.send(INDICATION)


def test_a_client_that_reads_no_answers_is_disconnected() -> None:
    """The responses that a paused client may leave unread are bounded."""
    bench = Bench()
    client, transport = bench.connect()
    client.pauseProducing()
    sent = 0
    while client.send(RESPONSE):
        sent += len(RESPONSE)
        assert sent <= MAX_OWED
    assert transport.aborted
    bench.seconds(1)
    assert bench.service.closed == [client]
    bench.check_nothing_is_left()


def test_reading_again_clears_the_debt() -> None:
    """A client that catches up in between may be slow for as long as it likes."""
    bench = Bench()
    client, transport = bench.connect()
    for _ in range(10):
        client.pauseProducing()
        for _ in range(MAX_OWED // len(RESPONSE)):
            assert client.send(RESPONSE)
        client.resumeProducing()
    assert not transport.aborted


def test_a_silent_connection_is_closed() -> None:
    """Connecting and saying nothing ends after the first-message timeout."""
    bench = Bench(first_message_timeout=10.0)
    client, transport = bench.connect()
    ended = []
    for _ in range(12):
        bench.seconds(1)
        ended.append(transport.disconnecting)
    assert ended == [False] * 9 + [True] * 3
    assert bench.service.closed == [client]
    bench.check_nothing_is_left()


def test_a_drip_of_bytes_is_no_sign_of_life() -> None:
    """One byte a second does not put the first-message timeout off."""
    bench = Bench(first_message_timeout=10.0)
    client, transport = bench.connect()
    request = stun(0x0003, bytes(1000))
    for at in range(12):
        client.dataReceived(request[at : at + 1])
        bench.seconds(1)
    assert transport.disconnecting
    assert bench.service.messages == []


def test_an_idle_connection_is_closed_unless_it_has_an_allocation() -> None:
    """After the first message the idle timeout holds, counted from the last whole message, and not for allocations."""
    bench = Bench(first_message_timeout=5.0, idle_timeout=20.0)
    idle, idle_transport = bench.connect()
    busy, busy_transport = bench.connect()
    user, user_transport = bench.connect()
    for client in (idle, busy, user):
        client.dataReceived(BINDING)
    bench.service.allocated.add(user)
    bench.seconds(15)
    busy.dataReceived(BINDING)
    bench.seconds(7)
    assert [each.disconnecting for each in (idle_transport, busy_transport, user_transport)] == [True, False, False]
    bench.seconds(100)
    assert [each.disconnecting for each in (idle_transport, busy_transport, user_transport)] == [True, True, False]
    bench.service.allocated.clear()
    bench.seconds(3)
    assert user_transport.disconnecting
    bench.check_nothing_is_left()


def test_there_is_one_sweep_for_all_connections() -> None:
    """Delayed calls do not grow with the connections."""
    bench = Bench()
    for _ in range(50):
        bench.connect()
    assert len(bench.clock.getDelayedCalls()) == 1


def test_a_fault_in_one_sweep_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that shows with one connection leaves the timeouts of the others in place."""
    bench = Bench(first_message_timeout=5.0)
    broken, _ = bench.connect()
    _, transport = bench.connect()

    def fail(now: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(broken, "sweep", fail)
    bench.seconds(7)
    assert transport.disconnecting


def test_connections_are_limited_in_total() -> None:
    """One connection too many is dropped at once, and its end makes no room that was not there."""
    bench = Bench(max_connections=2)
    first, _ = bench.connect()
    bench.connect()
    for _ in range(3):
        _, refused = bench.connect()
        assert refused.aborted
        bench.clock.advance(0)
    assert bench.service.closed == []
    first.close()
    bench.clock.advance(0)
    assert not bench.connect()[1].aborted
    assert bench.connect()[1].aborted


def test_connections_are_limited_per_source() -> None:
    """An IPv4 address, or an IPv6 /64, cannot take all the places."""
    bench = Bench(max_connections_per_source=2)

    def connect(host: str) -> bool:
        kind = IPv6Address if ":" in host else IPv4Address
        return not bench.connect(kind("TCP", host, 5))[1].aborted

    hosts = ["198.51.100.7", "198.51.100.7", "198.51.100.7", "198.51.100.8", "::ffff:198.51.100.7"]
    assert [connect(host) for host in hosts] == [True, True, False, True, False]
    hosts = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1"]
    assert [connect(host) for host in hosts] == [True, True, False, True]


def test_tls_handshakes_are_limited_per_source() -> None:
    """Each source may begin so many in a period; others, later ones, and all that a proxy brings, are served."""
    bench = Bench("ssl:5349", max_connections_per_source=3, first_message_timeout=5.0)

    def begins(host: str, count: int) -> list[bool]:
        found = []
        for port in range(count):
            client = TransportAddress.parse(host, port)
            found.append(bench.listener.may_shake_hands(client))
            if found[-1]:
                bench.listener.shakes_hands(client)
        return found

    assert begins("198.51.100.7", 5) == [True] * 3 + [False] * 2
    assert bench.listener.turned_away == {TurnedAway.HANDSHAKES: 2}
    assert begins("198.51.100.8", 1) == [True]
    assert begins("2001:db8::1", 2) + begins("2001:db8::2", 2) == [True] * 3 + [False]
    assert begins("127.0.0.1", 5) == [True] * 5, "a proxy on this host"
    bench.listener.shakes_hands(None)
    assert bench.listener.may_shake_hands(None), "a Unix socket"
    bench.clock.advance(5)
    assert begins("198.51.100.7", 1) == [True]


def test_what_is_turned_away_is_counted() -> None:
    """By the limit that it met."""
    bench = Bench(max_connections=2, max_connections_per_source=1)
    for host in ("198.51.100.7", "198.51.100.7", "198.51.100.8", "198.51.100.9"):
        bench.connect(IPv4Address("TCP", host, 5))
        bench.clock.advance(0)
    assert bench.listener.turned_away == {TurnedAway.SOURCE: 1, TurnedAway.TOTAL: 1}


def test_close_sends_what_was_written() -> None:
    """What was sent before close is not lost; what is sent after it is refused."""
    bench = Bench()
    client, transport = bench.connect()
    client.send(RESPONSE)
    client.close()
    client.close()
    assert transport.writes == [RESPONSE]
    assert transport.disconnecting
    assert not transport.aborted
    assert not client.send(RESPONSE)
    assert not client.send_channel_data(0x4000, b"")
    bench.clock.advance(0)
    assert bench.service.closed == [client]
    bench.check_nothing_is_left()


def test_close_is_forced_on_a_client_that_does_not_take_part() -> None:
    """A connection that cannot be closed in peace is aborted after the grace."""
    bench = Bench()
    client, transport = bench.connect()
    transport.stubborn = True
    client.close()
    bench.seconds(CLOSE_GRACE + 1)
    assert transport.aborted
    bench.check_nothing_is_left()


def test_a_client_closed_in_the_middle_hears_no_more() -> None:
    """If handling one message closes the connection, later messages in the same segment are not handled."""
    bench = Bench()
    client, _ = bench.connect()

    def receive(sender: StreamClient, data: bytes) -> None:
        bench.service.received.append((sender, data))
        sender.close()

    client._service = type("Closing", (), {"receive": staticmethod(receive), "path_closed": bench.service.path_closed})
    client.dataReceived(BINDING * 2)
    assert bench.service.messages == [BINDING]


def test_there_is_no_other_address_to_send_from() -> None:
    """RFC 5780's change requests cannot be met on a connection."""
    client, _ = Bench().connect()
    assert not client.send_from(PEER, PEER, RESPONSE)


def test_the_listener_closes_everything() -> None:
    """Its Deferred fires when the port is closed, all connections are gone and no delayed call is left."""
    bench = Bench()
    clients = [bench.connect() for _ in range(3)]
    clients[1][1].stubborn = True
    clients[2][0].send(RESPONSE)
    done: list[object] = []
    bench.listener.close().addCallback(done.append)
    bench.clock.advance(0)
    assert not done
    _, late_transport = bench.connect()
    assert late_transport.aborted
    bench.seconds(CLOSE_GRACE + 1)
    assert done == [None]
    assert not bench.port.open
    assert clients[2][1].writes == [RESPONSE]
    assert len(bench.service.closed) == 3
    bench.check_nothing_is_left()


def test_an_unused_listener_closes_at_once() -> None:
    """Without connections only the port has to be closed; closing twice is harmless."""
    bench = Bench()
    done: list[object] = []
    bench.listener.close().addCallback(done.append)
    bench.listener.close().addCallback(done.append)
    bench.clock.advance(0)
    assert done == [None, None]
    bench.check_nothing_is_left()
