"""What Twisted's `tcp:` and `ssl:` endpoints lack: `::` that leaves IPv4 alone, whole certificate chains, certificates
that are renewed, and a PROXY header ahead of TLS.
"""

from __future__ import annotations

import socket
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IListeningPort, IOpenSSLServerConnectionCreator
from twisted.internet.ssl import CertificateOptions, DiffieHellmanParameters
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from relayd.errors import ConfigurationError
from relayd.listeners.endpoint import TlsFiles, split_arguments, tls_files
from relayd.listeners.proxied import Judge, ProxiedFactory
from relayd.listeners.tls_handshakes import LimitedTlsFactory
from relayd.tls.certificates import Certificates, Current
from relayd.tls.pem import Pair, read_pair, server_options

_POSITIONAL = ("prefix", "port", "privateKey", "certKey")  # as Twisted takes them


class InternetPorts:
    """The reactor for one `tcp:` or `ssl:` endpoint, as far as that uses it.

    The system would take IPv4 too for `interface=\\:\\:`, and then refuse the same port to a listener on IPv4.

    Of `certKey=` Twisted reads the first certificate only. Certification authorities hand out files with the
    intermediate ones behind it, without which clients do not trust it: they are sent too. And Twisted reads the files
    once: they are read here, and again when they change.

    Behind a proxy the PROXY header is expected where proxies send it, ahead of TLS. Twisted's own `haproxy:ssl:` looks
    for it among what was encrypted, and hides our ALPN protocols from its TLS.
    """

    def __init__(self, reactor: Any, description: str, certificates: Certificates, judge: Judge | None) -> None:
        """`description` begins with `tcp:` or `ssl:`. `judge` knows the proxies; None: there are none."""
        self._reactor = reactor
        self._description = description
        self._certificates = certificates
        self._judge = judge

    def check_files(self) -> None:
        """Raises OSError and ConfigurationError for files of an `ssl:` endpoint that will not do.

        To be called before Twisted reads them: it asks the terminal, which a daemon has not, for the pass phrase of a
        key that is encrypted.
        """
        if self._description.startswith("ssl:"):
            try:
                files = self._files()
                read_pair(files.certificate, files.key, files.chain)
            except ConfigurationError as why:
                raise ConfigurationError(f"{self._description}: {why}") from why

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
        tls = LimitedTlsFactory(self._renewed(contextFactory.dhParameters), factory, self._reactor, factory)
        return self.listenTCP(port, factory.over_tls(tls), backlog, interface)

    def _files(self) -> TlsFiles:
        positional, options = split_arguments(self._description)
        return tls_files({**dict(zip(_POSITIONAL, positional, strict=False)), **options})

    def _renewed(self, dh_parameters: DiffieHellmanParameters | None) -> RenewedOptions:
        files = self._files()

        def make(pair: Pair) -> CertificateOptions:
            return server_options(pair, dh_parameters)

        try:
            return RenewedOptions(self._certificates.pair(files.certificate, files.key, make, files.chain))
        except ConfigurationError as why:
            raise ConfigurationError(f"{self._description}: {why}") from why


@implementer(IOpenSSLServerConnectionCreator)
class RenewedOptions:
    """The options of TLS as they are at each handshake."""

    def __init__(self, current: Current[CertificateOptions]) -> None:
        self._current = current

    def serverConnectionForTLS(  # noqa: N802
        self, protocol: TLSMemoryBIOProtocol
    ) -> SSL.Connection:
        """See `IOpenSSLServerConnectionCreator`."""
        return self._current.value.serverConnectionForTLS(protocol)
