"""The error tree of relayd. Every error that we raise on purpose is one of these; any other exception is a bug.

Four questions tell the branches apart: could the bytes be read (`DecodeError`), may the client have what it asked for
(`RemoteError`), did the operator configure something that works (`ConfigurationError`), and, where we are the client,
is the server there and itself (`ServerUnavailable`).
"""

from __future__ import annotations

from collections.abc import Sequence


class RelaydError(Exception):
    """The root of the tree."""


class DecodeError(RelaydError, ValueError):
    """Bytes that are not what they claim to be. Decoders raise this and nothing else."""


class RemoteError(RelaydError):
    """A request that is refused: what to answer, in STUN's terms (RFC 8489 section 14.8).

    `code` is the error code (300-699), `reason` the reason phrase (at most 127 characters, the same for every cause
    that shares the code so that it tells an attacker nothing), `unknown` the attribute types of a 420.
    """

    def __init__(self, code: int, reason: str = "", unknown: Sequence[int] = ()) -> None:
        super().__init__(f"{code} {reason}".rstrip())
        self.code = code
        self.reason = reason
        self.unknown = tuple(unknown)


class ConfigurationError(RelaydError):
    """Something that the operator wrote does not work: one line that says what, where and what to do."""


class CannotRelay(ConfigurationError):
    """A relayed address is none of this machine's."""


class RelayUnavailable(RelaydError):
    """A relayed transport address could not be opened; the client is answered 508 (RFC 8656 section 7.2).

    `exhausted` is true where the process or the system ran out of something (descriptors, memory) rather than of ports.
    """

    def __init__(self, reason: str, *, exhausted: bool = False) -> None:
        super().__init__(reason)
        self.exhausted = exhausted


class PeerUnreachable(RelaydError):
    """No TCP connection with a peer came about; the client is answered 447 (RFC 6062 section 5.2)."""


class PeerNotAuthenticated(RelaydError):
    """A peer did not prove by a certificate that it is who the client said; the client is answered 460."""


class ServerUnavailable(RelaydError):
    """A server that we are a client of cannot be reached, does not answer, went away, or did not prove who it is."""
