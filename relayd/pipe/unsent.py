"""Tells how much of what was written to a transport has not reached the other side yet."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

from twisted.internet.tcp import Connection

try:
    import fcntl
    import termios
except ImportError:  # a system that cannot be asked
    _CAN_ASK = False
else:
    _CAN_ASK = hasattr(termios, "TIOCOUTQ")

_NUMBER = struct.Struct("i")


def unsent(transport: Any) -> int:
    """Bytes that wait in Twisted's buffer and in the system's, which has them until they are acknowledged.

    `transport` is one of Twisted's, or has the one below it as its `transport`. 0 where that cannot be told.
    """
    while transport is not None and not isinstance(transport, Connection):
        transport = getattr(transport, "transport", None)
    if transport is None or not transport.connected:
        return 0
    # Twisted has no public word for the second half of its buffer.
    waiting: int = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    if _CAN_ASK:
        with contextlib.suppress(OSError):  # this kind of socket does not say
            waiting += _NUMBER.unpack(fcntl.ioctl(transport.fileno(), termios.TIOCOUTQ, bytes(_NUMBER.size)))[0]
    return waiting
