"""Makes certificates as an authority issues them: a root to trust, and a file with the server's and an intermediate."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Chain:
    """PEM files. `full` has the server's certificate and the one that signed it, `leaf` the first alone."""

    root: Path
    full: Path
    leaf: Path
    intermediate: Path
    key: Path


def make_chain(directory: Path) -> Chain:
    """Write them into `directory`: P-256, for localhost, for a day."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("root", "between", "localhost")]
    now = datetime.datetime.now(datetime.UTC)
    pems = []
    for place, (name, key) in enumerate(zip(names, keys, strict=True)):
        signer = max(place - 1, 0)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[signer])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=place < 2, path_length=None), critical=True)
            .sign(keys[signer], hashes.SHA256())
        )
        pems.append(certificate.public_bytes(serialization.Encoding.PEM))
    made = Chain(*(directory / f"{name}.pem" for name in ("root", "full", "leaf", "intermediate", "key")))
    root, between, leaf = pems
    contents = {made.root: root, made.full: leaf + between, made.leaf: leaf, made.intermediate: between}
    for path, content in contents.items():
        path.write_bytes(content)
    made.key.touch(mode=0o600)
    made.key.write_bytes(
        keys[2].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return made
