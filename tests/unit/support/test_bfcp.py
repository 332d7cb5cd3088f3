"""The BFCP that tests speak is RFC 8855's: else a relay that garbles it could pass them."""

from __future__ import annotations

import pytest

from tests.support.bfcp import (
    RELIABLE,
    UNRELIABLE,
    Attribute,
    AttributeType,
    BfcpError,
    Message,
    MessageSplitter,
    Primitive,
    RequestStatus,
    decode,
    encode,
    find,
    group,
    identifier,
    request_status,
)

FLOOR_REQUEST = Message(
    Primitive.FLOOR_REQUEST,
    conference=0x01020304,
    transaction=5,
    user=6,
    attributes=(
        identifier(AttributeType.FLOOR_ID, 543),
        Attribute(AttributeType.PARTICIPANT_PROVIDED_INFO, b"slide"),
    ),
)
FLOOR_REQUEST_BYTES = bytes.fromhex(
    "20 01 0003 01020304 0005 0006"  # version 1, three words of payload
    "04 04 021f"  # FLOOR-ID
    "10 07 736c696465 00"  # PARTICIPANT-PROVIDED-INFO, whose length leaves the padding out
)


def test_a_message_as_it_stands_in_the_rfc() -> None:
    """Header, an identifier and a text, byte by byte (sections 5.1, 5.2)."""
    assert encode(FLOOR_REQUEST) == FLOOR_REQUEST_BYTES
    assert decode(FLOOR_REQUEST_BYTES) == FLOOR_REQUEST


def test_the_responder_flag_is_of_unreliable_transports() -> None:
    """Version 2 has it, version 1 neither sends nor reads it (section 5.1)."""
    for version, first in ((RELIABLE, 0x20), (UNRELIABLE, 0x50)):
        sent = encode(Message(Primitive.HELLO_ACK, 1, 2, 3, version=version, is_response=True))
        assert sent[0] == first
        assert decode(sent).is_response == (version == UNRELIABLE)
    assert not decode(b"\x30" + encode(Message(Primitive.HELLO, 1, 2, 3))[1:]).is_response


def test_groups() -> None:
    """A grouped attribute begins with an identifier, and its length counts what is in it (section 5.2.15)."""
    status = group(AttributeType.OVERALL_REQUEST_STATUS, 9, request_status(RequestStatus.ACCEPTED, 1))
    information = group(AttributeType.FLOOR_REQUEST_INFORMATION, 9, status)
    sent = encode(Message(Primitive.FLOOR_REQUEST_STATUS, 1, 2, 3, (information,)))
    assert sent[12:] == bytes.fromhex("1e 0c 0009  24 08 0009  0a 04 02 01")
    read = decode(sent).get(AttributeType.FLOOR_REQUEST_INFORMATION)
    assert (read.number, read.group) == (9, (status,))
    assert find(read.group[0].group, AttributeType.REQUEST_STATUS).value == b"\x02\x01"


@pytest.mark.parametrize("size", [1, 3, 12, 23, 1000])
def test_a_stream_in_pieces(size: int) -> None:
    """Messages are found in a stream however it is cut."""
    hello = Message(Primitive.HELLO, 1, 2, 3)
    stream = (FLOOR_REQUEST_BYTES + encode(hello)) * 2
    splitter = MessageSplitter()
    found = [message for at in range(0, len(stream), size) for message in splitter.receive(stream[at : at + size])]
    assert found == [FLOOR_REQUEST, hello] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        FLOOR_REQUEST_BYTES[:11],
        FLOOR_REQUEST_BYTES[:-1],
        FLOOR_REQUEST_BYTES + bytes(4),
        b"\x60" + FLOOR_REQUEST_BYTES[1:],  # version 3
        b"\x48" + FLOOR_REQUEST_BYTES[1:],  # a fragment
        FLOOR_REQUEST_BYTES[:13] + b"\x01" + FLOOR_REQUEST_BYTES[14:],  # an attribute without a head
        FLOOR_REQUEST_BYTES[:17] + b"\x09" + FLOOR_REQUEST_BYTES[18:],  # one that is longer than what there is
    ],
)
def test_what_is_no_message(wrong: bytes) -> None:
    """Lengths that lie, versions that do not exist and fragments are errors."""
    with pytest.raises(BfcpError):
        decode(wrong)


def test_what_is_not_there() -> None:
    """Neither an attribute that is missing nor one that is too long passes in silence."""
    with pytest.raises(BfcpError, match="FLOOR_REQUEST_ID"):
        FLOOR_REQUEST.get(AttributeType.FLOOR_REQUEST_ID)
    with pytest.raises(BfcpError, match="256 bytes"):
        encode(Message(Primitive.FLOOR_REQUEST, 1, 2, 3, (Attribute(AttributeType.ERROR_INFO, bytes(254)),)))
