"""Keys, message integrity and fingerprints (RFC 8489 sections 9.2.2, 14.4 to 14.7). Prepared text in, bytes out."""

from __future__ import annotations

import hashlib
import hmac
import zlib
from enum import IntEnum
from functools import lru_cache

_PREPARED_KEYS = 1024
"""Keys that are kept ready, about 1 KB each. A client's serves for several requests and their answers; to look the
digest up and lay the key out costs OpenSSL more than the message does.
"""

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
        return hmac.compare_digest(mac(key, self.covered, self.digest), self.mac)


def mac(key: bytes, covered: bytes, digest: str) -> bytes:
    """The HMAC of a message, by "sha1" or "sha256" (RFC 8489 sections 14.5 and 14.6)."""
    signing = _prepared(key, digest).copy()
    signing.update(covered)
    return signing.digest()


@lru_cache(_PREPARED_KEYS)
def _prepared(key: bytes, digest: str) -> hmac.HMAC:
    return hmac.new(key, digestmod=digest)


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
