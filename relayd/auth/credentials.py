"""What a STUN client showed about itself, in the form in which Twisted's own checkers verify it. Looks nothing up."""

from __future__ import annotations

from binascii import Error as NotHexadecimal
from binascii import unhexlify

from twisted.cred.credentials import IUsernameDigestHash, IUsernameHashedPassword
from zope.interface import implementer

from relayd.errors import ConfigurationError, DecodeError
from relayd.interfaces import IStunCredentials
from relayd.stun.integrity import IntegrityProof, PasswordAlgorithm, long_term_key
from relayd.stun.text import opaque_string

KEY_SIZE = {PasswordAlgorithm.MD5: 16, PasswordAlgorithm.SHA256: 32}  # bytes


@implementer(IUsernameHashedPassword, IUsernameDigestHash, IStunCredentials)
class LongTermCredentials:
    """One claim to be `name`, to be checked against a password, a hash or a key by whichever of these a checker holds.

    `username` is the name in the type that the checker compares with: cred's documentation says bytes, its own
    `memory:` keeps str. After a check that held, `key` is the long-term key, with which the answers are signed.
    `compared` tells whether any checker had something to compare with.
    """

    __slots__ = ("username", "name", "realm", "algorithm", "key", "compared", "_proof")

    def __init__(
        self, username: bytes | str, name: str, realm: str, algorithm: PasswordAlgorithm, proof: IntegrityProof
    ) -> None:
        self.username = username
        self.name = name
        self.realm = realm
        self.algorithm = algorithm
        self.key: bytes | None = None
        self.compared = False
        self._proof = proof

    def __repr__(self) -> str:
        return f"<LongTermCredentials {self.name!r} {self.algorithm.name}>"

    def checkPassword(self, password: bytes | str) -> bool:
        """Whether the client knows this password (RFC 8489 section 9.2.2).

        Raises ConfigurationError, which names the user and not the password, for one that no client could send.
        """
        try:
            prepared = opaque_string(password.decode() if isinstance(password, bytes) else password)
        except (DecodeError, UnicodeDecodeError):
            raise ConfigurationError(
                f"the stored password of user {self.name!r} cannot be used: it is empty, not UTF-8, or has characters "
                "that RFC 8265 disallows; set another"
            ) from None
        return self.check_key(long_term_key(self.algorithm, self.name, self.realm, prepared))

    def checkHash(self, digestHash: bytes | str) -> bool:  # noqa: N803
        """Whether the client has this H(user:realm:password), the key itself, given raw or as hexadecimal digits."""
        size = KEY_SIZE[self.algorithm]
        key = digestHash.encode() if isinstance(digestHash, str) else digestHash
        if len(key) == 2 * size:
            try:
                key = unhexlify(key)
            except NotHexadecimal:
                return False
        return len(key) == size and self.check_key(key)

    def check_key(self, key: bytes) -> bool:
        """Whether the client has this long-term key; keeps it if so."""
        self.compared = True
        if not self._proof.matches(key):
            return False
        self.key = key
        return True
