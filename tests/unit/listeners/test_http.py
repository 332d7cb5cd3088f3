"""Promises of relayd.listeners.http and relayd.web.pages: what a connection is answered until it is a WebSocket."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.logger import capturedLogs
from twisted.web.resource import Resource

from relayd.listeners.http import MAX_HEADER_SIZE, MAX_HEADERS
from tests.unit.listeners.test_connection import CLIENT
from tests.unit.listeners.web_bench import PING, WebBench, WebTransport, frame, handshake


def answer_to(*pieces: bytes) -> bytes:
    """Everything that is written in answer."""
    return exchange(*pieces)[0]


def exchange(*pieces: bytes) -> tuple[bytes, Any, WebBench]:
    bench = WebBench()
    client, transport = bench.connect()
    for piece in pieces:
        if not transport.disconnecting:
            client.dataReceived(piece)
    return b"".join(transport.writes), transport, bench


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: relay.example.org", *headers]).encode() + b"\r\n\r\n" + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_healthz() -> None:
    """`/healthz` says that the relay serves; nothing says which software that is."""
    answer = answer_to(request("GET /healthz"))
    head, body = answer.lower().split(b"\r\n\r\n")
    assert head.startswith(b"http/1.1 200 ok\r\n")
    assert body == b"ok\n"
    assert b"\r\nserver:" not in head
    assert b"\r\nx-content-type-options: nosniff" in head
    assert b"\r\ncache-control: no-store" in head


def test_head() -> None:
    """HEAD is answered like GET, without the body."""
    get, head = (answer_to(request(f"{method} /healthz")).split(b"\r\n\r\n") for method in ("GET", "HEAD"))
    assert b"Content-Length: 3" in get[0]
    assert b"Content-Length: 3" in head[0]
    assert head[1] == b""


@pytest.mark.parametrize(
    "path", ["/", "/index.html", "/turn/", "/turn/x", "/healthz/x", "/%2e%2e/etc/passwd", "/TURN", "//turn", "*", "x"]
)
def test_everything_else_is_not_found(path: str) -> None:
    """There are two pages so far; the answer repeats nothing of the request."""
    answer = answer_to(request(f"GET {path}"))
    assert status_of(answer) == (405 if path == "*" else 404)
    assert b"passwd" not in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW", "get"])
def test_other_methods(method: str) -> None:
    """Pages are only read, and the answer does not repeat what was asked."""
    answer = answer_to(request(f"{method} /healthz?<script>"))
    assert status_of(answer) == 405
    assert b"script" not in answer


def test_turn_without_upgrade() -> None:
    """A browser that is pointed at `/turn` is told what it is for."""
    answer = answer_to(request("GET /turn"))
    assert status_of(answer) == 426
    assert b"\r\nUpgrade: websocket\r\n" in answer


def test_head_is_not_news() -> None:
    """HEAD has no body on any path, and nobody can fill the log with it."""
    with capturedLogs() as events:
        for path in ("/healthz", "/turn", "/nothing"):
            assert answer_to(request(f"HEAD {path}")).endswith(b"\r\n\r\n")
    assert events == []


def test_a_hostile_page_is_refused() -> None:
    """A handshake from another web site's page is 403, and the connection still speaks HTTP only."""
    answer, transport, bench = exchange(handshake("Origin: https://evil.example"), frame(2, bytes(8)))
    assert status_of(answer) == 403
    assert b"evil" not in answer
    assert bench.service.received == []
    assert not transport.aborted


def test_a_listed_page_is_let_in() -> None:
    """The origins are those of the settings."""
    bench = WebBench(web_origins=("https://app.example.org",))
    client, transport = bench.connect()
    client.dataReceived(handshake("Origin: https://app.example.org"))
    assert transport.writes[0].startswith(b"HTTP/1.1 101 ")


def test_one_connection_many_requests() -> None:
    """Requests may follow one another, in any pieces, and the last of them may upgrade."""
    stream = request("GET /healthz") * 3 + request("GET /nothing") + handshake()
    for size in (1, 50, len(stream)):
        answer = answer_to(*(stream[at : at + size] for at in range(0, len(stream), size)))
        assert answer.count(b"HTTP/1.1 200 ") == 3
        assert answer.count(b"HTTP/1.1 404 ") == 1
        assert answer.count(b"HTTP/1.1 101 ") == 1


def test_a_connection_between_requests() -> None:
    """Once a whole request came, the idle timeout holds until the next one, and no longer the first-message timeout."""
    bench = WebBench(first_message_timeout=5.0, idle_timeout=20.0)
    client, transport = bench.connect()
    endings = []
    for seconds in (4, 15, 15, 22):
        client.dataReceived(request("GET /healthz"))
        bench.seconds(seconds)
        endings.append(transport.disconnecting)
    assert endings == [False, False, False, True]


