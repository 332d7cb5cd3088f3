"""Why requests are refused, in words from a closed list: for pages and metrics, which must not grow with what clients
do.
"""

from __future__ import annotations

from enum import StrEnum

from relayd.stun.message import Method
from relayd.turn.outputs import RequestRefused


class Refusal(StrEnum):
    """A reason, with the code of the answer in `CODES`."""

    MALFORMED = "malformed"  # not a whole STUN message: dropped without an answer
    THROTTLED = "throttled"  # an answer could have hit someone who did not ask: dropped
    REDIRECTED = "redirected"
    BAD_REQUEST = "bad-request"
    UNAUTHORIZED = "unauthorized"  # no credentials, as in every client's first request, or wrong ones
    FORBIDDEN = "forbidden"  # a policy refused the allocation
    PEER_FORBIDDEN = "peer-forbidden"  # the peer rules or a policy refused a peer
    UNKNOWN_ATTRIBUTE = "unknown-attribute"
    ALLOCATION_MISMATCH = "allocation-mismatch"
    STALE_NONCE = "stale-nonce"
    ADDRESS_FAMILY = "address-family"
    WRONG_CREDENTIALS = "wrong-credentials"  # not those of the allocation
    TRANSPORT = "transport"
    PEER_FAMILY = "peer-family"
    CONNECTION_EXISTS = "connection-exists"
    CONNECTION_FAILED = "connection-failed"
    PEER_NOT_AUTHENTICATED = "peer-not-authenticated"
    QUOTA = "quota"
    SERVER_ERROR = "server-error"
    CAPACITY = "capacity"
    OTHER = "other"


CODES: dict[Refusal, int] = {
    Refusal.MALFORMED: 0,
    Refusal.THROTTLED: 0,
    Refusal.REDIRECTED: 300,
    Refusal.BAD_REQUEST: 400,
    Refusal.UNAUTHORIZED: 401,
    Refusal.FORBIDDEN: 403,
    Refusal.PEER_FORBIDDEN: 403,
    Refusal.UNKNOWN_ATTRIBUTE: 420,
    Refusal.ALLOCATION_MISMATCH: 437,
    Refusal.STALE_NONCE: 438,
    Refusal.ADDRESS_FAMILY: 440,
    Refusal.WRONG_CREDENTIALS: 441,
    Refusal.TRANSPORT: 442,
    Refusal.PEER_FAMILY: 443,
    Refusal.CONNECTION_EXISTS: 446,
    Refusal.CONNECTION_FAILED: 447,
    Refusal.PEER_NOT_AUTHENTICATED: 460,
    Refusal.QUOTA: 486,
    Refusal.SERVER_ERROR: 500,
    Refusal.CAPACITY: 508,
}
"""STUN error codes (RFC 8489 section 14.8, RFC 8656 section 19, RFC 6062 section 6.3, docs/protocol.rst); 0: no answer.
`OTHER` is a policy's own code.
"""

_BY_CODE = {code: refusal for refusal, code in CODES.items()}


def refusal_of(event: RequestRefused) -> Refusal:
    """The reason of a refusal."""
    if event.code == 0:
        return Refusal.THROTTLED if event.method else Refusal.MALFORMED
    if event.code == 403 and event.method == Method.ALLOCATE:
        return Refusal.FORBIDDEN
    return _BY_CODE.get(event.code, Refusal.OTHER)
