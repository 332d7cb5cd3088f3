"""What the bench's generator sends on streams, and how it counts what comes."""

from __future__ import annotations

import pytest

from bench.traffic import RecordLengths
from bench.websocket import masked_frame, plain_frame
from relayd.listeners.channel_frames import read_channel_frames
from tests.unit.listeners.web_bench import frames_in


@pytest.mark.parametrize("size", [4, 125, 126, 204, 1204])
def test_frames_are_those_of_the_rfc(size: int) -> None:
    """What a client sends is masked, each with another key, and what a server sends is not; both say their length."""
    message = b"\x40\x00" + (size - 4).to_bytes(2) + bytes(size - 4)
    first, second = masked_frame(message), masked_frame(message)
    assert first != second
    assert read_channel_frames(first + second + bytes(12)).messages == [message] * 2
    assert frames_in(plain_frame(message)) == [(2, message)]


@pytest.mark.parametrize("step", [1, 3, 5, 200, 1000])
def test_records_are_measured_in_any_pieces(step: int) -> None:
    """Headers and the cipher's share do not count, and neither does what is not whole."""
    records = b"".join(b"\x17\x03\x03" + (size + 17).to_bytes(2) + bytes(size + 17) for size in (1, 204, 0, 16_384))
    lengths = RecordLengths(17)
    stream = records + records[:20]
    assert sum(lengths.receive(stream[at : at + step]) for at in range(0, len(stream), step)) == 16_589
    assert lengths.receive(records[20:]) == 16_589
