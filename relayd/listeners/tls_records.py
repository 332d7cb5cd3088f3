"""Writes messages to a TLS client, one record for each, and those of one turn in as few writes as possible.

There are clients, coturn's among them, that read one record and take it for one message. So what leaves together may
not be joined before it is encrypted, as Twisted's own transport would; afterwards it may.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from OpenSSL import SSL
from twisted.protocols.tls import TLSMemoryBIOProtocol

_RECORD = 16_384  # bytes of content, the most that a record holds (RFC 8446 section 5.1)
_OVERHEAD = 48  # bytes that a record adds at most, with any cipher of TLS 1.2 and 1.3 that is in use
_FLUSH = 32_768  # bytes that Twisted takes out of OpenSSL after a write; what is beyond would stay there


def write_records(transport: Any, messages: Sequence[bytes]) -> None:
    """Write each message as a record of its own; one longer than a record (16,384 bytes) takes several."""
    handle: Any = transport.getHandle()
    last = len(messages) - 1
    held = 0  # bytes encrypted, and not yet taken out of OpenSSL
    for position, message in enumerate(messages):
        size = len(message) + _OVERHEAD
        following = len(messages[position + 1]) + _OVERHEAD if position < last else _FLUSH
        if held + size + following <= _FLUSH and len(message) <= _RECORD:
            try:
                handle.send(message)
            except SSL.Error:  # not now, or not any more: Twisted's own write knows what to do about it
                TLSMemoryBIOProtocol.write(transport, message)
            held += size
        else:
            TLSMemoryBIOProtocol.write(transport, message)
            held = 0
