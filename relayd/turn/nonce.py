"""Stateless nonces: minted and recognised with a key, remembered nowhere (RFC 8489 section 9.2).

A nonce is the text `obMatJos2`, the security features in Base64 (4 characters), an expiry in hexadecimal (8) and a
MAC in hexadecimal (32) over expiry, client address and realm. It is worth nothing at another address, in another
realm or after its time.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from hashlib import blake2b

from relayd.address import TransportAddress
from relayd.core import Entropy

NONCE_COOKIE = b"obMatJos2"
_PASSWORD_ALGORITHMS = 0x800000  # RFC 8489 section 18.1: bit 0 is the most significant of 24
_USERNAME_ANONYMITY = 0x400000
_KEY_SIZE = 32  # bytes
_EXPIRY_DIGITS = 8  # of a second count on the caller's clock, modulo 2**32
_MAC_SIZE = 16  # bytes


class Nonces:
    """Mints and checks the nonces of one realm. Keys are drawn from entropy and replaced once in a nonce's lifetime."""

    def __init__(self, realm: str, lifetime: int, supports_userhash: bool, entropy: Entropy) -> None:
        self._person = blake2b(realm.encode(), digest_size=blake2b.PERSON_SIZE).digest()
        self._lifetime = lifetime
        self._entropy = entropy
        features = _PASSWORD_ALGORITHMS | (_USERNAME_ANONYMITY if supports_userhash else 0)
        self._prefix = NONCE_COOKIE + base64.b64encode(features.to_bytes(3, "big"))
        self._key = self._previous_key = entropy(_KEY_SIZE)
        self._key_since: float | None = None

    def mint(self, client: TransportAddress, now: float) -> bytes:
        """A fresh nonce for `client`: 53 bytes of printable ASCII."""
        if self._key_since is None:
            self._key_since = now
        elif now - self._key_since >= self._lifetime:
            # Whatever the key before the previous one signed has expired.
            self._previous_key, self._key, self._key_since = self._key, self._entropy(_KEY_SIZE), now
        return self._seal(self._key, b"%08x" % (int(now + self._lifetime) & 0xFFFFFFFF), client)

    def is_valid(self, nonce: bytes, client: TransportAddress, now: float) -> bool:
        """Whether we minted `nonce` for `client` and its time is not over."""
        if not nonce.startswith(self._prefix):
            return False
        start = len(self._prefix)
        expiry = nonce[start : start + _EXPIRY_DIGITS]
        if not (
            hmac.compare_digest(nonce, self._seal(self._key, expiry, client))
            or hmac.compare_digest(nonce, self._seal(self._previous_key, expiry, client))
        ):
            return False
        left = (int(expiry, 16) - int(now)) & 0xFFFFFFFF
        return 0 < left <= self._lifetime

    def offers_algorithms(self, nonce: bytes) -> bool:
        """Whether a nonce says that PASSWORD-ALGORITHMS came with it, whoever minted it (RFC 8489 section 9.2.4)."""
        if nonce.startswith(self._prefix):
            return True
        if not nonce.startswith(NONCE_COOKIE):
            return False
        try:
            features = base64.b64decode(nonce[len(NONCE_COOKIE) : len(NONCE_COOKIE) + 4], validate=True)
        except (binascii.Error, ValueError):
            return False
        return len(features) == 3 and bool(features[0] & _PASSWORD_ALGORITHMS >> 16)

    def _seal(self, key: bytes, expiry: bytes, client: TransportAddress) -> bytes:
        covered = b"%b%d %b" % (expiry, client.port, client.ip)
        # BLAKE2 is a MAC by itself when it is keyed, in a quarter of the time of an HMAC.
        mac = blake2b(covered, digest_size=_MAC_SIZE, key=key, person=self._person)
        return self._prefix + expiry + mac.hexdigest().encode()
