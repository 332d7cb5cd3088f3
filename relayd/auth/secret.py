"""The checker `secret:`: time-limited credentials that a web application makes with a secret it shares with the relay.

The convention is that of the "REST API for access to TURN services": the user name is `expiry:id` (or `expiry`
alone), with `expiry` in seconds since the epoch, and the password is base64(HMAC-SHA1(secret, user name)). The relay
keeps no users.
"""

from __future__ import annotations

import os
import time
from base64 import b64encode
from collections.abc import Callable
from hmac import digest
from typing import Any, NamedTuple

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernameHashedPassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.strcred import ICheckerFactory
from twisted.internet import defer
from twisted.logger import Logger
from twisted.plugin import IPlugin
from zope.interface import implementer

from relayd.auth.credentials import LongTermCredentials
from relayd.auth.realm import TurnUser
from relayd.errors import ConfigurationError

MAX_SECRETS = 16  # each costs a wrong password one more HMAC; rotation needs two
MAX_SECRET_FILE = 65_536  # bytes
_MAX_EXPIRY_DIGITS = 12  # seconds since the epoch until the year 33658

_log = Logger()


class Credential(NamedTuple):
    """What a client needs. The password is a secret."""

    username: str
    password: str


def make_credential(secret: bytes, expires: int, user_id: str = "") -> Credential:
    """A credential that ends `expires` seconds after the epoch. `user_id` shares its quota over all of its
    credentials.
    """
    username = f"{expires}:{user_id}" if user_id else str(expires)
    return Credential(username, _password(secret, username))


def _password(secret: bytes, username: str) -> str:
    return b64encode(digest(secret, username.encode(), "sha1")).decode()


def _split_lines(content: bytes) -> tuple[bytes, ...]:
    lines = (line.strip() for line in content.splitlines())
    return tuple(line for line in lines if line and not line.startswith(b"#"))


def _within_limits(where: str, found: tuple[bytes, ...]) -> tuple[bytes, ...]:
    if not found:
        raise ConfigurationError(f"secret: {where} holds no secret; put one in, such as `openssl rand -hex 32` prints")
    if len(found) > MAX_SECRETS:
        raise ConfigurationError(f"secret: {where} holds {len(found)} secrets; at most {MAX_SECRETS} are tried")
    return found


def secrets_from_environment(name: str) -> tuple[bytes, ...]:
    """The secrets in a variable, separated by commas or newlines. Raises ConfigurationError if there are none."""
    if name not in os.environ:
        raise ConfigurationError(f"secret: the environment has no variable {name!r}; set it, or use secret:file=PATH")
    value = os.fsencode(os.environ[name])
    return _within_limits(f"the variable {name!r}", _split_lines(value.replace(b",", b"\n")))


class SecretFile:
    """A file of secrets, one a line; blank lines and lines that begin with `#` are skipped. Read again when it has
    changed.
    """

    def __init__(self, path: str) -> None:
        """Raises ConfigurationError if there is no secret in it, or it cannot be read."""
        self.path = os.path.abspath(path)  # a daemon changes its directory
        self._stamp: tuple[int, int, int] | None = None
        self._secrets: tuple[bytes, ...] = ()
        self._complained = False
        try:
            status = os.stat(self.path)
            self._stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            self._secrets = self._read()
        except OSError as error:
            raise ConfigurationError(
                f"secret: {self.path}: {error.strerror}; give a readable file with one secret a line"
            ) from None
        if status.st_mode & 0o007:
            _log.warn("secret: {path} is open to every user of this machine; chmod o= would end that", path=self.path)

    def secrets(self) -> tuple[bytes, ...]:
        """What the file holds now; nothing, so that nobody is let in, once it is empty or gone.

        Where it cannot be read for another reason (no descriptor left), the former secrets stay.
        """
        # One stat costs about a microsecond, less than the HMAC that follows: no need to remember when it was last
        # looked at.
        try:
            status = os.stat(self.path)
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if stamp != self._stamp:
                self._secrets = self._read()
                self._stamp = stamp
            self._complained = False
        except (FileNotFoundError, ConfigurationError) as error:
            self._secrets, self._stamp = (), None
            self._complain(str(error) if isinstance(error, ConfigurationError) else f"{self.path} is gone")
        except OSError as error:
            self._complain(f"{self.path} cannot be read, the former secrets stay: {error.strerror}")
        return self._secrets

    def _read(self) -> tuple[bytes, ...]:
        with open(self.path, "rb") as file:
            content = file.read(MAX_SECRET_FILE + 1)
        if len(content) > MAX_SECRET_FILE:
            raise ConfigurationError(
                f"secret: {self.path} is larger than {MAX_SECRET_FILE} bytes: not a file of secrets"
            )
        return _within_limits(self.path, _split_lines(content))

    def _complain(self, what: str) -> None:
        if not self._complained:
            self._complained = True
            _log.error("secret: {what}", what=what.removeprefix("secret: "))


@implementer(ICredentialsChecker)
class SecretChecker:
    """Verifies time-limited credentials against every secret there is, so that secrets can be rotated."""

    credentialInterfaces = (IUsernameHashedPassword,)

    def __init__(self, secrets: Callable[[], tuple[bytes, ...]], now: Callable[[], float] = time.time) -> None:
        """`secrets` gives the ones in force; `now` gives seconds since the epoch."""
        self._secrets = secrets
        self._now = now

    def requestAvatarId(self, credentials: LongTermCredentials) -> defer.Deferred[Any]:
        """The user named by the `id` part, or by the whole name where there is none."""
        username = credentials.username
        name = username.decode() if isinstance(username, bytes) else username
        expiry, _, user_id = name.partition(":")
        if expiry.isascii() and expiry.isdigit() and len(expiry) <= _MAX_EXPIRY_DIGITS and int(expiry) > self._now():
            for secret in self._secrets():
                if credentials.checkPassword(_password(secret, name)):
                    return defer.succeed(TurnUser(user_id or name, float(expiry)))
        return defer.fail(UnauthorizedLogin())


@implementer(ICheckerFactory, IPlugin)
class SecretCheckerFactory:
    """Makes `--auth secret:...`."""

    authType = "secret"
    authHelp = """
Time-limited credentials, made by a web application that shares a secret with the relay (the TURN REST convention): the
user name is EXPIRY:ID, with EXPIRY in seconds since 1970, and the password is base64(HMAC-SHA1(secret, user name)).

    secret:file=PATH   one secret a line, # begins a comment; read again when it changes
    secret:env=NAME    in an environment variable, separated by commas or newlines

Several secrets are valid at once, so that they can be rotated: add the new one, let the application change over, and
remove the old one when its last credential has expired. A secret is never taken from the command line, where every
process on the machine could read it. `relayd-user secret` makes a credential by hand.
"""  # noqa: N815
    argStringFormat = "file=PATH or env=NAME"
    credentialInterfaces = SecretChecker.credentialInterfaces

    def generateChecker(self, argstring: str) -> SecretChecker:
        """Raises ConfigurationError, which never repeats `argstring`: it may be a secret that was put there by
        mistake.
        """
        kind, separator, value = argstring.partition("=")
        if separator and value and kind == "file":
            return SecretChecker(SecretFile(value).secrets)
        if separator and value and kind == "env":
            found = secrets_from_environment(value)
            return SecretChecker(lambda: found)
        raise ConfigurationError(
            "--auth secret: takes file=PATH or env=NAME, not the secret itself, which every process on this machine "
            "could read there; put it in a file, and change it if it was a real one"
        )
