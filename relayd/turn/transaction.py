"""One request on its way through the core, and how its answer is written and signed (RFC 8489 section 6.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relayd.address import Path
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute, ErrorCode
from relayd.stun.message import Class, Message, encode
from relayd.turn.authentication import Claim, Credentials

REASONS = {
    300: "Try Alternate",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    420: "Unknown Attribute",
    437: "Allocation Mismatch",
    438: "Stale Nonce",
    440: "Address Family not Supported",
    441: "Wrong Credentials",
    442: "Unsupported Transport Protocol",
    443: "Peer Address Family Mismatch",
    446: "Connection Already Exists",
    447: "Connection Timeout or Failure",
    460: "Peer Not Authenticated",  # ours: docs/protocol.rst
    486: "Allocation Quota Reached",
    500: "Server Error",
    508: "Insufficient Capacity",
}
"""One phrase for each code, whatever the cause: an answer tells an attacker nothing about which part was wrong."""

_FINGERPRINT_HEADER = b"\x80\x28\x00\x04"
_FINGERPRINT_SIZE = 8

Attributes = Sequence[tuple[Attribute[Any], Any]]


class Transaction:
    """A request, where it came from, and, once it is authenticated, whose it is and how its answer is signed."""

    __slots__ = ("path", "message", "username", "_key", "_sha256", "_with_fingerprint")

    def __init__(self, path: Path, message: Message, data: bytes) -> None:
        self.path = path
        self.message = message
        self.username = ""  # prepared; empty until authenticated
        self._key: bytes | None = None
        self._sha256 = False
        # A valid FINGERPRINT is always last; taking other bytes for one costs eight bytes in the answer and nothing
        # else.
        self._with_fingerprint = data[-_FINGERPRINT_SIZE:-4] == _FINGERPRINT_HEADER

    @property
    def is_authenticated(self) -> bool:
        return self._key is not None

    def accept(self, credentials: Credentials, claim: Claim) -> None:
        """The proof held: answers are signed from now on."""
        self.username = credentials.username
        self._key = credentials.key
        # RFC 8489 section 9.2.4: SHA-256 unless the request knew nothing of algorithms
        self._sha256 = claim.negotiated

    def success(self, attributes: Attributes) -> bytes:
        """A success response."""
        return self._encode(Class.SUCCESS, attributes)

    def error(self, code: int, attributes: Attributes) -> bytes:
        """An error response; ERROR-CODE comes first, then `attributes`."""
        return self._encode(Class.ERROR, [(a.ERROR_CODE, ErrorCode(code, REASONS.get(code, ""))), *attributes])

    def _encode(self, cls: Class, attributes: Attributes) -> bytes:
        message = self.message
        return encode(
            message.method,
            cls,
            message.transaction_id,
            attributes,
            key=self._key,
            sha256=self._sha256,
            with_fingerprint=self._with_fingerprint,
        )
