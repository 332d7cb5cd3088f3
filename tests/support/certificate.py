"""Makes a self-signed certificate for the loopback addresses, valid for one test run."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificate:
    """PEM files, and the hash by which Chromium can be told to trust this key and no other."""

    certificate: Path
    key: Path
    spki_sha256: str  # base64


HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)


def make_certificate(directory: Path, lasts: datetime.timedelta = DAY) -> Certificate:
    """Write `certificate.pem` and `key.pem` into `directory`: P-256, for localhost and its addresses, since an hour."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    names += [x509.IPAddress(ipaddress.ip_address(host)) for host in ("127.0.0.1", "127.0.0.2", "::1")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - HOUR)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    made = Certificate(
        directory / "certificate.pem",
        directory / "key.pem",
        base64.b64encode(hashlib.sha256(spki).digest()).decode(),
    )
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.touch(mode=0o600)
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


def replace_certificate(old: Certificate, directory: Path) -> Certificate:
    """Put another one into its files, as renewal does; `directory`, on the same file system, is for making it."""
    directory.mkdir(exist_ok=True)
    made = make_certificate(directory)
    os.replace(made.certificate, old.certificate)
    os.replace(made.key, old.key)
    return dataclasses.replace(made, certificate=old.certificate, key=old.key)


def serial_number(certificate: Certificate) -> int:
    return x509.load_pem_x509_certificate(certificate.certificate.read_bytes()).serial_number
