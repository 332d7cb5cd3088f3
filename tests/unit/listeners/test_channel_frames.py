"""Promises of relayd.listeners.channel_frames: with it a WebSocket client is heard exactly as by Autobahn alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.dataplane.flow import Flow
from relayd.listeners.channel_frames import MOST, read_channel_frames
from relayd.listeners.websocket import Frames, WebClient
from tests.unit.listeners.fakes import FakeRelay
from tests.unit.listeners.test_connection import BINDING, INDICATION, PEER
from tests.unit.listeners.web_bench import BINARY, CLOSE, CONTINUATION, MASK, PING, PONG, TEXT, WebBench, frame, sent

NUMBER = 0x4001


def data(payload: bytes, number: int = NUMBER, padding: bytes = b"") -> bytes:
    """ChannelData."""
    return number.to_bytes(2) + len(payload).to_bytes(2) + payload + padding


class AutobahnFrames(Frames):
    """All of them are Autobahn's."""

    def received(self, data: bytes) -> None:
        self._dataReceived(data)


class AutobahnClient(WebClient):
    frames = AutobahnFrames


def heard(connection: type[WebClient], segments: list[bytes], closes_at: bytes | None) -> tuple[Any, ...]:
    """Everything that can be seen of a client which sent that, its service closing it at a certain message."""
    bench = WebBench()
    bench.listener.connection = connection
    client, transport = bench.open()
    service: Any = bench.service
    relay: Any = FakeRelay()
    client.flows[NUMBER] = Flow(client, NUMBER, relay, PEER)
    receive = service.receive

    def closing(client: Any, message: bytes) -> None:
        receive(client, message)
        if message == closes_at:
            client.close()

    service.receive = closing
    for segment in segments:
        if not transport.disconnecting:
            client.dataReceived(segment)
        bench.clock.advance(0)
    return (
        bench.service.messages,
        relay.sent,
        sent(transport),
        transport.disconnecting,
        client._closing,
        client._liveness.heard,
        client._frames is None or client._frames.state,
    )


