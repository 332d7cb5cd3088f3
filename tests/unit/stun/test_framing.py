"""Promises of relayd.stun.framing: ChannelData is what its length says, and a stream is cut where its messages end."""

from __future__ import annotations

import pytest

from relayd.errors import DecodeError
from relayd.stun import attributes as a
from relayd.stun.framing import StreamSplitter, decode_channel_data, encode_channel_data, split_message
from relayd.stun.message import MAX_MESSAGE, Class, Method, encode

STUN = encode(Method.ALLOCATE, Class.REQUEST, bytes(12), [(a.REQUESTED_TRANSPORT, 17), (a.SOFTWARE, "abc")])


class TestChannelData:
    @pytest.mark.parametrize(
        ("payload", "plain", "padded"),
        [
            (b"", "40010000", "40010000"),
            (b"a", "4001000161", "4001000161000000"),
            (b"ab", "400100026162", "4001000261620000"),
            (b"abc", "40010003616263", "4001000361626300"),
            (b"abcd", "4001000461626364", "4001000461626364"),
        ],
    )
    def test_bytes(self, payload: bytes, plain: str, padded: str) -> None:
        """Number, length, payload; padded with zeros to four bytes where asked for, the length without the padding."""
        assert encode_channel_data(0x4001, payload, padded=False) == bytes.fromhex(plain)
        assert encode_channel_data(0x4001, payload, padded=True) == bytes.fromhex(padded)

    @pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 200, 65_535])
    @pytest.mark.parametrize("padded", [False, True])
    def test_round_trip(self, size: int, padded: bool) -> None:
        """What is framed is read back, from nothing to 65,535 bytes; padding in a datagram is not payload."""
        payload = bytes(range(256)) * 256
        framed = encode_channel_data(0x7FFF, payload[:size], padded=padded)
        assert decode_channel_data(framed) == (0x7FFF, payload[:size])

    def test_truncated_anywhere(self) -> None:
        """ChannelData that is longer than what carries it is a DecodeError, wherever it was cut off."""
        framed = encode_channel_data(0x4000, b"abcdefg", padded=False)
        for size in range(len(framed)):
            with pytest.raises(DecodeError):
                decode_channel_data(framed[:size])

    @pytest.mark.parametrize("number", [0x0001, 0x3FFF, 0x8000, 0xFFFF])
    def test_not_a_channel_number(self, number: int) -> None:
        """Numbers outside 0x4000 to 0x7FFF are no channel."""
        with pytest.raises(DecodeError):
            decode_channel_data(number.to_bytes(2, "big") + bytes(2))


class TestSplitMessage:
    """One message of WebSocket, as a rule one of ours."""

    @pytest.mark.parametrize("message", [STUN, b"\x40\x00\x00\x05hello", b"\x4f\xff\x00\x00"])
    def test_one(self, message: bytes) -> None:
        """One whole message is one, padded or not."""
        assert split_message(message) == [message]
        assert split_message(message + bytes(-len(message) % 4)) == [message]

    def test_several(self) -> None:
        """Several come out in order, ChannelData without its padding, which the last one need not have."""
        messages = [STUN, b"\x40\x00\x00\x05hello", b"\x4f\xff\x00\x00", STUN, b"\x40\x01\x00\x03abc"]
        joined = STUN + b"\x40\x00\x00\x05hello\0\0\0" + b"\x4f\xff\x00\x00" + STUN + b"\x40\x01\x00\x03abc"
        assert split_message(joined) == messages
        assert split_message(joined + b"\0") == messages

    def test_truncated_anywhere(self) -> None:
        """What is cut off within a message is a DecodeError, and so is nothing at all."""
        for size in range(len(STUN)):
            with pytest.raises(DecodeError):
                split_message(STUN[:size])
        for size in range(1, len(STUN)):
            with pytest.raises(DecodeError):
                split_message(STUN + STUN[:size])

    @pytest.mark.parametrize(
        "garbage", [b"\x80\0\0\0", b"\xff" * 40, b"\0\1\0\0HTTP" + bytes(40), b"\0\1\0\3\x21\x12\xa4\x42"]
    )
    def test_garbage(self, garbage: bytes) -> None:
        """Bytes that can begin no message are a DecodeError, wherever they stand, and nothing before them counts."""
        for data in (garbage, STUN + garbage):
            with pytest.raises(DecodeError):
                split_message(data)

    def test_unpadded_in_the_middle(self) -> None:
        """ChannelData without padding ahead of another message is no message: it would be a guess where that begins."""
        with pytest.raises(DecodeError):
            split_message(b"\x40\x00\x00\x01a" + STUN)


