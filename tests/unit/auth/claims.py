"""What the tests of authentication share: requests as the core makes them, with proofs that a client made."""

from __future__ import annotations

import hmac

from relayd.address import AppConnection, FiveTuple, Path, TransportAddress
from relayd.auth.credentials import LongTermCredentials
from relayd.stun.integrity import IntegrityProof, PasswordAlgorithm, long_term_key, userhash
from relayd.turn.outputs import AuthenticateUser

REALM = "example.org"
COVERED = b"the part of the message that the integrity covers"


def proof(key: bytes, digest: str = "sha1") -> IntegrityProof:
    """What a client that has `key` sends."""
    return IntegrityProof(COVERED, hmac.digest(key, COVERED, digest), digest)


def path(host: str = "192.0.2.1") -> Path:
    """A client at `host`, over UDP."""
    client, server = TransportAddress.parse(host, 50_000), TransportAddress.parse("192.0.2.99", 3478)
    return Path(FiveTuple(client, server, 17), AppConnection.UDP)


def claim(
    name: str,
    password: str,
    *,
    algorithm: PasswordAlgorithm = PasswordAlgorithm.MD5,
    host: str = "192.0.2.1",
    hashed: bool = False,
) -> AuthenticateUser:
    """The request of a client that holds `password`; `hashed`: it sends USERHASH."""
    request = AuthenticateUser(1, path(host), REALM, algorithm, proof(long_term_key(algorithm, name, REALM, password)))
    if hashed:
        request.userhash = userhash(name, REALM)
    else:
        request.username = name
    return request


def credentials(
    name: str, password: str, algorithm: PasswordAlgorithm = PasswordAlgorithm.MD5, realm: str = REALM
) -> LongTermCredentials:
    """The same as a checker sees it."""
    shown = proof(long_term_key(algorithm, name, realm, password))
    return LongTermCredentials(name.encode(), name, realm, algorithm, shown)
