"""`sqlite:`: users with keys in a database, whose faults are told at the start and survived later."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.cred.strcred import makeChecker
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent

from relayd.auth import user_table
from relayd.auth.realm import Authenticator
from relayd.auth.sqlite import PAUSE_AFTER_FAILURE, READER_PATIENCE, SqliteChecker
from relayd.auth.user_table import UserRow, UserTable
from relayd.errors import ConfigurationError
from relayd.stun.integrity import PasswordAlgorithm, long_term_key, userhash
from relayd.turn.outputs import Authenticated
from tests.unit.auth.claims import REALM, claim

MATRIX = "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"  # RFC 8489 appendix B.1, with password and userhash
MATRIX_PASSWORD = "TheMatrIX"
MATRIX_USERHASH = bytes.fromhex("4a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with alice in it."""
    path = tmp_path / "users.db"
    _put(path, "alice", "sesame")
    return path


def _put(path: Path, username: str, password: str, realm: str = REALM) -> None:
    table = UserTable.create(path)
    table.put(username, realm, password)
    table.close()


def _change(path: Path, change: Callable[[UserTable], None]) -> None:
    table = UserTable(path, writable=True)
    change(table)
    table.close()


class Relay:
    """An authenticator over one database, on a clock that the test steps."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.checker = SqliteChecker(path, self.clock.seconds)
        self.authenticator = Authenticator([self.checker], self.clock)

    def accepts(self, name: str, password: str, **more: object) -> bool:
        answers: list[object] = []
        request = claim(name, password, **more)  # type: ignore[arg-type]
        self.authenticator.authenticate(request).addCallback(answers.append)
        return isinstance(answers[0], Authenticated)


@pytest.mark.parametrize("algorithm", list(PasswordAlgorithm))
def test_right_password_and_no_other(algorithm: PasswordAlgorithm, database: Path) -> None:
    """Both algorithms hold for the right password; a wrong one and an unknown user are refused."""
    relay = Relay(database)
    assert relay.accepts("alice", "sesame", algorithm=algorithm)
    assert not relay.accepts("alice", "x", algorithm=algorithm)
    assert not relay.accepts("nobody", "sesame", algorithm=algorithm)
    assert not relay.accepts("' OR 1=1 --", "sesame", algorithm=algorithm)


def test_other_realm_is_another_user(database: Path) -> None:
    """A key made for another realm is of no use here."""
    _put(database, "bob", "pw", realm="elsewhere.example")
    assert not Relay(database).accepts("bob", "pw")


def test_appendix_b1_user_is_found_by_userhash(database: Path) -> None:
    """The user of RFC 8489 appendix B.1 is found by the USERHASH that the RFC prints, and verified with SHA-256."""
    _put(database, MATRIX, MATRIX_PASSWORD)
    assert userhash(MATRIX, "example.org") == MATRIX_USERHASH
    relay = Relay(database)
    assert relay.checker.username_for(MATRIX_USERHASH, "example.org") == MATRIX
    assert relay.authenticator.supports_userhash
    assert relay.accepts(MATRIX, MATRIX_PASSWORD, algorithm=PasswordAlgorithm.SHA256, hashed=True)
    assert not relay.accepts("nobody", "pw", hashed=True)


def test_no_password_is_stored(database: Path) -> None:
    """The file holds keys, which are of no use in another realm, and never the password."""
    content = database.read_bytes()
    assert b"alice" in content
    assert long_term_key(PasswordAlgorithm.SHA256, "alice", REALM, "sesame") in content
    assert b"sesame" not in content


def test_new_database_is_its_owners_alone(database: Path) -> None:
    """Keys are as good as passwords in their realm, so that nobody else may read the file."""
    assert database.stat().st_mode & 0o777 == 0o600


def test_failed_creation_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the tables cannot be made (a full disk, say) nothing is left that the next attempt would stumble over."""
    monkeypatch.setattr(user_table, "_SCHEMA", "CREATE nonsense")
    with pytest.raises(ConfigurationError, match=r"users\.db"):
        UserTable.create(tmp_path / "users.db")
    assert list(tmp_path.iterdir()) == []


def test_changes_take_effect_at_the_next_request(database: Path) -> None:
    """Disabling, enabling, another password and removal count at once: the next Refresh of a revoked user is
    refused.
    """
    relay = Relay(database)
    assert relay.accepts("alice", "sesame")
    _change(database, lambda table: table.set_disabled("alice", REALM, True))
    assert not relay.accepts("alice", "sesame")
    assert not relay.accepts("alice", "sesame", hashed=True)
    _change(database, lambda table: table.set_disabled("alice", REALM, False))
    assert relay.accepts("alice", "sesame")
    _put(database, "alice", "changed")
    assert not relay.accepts("alice", "sesame")
    assert relay.accepts("alice", "changed")
    _change(database, lambda table: table.remove("alice", REALM))
    assert not relay.accepts("alice", "changed")


def test_new_password_does_not_enable(database: Path) -> None:
    """Someone who is disabled stays so when the password is changed."""
    _change(database, lambda table: table.set_disabled("alice", REALM, True))
    _put(database, "alice", "changed")
    assert not Relay(database).accepts("alice", "changed")


