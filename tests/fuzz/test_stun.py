"""The invariants of relayd.stun (told in stun_invariants) on what hypothesis makes up."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.errors import DecodeError
from relayd.stun import attributes as a
from relayd.stun.attributes import ATTRIBUTES, Attribute
from relayd.stun.framing import encode_channel_data
from relayd.stun.message import Class, decode, encode
from tests.fuzz.stun_invariants import check_channel_data, check_message, check_stream, split
from tests.fuzz.stun_strategies import (
    VALUES,
    pair_lists,
    pairs,
    raw_channel_data,
    raw_messages,
    streams,
    transactions,
)

# The same examples every time, and no clock, since other tests share the machine.
fuzzed = settings(derandomize=True, max_examples=300)

methods = st.integers(0, 0xFFF)
classes = st.sampled_from(Class)
Pairs = list[tuple[Attribute[Any], Any]]


def test_every_attribute_is_fuzzed() -> None:
    """The strategies below leave out nothing but what is made by signing."""
    assert set(ATTRIBUTES.values()) - set(VALUES) == {a.MESSAGE_INTEGRITY, a.MESSAGE_INTEGRITY_SHA256, a.FINGERPRINT}


@fuzzed
@given(pair=pairs, transaction=transactions)
def test_values_round_trip(pair: tuple[Attribute[Any], Any], transaction: bytes) -> None:
    """Any value of any attribute is read as it was written."""
    attribute, value = pair
    assert attribute.decode(attribute.encode(value, transaction), transaction) == value


@fuzzed
@given(method=methods, cls=classes, transaction=transactions, content=pair_lists)
def test_messages_round_trip(method: int, cls: Class, transaction: bytes, content: Pairs) -> None:
    """Any message is read as it was written: type, transaction, and every attribute in its order, repeats included."""
    message = decode(encode(method, cls, transaction, content))
    assert (message.method, message.cls, message.transaction_id) == (method, cls, transaction)
    assert [code for code, _ in message.attributes] == [attribute.code for attribute, _ in content]
    for attribute, _ in content:
        assert message.get_all(attribute) == [value for other, value in content if other is attribute]


@fuzzed
@given(transaction=transactions, content=pair_lists, key=st.binary(min_size=1, max_size=32), data=st.data())
def test_signed_messages_hold(transaction: bytes, content: Pairs, key: bytes, data: st.DataObject) -> None:
    """A signed message is proven by its key; with any one byte changed it is refused or no longer proven."""
    sha256 = data.draw(st.booleans())
    signed = encode(3, Class.REQUEST, transaction, content, key=key, sha256=sha256)
    proof = decode(signed).proof()
    assert proof is not None
    assert proof.matches(key)
    changed = bytearray(signed)
    changed[data.draw(st.integers(0, len(signed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        proof = decode(bytes(changed)).proof()
    except DecodeError:
        return
    assert proof is None or not proof.matches(key)


@fuzzed
@given(data=raw_messages() | st.binary(max_size=200))
def test_any_message(data: bytes) -> None:
    """Whatever looks like STUN is a DecodeError, or a message that reads the same when it is written again."""
    check_message(data)


@fuzzed
@given(data=raw_channel_data() | st.binary(max_size=40))
def test_any_channel_data(data: bytes) -> None:
    """Whatever looks like ChannelData is a DecodeError, or what frames to the same bytes."""
    check_channel_data(data)


@fuzzed
@given(data=streams, cuts=st.lists(st.integers(0, 1000), max_size=10))
def test_any_stream(data: bytes, cuts: list[int]) -> None:
    """However any stream is cut, the splitter gives the same messages, or refuses it."""
    check_stream(data, cuts)
    check_stream(data, range(len(data)))


@fuzzed
@given(
    content=st.lists(
        st.builds(lambda content, transaction: encode(1, Class.REQUEST, transaction, content), pair_lists, transactions)
        | st.tuples(st.integers(0x4000, 0x7FFF), st.binary(max_size=50)),
        max_size=8,
    ),
    cuts=st.lists(st.integers(0, 10_000), max_size=20),
)
def test_streams_round_trip(content: list[bytes | tuple[int, bytes]], cuts: list[int]) -> None:
    """Messages that we frame come out of the stream, all of them and unchanged, however it is cut."""
    framed = [item if isinstance(item, bytes) else encode_channel_data(*item, padded=True) for item in content]
    expected = [item if isinstance(item, bytes) else encode_channel_data(*item, padded=False) for item in content]
    data = b"".join(framed)
    assert split([data]) == (expected, 0)
    check_stream(data, cuts)
