"""Promises of relayd.stun.message: what counts in a message, what does not, and what is refused."""

from __future__ import annotations

import hmac
import struct

import pytest

from relayd.address import TransportAddress
from relayd.errors import DecodeError
from relayd.stun import attributes as a
from relayd.stun.integrity import fingerprint
from relayd.stun.message import (
    MAX_ATTRIBUTES,
    MAX_MESSAGE,
    Class,
    Method,
    decode,
    encode,
    pack_type,
    unpack_type,
)

TRANSACTION = bytes(range(12))
KEY = b"0123456789abcdef"
SOFTWARE = a.SOFTWARE.code
MI = a.MESSAGE_INTEGRITY.code
MI_SHA256 = a.MESSAGE_INTEGRITY_SHA256.code
FINGERPRINT = a.FINGERPRINT.code


def with_body(body: bytes, length: int | None = None) -> bytes:
    """A Binding request with this body; `length` is a lie about it."""
    return struct.pack("!HHI", 1, len(body) if length is None else length, a.MAGIC_COOKIE) + TRANSACTION + body


def tlv(code: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack("!HH", code, len(value) if length is None else length) + value + bytes(-len(value) % 4)


def signed(body: bytes, digest: str = "sha1") -> bytes:
    """`body`, and behind it the integrity attribute that covers it."""
    code, size = (MI, 20) if digest == "sha1" else (MI_SHA256, 32)
    covered = with_body(body, len(body) + 4 + size)
    return body + tlv(code, hmac.digest(KEY, covered, digest))


def fingerprinted(body: bytes) -> bytes:
    return body + tlv(FINGERPRINT, fingerprint(with_body(body, len(body) + 8)).to_bytes(4, "big"))


class TestType:
    @pytest.mark.parametrize(
        ("method", "cls", "value"),
        [
            (Method.BINDING, Class.REQUEST, 0x0001),
            (Method.BINDING, Class.SUCCESS, 0x0101),
            (Method.BINDING, Class.ERROR, 0x0111),
            (Method.ALLOCATE, Class.REQUEST, 0x0003),
            (Method.ALLOCATE, Class.ERROR, 0x0113),
            (Method.REFRESH, Class.SUCCESS, 0x0104),
            (Method.SEND, Class.INDICATION, 0x0016),
            (Method.DATA, Class.INDICATION, 0x0017),
            (Method.CREATE_PERMISSION, Class.REQUEST, 0x0008),
            (Method.CHANNEL_BIND, Class.SUCCESS, 0x0109),
            (0xFFF, Class.ERROR, 0x3FFF),
        ],
    )
    def test_known(self, method: int, cls: Class, value: int) -> None:
        """The message types that every client has on the wire."""
        assert pack_type(method, cls) == value
        assert unpack_type(value) == (method, cls)

    def test_every_type_round_trips(self) -> None:
        """All 16,384 types are a method and a class, and back."""
        assert [pack_type(*unpack_type(value)) for value in range(0x4000)] == list(range(0x4000))


class TestHeader:
    @pytest.mark.parametrize("size", range(20))
    def test_shorter_than_a_header(self, size: int) -> None:
        """Less than 20 bytes are no message."""
        with pytest.raises(DecodeError):
            decode(with_body(b"")[:size])

    def test_bare_header(self) -> None:
        """20 bytes are a whole message without attributes, and what it does not have is absent."""
        message = decode(with_body(b""))
        assert message.transaction_id == TRANSACTION
        assert message.attributes == []
        assert message.get(a.USERNAME) is None
        assert message.get_all(a.USERNAME) == []
        assert a.USERNAME not in message
        assert not message.has_integrity
        assert message.proof() is None

    @pytest.mark.parametrize("length", [0, 4, 7, 9, 12, 0xFFFC, 0xFFFF])
    def test_length_lies(self, length: int) -> None:
        """A length that is not the size of what follows the header is refused, too small or too large."""
        with pytest.raises(DecodeError):
            decode(with_body(tlv(SOFTWARE, b"abcd"), length))

    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    def test_length_is_a_multiple_of_four(self, size: int) -> None:
        """A true length that is no multiple of four is refused."""
        with pytest.raises(DecodeError):
            decode(with_body(bytes(size)))

    @pytest.mark.parametrize("at", [0, 4, 5, 6, 7])
    def test_not_stun(self, at: int) -> None:
        """Without the two zero bits, or without the magic cookie, it is not STUN."""
        data = bytearray(with_body(b""))
        decode(bytes(data))
        data[at] ^= 0x80
        with pytest.raises(DecodeError):
            decode(bytes(data))


class TestAttributes:
    def test_order_and_repeats_are_kept(self) -> None:
        """Several peers in one request are all kept, in order; the first is what counts where one is asked for."""
        peers = [TransportAddress(bytes((192, 0, 2, number)), 4000 + number) for number in (3, 1, 2, 1)]
        pairs = [(a.XOR_PEER_ADDRESS, peer) for peer in peers]
        message = decode(encode(Method.CREATE_PERMISSION, Class.REQUEST, TRANSACTION, [*pairs, (a.LIFETIME, 5)]))
        assert message.get_all(a.XOR_PEER_ADDRESS) == peers
        assert message.get(a.XOR_PEER_ADDRESS) == peers[0]
        assert [code for code, _ in message.attributes] == [0x12] * 4 + [0x0D]

    @pytest.mark.parametrize("length", [5, 8, 0xFFFF])
    def test_longer_than_the_message(self, length: int) -> None:
        """An attribute that claims more than is left of the message is refused."""
        with pytest.raises(DecodeError):
            decode(with_body(tlv(SOFTWARE, b"abcd", length)))

    @pytest.mark.parametrize("size", [0, 1, 2, 3, 4])
    def test_padding_is_not_value(self, size: int) -> None:
        """Padding of whatever bytes is skipped, and the value is as long as the attribute says."""
        body = tlv(SOFTWARE, b"abcd"[:size]).ljust(8 if size else 4, b"\xff") + tlv(a.LIFETIME.code, bytes(4))
        assert [raw for _, raw in decode(with_body(body)).attributes] == [b"abcd"[:size], bytes(4)]

    def test_malformed_value_waits_until_asked_for(self) -> None:
        """A malformed value does not hide the rest of the message, and is a DecodeError for whoever reads it."""
        message = decode(with_body(tlv(a.LIFETIME.code, b"abc") + tlv(SOFTWARE, b"x")))
        assert message.get(a.SOFTWARE) == "x"
        assert a.LIFETIME in message
        with pytest.raises(DecodeError):
            message.get(a.LIFETIME)
        with pytest.raises(DecodeError):
            message.get_all(a.LIFETIME)

    def test_unknown_required(self) -> None:
        """Types below 0x8000 that no table has are listed once each, in order; optional and known ones are not."""
        codes = (0x7FFE, 0xC001, 0x0002, a.LIFETIME.code, 0x7FFE, 0x8999)
        assert decode(with_body(b"".join(tlv(code, b"") for code in codes))).unknown_required() == (0x7FFE, 0x0002)


class TestIntegrity:
    @pytest.mark.parametrize("digest", ["sha1", "sha256"])
    def test_attributes_behind_it_do_not_count(self, digest: str) -> None:
        """What anyone could have appended to a signed message is ignored, known or not; its integrity still holds."""
        body = signed(tlv(SOFTWARE, b"real"), digest) + tlv(a.LIFETIME.code, bytes(4)) + tlv(0x7FFF, b"") * 2
        message = decode(with_body(fingerprinted(body)))
        assert message.attributes == [(SOFTWARE, b"real")]
        assert message.unknown_required() == ()
        proof = message.proof()
        assert proof is not None
        assert proof.matches(KEY)

    def test_sha256_counts_where_both_are_there(self) -> None:
        """SHA-256 behind SHA-1 is the proof, also over what stands between them, which does not count otherwise."""
        body = signed(signed(tlv(SOFTWARE, b"x")) + tlv(a.LIFETIME.code, bytes(4)), "sha256")
        message = decode(with_body(body))
        assert message.attributes == [(SOFTWARE, b"x")]
        assert message.has_sha256
        proof = message.proof()
        assert proof is not None
        assert proof.digest == "sha256"
        assert proof.matches(KEY)

    def test_a_weaker_one_behind_sha256_is_ignored(self) -> None:
        """SHA-1 that follows SHA-256 is one of the attributes that do not count, whatever its size."""
        for appended in (signed(b""), tlv(MI, b"")):
            message = decode(with_body(signed(tlv(SOFTWARE, b"x"), "sha256") + appended))
            proof = message.proof()
            assert proof is not None
            assert proof.digest == "sha256"
            assert proof.matches(KEY)

    def test_forged_sha256_behind_sha1(self) -> None:
        """Appending a SHA-256 of one's own to a message with good SHA-1 proves nothing."""
        proof = decode(with_body(signed(tlv(SOFTWARE, b"x")) + tlv(MI_SHA256, bytes(32)))).proof()
        assert proof is not None
        assert not proof.matches(KEY)

    def test_only_the_first_of_a_kind_counts(self) -> None:
        """A second integrity attribute of the same kind is ignored."""
        for digest in ("sha1", "sha256"):
            once = signed(tlv(SOFTWARE, b"x"), digest)
            proof = decode(with_body(once + once[-len(signed(b"", digest)) :])).proof()
            assert proof is not None
            assert proof.matches(KEY)

    @pytest.mark.parametrize("size", [0, 4, 16, 19, 21, 24, 32])
    def test_wrong_size_of_sha1(self, size: int) -> None:
        """MESSAGE-INTEGRITY has 20 bytes."""
        with pytest.raises(DecodeError):
            decode(with_body(tlv(MI, bytes(size))))

    @pytest.mark.parametrize("size", [0, 4, 15, 16, 20, 28, 31, 33, 36])
    def test_wrong_size_of_sha256(self, size: int) -> None:
        """MESSAGE-INTEGRITY-SHA256 has 32 bytes: TURN does not allow it to be truncated, however right what is left."""
        mac = hmac.digest(KEY, with_body(b"", 4 + size), "sha256")[:size].ljust(size, b"\0")
        with pytest.raises(DecodeError):
            decode(with_body(tlv(MI_SHA256, mac)))

    @pytest.mark.parametrize("sha256", [False, True])
    @pytest.mark.parametrize("with_fingerprint", [False, True])
    def test_what_we_sign_holds(self, sha256: bool, with_fingerprint: bool) -> None:
        """A message that we sign is proven by its key and by no other, with and without a fingerprint."""
        data = encode(
            Method.REFRESH,
            Class.SUCCESS,
            TRANSACTION,
            [(a.LIFETIME, 600)],
            key=KEY,
            sha256=sha256,
            with_fingerprint=with_fingerprint,
        )
        message = decode(data)
        assert message.get(a.LIFETIME) == 600
        assert message.has_sha256 is sha256
        proof = message.proof()
        assert proof is not None
        assert proof.matches(KEY)
        assert not proof.matches(KEY[:-1])


class TestFingerprint:
    def test_wrong_value(self) -> None:
        """A fingerprint that is not that of the message is refused."""
        body = fingerprinted(tlv(SOFTWARE, b"x"))
        assert decode(with_body(body)).get(a.SOFTWARE) == "x"
        with pytest.raises(DecodeError):
            decode(with_body(body[:-1] + bytes((body[-1] ^ 1,))))

    def test_not_last(self) -> None:
        """A fingerprint with an attribute behind it is refused, even where it is right for what precedes it."""
        covered = with_body(b"", 12)
        body = tlv(FINGERPRINT, fingerprint(covered).to_bytes(4, "big")) + tlv(SOFTWARE, b"")
        with pytest.raises(DecodeError):
            decode(with_body(body))

    @pytest.mark.parametrize("size", [0, 1, 3, 5, 8])
    def test_wrong_size(self, size: int) -> None:
        """A fingerprint has four bytes."""
        covered = with_body(b"", 4 + size + -size % 4)
        value = fingerprint(covered).to_bytes(4, "big")
        for resized in (value.ljust(size, b"\0")[:size], value.rjust(size, b"\0")[:size]):
            with pytest.raises(DecodeError):
                decode(with_body(tlv(FINGERPRINT, resized)))


class TestLimits:
    def test_largest_message(self) -> None:
        """As much as the length field can say is read."""
        data = with_body(tlv(a.DATA.code, bytes(0xFFFC - 4)))
        assert len(data) == MAX_MESSAGE
        assert decode(data).get(a.DATA) == bytes(0xFFFC - 4)

    def test_most_that_we_write(self) -> None:
        """MAX_ATTRIBUTES bytes of attributes fit, signed with the longest MAC and with a fingerprint."""
        value = bytes(MAX_ATTRIBUTES - 4)
        data = encode(
            Method.DATA, Class.INDICATION, TRANSACTION, [(a.DATA, value)], key=KEY, sha256=True, with_fingerprint=True
        )
        assert len(data) == MAX_MESSAGE
        assert decode(data).get(a.DATA) == value

    @pytest.mark.parametrize("sizes", [[MAX_ATTRIBUTES - 3], [65_535], [65_536], [70_000], [40_000, 40_000]])
    def test_more_than_fits(self, sizes: list[int]) -> None:
        """Attributes that do not fit, alone or together, are a ValueError and never a message with a wrong length."""
        with pytest.raises(ValueError, match="too long"):
            encode(Method.DATA, Class.INDICATION, TRANSACTION, [(a.DATA, bytes(size)) for size in sizes])

    def test_most_attributes(self) -> None:
        """16,383 empty attributes are read; an unknown type among them is told once."""
        message = decode(with_body(tlv(0x7FFF, b"") * 16_383))
        assert len(message.attributes) == 16_383
        assert message.unknown_required() == (0x7FFF,)


def test_repr_shows_no_value() -> None:
    """What a log may show of a message is its type and transaction, never a value."""
    message = decode(encode(Method.ALLOCATE, Class.REQUEST, TRANSACTION, [(a.USERNAME, "alice")]))
    assert repr(message) == "<Message 0x003 REQUEST 000102030405060708090a0b>"
