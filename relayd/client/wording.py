"""What ended a connection, in a few words for its user."""

from __future__ import annotations

import os

from OpenSSL import SSL
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.python.failure import Failure

from relayd.errors import RelaydError


def wording(reason: Failure) -> str:
    """Why a connection failed or ended: one line without a full stop."""
    error = reason.value
    if isinstance(error, RelaydError):
        return str(error)
    if isinstance(error, ConnectionDone):
        return "the server closed the connection"
    if isinstance(error, SSL.Error):
        details = error.args[0] if error.args and isinstance(error.args[0], list) else []
        words = "; ".join(str(detail[-1]) for detail in details if detail)
        return f"TLS: {words or 'the handshake failed'}"
    if isinstance(error, ConnectError) and isinstance(error.osError, int):
        return os.strerror(error.osError)
    text = " ".join(str(error).split()) if error is not None else ""
    return text.rstrip(".") or type(error).__name__
