"""What Twisted's `tcp:` and `ssl:` endpoints lack: `::` that leaves IPv4 alone, whole certificate chains, and a PROXY
header ahead of TLS.
"""

from __future__ import annotations

import socket
from typing import Any

from cryptography.x509 import load_pem_x509_certificates
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IListeningPort
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.filepath import FilePath

from relayd.errors import ConfigurationError
from relayd.listeners.endpoint import split_arguments
from relayd.listeners.proxied import Judge, ProxiedFactory

_POSITIONAL = ("prefix", "port", "privateKey", "certKey")  # as Twisted takes them


class InternetPorts:
    """The reactor for one `tcp:` or `ssl:` endpoint, as far as that uses it.

    The system would take IPv4 too for `interface=\\:\\:`, and then refuse the same port to a listener on IPv4.

    Of `certKey=` Twisted reads the first certificate only. Certification authorities hand out files with the
    intermediate ones behind it, without which clients do not trust it: they are sent too, unless `extraCertChain=`
    names others.

    Behind a proxy the PROXY header is expected where proxies send it, ahead of TLS. Twisted's own `haproxy:ssl:` looks
    for it among what was encrypted, and hides our ALPN protocols from its TLS.
    """

    def __init__(self, reactor: Any, description: str, judge: Judge | None) -> None:
        """`description` begins with `tcp:` or `ssl:`. `judge` knows the proxies; None: there are none."""
        self._reactor = reactor
        self._description = description
        self._judge = judge

    def listenTCP(  # noqa: N802
        self, port: int, factory: Any, backlog: int, interface: str
    ) -> IListeningPort:
        """What a `tcp:` endpoint calls. Raises CannotListenError, or OSError."""
        if self._judge is not None:
            factory = ProxiedFactory(factory, self._judge)
        listening: IListeningPort
        if ":" not in interface or interface.strip("0:"):
            listening = self._reactor.listenTCP(port, factory, backlog, interface)
            return listening
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as opened:
            opened.setblocking(False)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.bind(("::", port))
            opened.listen(backlog)
            listening = self._reactor.adoptStreamPort(opened.fileno(), socket.AF_INET6, factory)
        return listening

    def listenSSL(  # noqa: N802
        self, port: int, factory: Any, contextFactory: Any, backlog: int, interface: str
    ) -> IListeningPort:
        """What an `ssl:` endpoint calls, with a `StreamListener`. Raises as `listenTCP`, and ConfigurationError."""
        if not contextFactory.extraCertChain:
            contextFactory.extraCertChain = intermediates(self._description)
        tls = TLSMemoryBIOFactory(contextFactory, False, factory, self._reactor)
        tls.noisy = False
        return self.listenTCP(port, factory.over_tls(tls), backlog, interface)


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
