"""Writes messages to a TLS client, one record for each, and those of one turn in as few writes as possible.

There are clients, coturn's among them, that read one record and take it for one message. So what leaves together may
not be joined before it is encrypted, as Twisted's own transport would; afterwards it may.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from OpenSSL import SSL
from twisted.protocols.tls import TLSMemoryBIOProtocol

from relayd.listeners.direct_writes import write_now

_FLUSH = 32_768  # bytes encrypted after which they are taken out of OpenSSL, whose buffer never shrinks again
_MOST_TAKEN = 131_072  # bytes taken out at once: those, and the longest message

# `Connection.send` takes longer for what it does besides than for a record of 200 bytes. It calls this.
_encrypt: Any = SSL._lib.SSL_write  # type: ignore[attr-defined]
_forget_errors: Any = SSL._lib.ERR_clear_error  # type: ignore[attr-defined]


def write_records(transport: Any, messages: Sequence[bytes]) -> None:
    """Write each message as a record of its own; one longer than a record (16,384 bytes) takes several."""
    connection: Any = transport.getHandle()
    encrypted = 0
    for position, message in enumerate(messages):
        size = len(message)
        written = _encrypt(connection._ssl, message, size)
        if written != size:
            # Not now, not any more, or only the first record of several: Twisted's own write knows what to do about it.
            # OpenSSL keeps its errors for the thread: one that is left there may be taken for the next connection's.
            _forget_errors()
            _take(transport, connection)
            TLSMemoryBIOProtocol.write(transport, message[max(0, written) :])
            for other in messages[position + 1 :]:
                TLSMemoryBIOProtocol.write(transport, other)
            return
        encrypted += size
        if encrypted >= _FLUSH:
            _take(transport, connection)
            encrypted = 0
    _take(transport, connection)


def _take(transport: Any, connection: Any) -> None:
    try:
        data = connection.bio_read(_MOST_TAKEN)
    except SSL.Error:  # there is nothing
        return
    write_now(transport.transport, data)
