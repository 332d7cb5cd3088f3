"""Promises of relayd.stun.attributes: bytes as the RFCs draw them, and DecodeError for everything else."""

from __future__ import annotations

from typing import Any

import pytest

from relayd.address import Family, TransportAddress
from relayd.errors import DecodeError
from relayd.stun import attributes as a
from relayd.stun.attributes import ATTRIBUTES, AddressError, Attribute, ChangeRequest, ErrorCode, Icmp

TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
V4 = TransportAddress(bytes((192, 0, 2, 1)), 32853)
V6 = TransportAddress(bytes.fromhex("20010db8123456780011223344556677"), 32853)

# One example each, drawn after the figures in RFC 8489 section 14, RFC 8656 section 18 and RFC 5780 section 7
EXAMPLES: list[tuple[Attribute[Any], Any, str]] = [
    (a.MAPPED_ADDRESS, V4, "0001 8055 c0000201"),
    (a.MAPPED_ADDRESS, V6, "0002 8055 20010db8123456780011223344556677"),
    (a.CHANGE_REQUEST, ChangeRequest(change_ip=True, change_port=False), "00000004"),
    (a.CHANGE_REQUEST, ChangeRequest(change_ip=False, change_port=True), "00000002"),
    (a.USERNAME, "alice", "616c696365"),
    (a.ERROR_CODE, ErrorCode(401, "No"), "00000401 4e6f"),
    (a.ERROR_CODE, ErrorCode(699, ""), "00000663"),
    (a.UNKNOWN_ATTRIBUTES, (0x7FFF, 0x0002), "7fff0002"),
    (a.UNKNOWN_ATTRIBUTES, (), ""),
    (a.CHANNEL_NUMBER, 0x4001, "40010000"),
    (a.LIFETIME, 600, "00000258"),
    (a.XOR_PEER_ADDRESS, V4, "0001 a147 e112a643"),
    (a.DATA, b"", ""),
    (a.REALM, "example.org", "6578616d706c652e6f7267"),
    (a.NONCE, b"\x00\xff", "00ff"),
    (a.XOR_RELAYED_ADDRESS, V6, "0002 a147 0113a9faa5d3f179bc25f4b5bed2b9d9"),
    (a.REQUESTED_ADDRESS_FAMILY, Family.IPV6, "02000000"),
    (a.EVEN_PORT, True, "80"),
    (a.EVEN_PORT, False, "00"),
    (a.REQUESTED_TRANSPORT, 17, "11000000"),
    (a.DONT_FRAGMENT, True, ""),
    (a.PASSWORD_ALGORITHM, 2, "00020000"),
    (a.XOR_MAPPED_ADDRESS, V4, "0001 a147 e112a643"),
    (a.RESERVATION_TOKEN, b"12345678", "3132333435363738"),
    (a.RESPONSE_PORT, 3478, "0d960000"),
    (a.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6, "02000000"),
    (a.ADDRESS_ERROR_CODE, AddressError(Family.IPV6, 440, "x"), "02000428 78"),
    (a.PASSWORD_ALGORITHMS, (2, 1), "00020000 00010000"),
    (a.ICMP, Icmp(3, 4, 1280), "0000 03 04 00000500"),
    (a.FINGERPRINT, 0xE57A3BCF, "e57a3bcf"),
    (a.OTHER_ADDRESS, V4, "0001 8055 c0000201"),
]

MALFORMED: list[tuple[Attribute[Any], str]] = [
    (a.XOR_PEER_ADDRESS, ""),
    (a.XOR_PEER_ADDRESS, "0001a147e112a6"),
    (a.XOR_PEER_ADDRESS, "0001a147e112a64300"),
    (a.XOR_PEER_ADDRESS, "0002a147e112a643"),  # the size of IPv4, the family of IPv6
    (a.XOR_PEER_ADDRESS, "0001a1470113a9faa5d3f179bc25f4b5bed2b9d9"),
    (a.XOR_PEER_ADDRESS, "0003a147e112a643"),
    (a.MAPPED_ADDRESS, "00008055c0000201"),
    (a.MAPPED_ADDRESS, "0001"),
    (a.CHANGE_REQUEST, "000004"),
    (a.USERNAME, "ff"),
    (a.USERNAME, "c080"),  # NUL the long way round
    (a.USERNAME, "eda080"),  # a surrogate
    (a.REALM, "e383"),
    (a.ERROR_CODE, "000004"),
    (a.ERROR_CODE, "00000200"),  # 200 is no error
    (a.ERROR_CODE, "00000700"),
    (a.ERROR_CODE, "00000464"),  # a number of 100
    (a.UNKNOWN_ATTRIBUTES, "7fff00"),
    (a.CHANNEL_NUMBER, "4001"),
    (a.LIFETIME, "0258"),
    (a.LIFETIME, "0000025800"),
    (a.REQUESTED_ADDRESS_FAMILY, "02"),
    (a.EVEN_PORT, ""),
    (a.EVEN_PORT, "8000"),
    (a.REQUESTED_TRANSPORT, "1100"),
    (a.DONT_FRAGMENT, "00"),
    (a.PASSWORD_ALGORITHM, ""),
    (a.PASSWORD_ALGORITHM, "0002"),
    (a.PASSWORD_ALGORITHM, "0002000000010000"),
    (a.PASSWORD_ALGORITHMS, "000200"),
    (a.PASSWORD_ALGORITHMS, "00020001"),
    (a.PASSWORD_ALGORITHMS, "0002ffff00000000"),
    (a.USERHASH, "00" * 31),
    (a.RESERVATION_TOKEN, "31323334353637"),
    (a.ADDRESS_ERROR_CODE, ""),
    (a.ADDRESS_ERROR_CODE, "0200"),
    (a.ADDRESS_ERROR_CODE, "03000428"),
    (a.ICMP, "00000304000005"),
    (a.FINGERPRINT, "e57a3b"),
]


