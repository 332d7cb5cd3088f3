"""Promises of relayd.tls.client and relayd.identity: nobody passes who did not prove the name. All in memory."""

from __future__ import annotations

import datetime
import errno
import ipaddress
import os
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from OpenSSL.crypto import X509, PKey
from service_identity import CertificateError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, CertificateOptions, trustRootFromCertificates
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, connect
from zope.interface.verify import verifyObject

from relayd.identity import ReferenceIdentity
from relayd.tls.client import TRUST_LIFETIME, TlsClientOptions, Trust

NAME = "peer.example"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
AUTHORITY_KEY = ec.generate_private_key(ec.SECP256R1())
KEY = ec.generate_private_key(ec.SECP256R1())
AUTHORITY = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])


def certificate(subject: str, extension: x509.ExtensionType | None, is_authority: bool = False) -> x509.Certificate:
    """What the authority signs."""
    name = AUTHORITY if is_authority else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(AUTHORITY)
    builder = builder.public_key((AUTHORITY_KEY if is_authority else KEY).public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(AUTHORITY_KEY, hashes.SHA256())


TRUST = trustRootFromCertificates([Certificate(X509.from_cryptography(certificate("", None, is_authority=True)))])


def names(*dns: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in dns])


def address(text: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(text))])


class End(Protocol):
    """One end: whether it shook hands, and how it ended."""

    shook = False
    reason: Failure | None = None

    def handshakeCompleted(self) -> None:
        self.shook = True

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.reason = reason


def over_tls(options: Any, is_client: bool, above: End) -> Any:
    return TLSMemoryBIOFactory(options, is_client, Factory.forProtocol(lambda: above), Clock()).buildProtocol(None)


def shaken(options: TlsClientOptions, shown: x509.Certificate) -> tuple[bool, BaseException | None]:
    """A handshake with who shows that certificate: whether the client can send, and why not."""
    server_options = CertificateOptions(
        privateKey=PKey.from_cryptography_key(KEY), certificate=X509.from_cryptography(shown)
    )
    ends: list[Any] = [End(), End()]
    sides: list[Any] = []
    for end, each, is_client in ((ends[0], server_options, False), (ends[1], options, True)):
        sides.append(over_tls(each, is_client, end))
    server, client = sides
    pump = connect(server, FakeTransport(server, True), client, FakeTransport(client, False))
    pump.flush()
    reason = ends[1].reason
    return reason is None and server._handshakeDone and client._handshakeDone, None if reason is None else reason.value


def test_it_is_what_twisted_takes() -> None:
    """The interface is whole."""
    verifyObject(IOpenSSLClientConnectionCreator, TlsClientOptions(NAME, TRUST))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (NAME, names("other.example", NAME)),
        ("PEER.example", names(NAME)),
        ("a.peer.example", names("*.peer.example")),
        ("b\u00fccher.example", names("xn--bcher-kva.example")),
        ("192.0.2.1", address("192.0.2.1")),
        ("2001:db8::1", address("2001:db8:0::1")),
    ],
)
def test_whoever_proves_the_name_passes(name: str, shown: x509.SubjectAlternativeName) -> None:
    """A DNS name, also by a wildcard, or an address."""
    assert shaken(TlsClientOptions(name, TRUST), certificate("somebody", shown)) == (True, None)


def test_trust_is_read_once_for_many() -> None:
    """Connections share what was made of the authorities, each with its own name; it is read again after
    a while, for what the system's updates bring.
    """
    clock = Clock()
    trust = Trust(TRUST, clock.seconds)
    shown = certificate("somebody", names(NAME))
    above: Any = over_tls(TlsClientOptions(NAME, trust), True, End())

    def context() -> SSL.Context:
        return trust.connection(above).get_context()

    first = context()
    assert shaken(TlsClientOptions(NAME, trust), shown) == (True, None)
    assert not shaken(TlsClientOptions("other.example", trust), shown)[0]
    assert shaken(TlsClientOptions(NAME, trust), shown) == (True, None)
    clock.advance(TRUST_LIFETIME - 1)
    assert context() is first
    clock.advance(1)
    assert context() is not first
    assert shaken(TlsClientOptions(NAME, trust), shown) == (True, None)


def test_trust_that_could_not_be_read_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL trusts nobody where no descriptor is left to read with; what was read before holds on, all the same."""
    clock = Clock()
    trust = Trust(TRUST, clock.seconds)
    above: Any = over_tls(TlsClientOptions(NAME, trust), True, End())

    def context() -> SSL.Context:
        return trust.connection(above).get_context()

    def refuse(*arguments: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as exhausted:
        exhausted.setattr("relayd.tls.client.os.open", refuse)
        unread = context()
    first = context()
    assert first is not unread
    clock.advance(TRUST_LIFETIME)
    with monkeypatch.context() as exhausted:
        exhausted.setattr("relayd.tls.client.os.open", refuse)
        assert context() is first
    assert context() is not first


@pytest.mark.parametrize(
    "shown",
    [
        names("other.example"),
        names("deep.peer.example"),
        address("192.0.2.1"),
        None,
        names("192.0.2.1"),
        names("1234"),
        names("*"),
        names("**.example"),
        names("peer.*.example"),
        names(NAME, "192.0.2.1"),
        x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x03\x82\x7fx"),
        x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x04\x82\x02\xff\xfe"),
        x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b""),
    ],
)
def test_nobody_else_does(shown: x509.ExtensionType | None) -> None:
    """Of an authority that is trusted: not with another name, with none but the subject's, nor with names that do not
    read, one of which makes the whole certificate void.
    """
    passed, error = shaken(TlsClientOptions(NAME, TRUST), certificate(NAME, shown))
    assert not passed
    assert isinstance(error, CertificateError | SSL.Error)


def test_a_certificate_that_openssl_reads_and_others_do_not() -> None:
    """Cryptography is stricter: what it raises, within a callback of OpenSSL's, is a refusal too."""

    class Odd(X509):
        def to_cryptography(self) -> Any:
            raise ValueError("error parsing asn1 value")

    assert not ReferenceIdentity(NAME).is_proved_by(Odd())


def test_a_chain_that_leads_nowhere() -> None:
    """The right name does not help, and OpenSSL says what is wrong."""
    passed, error = shaken(TlsClientOptions(NAME), certificate(NAME, names(NAME)))
    assert not passed
    assert isinstance(error, SSL.Error)
    assert "certificate verify failed" in str(error)


@given(st.text("abc019-._:", max_size=12) | st.text(max_size=8))
def test_a_name_is_refused_at_once_or_not_at_all(name: str) -> None:
    """ValueError where it is given, or a ClientHello; never an error in the middle of connecting."""
    try:
        options = TlsClientOptions(name, TRUST, [b"msrp"])
    except ValueError:
        return
    protocol = over_tls(options, True, End())
    transport = StringTransport()
    protocol.makeConnection(transport)
    assert transport.value()[:1] == b"\x16"  # a record of a handshake


@pytest.mark.parametrize("name", ["", ".", "a..b", "1234", "*.example", "a" * 64, "peer example", "\ud800"])
def test_names_that_no_certificate_can_be_for(name: str) -> None:
    """They are a ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011 (its kinds have no text in common)
        ReferenceIdentity(name)
