"""Reads certificates and private keys from PEM files, and says what they are. Never says anything of a key."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from OpenSSL.crypto import X509, PKey
from twisted.internet.ssl import CertificateOptions, DiffieHellmanParameters

from relayd.errors import ConfigurationError

MAX_FILE = 4_194_304  # bytes; the authorities that a system trusts take a quarter of a megabyte
WARNING_TIME = 14 * 86_400.0  # seconds before the end: automatic renewal has been failing for two weeks by then
WARNING_SHARE = 1 / 3  # of its whole time, for one that lasts days: it is not renewed before either

_BEGIN = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with what vouches for it, and its private key."""

    certificates: tuple[x509.Certificate, ...]  # our own first
    key: Any = field(repr=False, compare=False)  # one of cryptography's private keys
    key_pem: bytes = field(repr=False, compare=False)

    @property
    def certificates_pem(self) -> bytes:
        return b"".join(each.public_bytes(Encoding.PEM) for each in self.certificates)

    @property
    def expires(self) -> float:
        """In seconds since 1970."""
        return self.certificates[0].not_valid_after_utc.timestamp()

    @property
    def description(self) -> str:
        own = self.certificates[0]
        # Subjects are the authority's words, which go into a line of the log.
        subject = "".join(each if each.isprintable() else " " for each in own.subject.rfc4514_string())
        return f"{subject or 'no subject'}, serial number {own.serial_number:x}, until {_date(self.expires)}"

    def warning(self, now: float) -> str | None:
        """What to tell the operator at `now`, in seconds since 1970, if the end is near."""
        begins = self.certificates[0].not_valid_before_utc.timestamp()
        left = self.expires - now
        if left <= 0:
            return f"expired at {_date(self.expires)}: clients refuse it, renew it"
        if left <= min(WARNING_TIME, (self.expires - begins) * WARNING_SHARE):
            return f"expires at {_date(self.expires)}: renew it"
        return None


@dataclass(frozen=True, slots=True)
class Authorities:
    """Whom to believe."""

    certificates: tuple[x509.Certificate, ...]

    @property
    def description(self) -> str:
        return f"{len(self.certificates)} authorities"

    def warning(self, now: float) -> str | None:
        """Those of a system's store that expired do no harm."""
        return None


def server_options(pair: Pair, dh_parameters: DiffieHellmanParameters | None = None) -> CertificateOptions:
    """How Twisted's TLS is a server with that certificate. Raises SSL.Error where OpenSSL finds it too weak."""
    own, *chain = (X509.from_cryptography(each) for each in pair.certificates)
    options = CertificateOptions(
        privateKey=PKey.from_cryptography_key(pair.key),
        certificate=own,
        extraCertChain=chain,
        dhParameters=dh_parameters,
    )
    options.getContext()  # which it keeps: made now, and not in the first handshake
    return options


def read_pair(certificate: Path, key: Path, chain: Path | None = None) -> Pair:
    """See `relayd.tls.certificates.Certificates.pair`. Raises OSError and ConfigurationError."""
    own, *rest = _certificates(certificate)
    if chain is not None:
        rest += [each for each in _certificates(chain) if each not in rest]
    pem = read_file(key)
    try:
        private = load_pem_private_key(pem, None)
        belongs = private.public_key() == own.public_key()
    except TypeError:
        raise ConfigurationError(f"{key}: the private key is encrypted: give it unencrypted") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{key}: there is no private key in PEM format that can be read") from None
    if not belongs:
        raise ConfigurationError(f"{key}: the private key does not belong to the certificate in {certificate}")
    return Pair((own, *rest), private, pem)


def read_authorities(path: Path) -> Authorities:
    """All certificates in a file. Raises OSError and ConfigurationError."""
    return Authorities(_certificates(path))


def _certificates(path: Path) -> tuple[x509.Certificate, ...]:
    pem = read_file(path)
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigurationError(f"{path}: there is no certificate in PEM format, or one that cannot be read") from None
    if len(found) < pem.count(_BEGIN):
        raise ConfigurationError(f"{path}: the last certificate in it is not whole")
    return tuple(found)


def read_file(path: Path) -> bytes:
    """What is in it, at most `MAX_FILE`. Raises OSError and ConfigurationError."""
    # Not to wait for the other end of what is a pipe.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ConfigurationError(f"{path}: is no file: give one that can be read again when it is renewed")
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise ConfigurationError(f"{path}: is larger than {MAX_FILE} bytes: no file of certificates")
    return content


def _date(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC")
