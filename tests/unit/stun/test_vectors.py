"""Promises of relayd.stun about the published test vectors: RFC 5769, and RFC 8489 appendix B.1 (with erratum 6268)."""

from __future__ import annotations

from typing import Any

import pytest

from relayd.address import TransportAddress
from relayd.errors import DecodeError
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute
from relayd.stun.integrity import PasswordAlgorithm, long_term_key, userhash
from relayd.stun.message import Class, Method, decode, encode

SHORT_TERM_KEY = b"VOkJxbRl1RmTxUk/WvJxBt"
TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")

# RFC 5769 section 2.1
REQUEST = bytes.fromhex(
    "00010058 2112a442 b7e7a701 bc34d686 fa87dfae"
    "80220010 5354554e 20746573 7420636c 69656e74"  # SOFTWARE
    "00240004 6e0001ff"  # PRIORITY
    "80290008 932ff9b1 51263b36"  # ICE-CONTROLLED
    "00060009 6576746a 3a683676 59202020"  # USERNAME, padded with spaces
    "00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249 c1b571a2"
    "80280004 e57a3bcf"
)
# RFC 5769 section 2.2
IPV4_RESPONSE = bytes.fromhex(
    "0101003c 2112a442 b7e7a701 bc34d686 fa87dfae"
    "8022000b 74657374 20766563 746f7220"  # SOFTWARE, padded with a space
    "00200008 0001a147 e112a643"
    "00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7"
    "80280004 c07d4c96"
)
# RFC 5769 section 2.3
IPV6_RESPONSE = bytes.fromhex(
    "01010048 2112a442 b7e7a701 bc34d686 fa87dfae"
    "8022000b 74657374 20766563 746f7220"
    "00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9"
    "00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41"
    "80280004 c8fb0b4c"
)
# RFC 5769 section 2.4
LONG_TERM_REQUEST = bytes.fromhex(
    "00010060 2112a442 78ad3433 c6ad72c0 29da412e"
    "00060012 e3839ee3 8388e383 aae38383 e382afe3 82b90000"
    "0015001c 662f2f34 39396b39 35346436 4f4c3334 6f4c3946 53547679 36347341"
    "0014000b 6578616d 706c652e 6f726700"
    "00080014 f6702465 6dd64a3e 02b8e071 2e85c9a2 8ca89666"
)
# RFC 8489 appendix B.1
SHA256_REQUEST = bytes.fromhex(
    "00010090 2112a442 78ad3433 c6ad72c0 29da412e"
    "001e0020 4a3cf38f ef6992bd a952c678 0417da0f 24819415 569e60b2 05c46e41 407f1704"
    "00150029 6f624d61 744a6f73 32414141 43662f2f 3439396b 39353464 364f4c33 346f4c39 46535476 79363473 41000000"
    "0014000b 6578616d 706c652e 6f726700"
    "001d0004 00020000"
    "001c0020 b5c7bf00 5b6c52a2 1c51c5e8 92f81924 136296cb 927c4314 9309278c c6518e65"
)
LONG_TERM_TRANSACTION = bytes.fromhex("78ad3433c6ad72c029da412e")
USERNAME = "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"
REALM = "example.org"
PASSWORD = "TheMatrIX"  # what preparation makes of the password in the RFC
MD5_KEY = long_term_key(PasswordAlgorithm.MD5, USERNAME, REALM, PASSWORD)
SHA256_KEY = long_term_key(PasswordAlgorithm.SHA256, USERNAME, REALM, PASSWORD)

SIGNED = {
    "request": (REQUEST, SHORT_TERM_KEY),
    "ipv4": (IPV4_RESPONSE, SHORT_TERM_KEY),
    "ipv6": (IPV6_RESPONSE, SHORT_TERM_KEY),
    "long-term": (LONG_TERM_REQUEST, MD5_KEY),
    "sha256": (SHA256_REQUEST, SHA256_KEY),
}
signed = pytest.mark.parametrize(("vector", "key"), SIGNED.values(), ids=SIGNED)


@signed
def test_integrity_holds(vector: bytes, key: bytes) -> None:
    """The MAC of each vector is that of its key, and of no other key."""
    proof = decode(vector).proof()
    assert proof is not None
    assert proof.matches(key)
    assert not proof.matches(key + b"x")
    assert not proof.matches(b"")


