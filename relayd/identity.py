"""Whom a certificate has to be for: a DNS name or an IP address (RFC 9525). Knows no chain and no connection."""

from __future__ import annotations

import encodings.idna  # noqa: F401  (which Python would look for at the first name, when there may be no descriptor left)
import ipaddress

from OpenSSL.crypto import X509
from service_identity.cryptography import extract_patterns
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity


class ReferenceIdentity:
    """A name that somebody has to prove. `name` is as TLS and certificates have it, with A-labels (RFC 5890)."""

    def __init__(self, name: str) -> None:
        """Raises ValueError for a name that no certificate can be for."""
        self.is_address = _is_address(name)
        self.name = name if self.is_address else name.encode("idna").decode("ascii")
        self._expected = IPAddress_ID(name) if self.is_address else DNS_ID(self.name)

    @property
    def server_name(self) -> bytes | None:
        """What is sent in `server_name`: no addresses (RFC 6066 section 3)."""
        return None if self.is_address else self.name.encode("ascii")

    def is_proved_by(self, certificate: X509) -> bool:
        """Whether the certificate, whose chain somebody else looks at, is for that name."""
        try:
            verify_service_identity(extract_patterns(certificate.to_cryptography()), [self._expected], [])
        except Exception:
            # Beside the two errors of service_identity, one of them for certificates without names, whatever it or
            # cryptography stumbles over in what a stranger wrote: that proves nothing.
            return False
        return True


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