def test_bodies_are_forgotten() -> None:
    """A body of any length is read and dropped: nothing of it is kept, in memory or in a file."""
    bench = WebBench()
    client, transport = bench.connect()
    client.dataReceived(request("POST /healthz", "Content-Length: 1000000"))
    for _ in range(100):
        client.dataReceived(bytes(10_000))
        assert client._http.requests == [] or client._http.requests[0].content.getvalue() == b""
    assert status_of(b"".join(transport.writes)) == 405
    chunked = request("POST /healthz", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n")
    assert status_of(answer_to(chunked)) == 405


@pytest.mark.parametrize(
    "bad",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * MAX_HEADER_SIZE + b"\r\n\r\n",
    ],
    ids=range(7),
)
def test_bad_requests_end_the_connection(bad: bytes) -> None:
    """What is no HTTP, or too much of it, is 400 at most, and the connection closes; nothing behind it counts."""
    answer, transport, bench = exchange(bad, handshake())
    assert transport.disconnecting
    assert b" 101 " not in answer
    assert len(answer) < 100
    bench.clock.advance(0)
    bench.check_nothing_is_left()


def test_a_line_that_never_ends_is_bounded() -> None:
    """Headers are held up to a limit, and then the connection closes."""
    for piece in (b"x" * 1000, b"X-A: " + b"x" * 990 + b"\r\n"):
        bench = WebBench()
        client, transport = bench.connect()
        client.dataReceived(b"GET / HTTP/1.1\r\n")
        sent = 0
        while not transport.disconnecting:
            client.dataReceived(piece)
            sent += len(piece)
            assert sent < 4 * MAX_HEADER_SIZE


def test_http_1_0() -> None:
    """An old client is answered, and its connection closed."""
    answer, transport, _ = exchange(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert status_of(answer) == 200
    assert transport.disconnecting


def test_a_client_that_reads_no_answers() -> None:
    """While answers wait to be read, no further requests are; the timeout of the connection goes on."""
    bench = WebBench(first_message_timeout=5.0, idle_timeout=5.0)
    client, transport = bench.connect()
    client.dataReceived(request("GET /healthz"))
    producer: Any = transport.producer
    assert producer is client._http
    producer.pauseProducing()
    assert transport.producerState == "paused"
    bench.seconds(8)
    assert transport.disconnecting
    bench.seconds(4)
    bench.check_nothing_is_left()


class Who(Resource):
    """Says who asks."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        return str(request.client_address).encode()


PROXY = IPv4Address("TCP", "127.0.0.1", 1234)


@pytest.mark.parametrize(
    ("peer", "lines", "who"),
    [
        (CLIENT, [], "198.51.100.7:50000"),
        (PROXY, [], "127.0.0.1:1234"),
        (PROXY, ["X-Forwarded-For: 203.0.113.9"], "203.0.113.9:0"),
        (PROXY, ["X-Forwarded-For: unknown"], "None"),
        (PROXY, ["X-Forwarded-Proto: https"], "None"),
        (PROXY, ["Via: 1.1 proxy"], "None"),
        (PROXY, ["X-Real-IP: 127.0.0.1"], "None"),
        (CLIENT, ["X-Forwarded-For: 127.0.0.1"], "None"),
        (CLIENT, ["Forwarded: for=127.0.0.1"], "None"),
        (UNIXAddress(None), [], "None"),
    ],
)
def test_who_asks(peer: Any, lines: list[str], who: str) -> None:
    """Who is connected, or whom a trusted proxy names; nobody where a proxy names none or is not to be believed, so
    that what is for this host only does not go out through a proxy on it.
    """
    bench = WebBench()
    bench.listener.site.resource.putChild(b"who", Who())  # type: ignore[no-untyped-call]
    client, transport = bench.connect(peer)
    client.dataReceived(request("GET /who", *lines))
    assert b"".join(transport.writes).partition(b"\r\n\r\n")[2] == who.encode()


def test_who_asks_in_the_version_of_nginx() -> None:
    """A request in HTTP/1.0 comes from a proxy as a rule, and need not say so."""
    bench = WebBench()
    bench.listener.site.resource.putChild(b"who", Who())  # type: ignore[no-untyped-call]
    client, transport = bench.connect(PROXY)
    client.dataReceived(b"GET /who HTTP/1.0\r\n\r\n")
    assert b"".join(transport.writes).endswith(b"\r\n\r\nNone")


class FullTransport(WebTransport):
    """Has its producer wait after one write, until `take` empties it."""

    reading = True

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.producer is not None:
            self.producer.pauseProducing()

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def take(self) -> list[bytes]:
        written, self.writes = self.writes, []
        producer: Any = self.producer
        if written and producer is not None:
            producer.resumeProducing()
        return written


class FullBench(WebBench):
    transport_class = FullTransport


def test_a_client_that_does_not_read_is_kept_one_page() -> None:
    """Who asks for many pages at once and takes none has one made, and no more is read; the rest come as they are
    taken, each once and in order, and so does the WebSocket behind them.
    """
    bench = FullBench()
    transport: Any
    client, transport = bench.connect()
    client.dataReceived(request("GET /relayd.js") * 100 + request("GET /healthz"))
    client.dataReceived(handshake() + frame(PING, b"early"))
    body = sum(map(len, transport.writes))
    assert b"200 OK" in transport.writes[0]
    assert body < 100_000
    assert not transport.reading
    answers = []
    for _ in range(500):
        bench.clock.advance(0)
        answers += transport.take()
    everything = b"".join(answers)
    assert everything.count(b"HTTP/1.1 200 OK") == 101
    assert everything.index(b"\r\n\r\nok\n") < everything.index(b"HTTP/1.1 101 ")
    assert everything.endswith(b"\x8a\x05early")
    assert transport.reading
