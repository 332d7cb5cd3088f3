"""The MSRP that tests speak is RFC 4975's: else a relay that garbles it could pass them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.support.msrp import Assembly, Chunk, ChunkSplitter, Content, MsrpError, Session, abort, encode

ALICE, BOB = "msrp://alice.example:7654/a;tcp", "msrp://bob.example:8493/b;tcp"
PATHS = (("To-Path", BOB), ("From-Path", ALICE))
SEND = Chunk(
    "d93kswow",
    "SEND",
    (*PATHS, ("Message-ID", "4564dpWd"), ("Byte-Range", "1-8/16"), ("Content-Type", "text/plain")),
    b"I am Bob",
    "+",
)
SEND_BYTES = (
    f"MSRP d93kswow SEND\r\nTo-Path: {BOB}\r\nFrom-Path: {ALICE}\r\nMessage-ID: 4564dpWd\r\n"
    "Byte-Range: 1-8/16\r\nContent-Type: text/plain\r\n\r\nI am Bob\r\n-------d93kswow+\r\n"
).encode()


def pair() -> tuple[Session, Session, list[bytes]]:
    """Two sessions that talk with each other, and what they said."""
    said: list[bytes] = []

    def link(to: list[Session]) -> Any:
        def write(data: bytes) -> None:
            said.append(data)
            to[0].received(data)

        return write

    alices: list[Session] = []
    bobs: list[Session] = []
    alice, bob = Session(ALICE, BOB, link(bobs)), Session(BOB, ALICE, link(alices))
    alices.append(alice)
    bobs.append(bob)
    return alice, bob, said


def test_a_request_as_it_stands_in_the_rfc() -> None:
    """Start line, headers, blank line, body, and an end line with the transaction and a flag (section 9)."""
    assert encode(SEND) == SEND_BYTES
    assert list(ChunkSplitter().receive(SEND_BYTES)) == [SEND]


@pytest.mark.parametrize("size", [1, 2, 7, 50, 10_000])
def test_a_stream_in_pieces(size: int) -> None:
    """Chunks are found however the stream is cut, with bodies that look like ends, empty ones, and none."""
    chunks = [
        Chunk("abcd1", "SEND", (*PATHS, ("Content-Type", "text/plain")), body)
        for body in (b"", b"\r\n", b"\r\n\r\nMSRP abcd1 SEND\r\n-------abcd2$\r\n-------abcd1", None)
    ]
    chunks += [SEND, Chunk("abcd3", "200 OK", PATHS)]
    stream = b"".join(encode(chunk) for chunk in chunks)
    splitter = ChunkSplitter()
    found = [chunk for at in range(0, len(stream), size) for chunk in splitter.receive(stream[at : at + size])]
    assert found == chunks


@pytest.mark.parametrize(
    "wrong",
    [b"HTTP/1.1 200 OK\r\n", b"MSRP x SEND\r\n", b"MSRP abcd1 SEND\r\nnonsense\r\n-------abcd1$\r\n", b"x" * 5000],
)
def test_what_is_no_msrp(wrong: bytes) -> None:
    """It is an error, also if it goes on without end."""
    with pytest.raises(MsrpError):
        list(ChunkSplitter().receive(wrong))


@pytest.mark.parametrize("size", [1, 2048, 3000])
def test_chunks_in_any_order(size: int) -> None:
    """A message is whole when its last piece has come, whichever that is, and not before (section 7.3.1)."""
    seeded = random.Random(size)
    body = seeded.randbytes(40 if size == 1 else 10_000)
    chunks = list(Session(ALICE, BOB, print).chunks_of(Content("one", "text/plain", body), size))
    assert {len(chunk.body or b"") for chunk in chunks[:-1]} == {size}
    seeded.shuffle(chunks)
    assembly = Assembly()
    assert [assembly.add(chunk) for chunk in chunks] == [None] * (len(chunks) - 1) + [body]


def test_long_chunks_are_interruptible() -> None:
    """More than 2048 bytes do not say where they will end (section 5.1)."""
    for size, written in ((2048, "1-2048/5000"), (2049, "1-*/5000")):
        chunk = next(Session(ALICE, BOB, print).chunks_of(Content("one", "text/plain", bytes(5000)), size))
        assert chunk.get("Byte-Range") == written


@pytest.mark.parametrize("said", ["1-7/8", "2-8/8", "1-8/9", "0", "1-8"])
def test_ranges_that_lie(said: str) -> None:
    """A body that is not what its Byte-Range says is an error."""
    with pytest.raises(MsrpError):
        Assembly().add(Chunk("abcd1", "SEND", (*PATHS, ("Byte-Range", said)), b"8 bytes.", "$"))


def test_a_conversation() -> None:
    """Each chunk is answered, the whole is reported if that was asked for, and what is given up is dropped."""
    alice, bob, said = pair()
    codes: list[int] = []
    content = Content("one", "text/plain", bytes(5000))
    for chunk in alice.chunks_of(content, reported=True):
        alice.transmit(chunk).addCallback(codes.append)
    assert codes == [200, 200, 200]
    assert bob.contents.pending == [content]
    assert alice.reports.pending == [("one", "000 200 OK")]
    given_up = [abort(chunk) for chunk in alice.chunks_of(Content("two", "text/plain", b"well"))]
    alice.transmit(given_up[0])
    assert (bob.aborted, len(bob.contents.pending)) == (["two"], 1)
    before = len(said)
    for chunk in alice.chunks_of(Content("three", "text/plain", b"quiet"), answered=False):
        alice.transmit(chunk)
    assert (len(said) - before, len(bob.contents.pending)) == (1, 2)


def test_a_session_that_is_not_there() -> None:
    """What is for somebody else is answered 481, and an unknown method 501."""
    alice, bob, _ = pair()
    codes: list[int] = []
    stray = Chunk("stray123", "SEND", (("To-Path", "msrp://carol.example/c;tcp"), ("From-Path", ALICE)), b"hello")
    alice.transmit(stray).addCallback(codes.append)
    alice.transmit(Chunk("stray124", "AUTH", PATHS)).addCallback(codes.append)
    assert (codes, bob.contents.pending) == ([481, 501], [])
