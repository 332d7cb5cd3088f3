"""TLS as a client, for Twisted: only with whoever proves to be of that name. Opens no connection.

Twisted's `optionsForClientTLS` is not used. It looks at the names of a certificate in a callback that logs what it
stumbles over and then goes on: one without a subjectAltName, or with one that cannot be read, passes there for anybody.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import CertificateOptions, platformTrust
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.identity import ReferenceIdentity

TRUST_LIFETIME = 3600.0  # seconds: how old the system's authorities may be, which its updates replace


class Trust:
    """A trust root of Twisted's, None for the system's authorities, as OpenSSL has it: read for many connections.

    To read the system's takes 7 ms, in which nothing is relayed, and a megabyte as long as a connection uses it.
    """

    def __init__(self, trust_root: Any = None, now: Callable[[], float] = monotonic) -> None:
        """`now` gives seconds on any clock."""
        self._trust_root = trust_root or platformTrust()
        self._now = now
        self._options: Any = None
        self._read_again_at = 0.0

    def connection(self, protocol: Any) -> SSL.Connection:
        """A new one, for a `TLSMemoryBIOProtocol`; it asks for no name yet."""
        options, now = self._options, self._now()
        if options is None or now >= self._read_again_at:
            # OpenSSL does not say that it could not open a file: it trusts nobody then.
            can_open = _can_open()
            if options is None or can_open:
                options = CertificateOptions(trustRoot=self._trust_root)
            if can_open:
                self._options, self._read_again_at = options, now + TRUST_LIFETIME
        connection: SSL.Connection = options.clientConnectionForTLS(protocol)
        return connection


def _can_open() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError:  # out of descriptors
        return False
    return True


@implementer(IOpenSSLClientConnectionCreator)
class TlsClientOptions:
    """For a `TLSMemoryBIOFactory`, or `wrapClientTLS`. A connection whose certificate is for somebody else ends with
    service_identity's CertificateError, one whose chain leads to nobody trusted with OpenSSL's error.
    """

    def __init__(self, name: str, trust_root: Any = None, protocols: Sequence[bytes] = ()) -> None:
        """`trust_root` is one of Twisted's, None for the system's authorities, or a `Trust` that several share;
        `protocols` are offered by ALPN.

        Raises ValueError for a name that no certificate can be for.
        """
        self._identity = ReferenceIdentity(name)
        self._trust = trust_root if isinstance(trust_root, Trust) else Trust(trust_root)
        self._protocols = list(protocols)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802
        """See `IOpenSSLClientConnectionCreator`."""
        connection = self._trust.connection(tlsProtocol)
        if self._protocols:
            connection.set_alpn_protos(self._protocols)
        identity = self._identity
        protocol = weakref.ref(tlsProtocol)  # it has the connection, which has what follows

        def verify(_: SSL.Connection, certificate: X509, error: int, depth: int, is_trusted: int) -> bool:
            """What OpenSSL asks for each certificate of the chain, the peer's own last."""
            if not is_trusted or depth > 0:
                return bool(is_trusted)
            if identity.is_proved_by(certificate):
                return True
            there = protocol()
            if there is not None:
                there.failVerification(Failure(CertificateError(f"the certificate is not for {identity.name}")))
            return False

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        if identity.server_name is not None:
            connection.set_tlsext_host_name(identity.server_name)
        return connection
