"""TLS on a stream: Twisted's, which is made to tell what is above when the other side has said all, and then to end.

Twisted answers a close_notify by closing what is below. It says nothing above until that is gone, for which all that
was written has to be taken first; and that is never, where a producer is registered which it paused, for then it waits
for that producer.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory


class TlsConnection(BufferingTLSTransport):
    """A protocol above that is an `IHalfCloseableProtocol` hears once that the other side has said all. What it writes
    then goes nowhere: both directions end.
    """

    _has_ended = False

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        below: Any = self.transport
        if self._has_ended or not below.disconnecting:
            return
        self._has_ended = True
        self.unregisterProducer()  # type: ignore[no-untyped-call]
        connection: Any = self.getHandle()  # type: ignore[no-untyped-call]
        above = IHalfCloseableProtocol(self.wrappedProtocol, None)
        if above is not None and connection is not None and connection.get_shutdown() & SSL.RECEIVED_SHUTDOWN:
            above.readConnectionLost()


class TlsFactory(TLSMemoryBIOFactory):
    """Puts TLS below the protocols of another factory."""

    protocol = TlsConnection
    noisy = False
