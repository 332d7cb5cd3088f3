"""TURN over DTLS from a client to its server (RFC 7350): a session core on a UDP socket."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.ssl import CertificateOptions, platformTrust

from relayd.client.transports.datagrams import connect_udp
from relayd.client.transports.server import Connection, Receiver, Server
from relayd.client.transports.wording import explain
from relayd.dtls import Deliver, DtlsSession, Ended, Established, Output, Transmit
from relayd.dtls_client import DtlsClientContext, DtlsClientSession
from relayd.errors import ConfigurationError, ServerUnavailable
from relayd.pump import Pump

HANDSHAKE_TIMEOUT = 10.0  # seconds: a flight is sent four times in them


class DtlsConnection:
    """A DTLS session with a server, and the receiver of the UDP socket below it.

    `opened` fires with it, or fails with ServerUnavailable.
    """

    def __init__(self, clock: Any, receiver: Receiver, session: DtlsSession) -> None:
        self.dropped = 0
        self.opened: Deferred[Connection] = Deferred(self._cancelled)
        self._clock = clock
        self._receiver = receiver
        self._session = session
        self._pump: Pump[Output] = Pump(session, clock, self._perform)
        self._below: Connection | None = None
        self._timeout: IDelayedCall | None = None
        self._is_over = False

    def start(self, below: Connection) -> Deferred[Connection]:
        """Begin the handshake over an open socket; gives `opened`."""
        self._below = below
        fault = f"no answer to the DTLS handshake within {HANDSHAKE_TIMEOUT:g} seconds"
        self._timeout = self._clock.callLater(HANDSHAKE_TIMEOUT, self._end, ServerUnavailable(fault))
        self._pump.run()
        return self.opened

    # --- what the TURN session calls --------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if not self._session.send(data):
            self.dropped += 1  # longer than a record, or too late
        self._pump.run()

    write_data = write

    def close(self) -> Deferred[None]:
        below = self._below
        assert below is not None  # nobody has this connection before it has a socket
        self._is_over = True
        self._stop_waiting()
        self._session.close()
        self._pump.run()
        self._pump.stop()
        return below.close()

    # --- what the UDP socket calls ----------------------------------------------------------------------------------

    def message_received(self, data: bytes) -> None:
        self._session.receive(data, self._clock.seconds())
        self._pump.run()

    def connection_doubtful(self, error: ServerUnavailable) -> None:
        if self.opened.called:
            self._receiver.connection_doubtful(error)
        else:
            self._end(error)

    def connection_lost(self, error: ServerUnavailable) -> None:
        """A socket for datagrams is never lost."""

    # --- what the DTLS session wants --------------------------------------------------------------------------------

    def _perform(self, output: Output) -> None:
        if isinstance(output, Transmit):
            if self._below is not None:
                self._below.write_data(output.datagram)
        elif isinstance(output, Deliver):
            self._receiver.message_received(output.data)
        elif isinstance(output, Established):
            self._stop_waiting()
            self.opened.callback(self)
        elif isinstance(output, Ended):
            is_closed = output.reason == "closed"
            reason = "the server closed the DTLS session" if is_closed else f"DTLS: {output.reason}"
            self._end(ServerUnavailable(reason))

    def _end(self, error: ServerUnavailable) -> None:
        if self._is_over:
            return
        if self.opened.called:
            self._is_over = True
            self._receiver.connection_lost(error)
        else:
            self.close().addBoth(lambda _: self.opened.errback(error))

    def _cancelled(self, _: Deferred[Connection]) -> None:
        self.close()

    def _stop_waiting(self) -> None:
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()


def connect_dtls(reactor: Any, server: Server, trust_root: Any, receiver: Receiver) -> Deferred[Connection]:
    """Open a socket as `connect_udp` does, and a DTLS session over it. Fails with ServerUnavailable.

    Raises ConfigurationError for a name that no certificate can be for.
    """
    # Twisted makes contexts for TLS only; this is how it puts a trust root into one of them.
    authorities: Any = CertificateOptions(trustRoot=trust_root or platformTrust()).trustRoot
    context = DtlsClientContext(authorities._addCACertsToContext)
    try:
        session = DtlsClientSession(context, server.tls_name, reactor.seconds())
    except (ValueError, UnicodeError):
        raise ConfigurationError(f"{server.tls_name!r}: no certificate can be for such a name") from None
    connection = DtlsConnection(reactor, receiver, session)
    opening = connect_udp(reactor, server, None, connection)
    return opening.addCallback(connection.start).addErrback(explain, server.host)
