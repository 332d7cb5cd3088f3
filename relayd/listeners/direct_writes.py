"""Writes to a socket at once where nothing waits before it.

Twisted's transports collect what is written, have the reactor watch the socket, and write when it next says that there
is room, as there nearly always is: two calls of epoll and a turn of the reactor, which cost more than the write itself
and come on top of each message's way. Only what the socket does not take is theirs.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.tcp import Connection


def write_now(transport: Any, data: bytes) -> None:
    """As `transport.write`, of any transport; one of Twisted's own for TCP and Unix sockets is written to at once."""
    if isinstance(transport, Connection) and _is_free(transport):
        written = transport.writeSomeData(data)
        if written == len(data):
            return
        if isinstance(written, int):  # else the connection is lost, and the reactor will hear of it
            data = data[written:]
    transport.write(data)


def _is_free(connection: Any) -> bool:
    """Whether what is written would be the next bytes on the wire, as they are: not so once TLS was started there."""
    # Twisted has no public word for the second half of its buffer.
    waiting = connection.dataBuffer or connection._tempDataBuffer
    return connection.connected and not (connection.disconnecting or connection.TLS or waiting)