class TestStreamSplitter:
    messages = [STUN, b"\x40\x00\x00\x05hello", b"\x4f\xff\x00\x00", STUN, b"\x40\x01\x00\x04data"]
    stream = STUN + b"\x40\x00\x00\x05hello\0\0\0" + b"\x4f\xff\x00\x00" + STUN + b"\x40\x01\x00\x04data"

    def test_whole(self) -> None:
        """Many messages in one piece come out one by one, in order, ChannelData without its padding."""
        splitter = StreamSplitter()
        assert splitter.receive(self.stream) == self.messages
        assert splitter.pending == 0

    @pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 19, 21])
    def test_in_pieces(self, step: int) -> None:
        """However the stream is cut, the same messages come out."""
        splitter = StreamSplitter()
        found = []
        for at in range(0, len(self.stream), step):
            found += splitter.receive(self.stream[at : at + step])
        assert found == self.messages
        assert splitter.pending == 0

    def test_each_comes_as_soon_as_it_is_complete(self) -> None:
        """A message comes with its last byte, its padding included, and not before; what is held back is counted."""
        framed = b"\x40\x00\x00\x01x\0\0\0"
        for at in range(1, len(framed)):
            splitter = StreamSplitter()
            assert splitter.receive(framed[:at]) == []
            assert splitter.pending == at
            assert splitter.receive(framed[at:]) == [framed[:5]]
            assert splitter.pending == 0

    def test_nothing(self) -> None:
        """No bytes give no messages and change nothing."""
        splitter = StreamSplitter()
        assert splitter.receive(b"") == []
        splitter.receive(STUN[:9])
        assert splitter.receive(b"") == []
        assert splitter.pending == 9

    def test_what_is_held_is_bounded(self) -> None:
        """Of the longest message, fed in pieces, less than all is held; with its last byte nothing is."""
        longest = b"\x00\x01\xff\xfc\x21\x12\xa4\x42" + bytes(MAX_MESSAGE - 8)
        splitter = StreamSplitter()
        for at in range(0, MAX_MESSAGE - 1, 4096):
            assert splitter.receive(longest[at : min(at + 4096, MAX_MESSAGE - 1)]) == []
            assert splitter.pending < MAX_MESSAGE
        assert splitter.receive(longest[-1:]) == [longest]
        assert splitter.pending == 0

    @pytest.mark.parametrize("first", [0x80, 0xFF])
    def test_first_byte_tells(self, first: int) -> None:
        """A byte that begins neither STUN nor ChannelData is refused at once, also behind a whole message."""
        for before in (b"", STUN):
            with pytest.raises(DecodeError):
                StreamSplitter().receive(before + bytes((first,)))

    @pytest.mark.parametrize(
        "stranger",
        [
            bytes.fromhex("16030100"),  # a TLS ClientHello starts so, 0x0100 being a length that STUN could have
            bytes.fromhex("00010003 2112a442"),
        ],
    )
    def test_strangers(self, stranger: bytes) -> None:
        """Other protocols, and lengths that STUN cannot have, are refused within the first eight bytes."""
        with pytest.raises(DecodeError):
            StreamSplitter().receive(stranger + bytes(4))

    @pytest.mark.parametrize("at", [4, 5, 6, 7])
    def test_wrong_cookie_is_refused_at_its_first_byte(self, at: int) -> None:
        """Without the magic cookie nothing is waited for: the first wrong byte of it is refused."""
        wrong = STUN[:at] + bytes((STUN[at] ^ 1,))
        splitter = StreamSplitter()
        assert splitter.receive(wrong[:-1]) == []
        with pytest.raises(DecodeError):
            splitter.receive(wrong[-1:])
