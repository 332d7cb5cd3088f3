"""The bench's own STUN, against vectors and against what a server could send."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from bench import wire
from bench.errors import BenchError

CREDENTIALS = wire.Credentials(b"user", b"realm", b"nonce", wire.long_term_key("user", b"realm", "pass"))


def test_the_key_is_the_one_of_the_rfc() -> None:
    """RFC 5389 section 15.4 gives this key for user, realm, pass."""
    assert CREDENTIALS.key.hex() == "8493fbc53ba582fb4c044c456bdc40eb"


def test_message_integrity_covers_the_message_before_it() -> None:
    """The length in the header counts MESSAGE-INTEGRITY itself (RFC 8489 section 14.5)."""
    data = wire.request(wire.REFRESH, [(wire.LIFETIME, bytes(4))], CREDENTIALS)
    assert int.from_bytes(data[2:4], "big") == len(data) - wire.HEADER_SIZE
    assert data[-20:] == hmac.new(CREDENTIALS.key, data[:-24], hashlib.sha1).digest()
    assert wire.parse(data).attributes[wire.NONCE] == b"nonce"


def test_each_request_is_a_transaction_of_its_own() -> None:
    """Nothing that a server may take for a retransmission."""
    first, second = wire.request(wire.BINDING, []), wire.request(wire.BINDING, [])
    assert first[8:20] != second[8:20]


def test_addresses_survive_the_xor() -> None:
    """The value of RFC 5769 section 2.2's XOR-MAPPED-ADDRESS, both ways."""
    value = bytes.fromhex("0001a147e112a643")
    assert wire.address(value) == ("192.0.2.1", 32853)
    assert wire.xor_address(("192.0.2.1", 32853)) == value


def test_an_ipv6_relayed_address_is_refused_in_words() -> None:
    """The bench loads over IPv4 only, and says so."""
    with pytest.raises(BenchError, match="not IPv4"):
        wire.address(bytes(20))


def test_an_error_code_is_read() -> None:
    """Class and number make the code."""
    response = wire.Message(wire.ALLOCATE | wire.ERROR, bytes(12), {wire.ERROR_CODE: b"\0\0\4\1Unauthorized"})
    assert response.error == 401
    assert response._replace(attributes={}).error == 0


@pytest.mark.parametrize(
    "data", [b"", b"GET / HTTP/1.1\r\n\r\n\r\n\r\n", wire.request(wire.REFRESH, [(wire.LIFETIME, bytes(4))])[:-1]]
)
def test_what_is_not_stun_is_an_error(data: bytes) -> None:
    """A broken server is reported, never a traceback."""
    with pytest.raises(BenchError, match="STUN"):
        wire.parse(data)


@pytest.mark.parametrize(
    ("size", "padded", "length"), [(0, True, 4), (1, False, 5), (1, True, 8), (4, True, 8), (200, True, 204)]
)
def test_channel_data_is_padded_on_streams(size: int, padded: bool, length: int) -> None:
    """The length field is that of the payload; a stream's reader finds the end with the padding."""
    data = wire.channel_data(0x4000, bytes(size), padded)
    assert data[:4] == b"\x40\x00" + size.to_bytes(2, "big")
    assert len(data) == length
    if padded:
        assert wire.message_size(data[:4]) == length
