"""What ended a connection, in a few words for its user."""

from __future__ import annotations

import os

from OpenSSL import SSL
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionDone
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.python.failure import Failure

from relayd.errors import RelaydError, ServerUnavailable


def explain(failure: Failure, where: str) -> Failure:
    """What connecting to `where` failed of, as one of our errors; that it was cancelled stays what it is."""
    if failure.check(CancelledError, ConnectingCancelledError):
        return Failure(CancelledError())
    if failure.check(RelaydError):
        return failure
    return Failure(ServerUnavailable(f"{where}: {wording(failure)}"))


def wording(reason: Failure) -> str:
    """Why a connection failed or ended: one line without a full stop."""
    error = reason.value
    if isinstance(error, RelaydError):
        return str(error)
    if isinstance(error, ConnectionDone):
        return "the server closed the connection"
    if isinstance(error, ConnectTimeout):
        return "no answer"
    if isinstance(error, SSL.Error):
        details = error.args[0] if error.args and isinstance(error.args[0], list) else []
        words = "; ".join(str(detail[-1]) for detail in details if detail)
        return f"TLS: {words or 'the handshake failed'}"
    if isinstance(error, ConnectError) and isinstance(error.osError, int):
        return os.strerror(error.osError)
    text = " ".join(str(error).split()) if error is not None else ""
    return text.rstrip(".") or type(error).__name__
