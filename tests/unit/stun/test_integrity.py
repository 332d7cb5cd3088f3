"""Promises of relayd.stun.integrity: keys, hashes and fingerprints as the RFC computes them."""

from __future__ import annotations

import hashlib
import zlib

import pytest

from relayd.stun.integrity import IntegrityProof, PasswordAlgorithm, fingerprint, long_term_key, userhash


def test_long_term_keys() -> None:
    """The key is the hash of user, realm and password, joined with colons: RFC 8489 section 18.5.1 has the first."""
    key = long_term_key(PasswordAlgorithm.MD5, "user", "realm", "pass")
    assert key == bytes.fromhex("8493fbc53ba582fb4c044c456bdc40eb")
    assert (
        long_term_key(PasswordAlgorithm.SHA256, "user", "realm", "pass") == hashlib.sha256(b"user:realm:pass").digest()
    )


def test_keys_are_made_of_utf8() -> None:
    """Other scripts are hashed as UTF-8."""
    text = "\u30de:\u00fc:\U0001f600"
    assert long_term_key(PasswordAlgorithm.MD5, *text.split(":")) == hashlib.md5(text.encode()).digest()


def test_userhash() -> None:
    """USERHASH is SHA-256 over user and realm."""
    assert userhash("user", "realm") == hashlib.sha256(b"user:realm").digest()


def test_fingerprint() -> None:
    """FINGERPRINT is CRC-32, XOR-ed with the letters STUN."""
    assert fingerprint(b"123456789") == 0xCBF43926 ^ int.from_bytes(b"STUN", "big")
    assert fingerprint(b"") == zlib.crc32(b"") ^ 0x5354554E


@pytest.mark.parametrize("size", [0, 1, 16, 31])
def test_part_of_a_mac_proves_nothing(size: int) -> None:
    """The MAC must be there whole: neither nothing nor its beginning matches."""
    whole = bytes.fromhex("f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8")
    covered, key = b"The quick brown fox jumps over the lazy dog", b"key"
    assert IntegrityProof(covered, whole, "sha256").matches(key)
    assert not IntegrityProof(covered, whole[:size], "sha256").matches(key)
