"""Stateless nonces: minted and recognised with a key, remembered nowhere (RFC 8489 section 9.2).

A nonce is the text `obMatJos2`, the security features in Base64 (4 characters), and the Base64 of an expiry and a MAC
over expiry, client address and realm. It is worth nothing at another address, in another realm or after its time.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from relayd.address import TransportAddress
from relayd.core import Entropy

NONCE_COOKIE = b"obMatJos2"
_PASSWORD_ALGORITHMS = 0x800000  # RFC 8489 section 18.1: bit 0 is the most significant of 24
_USERNAME_ANONYMITY = 0x400000
_KEY_SIZE = 32  # bytes
_EXPIRY_SIZE = 4  # bytes, in seconds of the caller's clock, modulo 2**32
_MAC_SIZE = 14  # bytes; with the expiry 18, which Base64 takes without padding


class Nonces:
    """Mints and checks the nonces of one realm. Keys are drawn from entropy and replaced once in a nonce's lifetime."""

    def __init__(self, realm: str, lifetime: int, supports_userhash: bool, entropy: Entropy) -> None:
        self._realm = realm.encode()
        self._lifetime = lifetime
        self._entropy = entropy
        features = _PASSWORD_ALGORITHMS | (_USERNAME_ANONYMITY if supports_userhash else 0)
        self._prefix = NONCE_COOKIE + base64.b64encode(features.to_bytes(3, "big"))
        self._key = self._previous_key = entropy(_KEY_SIZE)
        self._key_since: float | None = None

    def mint(self, client: TransportAddress, now: float) -> bytes:
        """A fresh nonce for `client`: 37 bytes of printable ASCII."""
        if self._key_since is None:
            self._key_since = now
        elif now - self._key_since >= self._lifetime:
            # Whatever the key before the previous one signed has expired.
            self._previous_key, self._key, self._key_since = self._key, self._entropy(_KEY_SIZE), now
        expiry = (int(now + self._lifetime) & 0xFFFFFFFF).to_bytes(_EXPIRY_SIZE, "big")
        return self._prefix + base64.b64encode(expiry + self._mac(self._key, expiry, client))

    def is_valid(self, nonce: bytes, client: TransportAddress, now: float) -> bool:
        """Whether we minted `nonce` for `client` and its time is not over."""
        if not nonce.startswith(self._prefix):
            return False
        try:
            sealed = base64.b64decode(nonce[len(self._prefix) :], validate=True)
        except (binascii.Error, ValueError):
            return False
        if len(sealed) != _EXPIRY_SIZE + _MAC_SIZE:
            return False
        expiry, mac = sealed[:_EXPIRY_SIZE], sealed[_EXPIRY_SIZE:]
        genuine = hmac.compare_digest(mac, self._mac(self._key, expiry, client)) or hmac.compare_digest(
            mac, self._mac(self._previous_key, expiry, client)
        )
        left = (int.from_bytes(expiry, "big") - int(now)) & 0xFFFFFFFF
        return genuine and 0 < left <= self._lifetime

    def _mac(self, key: bytes, expiry: bytes, client: TransportAddress) -> bytes:
        covered = expiry + client.port.to_bytes(2, "big") + client.ip + b"|" + self._realm
        return hmac.digest(key, covered, "sha256")[:_MAC_SIZE]


def offers_password_algorithms(nonce: bytes) -> bool:
    """Whether a nonce says that PASSWORD-ALGORITHMS came with it, whoever minted it (RFC 8489 section 9.2.4)."""
    if not nonce.startswith(NONCE_COOKIE):
        return False
    try:
        features = base64.b64decode(nonce[len(NONCE_COOKIE) : len(NONCE_COOKIE) + 4], validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(features) == 3 and bool(features[0] & 0x80)
