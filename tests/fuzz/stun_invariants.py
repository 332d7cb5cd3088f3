"""What holds for any bytes that reach a decoder of relayd.stun. Shared by hypothesis and the coverage-guided target.

* `decode` raises DecodeError, or gives a message that, written again, decodes to the same message; reading any of its
  values raises DecodeError, or gives a value that, written again, reads the same.
* `decode_channel_data` raises DecodeError, or gives what frames to the beginning of the very same bytes.
* `StreamSplitter` gives the same messages however the stream is cut, or refuses it under every cut; what it gives and
  what it holds back add up to the stream; and it never holds back as much as the longest message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from relayd.errors import DecodeError
from relayd.stun.attributes import ATTRIBUTES, Attribute
from relayd.stun.framing import StreamSplitter, decode_channel_data, encode_channel_data
from relayd.stun.message import MAX_ATTRIBUTES, MAX_MESSAGE, Message, decode, encode


def opaque(code: int) -> Attribute[bytes]:
    """Any type at all, with its value as bytes."""
    return Attribute(code, "opaque", lambda raw, _: raw, lambda value, _: value)


def check_message(data: bytes) -> None:
    try:
        message = decode(data)
    except DecodeError:
        return
    assert data[0] < 0x40
    assert data[4:8] == b"\x21\x12\xa4\x42", "the magic cookie"
    proof = message.proof()
    assert (proof is not None) == message.has_integrity
    if proof is not None:
        assert not proof.matches(b"a key that nobody has")
        assert len(proof.mac) == (32 if message.has_sha256 else 20)
    assert len(set(message.unknown_required())) == len(message.unknown_required())
    check_values(message)
    if sum(4 + len(raw) + -len(raw) % 4 for _, raw in message.attributes) > MAX_ATTRIBUTES:
        return
    pairs = [(opaque(code), raw) for code, raw in message.attributes]
    again = decode(encode(message.method, message.cls, message.transaction_id, pairs, with_fingerprint=True))
    assert (again.method, again.cls, again.transaction_id) == (message.method, message.cls, message.transaction_id)
    assert again.attributes == message.attributes


def check_values(message: Message) -> None:
    for code, raw in message.attributes:
        attribute = ATTRIBUTES.get(code)
        if attribute is None:
            continue
        try:
            value = attribute.decode(raw, message.transaction_id)
        except DecodeError:
            continue
        written = attribute.encode(value, message.transaction_id)
        # Text that was not UTF-8 grows when it is replaced, beyond what a reason phrase may be.
        if len(written) <= max(len(raw), 4):
            assert attribute.decode(written, message.transaction_id) == value


def check_channel_data(data: bytes) -> None:
    try:
        number, payload = decode_channel_data(data)
    except DecodeError:
        return
    assert data.startswith(encode_channel_data(number, payload, padded=False))


def split(pieces: Iterable[bytes]) -> tuple[list[bytes], int] | None:
    """The messages and the number of bytes held back at the end; None where the stream is refused."""
    splitter = StreamSplitter()
    messages = []
    try:
        for piece in pieces:
            messages += splitter.receive(piece)
            assert splitter.pending < MAX_MESSAGE
    except DecodeError:
        return None
    return messages, splitter.pending


def check_stream(data: bytes, cuts: Sequence[int]) -> None:
    """`cuts` are places in `data`, in any order and number."""
    whole = split([data])
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    assert split(data[start:end] for start, end in pairwise(places)) == whole
    if whole is None:
        return
    messages, pending = whole
    at = 0
    for message in messages:
        assert data.startswith(message, at)
        at += len(message) + -len(message) % 4
    assert at + pending == len(data)
    for message in messages:
        check_message(message) if message[0] < 0x40 else check_channel_data(message)
