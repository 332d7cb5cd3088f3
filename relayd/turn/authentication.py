"""The server's steps of the long-term credential mechanism up to the point where the key is needed (RFC 8489 section
9.2.4).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from relayd.address import Path
from relayd.core import Entropy
from relayd.errors import RemoteError
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute
from relayd.stun.integrity import IntegrityProof, PasswordAlgorithm, userhash
from relayd.stun.message import Message
from relayd.turn.nonce import Nonces
from relayd.turn.settings import TurnSettings

CHALLENGES = frozenset((401, 438))
"""The errors that bring REALM, NONCE and PASSWORD-ALGORITHMS."""


class Claim(NamedTuple):
    """Who a request says it is from, and its proof. Exactly one of `username` (as sent) and `userhash` is set.

    `negotiated` is whether it named its algorithm, which decides how the answer is signed (RFC 8489 section 9.2.4).
    """

    username: str | None
    userhash: bytes | None
    algorithm: PasswordAlgorithm
    negotiated: bool
    proof: IntegrityProof


class Credentials(NamedTuple):
    """A claim whose proof held. `username` is prepared by OpaqueString, `claimed` is as sent (None: a USERHASH was)."""

    username: str
    claimed: str | None
    algorithm: PasswordAlgorithm
    key: bytes

    def may_be(self, claim: Claim, realm: str) -> bool:
        """Whether a later claim names the same user, for the same key. Its proof is yet to be checked."""
        if claim.algorithm is not self.algorithm:
            return False
        if claim.username is not None:
            return claim.username in (self.username, self.claimed)
        return claim.userhash == userhash(self.username, realm)


class Authentication:
    """Reads credentials out of requests and challenges those without. Keeps nothing about any client."""

    def __init__(self, settings: TurnSettings, entropy: Entropy) -> None:
        self._realm = settings.realm
        self._supports_userhash = settings.supports_userhash
        self._algorithms = settings.password_algorithms
        self._nonces = Nonces(settings.realm, settings.nonce_lifetime, settings.supports_userhash, entropy)

    def challenge(self, path: Path, now: float) -> list[tuple[Attribute[Any], Any]]:
        """What a 401 or 438 carries besides its code."""
        return [
            (a.REALM, self._realm),
            (a.NONCE, self._nonces.mint(path.client, now)),
            (a.PASSWORD_ALGORITHMS, self._algorithms),
        ]

    def read(self, path: Path, message: Message, now: float, control: Path | None = None) -> Claim:
        """The credentials of a request, whose proof is yet to be checked. A nonce for the path `control` is good too.

        Raises RemoteError (400, 401, 438), and DecodeError for a malformed attribute, which is a 400 as well.
        """
        # RFC 8489 section 9.2.4: no integrity, 401
        proof = message.proof()
        if proof is None:
            raise RemoteError(401)
        # integrity, but not all that it needs, 400
        username = message.get(a.USERNAME)
        hashed = message.get(a.USERHASH) if username is None else None
        realm = message.get(a.REALM)
        nonce = message.get(a.NONCE)
        if (username is None and hashed is None) or realm is None or nonce is None:
            raise RemoteError(400)
        # algorithms that were tampered with (bid-down), 400
        chosen = self._chosen_algorithm(message, nonce)
        # Deviation: the RFC looks at the nonce last. We look before anything is said about the user, so that whoever
        # holds no nonce of ours costs no look-up, and a client whose nonce expired gets 438 and not a second 401.
        if not self._nonces.is_valid(nonce, path.client, now) and (
            control is None or not self._nonces.is_valid(nonce, control.client, now)
        ):
            raise RemoteError(438)
        # a user that cannot be ours, 401
        if realm != self._realm or (hashed is not None and not self._supports_userhash):
            raise RemoteError(401)
        return Claim(username, hashed, chosen or PasswordAlgorithm.MD5, chosen is not None, proof)

    def _chosen_algorithm(self, message: Message, nonce: bytes) -> PasswordAlgorithm | None:
        """What PASSWORD-ALGORITHM says; None where neither it nor PASSWORD-ALGORITHMS is there, which means MD5."""
        chosen = message.get(a.PASSWORD_ALGORITHM)
        offered = message.get(a.PASSWORD_ALGORITHMS)
        if (chosen is None and offered is None) or not self._nonces.offers_algorithms(nonce):
            return None
        if chosen is None or offered != self._algorithms or chosen not in self._algorithms:
            raise RemoteError(400)
        return PasswordAlgorithm(chosen)
