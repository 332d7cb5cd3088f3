"""The cases of Autobahn's test suite (its fuzzing client) that concern frames, by its numbers 1 to 7, on /turn.

The suite drives an echo server and sends it text; a relay echoes nothing and takes no text. So each case is adapted:

* A message that has to come back is ChannelData here, and has to reach its peer: once with a flow installed, and once
  by way of the service. Text is sent where it is the point (1.1, 6), and refused with 1003; elsewhere it is binary.
* Variants of a case that differ only in how its bytes are cut (as 5.3 to 5.5 do) are one row: every row is sent whole,
  frame by frame and octet by octet, which the suite does with some of them only.
* 6 tests UTF-8. Text is refused before that matters, be it valid or not; the reason in a Close frame is the one text
  that is read, so the byte sequences of 6.5 to 6.23 are sent as such reasons.

These do not apply: 7.13.2 (a close code that two octets cannot say), 9 (limits and times: a message beyond 65,552 bytes
is refused, and times are for `bench`), 10 (fragmenting what is sent, which the relay never does), 12 and 13
(compression, which it never negotiates; `test_websocket.py` holds it to that).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from relayd.dataplane.flow import Flow
from relayd.listeners.connection import CLOSE_GRACE
from tests.unit.listeners.fakes import FakeRelay
from tests.unit.listeners.test_connection import PEER
from tests.unit.listeners.web_bench import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WebBench,
    frame,
    sent,
)

NUMBER = 0x4001
PROTOCOL_ERROR, UNSUPPORTED, INVALID, TOO_BIG, NORMAL = 1002, 1003, 1007, 1009, 1000
LONG = 4096  # octets of a row from which it is no longer cut into single ones, but into pieces of 997 as case 1.2.8 is


def data(payload: bytes) -> bytes:
    """The message that carries `payload` to the peer."""
    return NUMBER.to_bytes(2) + len(payload).to_bytes(2) + payload


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2) + reason)


def fragments(*payloads: bytes) -> list[bytes]:
    """One message in so many frames."""
    last = len(payloads) - 1
    return [frame(CONTINUATION if at else BINARY, payload, fin=at == last) for at, payload in enumerate(payloads)]


@dataclass(frozen=True)
class Case:
    """What a client sends, which payloads reach the peer, which pongs come back, and the close code, if it ends."""

    number: str
    frames: list[bytes]
    payloads: list[bytes] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    code: int | None = None


HELLO = b"Hello-\xc2\xb5@"
GREETING = frame(BINARY, data(HELLO))
BYTES = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
BROKEN = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited"  # a surrogate in the middle
PAIR = data(b"fragment1fragment2")
FIRST, SECOND = PAIR[:13], PAIR[13:]

FRAMING = [
    *(
        Case(f"1.1.{at}", [frame(TEXT, b"*" * size)], code=UNSUPPORTED)
        for at, size in enumerate((0, 125, 126, 127, 128, 65_535, 65_536), 1)
    ),
    Case("1.2.1", [frame(BINARY)], code=INVALID),  # the one length of the suite's that no message of TURN has
    *(
        Case(f"1.2.{at}", [frame(BINARY, data(b"\xfe" * (size - 4)))], [b"\xfe" * (size - 4)])
        for at, size in enumerate((125, 126, 127, 128, 65_535, 65_536), 2)
    ),
]

PINGS = [
    Case("2.1", [frame(PING)], pongs=[b""]),
    Case("2.2", [frame(PING, b"Hello, world!")], pongs=[b"Hello, world!"]),
    Case("2.3", [frame(PING, BYTES)], pongs=[BYTES]),
    Case("2.4, 2.6", [frame(PING, b"\xfe" * 125)], pongs=[b"\xfe" * 125]),
    Case("2.5", [frame(PING, b"\xfe" * 126)], code=PROTOCOL_ERROR),
    Case("2.7", [frame(PONG)]),
    Case("2.8", [frame(PONG, b"unsolicited")]),
    Case("2.9", [frame(PONG, b"unsolicited"), frame(PING, b"ping")], pongs=[b"ping"]),
    Case("2.10, 2.11", [frame(PING, b"%d" % at) for at in range(10)], pongs=[b"%d" % at for at in range(10)]),
]

RESERVED_BITS = [
    Case("3.1", [frame(BINARY, data(HELLO), rsv=1)], code=PROTOCOL_ERROR),
    *(
        Case(number, [GREETING, frame(BINARY, data(HELLO), rsv=rsv), frame(PING)], [HELLO], code=PROTOCOL_ERROR)
        for number, rsv in (("3.2", 2), ("3.3", 3), ("3.4", 4))
    ),
    Case("3.5", [frame(BINARY, BYTES, rsv=5)], code=PROTOCOL_ERROR),
    Case("3.6", [frame(PING, HELLO, rsv=6)], code=PROTOCOL_ERROR),
    Case("3.7", [frame(CLOSE, rsv=7)], code=PROTOCOL_ERROR),
]

OPCODES = [
    case
    for group, first in (("4.1", 3), ("4.2", 11))
    for case in (
        Case(f"{group}.1", [frame(first)], code=PROTOCOL_ERROR),
        Case(f"{group}.2", [frame(first + 1, data(HELLO))], code=PROTOCOL_ERROR),
        Case(f"{group}.3", [GREETING, frame(first + 2), frame(PING)], [HELLO], code=PROTOCOL_ERROR),
        Case(f"{group}.4", [GREETING, frame(first + 3, data(HELLO)), frame(PING)], [HELLO], code=PROTOCOL_ERROR),
        Case(f"{group}.5", [GREETING, frame(first + 4, data(HELLO)), frame(PING)], [HELLO], code=PROTOCOL_ERROR),
    )
]

FRAGMENTATION = [
    Case("5.1", [frame(PING, b"frag", fin=False), frame(CONTINUATION, b"ment")], code=PROTOCOL_ERROR),
    Case("5.2", [frame(PONG, b"frag", fin=False), frame(CONTINUATION, b"ment")], code=PROTOCOL_ERROR),
    Case("5.3 to 5.5", fragments(FIRST, SECOND), [PAIR[4:]]),
    Case(
        "5.6 to 5.8",
        [frame(BINARY, FIRST, fin=False), frame(PING, b"ping"), frame(CONTINUATION, SECOND)],
        [PAIR[4:]],
        [b"ping"],
    ),
    Case("5.9 to 5.11", [frame(CONTINUATION, data(HELLO)), GREETING], code=PROTOCOL_ERROR),
    Case("5.12 to 5.14", [frame(CONTINUATION, data(HELLO), fin=False), GREETING], code=PROTOCOL_ERROR),
    Case(
        "5.15",
        [*fragments(FIRST, SECOND), frame(CONTINUATION, data(HELLO), fin=False), GREETING],
        [PAIR[4:]],
        code=PROTOCOL_ERROR,
    ),
    Case("5.16", [frame(CONTINUATION, b"?", fin=False), *fragments(FIRST, SECOND)] * 2, code=PROTOCOL_ERROR),
    Case("5.17", [frame(CONTINUATION, b"?"), *fragments(FIRST, SECOND)] * 2, code=PROTOCOL_ERROR),
    Case("5.18", [frame(BINARY, FIRST, fin=False), frame(BINARY, SECOND)], code=PROTOCOL_ERROR),
]

TEXT_CASES = [
    Case("6.1.1", [frame(TEXT)], code=UNSUPPORTED),
    Case(
        "6.1.2",
        [frame(TEXT, fin=False), frame(CONTINUATION, fin=False), frame(CONTINUATION)],
        code=UNSUPPORTED,
    ),
    Case(
        "6.1.3",
        [frame(TEXT, fin=False), frame(CONTINUATION, b"middle", fin=False), frame(CONTINUATION)],
        code=UNSUPPORTED,
    ),
    Case("6.2.1", [frame(TEXT, HELLO)], code=UNSUPPORTED),
    Case("6.2.2", [frame(TEXT, HELLO[:6], fin=False), frame(CONTINUATION, HELLO[6:])], code=UNSUPPORTED),
    Case("6.2.3, 6.2.4", [frame(TEXT, HELLO[:7], fin=False), frame(CONTINUATION, HELLO[7:])], code=UNSUPPORTED),
    Case("6.3.1", [frame(TEXT, BROKEN)], code=UNSUPPORTED),
    Case("6.3.2", [frame(TEXT, BROKEN[:13], fin=False), frame(CONTINUATION, BROKEN[13:])], code=UNSUPPORTED),
]

CLOSING = [
    Case("7.1.1", [GREETING, close(NORMAL)], [HELLO], code=NORMAL),
    Case("7.1.2", [close(NORMAL), close(NORMAL)], code=NORMAL),
    Case("7.1.3", [close(NORMAL), frame(PING)], code=NORMAL),
    Case("7.1.4", [close(NORMAL), GREETING], code=NORMAL),
    Case("7.1.5", [frame(BINARY, FIRST, fin=False), close(NORMAL), frame(CONTINUATION, SECOND)], code=NORMAL),
    # Of 256 KiB; a message that may not be so long ends it before the rest does.
    Case("7.1.6", [frame(BINARY, bytes(262_144)), GREETING, close(NORMAL), frame(PING)], code=TOO_BIG),
    Case("7.1.6, of 64 KiB", [frame(BINARY, data(b"*" * 65_535)), close(NORMAL)], [b"*" * 65_535], code=NORMAL),
    Case("7.3.1", [frame(CLOSE)], code=NORMAL),
    Case("7.3.2", [frame(CLOSE, b"a")], code=PROTOCOL_ERROR),
    Case("7.3.3", [close(NORMAL)], code=NORMAL),
    Case("7.3.4", [close(NORMAL, b"Hello World!")], code=NORMAL),
    Case("7.3.5", [close(NORMAL, b"*" * 123)], code=NORMAL),
    Case("7.3.6", [close(NORMAL, b"*" * 124)], code=PROTOCOL_ERROR),
    Case("7.5.1", [close(NORMAL, BROKEN)], code=INVALID),
    *(
        Case(f"7.7.{at}", [close(code)], code=NORMAL)
        for at, code in enumerate((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999), 1)
    ),
    *(
        Case(f"7.9.{at}", [close(code)], code=PROTOCOL_ERROR)
        for at, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1)
    ),
    Case("7.13.1", [close(5000)], code=PROTOCOL_ERROR),
]

CASES = [*FRAMING, *PINGS, *RESERVED_BITS, *OPCODES, *FRAGMENTATION, *TEXT_CASES, *CLOSING]


def whole(frames: list[bytes]) -> list[bytes]:
    return [b"".join(frames)]


def by_frame(frames: list[bytes]) -> list[bytes]:
    return frames


def by_octet(frames: list[bytes]) -> list[bytes]:
    stream = b"".join(frames)
    size = 997 if len(stream) > LONG else 1
    return [stream[at : at + size] for at in range(0, len(stream), size)]


class Session:
    """A WebSocket with one channel, whose payloads are collected whether or not there is a flow for it."""

    def __init__(self, *, flow: bool) -> None:
        self.bench = WebBench()
        self.client, self.transport = self.bench.open()
        relay: Any = FakeRelay()
        self.relay = relay
        if flow:
            self.client.flows[NUMBER] = Flow(self.client, NUMBER, relay, PEER)

    @property
    def payloads(self) -> list[bytes]:
        """What the peer was sent, or would be by the service."""
        by_service = [message[4:] for message in self.bench.service.messages]
        return [payload for _, payload in self.relay.sent] + by_service

    def receive(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            if not self.transport.aborted:
                self.client.dataReceived(piece)
        self.bench.clock.advance(0)

    def check_end(self) -> None:
        """Whatever came before, the connection goes, and leaves nothing."""
        self.bench.seconds(CLOSE_GRACE + 1.5)
        if not self.transport.disconnecting:
            self.client.abort()
            self.bench.clock.advance(0)
        assert self.bench.service.closed == [self.client]
        self.bench.check_nothing_is_left()


@pytest.mark.parametrize("flow", [True, False], ids=["flow", "service"])
@pytest.mark.parametrize("cut", [whole, by_frame, by_octet])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
def test_case(case: Case, cut: Any, flow: bool) -> None:
    """What may arrive arrives, every ping before the end is answered, and a broken rule ends it with the right code."""
    session = Session(flow=flow)
    session.receive(cut(case.frames))
    answers = sent(session.transport)
    assert session.payloads == case.payloads
    assert [payload for opcode, payload in answers if opcode == PONG] == case.pongs
    codes = [int.from_bytes(payload[:2]) for opcode, payload in answers if opcode == CLOSE]
    assert codes == ([] if case.code is None else [case.code])
    if case.code is None:
        session.receive([GREETING])
        assert session.payloads == [*case.payloads, HELLO]  # it goes on
    if case.code == NORMAL:
        assert session.transport.disconnecting
        assert not session.transport.aborted
    session.check_end()


@pytest.mark.parametrize("cut", [whole, by_frame, by_octet])
@pytest.mark.parametrize("flow", [True, False], ids=["flow", "service"])
def test_pings_between_fragments(cut: Any, flow: bool) -> None:
    """5.19 and 5.20: a ping between two fragments is answered at once, not when the message is whole."""
    message = data(b"fragment" * 5)
    parts = [message[at : at + 9] for at in range(0, len(message), 9)]
    first, second, third, fourth, fifth = fragments(*parts)
    session = Session(flow=flow)
    session.receive(cut([first, second, frame(PING, b"pongme 1!")]))
    assert sent(session.transport) == [(PONG, b"pongme 1!")]
    session.bench.seconds(1)
    session.receive(cut([third, fourth, frame(PING, b"pongme 2!")]))
    assert sent(session.transport) == [(PONG, b"pongme 2!")]
    assert session.payloads == []
    session.receive(cut([fifth]))
    assert session.payloads == [message[4:]]
    session.check_end()


@pytest.mark.parametrize("text", [HELLO, BROKEN])
def test_text_fails_at_once(text: bytes) -> None:
    """6.4: a text message is refused with its first frame's header, before anything of it, good or bad, has come."""
    session = Session(flow=True)
    session.receive([frame(TEXT, text * 20, fin=False)[:8]])
    ((opcode, payload),) = sent(session.transport)
    assert (opcode, int.from_bytes(payload[:2])) == (CLOSE, UNSUPPORTED)
    session.check_end()


