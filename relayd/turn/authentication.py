"""The server's steps of the long-term credential mechanism up to the point where the key is needed (RFC 8489 section
9.2.4).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from relayd.address import Path
from relayd.core import Entropy
from relayd.errors import RemoteError
from relayd.stun import attributes as a
from relayd.stun.attributes import ALGORITHMS_OFFERED, Attribute
from relayd.stun.integrity import IntegrityProof, PasswordAlgorithm
from relayd.stun.message import Message
from relayd.turn.nonce import Nonces, offers_password_algorithms
from relayd.turn.settings import TurnSettings

CHALLENGES = frozenset((401, 438))
"""The errors that bring REALM, NONCE and PASSWORD-ALGORITHMS."""


class Claim(NamedTuple):
    """Who a request says it is from, and its proof. Exactly one of `username` (as sent) and `userhash` is set."""

    username: str | None
    userhash: bytes | None
    algorithm: PasswordAlgorithm
    proof: IntegrityProof


class Authentication:
    """Reads credentials out of requests and challenges those without. Keeps nothing about any client."""

    def __init__(self, settings: TurnSettings, entropy: Entropy) -> None:
        self._realm = settings.realm
        self._supports_userhash = settings.supports_userhash
        self._nonces = Nonces(settings.realm, settings.nonce_lifetime, settings.supports_userhash, entropy)

    def challenge(self, path: Path, now: float) -> list[tuple[Attribute[Any], Any]]:
        """What a 401 or 438 carries besides its code."""
        return [
            (a.REALM, self._realm),
            (a.NONCE, self._nonces.mint(path.client, now)),
            (a.PASSWORD_ALGORITHMS, ALGORITHMS_OFFERED),
        ]

    def read(self, path: Path, message: Message, now: float) -> Claim:
        """The credentials of a request, whose proof is yet to be checked.

        Raises RemoteError (400, 401, 438), and DecodeError for a malformed attribute, which is a 400 as well.
        """
        # RFC 8489 section 9.2.4: no integrity, 401
        proof = message.proof()
        if proof is None:
            raise RemoteError(401)
        # integrity, but not all that it needs, 400
        username = message.get(a.USERNAME)
        userhash = message.get(a.USERHASH) if username is None else None
        realm = message.get(a.REALM)
        nonce = message.get(a.NONCE)
        if (username is None and userhash is None) or realm is None or nonce is None:
            raise RemoteError(400)
        # algorithms that were tampered with (bid-down), 400
        algorithm = self._algorithm(message, nonce)
        # a stale nonce: 438 before anything is said about the user, so that a client which holds credentials tries
        # again
        if not self._nonces.is_valid(nonce, path.client, now):
            raise RemoteError(438)
        # a user that cannot be ours, 401
        if realm != self._realm or (userhash is not None and not self._supports_userhash):
            raise RemoteError(401)
        return Claim(username, userhash, algorithm, proof)

    def _algorithm(self, message: Message, nonce: bytes) -> PasswordAlgorithm:
        if not offers_password_algorithms(nonce):
            return PasswordAlgorithm.MD5
        chosen = message.get(a.PASSWORD_ALGORITHM)
        offered = message.get(a.PASSWORD_ALGORITHMS)
        if chosen is None and offered is None:
            return PasswordAlgorithm.MD5
        if chosen is None or offered != ALGORITHMS_OFFERED or chosen not in ALGORITHMS_OFFERED:
            raise RemoteError(400)
        return PasswordAlgorithm(chosen)
