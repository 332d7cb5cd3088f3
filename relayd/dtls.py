"""DTLS 1.2 (RFC 6347), as pure objects over OpenSSL's memory BIOs. Opens no socket and reads no file.

Theory of operation. `DtlsServer` hears what comes from clients without a session. It answers a ClientHello statelessly
with a cookie (HelloVerifyRequest) and keeps nothing; the cookie is bound to the client and to the minute. A ClientHello
that brings a valid cookie back becomes a `DtlsSession`, which then takes every datagram of that client. On a client,
`relayd.dtls_client` makes the session. At either end:

    receive / send / close / handle_timer  ->  next_output until None  ->  next_timer

Deviation from the core contract: OpenSSL counts its retransmission timeouts on the clock of the operating system. The
deadlines given here are right for a `now` that runs as fast as that clock; in simulated time nothing is retransmitted.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from relayd.core import Entropy
from relayd.errors import ConfigurationError

if TYPE_CHECKING:
    from OpenSSL.SSL import _NoOverlappingProtocols as _NoOverlap

ALPN = (b"stun.turn", b"stun.nat-discovery")  # RFC 7443 section 3, the most capable first
MTU = 1200  # bytes of one datagram during the handshake: what passes everywhere, IPv6 and tunnels included
MAX_PLAINTEXT = 16_384  # bytes that one record can carry (RFC 6347 section 4.1)

DTLS_1_2 = 0xFEFD
OP_NO_RENEGOTIATION = 0x40000000  # not exported by pyOpenSSL
CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"  # forward secrecy and authenticated encryption only
_RECORD_HEADER = 13  # bytes
_HANDSHAKE_HEADER = 12  # bytes
_HELLO_RANDOM = slice(27, 59)  # behind both headers and the client's version
_COOKIE_PERIOD = 60.0  # seconds: a cookie is good for one to two of them
_SHORTEST_TIMEOUT = 0.01  # seconds: rounding must not make a timer fire twice for one timeout
_LARGEST_HELLO = 4096  # bytes: OpenSSL must take it from the shared BIO in one piece
_FLIGHT = 65_536  # bytes: more than any flight

_openssl = Binding.lib
Parsed = TypeVar("Parsed")


# --- outputs ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Transmit:
    """Send this datagram to the other end."""

    datagram: bytes


@dataclass(slots=True)
class Established:
    """The handshake is done; `protocol` is what ALPN chose, or empty."""

    protocol: bytes


@dataclass(slots=True)
class Deliver:
    """The other end sent this."""

    data: bytes


@dataclass(slots=True)
class Ended:
    """The session is over, for a reason fit for a log. Nothing comes after it."""

    reason: str


Output = Transmit | Established | Deliver | Ended


# --- configuration ---------------------------------------------------------------------------------------------------


class DtlsContext:
    """Certificate, key, versions and ciphers. Serves one `DtlsServer`."""

    def __init__(self, certificates: bytes, key: bytes) -> None:
        """`certificates` is PEM, the server's own first; `key` is unencrypted PEM. Raises ConfigurationError."""
        context = SSL.Context(SSL.DTLS_SERVER_METHOD)
        context.set_min_proto_version(DTLS_1_2)
        context.set_cipher_list(CIPHERS)
        # Without resumption there is no session state to keep, nor a ticket key to protect.
        context.set_options(SSL.OP_NO_QUERY_MTU | SSL.OP_NO_TICKET | OP_NO_RENEGOTIATION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # an idle session then costs 70 KB rather than 82
        own, *chain = _parse(x509.load_pem_x509_certificates, certificates, "certificate")
        context.use_certificate(own)
        for certificate in chain:
            context.add_extra_chain_cert(certificate)
        private: Any = _parse(lambda pem: load_pem_private_key(pem, None), key, "private key")
        try:
            context.use_privatekey(private)
            context.check_privatekey()
        except (SSL.Error, TypeError, ValueError):
            _openssl.ERR_clear_error()
            raise ConfigurationError("the private key does not belong to the certificate") from None
        context.set_alpn_select_callback(_select_protocol)
        self.context = context


def _select_protocol(connection: SSL.Connection, offered: list[bytes]) -> bytes | _NoOverlap:
    for protocol in ALPN:
        if protocol in offered:
            return protocol
    # Deviation: RFC 7301 section 3.2 ends the handshake. A client that offers other protocols only is served here as
    # one without ALPN, since a client must be able to reach servers that know nothing of RFC 7443.
    return SSL.NO_OVERLAPPING_PROTOCOLS


def _parse(load: Callable[[bytes], Parsed], pem: bytes, what: str) -> Parsed:
    try:
        return load(pem)
    except TypeError:
        raise ConfigurationError(f"the {what} is encrypted: give it unencrypted") from None
    except ValueError:
        raise ConfigurationError(f"there is no {what} in PEM format that can be read") from None


# --- the cookie exchange ---------------------------------------------------------------------------------------------


def is_client_hello(datagram: bytes) -> bool:
    """Whether a datagram begins with an unencrypted ClientHello: the only thing that a stranger may begin with."""
    return (
        _RECORD_HEADER + _HANDSHAKE_HEADER <= len(datagram) <= _LARGEST_HELLO
        and datagram[0] == 22  # handshake
        and datagram[1] == 0xFE
        and datagram[3] == datagram[4] == 0  # epoch 0
        and datagram[_RECORD_HEADER] == 1  # ClientHello
    )


class DtlsServer:
    """Tells clients that can be reached at their address from those that claim it (RFC 6347 section 4.2.1)."""

    def __init__(self, context: DtlsContext, entropy: Entropy) -> None:
        self._secret = entropy(32)
        self._client = b""
        self._period = 0
        self._use(context.context)

    def show(self, context: DtlsContext) -> None:
        """From the next hello on use this one. Sessions that last keep theirs, and cookies that are out stay good."""
        if context.context is not self._context:
            self._use(context.context)

    def _use(self, context: SSL.Context) -> None:
        self._context = context
        self._context.set_cookie_generate_callback(lambda _: self._cookie(self._period))
        self._context.set_cookie_verify_callback(lambda _, cookie: self._verify(cookie))
        self._listening = self._listen()

    def receive(self, client: bytes, datagram: bytes, now: float) -> DtlsSession | Transmit | None:
        """A datagram from a client without a session; `client` is its address in any fixed form.

        A DtlsSession: the cookie was valid, and the session has outputs to drain. A Transmit: a HelloVerifyRequest,
        smaller than what it answers. None: dropped. Only in the first case is anything kept.
        """
        if not is_client_hello(datagram):
            return None
        self._client = client
        self._period = int(now // _COOKIE_PERIOD)
        connection = self._listening
        try:
            connection.bio_write(datagram)
            connection.DTLSv1_listen()
        except SSL.WantReadError:
            answer = _drain(connection)
            return Transmit(answer) if answer else None
        except SSL.Error:
            # It may be left in any state: the next client gets a new one.
            self._listening = self._listen()
            return None
        finally:
            # What a malformed hello left in OpenSSL's queue would be blamed on the next TLS connection of this thread.
            _openssl.ERR_clear_error()
        self._listening = self._listen()
        return DtlsSession(connection, now, datagram[_HELLO_RANDOM])

    def _listen(self) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        connection.set_ciphertext_mtu(MTU)
        return connection

    def _cookie(self, period: int) -> bytes:
        return hmac.digest(self._secret, period.to_bytes(8, "big", signed=True) + self._client, hashlib.sha256)

    def _verify(self, cookie: bytes) -> bool:
        return any(hmac.compare_digest(cookie, self._cookie(self._period - age)) for age in (0, 1))


# --- one session -----------------------------------------------------------------------------------------------------


class DtlsSession:
    """One end of a DTLS association. `hello_random`, for a server, tells the client's first hello from others."""

    def __init__(self, connection: SSL.Connection, now: float, hello_random: bytes = b"") -> None:
        self._connection = connection
        self._outputs: deque[Output] = deque()
        self._deadline: float | None = None
        self._hello_random = hello_random
        self.established = False
        self.ended = False
        self._proceed(now)

    def began_with(self, datagram: bytes) -> bool:
        """Whether this ClientHello is the one that began the session, retransmitted, rather than another one."""
        return datagram[_HELLO_RANDOM] == self._hello_random

    def receive(self, datagram: bytes, now: float) -> None:
        """A datagram from the other end. What does not authenticate is dropped without a trace, as the RFC wants."""
        if self.ended or not datagram:
            return
        try:
            self._connection.bio_write(datagram)
        except SSL.Error:
            self._end("out of memory")
            return
        self._proceed(now)

    def send(self, data: bytes) -> bool:
        """Encrypt one datagram of 1 to `MAX_PLAINTEXT` bytes. False: dropped, for its size or for want of a session."""
        if not self.established or self.ended or not 0 < len(data) <= MAX_PLAINTEXT:
            return False
        try:
            self._connection.send(data)
        except SSL.Error as error:
            self._end(_reason(error))
            return False
        self._outputs.append(Transmit(_drain(self._connection)))
        return True

    def close(self) -> None:
        """Say close_notify, and end. Idempotent."""
        if self.ended:
            return
        if self.established:
            try:
                self._connection.shutdown()
            except SSL.Error:
                pass  # the other end is told by our silence
            self._transmit()
        self._end("closed")

    def handle_timer(self, now: float) -> None:
        """Retransmit the last flight if OpenSSL finds that it is time."""
        if self.ended or self._deadline is None or now < self._deadline:
            return
        try:
            self._connection.DTLSv1_handle_timeout()
        except SSL.Error:
            self._transmit()
            self._end("handshake timed out")
            return
        self._transmit()
        self._set_deadline(now)

    def next_timer(self) -> float | None:
        """When a flight is to be retransmitted; None once the handshake is done."""
        return self._deadline

    def next_output(self) -> Output | None:
        """The next thing to do, in order."""
        return self._outputs.popleft() if self._outputs else None

    def _proceed(self, now: float) -> None:
        """Let OpenSSL work on what it was given."""
        try:
            if not self.established:
                self._connection.do_handshake()
                self.established = True
                self._transmit()
                self._outputs.append(Established(self._connection.get_alpn_proto_negotiated()))
            while True:
                self._outputs.append(Deliver(self._connection.recv(MAX_PLAINTEXT)))
        except SSL.WantReadError:
            self._transmit()
            self._set_deadline(now)
        except SSL.ZeroReturnError:
            self.close()
        except SSL.Error as error:
            self._transmit()  # the alert
            self._end(_reason(error))
        finally:
            _openssl.ERR_clear_error()

    def _transmit(self) -> None:
        self._outputs.extend(Transmit(datagram) for datagram in split_flight(_drain(self._connection)))

    def _set_deadline(self, now: float) -> None:
        timeout = None if self.established else self._connection.DTLSv1_get_timeout()
        self._deadline = None if timeout is None else now + max(timeout, _SHORTEST_TIMEOUT)

    def _end(self, reason: str) -> None:
        self.ended = True
        self._deadline = None
        self._outputs.append(Ended(reason))
        _openssl.ERR_clear_error()


def split_flight(flight: bytes, mtu: int = MTU) -> list[bytes]:
    """Cut what OpenSSL wrote into datagrams of at most `mtu` bytes, between records.

    A memory BIO joins all records of a flight, whatever MTU the connection was given.
    """
    datagrams = []
    begin = at = 0
    while at < len(flight):
        length = int.from_bytes(flight[at + 11 : at + 13], "big")
        end = at + _RECORD_HEADER + length
        if end - begin > mtu and at > begin:
            datagrams.append(flight[begin:at])
            begin = at
        at = end
    if begin < len(flight):
        datagrams.append(flight[begin:])
    return datagrams


def _drain(connection: SSL.Connection) -> bytes:
    try:
        return connection.bio_read(_FLIGHT)
    except SSL.WantReadError:
        return b""


def _reason(error: SSL.Error) -> str:
    """OpenSSL's own words: they name no secret."""
    queue = error.args[0] if error.args else []
    return str(queue[-1][-1]) if queue else "broken"
