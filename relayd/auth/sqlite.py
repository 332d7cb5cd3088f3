"""The checker `sqlite:`: users with per-realm keys in a database that `relayd-user` fills. Never writes to it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.strcred import ICheckerFactory
from twisted.internet import defer
from twisted.plugin import IPlugin
from zope.interface import implementer

from relayd.auth.credentials import KEY_SIZE
from relayd.auth.user_table import UserTable
from relayd.errors import ConfigurationError
from relayd.interfaces import IStunCredentials, IUserHashChecker
from relayd.stun.integrity import PasswordAlgorithm

T = TypeVar("T")

READER_PATIENCE = 0.05  # seconds a query may hold up the reactor while a writer commits
PAUSE_AFTER_FAILURE = 1.0  # seconds in which a broken or locked database is not asked again


@implementer(ICredentialsChecker, IUserHashChecker)
class SqliteChecker:
    """Verifies users against the database, asking it each time: a disabled user is refused at the next request.

    The queries run in the reactor thread. They are indexed reads of a local file, some ten microseconds; a thread's
    round trip would cost ten times that, for each request. What could take long is a writer's lock: it is waited for
    READER_PATIENCE, and then the database is left alone for PAUSE_AFTER_FAILURE, so that a lock that stays cannot
    stall the relay.
    """

    credentialInterfaces = (IStunCredentials,)

    def __init__(self, path: Path, now: Callable[[], float] = monotonic) -> None:
        """`now` gives seconds on any clock. Raises ConfigurationError for a database that cannot be used."""
        self._path = path.absolute()  # a daemon changes its directory
        self._now = now
        self._table: UserTable | None = None
        self._identity: tuple[int, int] | None = None
        self._ask_again = float("-inf")
        self._decoy = {algorithm: secrets.token_bytes(size) for algorithm, size in KEY_SIZE.items()}
        # Only tried and closed again: an open database must not be carried through the fork of a daemon.
        UserTable(self._path, patience=READER_PATIENCE).close()

    def requestAvatarId(self, credentials: IStunCredentials) -> defer.Deferred[Any]:
        """The user's name. Fails with ConfigurationError while the database cannot be asked."""
        algorithm: PasswordAlgorithm = credentials.algorithm
        key = self._ask(lambda table: table.key(credentials.name, credentials.realm, algorithm))
        # An unknown user costs the same comparison as a wrong password.
        if credentials.check_key(key or self._decoy[algorithm]):
            return defer.succeed(credentials.name)
        return defer.fail(UnauthorizedLogin())

    def username_for(self, userhash: bytes, realm: str) -> str | None:
        """See IUserHashChecker."""
        return self._ask(lambda table: table.username(userhash))

    def close(self) -> None:
        """Close the database; the next question opens it again."""
        if self._table is not None:
            self._table.close()
            self._table = None

    def _ask(self, question: Callable[[UserTable], T]) -> T:
        if self._now() < self._ask_again:
            raise ConfigurationError(f"user database {self._path}: it failed a moment ago and is left alone")
        try:
            return question(self._open())
        except ConfigurationError:
            self._ask_again = self._now() + PAUSE_AFTER_FAILURE
            self.close()
            raise

    def _open(self) -> UserTable:
        """The open table, of the file that is there now: one moved into place is taken up at once."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise ConfigurationError(f"user database {self._path}: {error.strerror}; put it back") from None
        identity = (status.st_dev, status.st_ino)
        if self._table is None or identity != self._identity:
            self.close()
            self._table = UserTable(self._path, patience=READER_PATIENCE)
            self._identity = identity
        return self._table


@implementer(ICheckerFactory, IPlugin)
class SqliteCheckerFactory:
    """Makes `--auth sqlite:PATH`."""

    authType = "sqlite"
    authHelp = """
Users in an SQLite database, made and changed with the command relayd-user while the relay runs:

    relayd-user add --database /var/lib/relayd/users.db --realm example.org alice

The database holds long-term keys, which are valid only in the realm they were made for, and no passwords. The realm has
to be the relay's own (--realm). Disabling or removing a user takes effect at the user's next Allocate or Refresh.
"""  # noqa: N815
    argStringFormat = "Path of the database."
    credentialInterfaces = SqliteChecker.credentialInterfaces

    def generateChecker(self, argstring: str) -> SqliteChecker:
        """Raises ConfigurationError."""
        if not argstring:
            raise ConfigurationError(
                "--auth sqlite: needs the path of a database, such as sqlite:/var/lib/relayd/users.db"
            )
        return SqliteChecker(Path(argstring))
