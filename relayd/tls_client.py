"""TLS as a client, for Twisted: only with whoever proves to be of that name. Opens no connection.

Twisted's `optionsForClientTLS` is not used. It looks at the names of a certificate in a callback that logs what it
stumbles over and then goes on: one without a subjectAltName, or with one that cannot be read, passes there for anybody.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import CertificateOptions, platformTrust
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.identity import ReferenceIdentity


@implementer(IOpenSSLClientConnectionCreator)
class TlsClientOptions:
    """For a `TLSMemoryBIOFactory`, or `wrapClientTLS`. A connection whose certificate is for somebody else ends with
    service_identity's CertificateError, one whose chain leads to nobody trusted with OpenSSL's error.
    """

    def __init__(self, name: str, trust_root: Any = None, protocols: Sequence[bytes] = ()) -> None:
        """`trust_root` is one of Twisted's, or None for the system's authorities; `protocols` are offered by ALPN.

        Raises ValueError for a name that no certificate can be for.
        """
        self._identity = ReferenceIdentity(name)
        self._options: Any = CertificateOptions(
            trustRoot=trust_root or platformTrust(), acceptableProtocols=list(protocols) or None
        )

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802
        """See `IOpenSSLClientConnectionCreator`."""
        connection: SSL.Connection = self._options.clientConnectionForTLS(tlsProtocol)
        identity, protocol = (
            self._identity,
            weakref.ref(tlsProtocol),
        )  # which has the connection, which has what follows

        def verify(_: SSL.Connection, certificate: X509, error: int, depth: int, is_trusted: int) -> bool:
            """What OpenSSL asks for each certificate of the chain, the peer's own last."""
            if not is_trusted or depth > 0:
                return bool(is_trusted)
            if identity.is_proved_by(certificate.to_cryptography()):
                return True
            there = protocol()
            if there is not None:
                there.failVerification(Failure(CertificateError(f"the certificate is not for {identity.name}")))
            return False

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        if identity.server_name is not None:
            connection.set_tlsext_host_name(identity.server_name)
        return connection
