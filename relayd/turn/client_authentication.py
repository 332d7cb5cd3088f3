"""The client's steps of the long-term credential mechanism (RFC 8489 sections 9.2.3 and 9.2.5)."""

from __future__ import annotations

import base64
import binascii
from copy import copy
from typing import Any, NamedTuple

from relayd.errors import DecodeError, RemoteError, ServerUnavailable
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute
from relayd.stun.integrity import PasswordAlgorithm, long_term_key, userhash
from relayd.stun.message import Message
from relayd.stun.text import opaque_string
from relayd.turn.nonce import NONCE_COOKIE
from relayd.turn.transaction import REASONS

_PASSWORD_ALGORITHMS = 0x80  # in the first of the three bytes of security features (RFC 8489 section 18.1)
_USERNAME_ANONYMITY = 0x40
_FEATURES_SIZE = 4  # characters of Base64 behind the nonce cookie

# "The same content" as the challenge had, parameters of algorithms that we do not know included: so it stays bytes.
_ALGORITHMS_AS_SENT: Attribute[bytes] = Attribute(
    a.PASSWORD_ALGORITHMS.code, a.PASSWORD_ALGORITHMS.name, lambda raw, _: raw, lambda raw, _: raw
)


class Signature(NamedTuple):
    """How one request was signed, and so how its answer has to be. `realm` is what it was signed for."""

    key: bytes
    sha256: bool
    realm: str


class _Challenge(NamedTuple):
    realm: str
    nonce: bytes
    algorithm: PasswordAlgorithm
    algorithms: bytes | None  # PASSWORD-ALGORITHMS as it came; None: it did not
    wants_userhash: bool


class ClientAuthentication:
    """One user's name and password, and the latest challenge of one server."""

    def __init__(self, username: str, password: str) -> None:
        """Raises DecodeError where the OpaqueString profile disallows one of the two, or the name is too long."""
        self._username = opaque_string(username)
        if len(self._username.encode()) > a.MAX_USERNAME:  # RFC 8489 section 14.3
            raise DecodeError("a user name has at most 508 bytes")
        self._password = opaque_string(password)
        self._challenge: _Challenge | None = None
        self._signature: Signature | None = None

    def copy(self) -> ClientAuthentication:
        """Another one with the same challenge, for another connection: what it is told there stays there."""
        return copy(self)

    @property
    def signature(self) -> Signature | None:
        """How the next request is signed; None as long as the server never challenged us."""
        return self._signature

    def attributes(self) -> list[tuple[Attribute[Any], Any]]:
        """What a signed request carries before its integrity; nothing before the first challenge."""
        challenge = self._challenge
        if challenge is None:
            return []
        found: list[tuple[Attribute[Any], Any]] = [(a.REALM, challenge.realm), (a.NONCE, challenge.nonce)]
        if challenge.wants_userhash:
            found.append((a.USERHASH, userhash(self._username, challenge.realm)))
        else:
            found.append((a.USERNAME, self._username))
        if challenge.algorithms is not None:
            found += [(_ALGORITHMS_AS_SENT, challenge.algorithms), (a.PASSWORD_ALGORITHM, challenge.algorithm)]
        return found

    def challenged(self, code: int, message: Message, signature: Signature | None) -> None:
        """Take the 401 or 438 that answered a request signed with `signature` (None: unsigned). The request is to be
        made anew, in another transaction.

        Raises RemoteError where the server does not know us, ServerUnavailable where the challenge cannot be answered,
        DecodeError where it cannot be read: then there must be no other attempt.
        """
        challenge = _read(message)
        # RFC 8489 section 9.2.5: no second attempt with what was refused
        if code == 401 and signature is not None and signature.realm == challenge.realm:
            raise RemoteError(401, REASONS[401])
        key = long_term_key(challenge.algorithm, self._username, challenge.realm, self._password)
        # whoever names algorithms is asked with MESSAGE-INTEGRITY-SHA256 only
        self._signature = Signature(key, challenge.algorithms is not None, challenge.realm)
        self._challenge = challenge


def _read(message: Message) -> _Challenge:
    realm, nonce = message.get(a.REALM), message.get(a.NONCE)
    if realm is None or nonce is None:
        raise ServerUnavailable("the server asks for credentials without saying its realm and a nonce")
    features = _features(nonce)
    offered = message.get(a.PASSWORD_ALGORITHMS)
    if offered is None:
        # RFC 8489 section 9.2.5: the nonce, which nobody can forge, tells of algorithms that somebody took out
        if features & _PASSWORD_ALGORITHMS:
            raise ServerUnavailable(
                "the server's offer of password algorithms was removed on the way (bid-down attack)"
            )
        return _Challenge(realm, nonce, PasswordAlgorithm.MD5, None, bool(features & _USERNAME_ANONYMITY))
    known = [number for number in offered if number in tuple(PasswordAlgorithm)]
    if not known:
        raise ServerUnavailable("the server offers no password algorithm that we know")
    raw = next(value for code, value in message.attributes if code == a.PASSWORD_ALGORITHMS.code)
    return _Challenge(realm, nonce, PasswordAlgorithm(known[0]), raw, bool(features & _USERNAME_ANONYMITY))


def _features(nonce: bytes) -> int:
    """The first byte of the security features in a nonce; 0 without the nonce cookie."""
    if not nonce.startswith(NONCE_COOKIE):
        return 0
    encoded = nonce[len(NONCE_COOKIE) : len(NONCE_COOKIE) + _FEATURES_SIZE]
    try:
        features = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise DecodeError("malformed security features in a nonce") from None
    if len(features) != 3:
        raise DecodeError("malformed security features in a nonce")
    return features[0]
