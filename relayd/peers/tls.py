"""TLS between the relay and its peers: as a client whom a name is to be proved, and as a server with a certificate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.x509 import load_pem_x509_certificates
from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_PEM, X509
from OpenSSL.crypto import Error as CryptoError
from service_identity import CertificateError, VerificationError
from twisted.internet.error import VerifyError
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IReactorTime
from twisted.internet.protocol import Factory
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    KeyPair,
    PrivateCertificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.config import RelaySettings
from relayd.errors import ConfigurationError, PeerNotAuthenticated, PeerUnreachable, RelaydError
from relayd.interfaces import ITcpRelayReceiver
from relayd.peers.connection import PeerConnection, RelayedAddress
from relayd.turn.outputs import PeerTls

HANDSHAKE_TIMEOUT = 8.0  # seconds: with the 30 for TCP, a client hears within the 39.5 that it waits


class PeerTlsOptions:
    """What TLS with peers takes of the configuration. Raises ConfigurationError."""

    def __init__(self, settings: RelaySettings) -> None:
        self._trust = platformTrust() if settings.peer_ca is None else _trust_in(settings.peer_ca)
        self.server: CertificateOptions | None = None
        if settings.peer_certificate is not None and settings.peer_key is not None:
            self.server = _certificate(settings.peer_certificate, settings.peer_key)
        elif settings.peer_certificate is not None or settings.peer_key is not None:
            raise ConfigurationError("--peer-certificate and --peer-key belong together: give both")

    def client(self, tls: PeerTls) -> Any:
        """Raises PeerNotAuthenticated for a name that no certificate can be for."""
        try:
            return optionsForClientTLS(
                tls.server_name, trustRoot=self._trust, acceptableProtocols=list(tls.protocols) or None
            )
        except (ValueError, UnicodeError):
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
    return TLSMemoryBIOFactory(options, is_client, _One(above), reactor).buildProtocol(None)


def _explain(peer: TransportAddress, reason: Failure | None) -> RelaydError:
    error = None if reason is None else reason.value
    if isinstance(error, VerificationError | CertificateError):
        return PeerNotAuthenticated(f"{peer}: the certificate is for another name")
    if isinstance(error, SSL.Error) and "certificate" in str(error):
        return PeerNotAuthenticated(f"{peer}: {_words(error)}")
    return PeerUnreachable(f"{peer}: {_words(error) if isinstance(error, SSL.Error) else 'no TLS came about'}")


def _words(error: SSL.Error) -> str:
    """What OpenSSL says in a list of (library, function, reason)."""
    said = error.args[0] if error.args else ()
    return ", ".join(str(each[-1]) for each in said) or "the TLS connection ended"


def _trust_in(path: Path) -> Any:
    try:
        certificates = load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"--peer-ca {path}: {error.strerror}; check the path and its permissions") from error
    except ValueError:
        raise ConfigurationError(f"--peer-ca {path}: no file of certificates in PEM format") from None
    return trustRootFromCertificates([Certificate(X509.from_cryptography(each)) for each in certificates])


def _certificate(certificate: Path, key: Path) -> CertificateOptions:
    try:
        chain = load_pem_x509_certificates(certificate.read_bytes())
        pair = KeyPair.load(key.read_bytes(), FILETYPE_PEM)
        own = PrivateCertificate.fromCertificateAndKeyPair(Certificate(X509.from_cryptography(chain[0])), pair)
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: {error.strerror}; check the path and its permissions") from error
    except (ValueError, CryptoError):
        raise ConfigurationError(
            f"--peer-certificate {certificate}, --peer-key {key}: not both are files in PEM format"
        ) from None
    except VerifyError:
        raise ConfigurationError(f"--peer-key {key} does not belong to --peer-certificate {certificate}") from None
    return CertificateOptions(
        privateKey=own.privateKey.original,
        certificate=own.original,
        extraCertChain=[X509.from_cryptography(each) for each in chain[1:]],
    )
