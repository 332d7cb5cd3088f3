"""The client's end of DTLS 1.2: whom it trusts, and which name the server has to prove. Opens no socket.

A session is a `relayd.dtls.DtlsSession`, fed and drained as a server's is. Its first flight is ready at once; OpenSSL
answers the server's cookie (HelloVerifyRequest) by itself.
"""

from __future__ import annotations

from collections.abc import Callable

from OpenSSL import SSL
from OpenSSL.crypto import X509

from relayd.dtls import ALPN, CIPHERS, DTLS_1_2, MTU, OP_NO_RENEGOTIATION, DtlsSession
from relayd.identity import ReferenceIdentity


class DtlsClientContext:
    """Versions, ciphers and authorities. Serves any number of sessions."""

    def __init__(self, trust: Callable[[SSL.Context], None]) -> None:
        """`trust` puts the authorities that count into a context."""
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        context.set_min_proto_version(DTLS_1_2)
        context.set_cipher_list(CIPHERS)
        context.set_options(SSL.OP_NO_QUERY_MTU | OP_NO_RENEGOTIATION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_alpn_protos([ALPN[0]])  # RFC 7443
        trust(context)
        self.context = context


class DtlsClientSession(DtlsSession):
    """A session with the server of that name or address, which its certificate has to be for."""

    def __init__(self, context: DtlsClientContext, name: str, now: float) -> None:
        """Raises ValueError for a name that no certificate can be for."""
        self._fault: str | None = None
        self._identity = ReferenceIdentity(name)
        connection = SSL.Connection(context.context, None)
        connection.set_connect_state()
        connection.set_ciphertext_mtu(MTU)
        if self._identity.server_name is not None:
            connection.set_tlsext_host_name(self._identity.server_name)
        connection.set_verify(SSL.VERIFY_PEER, self._verify)
        super().__init__(connection, now)

    def _verify(self, connection: SSL.Connection, certificate: X509, error: int, depth: int, is_trusted: int) -> bool:
        """What OpenSSL asks for each certificate of the chain, the server's own last."""
        if not is_trusted or depth > 0:
            return bool(is_trusted)
        if self._identity.is_proved_by(certificate):
            return True
        self._fault = f"the certificate is not for {self._identity.name}"
        return False

    def _end(self, reason: str) -> None:
        super()._end(self._fault or reason)