SIZES = [0, 1, 2, 3, 4, 5, 117, 118, 121, 122, 123, 200, 1200, MOST - 4, MOST - 3]
CONTENT = bytes(range(256)) * 10
X200 = data(CONTENT[:200])
PLAIN = st.builds(
    lambda size, number, padded: frame(BINARY, data(CONTENT[:size], number, bytes(-size % 4 if padded else 0))),
    st.sampled_from(SIZES),
    st.sampled_from([NUMBER, NUMBER, 0x4002, 0x7FFF]),
    st.booleans(),
)
UNUSUAL = [
    frame(BINARY, X200, fin=False),
    frame(BINARY, X200, fin=False) + frame(PING, b"?") + frame(CONTINUATION, data(b"x")),
    frame(BINARY, X200[:50], fin=False) + frame(CONTINUATION, X200[50:]),
    frame(BINARY, b"", fin=False) + frame(BINARY, X200),
    frame(BINARY, X200, masked=False),
    frame(BINARY, X200, rsv=4),
    frame(CONTINUATION, X200),
    frame(TEXT, X200),
    frame(0x3, X200),
    frame(PING, X200[:100]),
    b"\x89\x8e" + MASK + frame(BINARY, data(b"trap")),  # what is within it looks like a frame
    frame(PING, X200),
    frame(PONG),
    frame(CLOSE, b"\x03\xe8"),
    frame(CLOSE),
    frame(BINARY, X200 + data(b"several")),
    frame(BINARY, X200[:-1]),
    frame(BINARY, X200 + b"\0"),
    frame(BINARY, data(CONTENT[:201], padding=bytes(4))),
    frame(BINARY, data(CONTENT[:200], 0x3FFF)),
    frame(BINARY, data(CONTENT[:200], 0x8000)),
    frame(BINARY, data(CONTENT[:20], 0xFFFF)),
    frame(BINARY, data(bytes(65_535))),
    frame(BINARY, data(bytes(65_535)) + bytes(30)),
    frame(BINARY, BINDING),
    frame(BINARY, BINDING[:-1]),
    frame(BINARY, INDICATION + BINDING),
    frame(BINARY, b""),
    frame(BINARY, b"\x40\x01\0"),
    b"\x82\xfe\0\x08" + MASK + frame(BINARY, data(b"1234"))[6:],  # longer than it need be
    b"\x82\xff" + (204).to_bytes(8) + frame(BINARY, X200)[4:],
]


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Frames of which few are unusual, in segments that are mostly cut near where a frame begins."""
    frames = draw(st.lists(PLAIN, min_size=1, max_size=8))
    for frame_ in draw(st.lists(st.one_of(st.sampled_from(UNUSUAL), st.binary(max_size=20)), max_size=2)):
        frames.insert(draw(st.integers(0, len(frames))), frame_)
    borders = list(itertools.accumulate(map(len, frames), initial=0))
    cuts = draw(st.lists(st.tuples(st.sampled_from(borders), st.integers(-3, 15)), max_size=6))
    places = sorted({0, borders[-1], *(min(max(0, border + offset), borders[-1]) for border, offset in cuts)})
    stream = b"".join(frames)
    return [stream[start:end] for start, end in itertools.pairwise(places)]


@settings(max_examples=200)
@given(streams(), st.sampled_from([None, BINDING]))
def test_a_client_is_heard_as_by_autobahn(segments: list[bytes], closes_at: bytes | None) -> None:
    """Whatever is sent, cut anywhere: the same messages go to the service and the relay, the same frames come back."""
    assert heard(WebClient, segments, closes_at) == heard(AutobahnClient, segments, closes_at)


@pytest.mark.parametrize("unusual", UNUSUAL, ids=lambda value: f"{value[:10].hex()}-{len(value)}")
def test_the_unusual_is_heard_as_by_autobahn(unusual: bytes) -> None:
    """The same for each thing that can go wrong between plain frames, in one segment and in two, cut anywhere near."""
    plain = frame(BINARY, data(CONTENT[:200])) + frame(BINARY, data(b"ab"))
    stream = plain + unusual + plain
    for cut in (0, *range(len(plain) - 2, len(plain) + 15), len(plain) + len(unusual), len(stream) - 1):
        segments = [stream[:cut], stream[cut:]]
        assert heard(WebClient, segments, BINDING) == heard(AutobahnClient, segments, BINDING)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 117, 118, 121, 122, 123, 200, MOST - 4])
def test_what_is_plain_is_read(size: int) -> None:
    """Frames of any size up to the limit, padded or not, one behind the other."""
    payload = bytes(number & 255 for number in range(size))
    frames = [frame(BINARY, data(payload)), frame(BINARY, data(payload, 0x7FFF))]
    if size + -size % 4 <= MOST - 4:
        frames.append(frame(BINARY, data(payload, padding=bytes(-size % 4))))
    stream = b"".join(frames)
    read = read_channel_frames(stream + bytes(12))
    assert read.messages == [data(payload), data(payload, 0x7FFF), data(payload)][: len(frames)]
    assert (read.size, read.more) == (len(stream), False)


@pytest.mark.parametrize("unusual", UNUSUAL, ids=lambda value: f"{value[:10].hex()}-{len(value)}")
def test_what_is_unusual_is_left(unusual: bytes) -> None:
    """It is not touched, and neither is what comes behind it: order is kept."""
    plain = frame(BINARY, data(b"plain"))
    assert read_channel_frames(plain + unusual + plain * 2) == ([data(b"plain")], len(plain), False)


def test_what_is_not_whole_can_wait() -> None:
    """Of a frame that has begun as expected nothing is taken until it is whole; too few bytes tell nothing yet."""
    whole = frame(BINARY, data(b"x" * 200))
    for size in range(len(whole)):
        assert read_channel_frames(whole[:size]) == ([], 0, size >= 12)
    assert read_channel_frames(whole) == ([data(b"x" * 200)], len(whole), False)


def test_a_frame_in_crumbs_is_held_once() -> None:
    """However small the segments, no more is kept than the frame, and it arrives."""
    bench = WebBench()
    client, _ = bench.open()
    stream = frame(BINARY, data(bytes(MOST - 4)))
    for at in range(len(stream)):
        client.dataReceived(stream[at : at + 1])
        assert len(client._frames.data) <= at + 1
    assert bench.service.messages == [data(bytes(MOST - 4))]
    assert client._frames.data == b""


def test_a_segment_of_one_channel_is_one_run() -> None:
    """The frames of a segment go to the relay together."""
    bench = WebBench()
    client, _ = bench.open()
    relay: Any = FakeRelay()
    client.flows[NUMBER] = Flow(client, NUMBER, relay, PEER)
    client.dataReceived(frame(BINARY, data(b"x" * 200)) * 20)
    assert relay.runs == [20]
