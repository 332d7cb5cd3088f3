"""Reads the endpoint strings of the datagram listeners, and words what goes wrong with any endpoint.

The grammar of `udp:` and `dtls:` is that of Twisted's endpoint strings: arguments separated by colons,
`key=value` or positional, and a backslash before a colon, an equals sign or a backslash that is meant literally
(`interface=\\:\\:1`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL, EMFILE, ENFILE
from pathlib import Path
from typing import NamedTuple

from OpenSSL.crypto import Error as CryptoError
from twisted.internet.error import CannotListenError, VerifyError

from relayd.address import TransportAddress
from relayd.errors import ConfigurationError, DecodeError

DEFAULT_INTERFACE = "0.0.0.0"  # every IPv4 address of the machine: what Twisted's own tcp: endpoint takes

_CURES = {
    EADDRINUSE: "choose another port, or stop what occupies this one",
    EADDRNOTAVAIL: "give an address of this machine",
    EACCES: "ports below 1024 need privileges: choose a higher one, or start as root",
    EMFILE: "raise the limit of open files",
    ENFILE: "raise the limit of open files",
}


class Endpoint:
    """A datagram endpoint in parts: `port` as written, and `options` by key. `description` is the whole, for errors."""

    def __init__(self, description: str, allowed: Iterable[str]) -> None:
        """Raises ConfigurationError for a missing port, and for keys that are not among `allowed`."""
        self.description = description
        positional, self.options = split_arguments(description)
        known = ["port", *allowed]
        for key in self.options:
            if key not in known:
                near = get_close_matches(key, known, 1)
                raise self.error(
                    f"unknown argument {key}=; " + (f"did you mean {near[0]}=?" if near else f"known: {_list(known)}")
                )
        if len(positional) > 2 or (len(positional) == 2 and "port" in self.options):
            raise self.error(f"too many arguments without a key: write {_list(known[1:])}, and \\: for a literal colon")
        self.options.setdefault("port", positional[1] if len(positional) == 2 else "")
        self.port = self._port("port")

    def error(self, message: str) -> ConfigurationError:
        """What is wrong with this endpoint, as one line."""
        return ConfigurationError(f"{self.description}: {message}")

    def address(self, key: str = "interface") -> TransportAddress:
        """The IP address under that key, with the port of the endpoint. Raises ConfigurationError."""
        host = self.options.get(key, DEFAULT_INTERFACE)
        try:
            return TransportAddress.parse(host, self.port)
        except DecodeError:
            raise self.error(
                f"{key}={host} is not an IP address: give one of this machine (write \\: for a colon)"
            ) from None

    def alternate_port(self, key: str, default: int) -> int:
        """The port under another key."""
        return self._port(key) if key in self.options else default

    def _port(self, key: str) -> int:
        text = self.options[key]
        if not (text.isascii() and text.isdigit() and int(text) <= 0xFFFF):
            raise self.error(f"{key} {text!r} is not a port: give a number from 0 to 65535")
        return int(text)


def split_arguments(description: str) -> tuple[list[str], dict[str, str]]:
    """The positional arguments, the prefix among them, and the others by key. Raises ConfigurationError."""
    fields: list[tuple[str | None, str]] = []
    key: str | None = None
    text = ""
    characters = iter(description)
    for character in characters:
        if character == "\\":
            text += next(characters, "\\")
        elif character == "=" and key is None:
            key, text = text, ""
        elif character == ":":
            fields.append((key, text))
            key, text = None, ""
        else:
            text += character
    fields.append((key, text))
    options: dict[str, str] = {}
    for name, value in fields:
        if name is not None and options.setdefault(name, value) is not value:
            raise ConfigurationError(f"{description}: {name}= is given twice: give it once")
    return [value for name, value in fields if name is None], options


class TlsFiles(NamedTuple):
    """The files of an endpoint with (D)TLS; `key` and `certificate` may be one."""

    key: Path
    certificate: Path
    chain: Path | None


def tls_files(options: Mapping[str, str]) -> TlsFiles:
    """From the arguments of an endpoint by key, with the defaults of Twisted's `ssl:`."""
    key = options.get("privateKey", "server.pem")
    chain = options.get("extraCertChain")
    return TlsFiles(Path(key), Path(options.get("certKey", key)), None if chain is None else Path(chain))


def cannot_listen(description: str, error: BaseException) -> ConfigurationError:
    """The one line for an endpoint that could not be opened: what, where, and what to do about it."""
    where = ""
    if isinstance(error, CannotListenError):
        where = f"{error.interface or 'any address'} port {error.port}: "
        error = error.socketError if isinstance(error.socketError, BaseException) else error
    if isinstance(error, OSError) and error.errno is not None:
        path = error.filename if error.filename2 is None else error.filename2  # of a link, not what it leads to
        name = f"{path}: " if path is not None else where
        cure = _CURES.get(error.errno) if path is None else "check the path and its permissions"
        return ConfigurationError(f"{description}: {name}{error.strerror}" + (f"; {cure}" if cure else ""))
    if isinstance(error, CryptoError):  # a list of OpenSSL's own words, without the name of the file
        return ConfigurationError(f"{description}: privateKey= or certKey= is no file in PEM format that can be read")
    if isinstance(error, VerifyError):
        return ConfigurationError(f"{description}: the private key of privateKey= does not belong to certKey=")
    reason = " ".join(str(error).split()) or type(error).__name__
    return ConfigurationError(f"{description}: {where}{reason}; see --help-listen for the grammar")


def _list(keys: Iterable[str]) -> str:
    return ", ".join(f"{key}=" for key in keys)
