"""TLS between the relay and its peers: as a client, to whom the peer proves its name, or as a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IReactorTime
from twisted.internet.protocol import Factory
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    trustRootFromCertificates,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.config import RelaySettings
from relayd.errors import ConfigurationError, PeerNotAuthenticated, PeerUnreachable, RelaydError
from relayd.interfaces import ITcpRelayReceiver
from relayd.peers.connection import PeerConnection, RelayedAddress
from relayd.tls.certificates import Current
from relayd.tls.client import TlsClientOptions, Trust
from relayd.tls.pem import Authorities, Pair, server_options
from relayd.tls.stream import TlsFactory
from relayd.turn.outputs import PeerTls

HANDSHAKE_TIMEOUT = 8.0  # seconds: with the 30 for TCP, a client hears within the 39.5 that it waits


class PeerTlsOptions:
    """What TLS with peers takes of the configuration. Raises ConfigurationError."""

    def __init__(self, settings: RelaySettings) -> None:
        ca, certificate, key = settings.peer_ca, settings.peer_certificate, settings.peer_key
        self._trust = Current(Trust())
        self._server: Current[CertificateOptions] | None = None
        if ca is not None:
            with _named(f"--peer-ca {ca}"):
                self._trust = settings.certificates.authorities(ca, _trust_in)
        if certificate is not None and key is not None:
            with _named(f"--peer-certificate {certificate}, --peer-key {key}"):
                self._server = settings.certificates.pair(certificate, key, _shown_to_peers)
        elif certificate is not None or key is not None:
            raise ConfigurationError("--peer-certificate and --peer-key belong together: give both")

    @property
    def server(self) -> CertificateOptions | None:
        """For a handshake with a peer that connects; None where there is no certificate to show."""
        return None if self._server is None else self._server.value

    def client(self, tls: PeerTls) -> Any:
        """Raises PeerNotAuthenticated for a name that no certificate can be for."""
        try:
            return TlsClientOptions(tls.server_name, self._trust.value, tls.protocols)
        except ValueError:
            raise PeerNotAuthenticated(f"{tls.server_name!r}: no certificate can be for such a name") from None


@implementer(IHandshakeListener)
class TlsPeerConnection(PeerConnection):
    """A connection with a peer that counts once the handshake is done; until then nobody hears of it but `failed`."""

    def __init__(
        self,
        relay: RelayedAddress,
        receiver: ITcpRelayReceiver,
        peer: TransportAddress,
        clock: IReactorTime,
        opened: Callable[[PeerConnection], Any],
        failed: Callable[[RelaydError], Any],
    ) -> None:
        super().__init__(relay, receiver, peer, clock, opened)
        self._failed = failed
        self._handshake: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._relay.connections.add(self)
        self._handshake = self._clock.callLater(HANDSHAKE_TIMEOUT, self._too_slow)

    def handshakeCompleted(self) -> None:
        transport: Any = self.transport
        if transport.disconnecting or self._handshake is None:
            return  # the certificate was not for that name, which Twisted tells by the end of the connection
        self._handshake.cancel()
        self._handshake = None
        self.protocol = transport.negotiatedProtocol
        self._begin(half_closes=False)

    def readConnectionLost(self) -> None:
        """The peer has said all, and TLS with it is over."""
        if self._is_made:
            super().readConnectionLost()

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._is_made:
            super().connectionLost(reason)
            return
        if self._handshake is not None:
            self._handshake.cancel()
            self._handshake = None
        self._failed(_explain(self.peer, reason))
        self._relay.lost(self)

    def abort(self) -> None:
        """See `IByteStream.abort`."""
        if self._is_made:
            super().abort()
        else:
            transport: Any = self.transport
            transport.abortConnection()

    def _too_slow(self) -> None:
        self._handshake = None
        self.abort()


class _One(Factory):
    """Makes the protocol above TLS, which is there already."""

    noisy = False

    def __init__(self, protocol: TlsPeerConnection) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: Any) -> TlsPeerConnection:
        return self._protocol


def over_tls(options: Any, is_client: bool, above: TlsPeerConnection, reactor: Any) -> Any:
    """The protocol for the TCP connection: TLS, and `above` it."""
    return TlsFactory(options, is_client, _One(above), reactor).buildProtocol(None)


def _shown_to_peers(pair: Pair) -> CertificateOptions:
    options = server_options(pair)
    # RFC 7301 section 3.2: a server that knows nothing of ALPN leaves the offer unanswered. Twisted would refuse it.
    options.getContext().set_alpn_select_callback(lambda connection, offered: SSL.NO_OVERLAPPING_PROTOCOLS)
    return options


def _explain(peer: TransportAddress, reason: Failure | None) -> RelaydError:
    error = None if reason is None else reason.value
    if isinstance(error, CertificateError):
        return PeerNotAuthenticated(f"{peer}: the certificate is for another name")
    # Not what the peer says of certificates, in an alert: it misses one of ours.
    if isinstance(error, SSL.Error) and "certificate verify failed" in str(error):
        return PeerNotAuthenticated(f"{peer}: {_words(error)}")
    return PeerUnreachable(f"{peer}: {_words(error) if isinstance(error, SSL.Error) else 'no TLS came about'}")


def _words(error: SSL.Error) -> str:
    """What OpenSSL says in a list of (library, function, reason)."""
    said = error.args[0] if error.args else ()
    return ", ".join(str(each[-1]) for each in said) or "the TLS connection ended"


def _trust_in(authorities: Authorities) -> Trust:
    certificates = [Certificate(X509.from_cryptography(each)) for each in authorities.certificates]
    return Trust(trustRootFromCertificates(certificates))


@contextmanager
def _named(option: str) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as why:
        raise ConfigurationError(f"{option}: {why}") from why
