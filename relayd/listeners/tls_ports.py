"""What Twisted's `ssl:` endpoint lacks: the whole certificate chain, and a PROXY header ahead of TLS."""

from __future__ import annotations

from typing import Any

from cryptography.x509 import load_pem_x509_certificates
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import ServerFactory
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.filepath import FilePath

from relayd.errors import ConfigurationError
from relayd.listeners.endpoint import split_arguments

_POSITIONAL = ("prefix", "port", "privateKey", "certKey")  # as Twisted takes them


class TlsPorts:
    """The reactor for one `ssl:` endpoint, as far as that uses it.

    Twisted reads the first certificate of `certKey=` only. Certification authorities hand out files with the
    intermediate ones behind it, without which clients do not trust it: they are sent too, unless `extraCertChain=`
    names others.

    Behind a proxy the PROXY header is expected where proxies send it, ahead of TLS. Twisted's own `haproxy:ssl:` looks
    for it among what was encrypted, and hides our ALPN protocols from its TLS.
    """

    def __init__(self, reactor: Any, description: str, behind_proxy: bool) -> None:
        """`description` begins with `ssl:`."""
        self._reactor = reactor
        self._description = description
        self._behind_proxy = behind_proxy

    def listenSSL(  # noqa: N802
        self, port: int, factory: ServerFactory, contextFactory: Any, backlog: int, interface: str
    ) -> IListeningPort:
        """What the endpoint calls. Raises ConfigurationError."""
        if not contextFactory.extraCertChain:
            contextFactory.extraCertChain = intermediates(self._description)
        opened: IListeningPort
        if self._behind_proxy:
            proxied = HAProxyWrappingFactory(TLSMemoryBIOFactory(contextFactory, False, factory, self._reactor))
            proxied.noisy = False
            opened = self._reactor.listenTCP(port, proxied, backlog, interface)
        else:
            opened = self._reactor.listenSSL(port, factory, contextFactory, backlog, interface)
        return opened


def intermediates(description: str) -> list[X509]:
    """All but the first certificate in the file of an `ssl:` endpoint. Raises ConfigurationError, and OSError."""
    positional, options = split_arguments(description)
    given = {**dict(zip(_POSITIONAL, positional, strict=False)), **options}
    path = given.get("certKey", given.get("privateKey", "server.pem"))
    try:
        certificates = load_pem_x509_certificates(FilePath(path).getContent())
    except ValueError:
        raise ConfigurationError(f"{description}: certKey={path}: not all certificates in it can be read") from None
    return [X509.from_cryptography(certificate) for certificate in certificates[1:]]