@signed
def test_truncated_anywhere(vector: bytes, key: bytes) -> None:
    """A vector that is cut off after any of its bytes is a DecodeError."""
    for size in range(len(vector)):
        with pytest.raises(DecodeError):
            decode(vector[:size])


@signed
def test_trailing_data(vector: bytes, key: bytes) -> None:
    """A vector with anything behind it is a DecodeError."""
    for size in range(1, 9):
        with pytest.raises(DecodeError):
            decode(vector + bytes(size))


@pytest.mark.parametrize(("vector", "key"), [SIGNED["long-term"], SIGNED["sha256"]], ids=["sha1", "sha256"])
def test_no_flipped_bit_passes(vector: bytes, key: bytes) -> None:
    """Whichever bit is flipped, in header, value, padding or MAC: it is refused, or its integrity does not hold."""
    for bit in range(len(vector) * 8):
        flipped = bytearray(vector)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            proof = decode(bytes(flipped)).proof()
        except DecodeError:
            continue
        assert proof is None or not proof.matches(key), bit


def test_request() -> None:
    """RFC 5769 section 2.1: header, every attribute in its order; ICE's PRIORITY is one that a relay does not know."""
    message = decode(REQUEST)
    assert (message.method, message.cls, message.transaction_id) == (Method.BINDING, Class.REQUEST, TRANSACTION)
    assert [code for code, _ in message.attributes] == [0x8022, 0x0024, 0x8029, 0x0006]
    assert message.get(a.SOFTWARE) == "STUN test client"
    assert message.get(a.USERNAME) == "evtj:h6vY"
    assert message.unknown_required() == (0x0024,)


@pytest.mark.parametrize(
    ("vector", "host"),
    [(IPV4_RESPONSE, "192.0.2.1"), (IPV6_RESPONSE, "2001:db8:1234:5678:11:2233:4455:6677")],
    ids=["ipv4", "ipv6"],
)
def test_response(vector: bytes, host: str) -> None:
    """RFC 5769 sections 2.2 and 2.3: the XOR-ed address is read, and written byte for byte as it stands there."""
    mapped = TransportAddress.parse(host, 32853)
    message = decode(vector)
    assert (message.method, message.cls) == (Method.BINDING, Class.SUCCESS)
    assert message.get(a.SOFTWARE) == "test vector"
    assert message.get(a.XOR_MAPPED_ADDRESS) == mapped
    ours = encode(
        Method.BINDING, Class.SUCCESS, TRANSACTION, [(a.SOFTWARE, "test vector"), (a.XOR_MAPPED_ADDRESS, mapped)]
    )
    # We pad with a zero where the RFC pads with a space: that byte apart, the attributes are the same.
    assert ours[20:] == vector[20:35] + b"\0" + vector[36 : len(ours)]


def test_long_term_request() -> None:
    """RFC 5769 section 2.4: from its parameters we write the very same bytes."""
    attributes: list[tuple[Attribute[Any], Any]] = [
        (a.USERNAME, USERNAME),
        (a.NONCE, b"f//499k954d6OL34oL9FSTvy64sA"),
        (a.REALM, REALM),
    ]
    ours = encode(Method.BINDING, Class.REQUEST, LONG_TERM_TRANSACTION, attributes, key=MD5_KEY)
    assert ours == LONG_TERM_REQUEST


def test_sha256_request() -> None:
    """RFC 8489 appendix B.1: from its parameters we write the very same bytes, user hash and SHA-256 key included."""
    attributes: list[tuple[Attribute[Any], Any]] = [
        (a.USERHASH, userhash(USERNAME, REALM)),
        (a.NONCE, b"obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA"),
        (a.REALM, REALM),
        (a.PASSWORD_ALGORITHM, PasswordAlgorithm.SHA256),
    ]
    ours = encode(Method.BINDING, Class.REQUEST, LONG_TERM_TRANSACTION, attributes, key=SHA256_KEY, sha256=True)
    assert ours == SHA256_REQUEST
    assert decode(SHA256_REQUEST).has_sha256


@pytest.mark.parametrize("vector", [REQUEST, IPV4_RESPONSE, IPV6_RESPONSE], ids=["request", "ipv4", "ipv6"])
def test_fingerprint_guards(vector: bytes) -> None:
    """A byte that changes anywhere in a value, or in the fingerprint, is a DecodeError."""
    for at in (21, 30, len(vector) - 20, len(vector) - 1):
        changed = bytearray(vector)
        changed[at] ^= 0x01
        with pytest.raises(DecodeError):
            decode(bytes(changed))