VALID = [
    "$",  # 6.5
    "\xa2",
    "\u20ac",
    "\U00024b62",
    "\u03ba\u1f79\u03c3\u03bc\u03b5",
    "\x00",  # 6.7, the first of each length, and 6.9, the last
    "\x80",
    "\u0800",
    "\U00010000",
    "\x7f",
    "\u07ff",
    "\uffff",
    "\U0010ffff",
    "\ud7ff",  # 6.11
    "\ue000",
    "\ufffd",
    "\ufffe",  # 6.22, code points that are no characters, and 6.23
    "\U0001fffe",
    "\U0010fffe",
    "\ufff9",
    "\ufffc",
]

# By number, in hexadecimal.
NOT_UTF8 = {
    "6.6": ["cebae1", "cebae1bd", "cebae1bdb9cf"],
    "6.8": ["f888808080", "fc8480808080"],
    "6.10": ["f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf"],
    "6.11": ["f4908080"],
    "6.12": ["80", "bf", "80bf", "80bf80", "80bf80bf80bf"],
    "6.13": ["c020c120", "e020e120", "f020f120", "f820f920", "fc20"],
    "6.14": ["c0", "e080", "f08080", "f8808080", "fc80808080", "df", "efbf", "f7bfbf", "fbbfbfbf", "fdbfbfbfbf"],
    "6.15": ["c0e080f08080f8808080fc80808080dfefbff7bfbffbbfbfbffdbfbfbfbf"],
    "6.16": ["fe", "ff", "fefeffff"],
    "6.17": ["c0af", "e080af", "f08080af", "f8808080af", "fc80808080af"],
    "6.18": ["c1bf", "e09fbf", "f08fbfbf", "f887bfbfbf", "fc83bfbfbfbf"],
    "6.19": ["c080", "e08080", "f0808080", "f880808080", "fc8080808080"],
    "6.20": ["eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf"],
    "6.21": ["eda080edb080", "edadbfedbfbf", "edae80edb080", "edafbfedbfbf"],
}


@pytest.mark.parametrize("reason", [text.encode() for text in VALID], ids=lambda reason: str(reason.hex()))
def test_reasons_in_utf8(reason: bytes) -> None:
    """6.5 to 6.23, what is valid: a Close frame may say so, and is answered."""
    session = Session(flow=False)
    session.receive([close(NORMAL, reason)])
    assert sent(session.transport) == [(CLOSE, NORMAL.to_bytes(2))]
    session.check_end()


@pytest.mark.parametrize(("number", "reason"), [(number, each) for number in NOT_UTF8 for each in NOT_UTF8[number]])
def test_reasons_that_are_no_utf8(number: str, reason: str) -> None:
    """6.5 to 6.23, what is not: a Close frame with it is answered with 1007, and text with it with 1003."""
    text = bytes.fromhex(reason)
    for bad, code in ((close(NORMAL, text), INVALID), (frame(TEXT, text), UNSUPPORTED)):
        session = Session(flow=False)
        session.receive([bad])
        ((opcode, payload),) = sent(session.transport)
        assert (opcode, int.from_bytes(payload[:2])) == (CLOSE, code)
        session.check_end()
