"""Keys, message integrity and fingerprints (RFC 8489 sections 9.2.2, 14.4 to 14.7). Prepared text in, bytes out."""

from __future__ import annotations

import hashlib
import hmac
import zlib
from enum import IntEnum

_FINGERPRINT_XOR = 0x5354554E  # "STUN", RFC 8489 section 14.7


class PasswordAlgorithm(IntEnum):
    """How a long-term key is made from user, realm and password (RFC 8489 section 18.5)."""

    MD5 = 1
    SHA256 = 2


class IntegrityProof:
    """The claim of a received message that its sender knew the key: what was covered, and the MAC that came with it."""

    __slots__ = ("covered", "mac", "digest")

    def __init__(self, covered: bytes, mac: bytes, digest: str) -> None:
        self.covered = covered
        self.mac = mac
        self.digest = digest  # "sha1" or "sha256"

    def matches(self, key: bytes) -> bool:
        """Whether `key` made this MAC, the whole of it; compared in constant time."""
        return hmac.compare_digest(hmac.digest(key, self.covered, self.digest), self.mac)


def long_term_key(algorithm: PasswordAlgorithm, username: str, realm: str, password: str) -> bytes:
    """The key of the long-term credential mechanism (RFC 8489 section 9.2.2), 16 bytes for MD5, 32 for SHA-256.

    All three are expected as the OpaqueString profile left them.
    """
    text = f"{username}:{realm}:{password}".encode()
    if algorithm is PasswordAlgorithm.MD5:
        return hashlib.md5(text, usedforsecurity=False).digest()
    return hashlib.sha256(text).digest()


def userhash(username: str, realm: str) -> bytes:
    """The value of USERHASH, 32 bytes (RFC 8489 section 14.4)."""
    return hashlib.sha256(f"{username}:{realm}".encode()).digest()


def fingerprint(covered: bytes) -> int:
    """The value of FINGERPRINT over a message up to, and not including, that attribute (RFC 8489 section 14.7)."""
    return zlib.crc32(covered) ^ _FINGERPRINT_XOR