def test_rows_are_listed(database: Path) -> None:
    """Everybody is listed by realm and name, with what is withdrawn."""
    _put(database, "bob", "pw", realm="a.example")
    _change(database, lambda table: table.set_disabled("bob", "a.example", True))
    table = UserTable(database)
    assert table.rows() == [UserRow("bob", "a.example", True), UserRow("alice", REALM, False)]
    table.close()


def test_file_moved_into_place_is_taken_up(database: Path, tmp_path: Path) -> None:
    """A database that was prepared elsewhere and renamed over the old one counts from the next request."""
    relay = Relay(database)
    assert relay.accepts("alice", "sesame")
    _put(tmp_path / "next.db", "bob", "pw")
    os.replace(tmp_path / "next.db", database)
    assert not relay.accepts("alice", "sesame")
    assert relay.accepts("bob", "pw")


def _foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE users (username TEXT, password TEXT)")
    connection.close()


def _future(path: Path) -> None:
    _put(path, "alice", "sesame")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def _without_columns(path: Path) -> None:
    _put(path, "alice", "sesame")
    connection = sqlite3.connect(path)
    connection.execute("ALTER TABLE users DROP COLUMN disabled")
    connection.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "no such file"),
        (lambda path: path.write_bytes(b""), "not one of relayd's"),
        (lambda path: path.write_bytes(b"alice:sesame\n" * 100), "not a database"),
        (_foreign, "not one of relayd's"),
        (_future, "version 99"),
        (_without_columns, "disabled"),
    ],
)
def test_unusable_database_is_one_clear_line(make: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    """At the start a database that cannot be used is an error of one line: what, where, what to do."""
    path = tmp_path / "users?#% .db"
    make(path)
    with pytest.raises(ConfigurationError, match=said) as caught:
        makeChecker(f"sqlite:{path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


def test_missing_path_is_asked_for() -> None:
    """`--auth sqlite` without a path says what it wants."""
    with pytest.raises(ConfigurationError, match="path"):
        makeChecker("sqlite")


def test_odd_paths_are_opened_as_they_are(tmp_path: Path) -> None:
    """A path with the characters that mean something in a URI is still that path."""
    path = tmp_path / "us?mode=rw#ers%41.db"
    _put(path, "alice", "sesame")
    assert Relay(path).accepts("alice", "sesame")


def test_locked_at_the_start_is_told(database: Path) -> None:
    """A lock that another program holds is named as what it is."""
    with _Locked(database), pytest.raises(ConfigurationError, match="lock"):
        SqliteChecker(database)


class _Locked:
    """Holds the exclusive lock of a database."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)

    def __enter__(self) -> None:
        self._connection.execute("BEGIN EXCLUSIVE")

    def __exit__(self, *exception: object) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


def test_locked_later_is_survived(database: Path, logged: list[LogEvent], monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that stays refuses everyone, is asked about once a second only, logged once, and gone when it is gone."""
    relay = Relay(database)
    assert relay.accepts("alice", "sesame")
    asked = []
    key = UserTable.key

    def counted(self: UserTable, *arguments: object) -> bytes | None:
        asked.append(arguments)
        return key(self, *arguments)  # type: ignore[arg-type]

    with _Locked(database):
        monkeypatch.setattr(UserTable, "key", counted)
        for _ in range(3):
            assert not relay.accepts("alice", "sesame")
        assert len(asked) == 1
    assert [str(database) in str(formatEvent(event)) for event in logged] == [True]
    assert not relay.accepts("alice", "sesame")
    relay.clock.advance(PAUSE_AFTER_FAILURE)
    assert relay.accepts("alice", "sesame")
    assert READER_PATIENCE <= 0.1


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"rubbish" * 1000)])
def test_broken_later_is_survived(spoil: Callable[[Path], None], database: Path, logged: list[LogEvent]) -> None:
    """A database that vanishes or breaks refuses everyone and is logged once; put back, it serves again."""
    relay = Relay(database)
    assert relay.accepts("alice", "sesame")
    good = database.read_bytes()
    spoil(database)
    for _ in range(3):
        assert not relay.accepts("alice", "sesame")
    assert len(logged) == 1
    database.unlink(missing_ok=True)
    database.write_bytes(good)
    relay.clock.advance(PAUSE_AFTER_FAILURE)
    assert relay.accepts("alice", "sesame")


def test_nothing_is_open_before_the_first_request_nor_after_close(database: Path) -> None:
    """A database is not carried through a daemon's fork, and closing leaves no descriptor."""

    def descriptors() -> int:
        links = [
            os.readlink(f"/proc/self/fd/{name}")
            for name in os.listdir("/proc/self/fd")
            if name.isdigit() and os.path.islink(f"/proc/self/fd/{name}")
        ]
        return links.count(str(database))

    relay = Relay(database)
    assert descriptors() == 0
    assert relay.accepts("alice", "sesame")
    assert descriptors() == 1
    relay.checker.close()
    assert descriptors() == 0