@pytest.mark.parametrize(("attribute", "value", "raw"), EXAMPLES, ids=lambda value: getattr(value, "name", None))
def test_examples(attribute: Attribute[Any], value: Any, raw: str) -> None:
    """Each value is written as the RFC draws it, and read back."""
    assert attribute.encode(value, TRANSACTION) == bytes.fromhex(raw)
    assert attribute.decode(bytes.fromhex(raw), TRANSACTION) == value


@pytest.mark.parametrize(("attribute", "raw"), MALFORMED, ids=lambda value: getattr(value, "name", None))
def test_malformed(attribute: Attribute[Any], raw: str) -> None:
    """A value of the wrong size or with impossible content is a DecodeError."""
    with pytest.raises(DecodeError):
        attribute.decode(bytes.fromhex(raw), TRANSACTION)


@pytest.mark.parametrize(
    ("attribute", "limit"), [(a.USERNAME, 508), (a.REALM, 763), (a.NONCE, 763), (a.SOFTWARE, 763)], ids=str
)
def test_text_limits(attribute: Attribute[Any], limit: int) -> None:
    """User names end at 508 bytes, realms, nonces and software at 763: one more is a DecodeError."""
    assert len(attribute.decode(b"x" * limit, TRANSACTION)) == limit
    with pytest.raises(DecodeError):
        attribute.decode(b"x" * (limit + 1), TRANSACTION)


def test_reason_phrase_limit() -> None:
    """A reason phrase ends at 763 bytes; what is not UTF-8 in it is replaced, since only people read it."""
    assert a.ERROR_CODE.decode(b"\0\0\4\1" + b"\xff" * 763, TRANSACTION).reason == "\ufffd" * 763
    with pytest.raises(DecodeError):
        a.ERROR_CODE.decode(b"\0\0\4\1" + b"x" * 764, TRANSACTION)


@pytest.mark.parametrize("text", ["\0", "a\nb", "%n%s", "'; --", '"', "\u202e", "\U0001f600", ""])
def test_text_passes_unchanged(text: str) -> None:
    """Hostile but well-formed text is neither changed nor refused here: whoever shows it escapes it."""
    assert a.USERNAME.decode(a.USERNAME.encode(text, TRANSACTION), TRANSACTION) == text


def test_reserved_bits_are_ignored() -> None:
    """Bits that an RFC reserves may be anything when read."""
    assert a.XOR_PEER_ADDRESS.decode(bytes.fromhex("ff01a147e112a643"), TRANSACTION) == V4
    assert a.REQUESTED_TRANSPORT.decode(bytes.fromhex("11ffffff"), TRANSACTION) == 17
    assert a.CHANNEL_NUMBER.decode(bytes.fromhex("4001ffff"), TRANSACTION) == 0x4001
    assert a.EVEN_PORT.decode(b"\x7f", TRANSACTION) is False
    assert a.ERROR_CODE.decode(bytes.fromhex("fffffc01"), TRANSACTION) == ErrorCode(401, "")
    assert a.CHANGE_REQUEST.decode(bytes.fromhex("fffffff9"), TRANSACTION) == ChangeRequest(False, False)


def test_algorithm_parameters_are_skipped() -> None:
    """Parameters of an algorithm, padded to four bytes, are passed over."""
    raw = bytes.fromhex("00090003 aabbcc00 00020000")
    assert a.PASSWORD_ALGORITHMS.decode(raw, TRANSACTION) == (9, 2)


def test_xor_depends_on_the_transaction() -> None:
    """An IPv6 address that is XOR-ed under another transaction is another address; the port is not affected."""
    raw = a.XOR_MAPPED_ADDRESS.encode(V6, TRANSACTION)
    other = a.XOR_MAPPED_ADDRESS.decode(raw, bytes(12))
    assert other.port == V6.port
    assert other.ip[:4] == V6.ip[:4]
    assert other.ip != V6.ip


def test_table() -> None:
    """The table has what RFC 8489, 8656, 6062 and 5780 define and what is ours, each attribute under its own code."""
    required = "01 03 06 08 09 0a 0c 0d 12 13 14 15 16 17 18 19 1a 1c 1d 1e 20 22 26 27 2a 7e01 7e02"
    optional = "8000 8001 8002 8003 8004 8022 8023 8028 802b 802c 8032"
    assert sorted(ATTRIBUTES) == [int(code, 16) for code in f"{required} {optional}".split()]
    defined = [value for value in vars(a).values() if isinstance(value, Attribute)]
    assert len(defined) == len(ATTRIBUTES)
    assert all(ATTRIBUTES[attribute.code] is attribute for attribute in defined)
    assert repr(a.LIFETIME) == "<LIFETIME 0x000d>"
