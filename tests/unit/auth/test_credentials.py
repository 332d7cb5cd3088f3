"""LongTermCredentials: passwords, hashes and keys are verified as RFC 8489 section 9.2.2 says."""

from __future__ import annotations

import hashlib

import pytest

from relayd.auth.credentials import LongTermCredentials
from relayd.errors import ConfigurationError
from relayd.stun.integrity import PasswordAlgorithm, long_term_key
from tests.unit.auth.claims import REALM, credentials, proof

# RFC 8489 appendix B.1. The password stands there as "The<U+00AD>M<U+00AA>tr<U+2168>" before preparation, which is how
# SASLprep reads it; OpaqueString disallows U+00AD, so the prepared form is what can be tested.
MATRIX = "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"
MATRIX_PASSWORD = "TheMatrIX"


@pytest.mark.parametrize("algorithm", list(PasswordAlgorithm))
@pytest.mark.parametrize("password", [b"sesame", "sesame"])
def test_right_password_holds_and_keeps_the_key(algorithm: PasswordAlgorithm, password: bytes | str) -> None:
    """A checker may hand the password over as bytes or as text, and the key to sign answers with is there
    afterwards.
    """
    shown = credentials("alice", "sesame", algorithm)
    assert shown.checkPassword(password) is True
    assert shown.key == long_term_key(algorithm, "alice", REALM, "sesame")


def test_wrong_password_leaves_no_key() -> None:
    """A refused claim must not leave anything that could sign."""
    shown = credentials("alice", "sesame")
    assert shown.checkPassword(b"sesamE") is False
    assert shown.key is None
    assert shown.compared


def test_appendix_b1_user_is_known_by_either_algorithm() -> None:
    """The non-ASCII user of RFC 8489 appendix B.1 gets the key that the literal formula of section 9.2.2 gives."""
    text = f"{MATRIX}:example.org:{MATRIX_PASSWORD}".encode()
    keys = {
        PasswordAlgorithm.MD5: hashlib.md5(text).digest(),
        PasswordAlgorithm.SHA256: hashlib.sha256(text).digest(),
    }
    for algorithm, key in keys.items():
        shown = LongTermCredentials(MATRIX.encode(), MATRIX, "example.org", algorithm, proof(key, "sha256"))
        assert shown.checkPassword(MATRIX_PASSWORD.encode())
        assert shown.key == key


def test_stored_password_is_prepared() -> None:
    """A password stored with another kind of space is the one that a client prepares to U+0020."""
    assert credentials("alice", "open sesame").checkPassword("open\u00a0sesame")


@pytest.mark.parametrize("password", [b"", b"\xff\xfe", "bell\x07", "The\u00adM"])
def test_unusable_stored_password_is_the_operators_error(password: bytes | str) -> None:
    """A stored password that no client can send is reported by user name, and is not repeated."""
    with pytest.raises(ConfigurationError, match="alice") as caught:
        credentials("alice", "sesame").checkPassword(password)
    assert "bell" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("algorithm", list(PasswordAlgorithm))
def test_hash_is_taken_raw_and_as_digits(algorithm: PasswordAlgorithm) -> None:
    """IUsernameDigestHash checkers hold H(user:realm:password) as digits, in bytes or text, or as it is."""
    key = long_term_key(algorithm, "alice", REALM, "sesame")
    for form in (key, key.hex(), key.hex().encode(), key.hex().upper()):
        shown = credentials("alice", "sesame", algorithm)
        assert shown.checkHash(form) is True
        assert shown.key == key


@pytest.mark.parametrize("form", [b"", b"x" * 32, b"0" * 32, bytes(16), bytes(15), "\u00e9" * 16])
def test_other_hashes_do_not_hold(form: bytes | str) -> None:
    """Neither a wrong hash nor something that is no hash lets anyone in, or raises."""
    shown = credentials("alice", "sesame")
    assert shown.checkHash(form) is False
    assert shown.key is None


def test_md5_hash_never_verifies_a_sha256_claim() -> None:
    """A stored MD5 hash, which as digits is as long as a SHA-256 key, is not mistaken for one."""
    digits = long_term_key(PasswordAlgorithm.MD5, "alice", REALM, "sesame").hex()
    assert credentials("alice", "sesame", PasswordAlgorithm.SHA256).checkHash(digits) is False


def test_repr_tells_no_secret() -> None:
    """Credentials that end up in a log or a traceback show neither key nor proof."""
    shown = credentials("alice", "sesame")
    shown.checkPassword("sesame")
    assert repr(shown) == "<LongTermCredentials 'alice' MD5>"
