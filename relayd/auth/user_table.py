"""The SQLite table of users with their long-term keys: opens it, reads and changes it. Never holds a password."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from relayd.errors import ConfigurationError
from relayd.stun.integrity import PasswordAlgorithm, long_term_key, userhash

APPLICATION_ID = 0x72656C79  # "rely": tells our database from any other SQLite file
SCHEMA_VERSION = 1
WRITER_PATIENCE = 5.0  # seconds an operator's command waits for another's lock

# Keys are as good as passwords within their realm, but of no use anywhere else. Both are kept because the client
# chooses.
_SCHEMA = f"""
CREATE TABLE users (
    username TEXT NOT NULL,
    realm TEXT NOT NULL,
    userhash BLOB NOT NULL UNIQUE,
    key_md5 BLOB NOT NULL,
    key_sha256 BLOB NOT NULL,
    disabled INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (username, realm)
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

_KEY_QUERY = {
    PasswordAlgorithm.MD5: "SELECT key_md5 FROM users WHERE username = ? AND realm = ? AND NOT disabled",
    PasswordAlgorithm.SHA256: "SELECT key_sha256 FROM users WHERE username = ? AND realm = ? AND NOT disabled",
}


class UserRow(NamedTuple):
    """One user, as an operator may see it."""

    username: str
    realm: str
    disabled: bool


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say into one ConfigurationError line."""
    try:
        yield
    except sqlite3.OperationalError as error:
        advice = {
            "SQLITE_BUSY": "another program holds its lock; end that one, or try again",
            "SQLITE_CANTOPEN": "check that the file and its directory may be read",
            "SQLITE_READONLY": "check that the file and its directory may be written",
        }.get(getattr(error, "sqlite_errorname", ""), "look at the file, or restore it from a backup")
        raise ConfigurationError(f"user database {path}: {error}; {advice}") from None
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(
            f"user database {path}: {error}; restore it, or make another with `relayd-user add`"
        ) from None


class UserTable:
    """An open user database. All methods raise ConfigurationError, one line, for whatever is wrong with it."""

    def __init__(self, path: Path, *, writable: bool = False, patience: float = WRITER_PATIENCE) -> None:
        """`patience`: seconds to wait for another's lock. The file must be there; see `create`."""
        self.path = path
        try:
            is_there = path.is_file()
        except OSError as error:
            raise ConfigurationError(f"user database {path}: {error.strerror}; check its directories") from None
        if not is_there:
            raise ConfigurationError(f"user database {path}: no such file; make it with `relayd-user add`")
        mode = "rw" if writable else "ro"
        with _explained(path):
            self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=patience)
        try:
            self._check_schema()
        except ConfigurationError:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path) -> UserTable:
        """Open for writing; where there is no file yet, make one that only its owner may read."""
        if not path.exists():
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            except OSError as error:
                raise ConfigurationError(f"user database {path}: cannot be made: {error.strerror}") from None
            try:
                cls._lay_out(path)
            except ConfigurationError:
                path.unlink()  # half a database would be in the way of the next attempt
                raise
        return cls(path, writable=True)

    @staticmethod
    def _lay_out(path: Path) -> None:
        with _explained(path):
            connection = sqlite3.connect(path)
            try:
                connection.executescript(_SCHEMA)
            finally:
                connection.close()

    def close(self) -> None:
        """Idempotent."""
        self._connection.close()

    def key(self, username: str, realm: str, algorithm: PasswordAlgorithm) -> bytes | None:
        """The long-term key of a user who is there and not disabled."""
        with _explained(self.path):
            row = self._connection.execute(_KEY_QUERY[algorithm], (username, realm)).fetchone()
        return row[0] if row is not None and isinstance(row[0], bytes) else None

    def username(self, hashed: bytes) -> str | None:
        """Whose USERHASH that is (it covers the realm)."""
        with _explained(self.path):
            row = self._connection.execute("SELECT username FROM users WHERE userhash = ?", (hashed,)).fetchone()
        return row[0] if row is not None else None

    def put(self, username: str, realm: str, password: str) -> bool:
        """Add a user, or give one another password; whether it is new. All three prepared by OpaqueString.

        One who is disabled stays so.
        """
        keys = {algorithm: long_term_key(algorithm, username, realm, password) for algorithm in PasswordAlgorithm}
        with _explained(self.path), self._connection:
            is_new = self._find(username, realm) is None
            self._connection.execute(
                "INSERT INTO users (username, realm, userhash, key_md5, key_sha256) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (username, realm)"
                " DO UPDATE SET key_md5 = excluded.key_md5, key_sha256 = excluded.key_sha256",
                (
                    username,
                    realm,
                    userhash(username, realm),
                    keys[PasswordAlgorithm.MD5],
                    keys[PasswordAlgorithm.SHA256],
                ),
            )
        return is_new

    def remove(self, username: str, realm: str) -> None:
        """Take a user out."""
        self._change("DELETE FROM users WHERE username = ? AND realm = ?", username, realm)

    def set_disabled(self, username: str, realm: str, disabled: bool) -> None:
        """Withdraw a user, or let one in again; takes effect when the user is next asked for."""
        statement = f"UPDATE users SET disabled = {int(disabled)} WHERE username = ? AND realm = ?"
        self._change(statement, username, realm)

    def rows(self) -> list[UserRow]:
        """Everybody, by realm and name."""
        with _explained(self.path):
            found = self._connection.execute("SELECT username, realm, disabled FROM users ORDER BY realm, username")
            return [UserRow(username, realm, bool(disabled)) for username, realm, disabled in found]

    def _find(self, username: str, realm: str) -> object:
        query = "SELECT 1 FROM users WHERE username = ? AND realm = ?"
        return self._connection.execute(query, (username, realm)).fetchone()

    def _change(self, statement: str, username: str, realm: str) -> None:
        with _explained(self.path), self._connection:
            changed = self._connection.execute(statement, (username, realm)).rowcount
        if not changed:
            raise ConfigurationError(f"user database {self.path}: there is no user {username!r} in realm {realm!r}")

    def _check_schema(self) -> None:
        with _explained(self.path):
            (application,) = self._connection.execute("PRAGMA application_id").fetchone()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise ConfigurationError(
                f"user database {self.path}: it is not one of relayd's; make one with `relayd-user add`"
            )
        if version != SCHEMA_VERSION:
            raise ConfigurationError(
                f"user database {self.path}: its schema is version {version} and this relayd reads {SCHEMA_VERSION};"
                " use the relayd that made it, or make another with `relayd-user add`"
            )
        self.key("", "", PasswordAlgorithm.MD5)  # a table without our columns shows here, and not at the first client
