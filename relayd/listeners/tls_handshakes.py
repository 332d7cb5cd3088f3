"""TLS that asks before each handshake whether the client's source may begin another one: each costs a signature.

It asks when a client connects, since turning one away costs least there, and once more when its first bytes come: only
then is it known who comes through a proxy, whose header is ahead of TLS, and only then is a handshake counted.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import IOpenSSLServerConnectionCreator

from relayd.address import TransportAddress
from relayd.tls.stream import TlsConnection, TlsFactory
from relayd.twisted_address import from_twisted


class HandshakeHost(Protocol):
    """What counts them: the listener."""

    def may_shake_hands(self, client: TransportAddress | None) -> bool:
        """Whether that client, or (None) one of a Unix socket, may begin a handshake."""

    def shakes_hands(self, client: TransportAddress | None) -> None:
        """It begins one."""


class LimitedTls(TlsConnection):
    """One connection. Refused, it ends without a word of TLS."""

    factory: LimitedTlsFactory
    _has_begun = False

    def dataReceived(self, data: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            transport: Any = self.transport
            client, host = from_twisted(transport.getPeer()), self.factory.host
            if not host.may_shake_hands(client):
                self.abortConnection()  # type: ignore[no-untyped-call]
                return
            host.shakes_hands(client)
        super().dataReceived(data)


class LimitedTlsFactory(TlsFactory):
    """Makes them, or none."""

    protocol = LimitedTls

    def __init__(self, options: IOpenSSLServerConnectionCreator, wrapped: Any, clock: Any, host: HandshakeHost) -> None:
        super().__init__(options, False, wrapped, clock)
        self.host = host

    def buildProtocol(self, addr: Any) -> Any:
        """None for a client that is not to have a connection: Twisted closes it right away."""
        return super().buildProtocol(addr) if self.host.may_shake_hands(from_twisted(addr)) else None
