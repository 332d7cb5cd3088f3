"""`relayd-user`: changes users and makes credentials; no secret is an argument; every fault is one line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from relayd.auth import command
from relayd.auth.secret import make_credential
from relayd.auth.user_table import UserTable
from relayd.stun.integrity import PasswordAlgorithm, long_term_key

REALM = "example.org"


class Terminal(io.StringIO):
    """A stdin that someone sits at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "users.db"


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object, stdin: str = "") -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    return command.main([str(argument) for argument in arguments])


def _on(database: Path, name: str, username: str = "alice") -> list[object]:
    return [name, "--database", database, "--realm", REALM, username]


def _key(database: Path, username: str = "alice") -> bytes | None:
    table = UserTable(database)
    try:
        return table.key(username, REALM, PasswordAlgorithm.MD5)
    finally:
        table.close()


def test_life_of_a_user(database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Add, change the password, disable, list, enable, remove: each does what it says, in the file."""
    assert _run(monkeypatch, *_on(database, "add"), stdin="sesame\n") == 0
    assert _key(database) == long_term_key(PasswordAlgorithm.MD5, "alice", REALM, "sesame")
    assert _run(monkeypatch, *_on(database, "add"), stdin=" spaced ") == 0
    assert _key(database) == long_term_key(PasswordAlgorithm.MD5, "alice", REALM, " spaced ")
    assert capsys.readouterr().out == "added\npassword changed\n"
    assert _run(monkeypatch, *_on(database, "disable")) == 0
    assert _key(database) is None
    assert _run(monkeypatch, "list", "--database", database) == 0
    assert capsys.readouterr().out == f"{REALM}\talice\tdisabled\n"
    assert _run(monkeypatch, *_on(database, "enable")) == 0
    assert _key(database) is not None
    assert _run(monkeypatch, *_on(database, "remove")) == 0
    assert _run(monkeypatch, "list", "--database", database) == 0
    assert capsys.readouterr().out == ""


def test_password_at_the_terminal_is_asked_twice(
    database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a terminal the password is not echoed, and a slip of the finger changes nothing."""
    typed = iter(["sesame", "sesamw", "sesame", "sesame"])
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(command, "getpass", lambda prompt: next(typed))
    arguments = [str(argument) for argument in _on(database, "add")]
    assert command.main(arguments) == 1
    assert "differ" in capsys.readouterr().err
    assert not database.exists()
    assert command.main(arguments) == 0
    assert _key(database) == long_term_key(PasswordAlgorithm.MD5, "alice", REALM, "sesame")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, EOFError])
def test_interrupted_question_changes_nothing(
    interrupt: type[BaseException], database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control-C and the end of input at the prompt leave without a traceback and without a file."""

    def ask(prompt: str) -> str:
        raise interrupt

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(command, "getpass", ask)
    assert command.main([str(argument) for argument in _on(database, "add")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not database.exists()


@pytest.mark.parametrize("password", ["", "\n", "bell\x07\n"])
def test_unusable_password_is_refused(
    password: str, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A password that no client could send is refused in one line that does not repeat it."""
    assert _run(monkeypatch, *_on(database, "add"), stdin=password) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "bell" not in told
    assert not database.exists()


@pytest.mark.parametrize("username", ["", "a\nb", "x" * 509])
def test_unusable_name_is_refused(
    username: str, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that STUN cannot carry is a usage error."""
    with pytest.raises(SystemExit) as caught:
        _run(monkeypatch, *_on(database, "add", username), stdin="sesame\n")
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["remove", "disable", "enable"])
def test_unknown_user_and_missing_database(
    name: str, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not there is named in one line, and only `add` makes a database."""
    assert _run(monkeypatch, *_on(database, name)) == 1
    assert str(database) in capsys.readouterr().err
    assert not database.exists()
    UserTable.create(database).close()
    assert _run(monkeypatch, *_on(database, name)) == 1
    told = capsys.readouterr().err
    assert "'alice'" in told
    assert told.count("\n") == 1


def test_unwritable_place_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A database that cannot be made is one line with the system's reason."""
    assert _run(monkeypatch, *_on(tmp_path / "no" / "users.db", "add"), stdin="sesame\n") == 1
    assert "cannot be made" in capsys.readouterr().err


def test_secret_makes_ice_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON can be given to a browser as it is, and its credential is made with the first secret of the file."""
    (tmp_path / "secrets").write_bytes(b"today\nyesterday\n")
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
    urls = ["turn:relay.example.org:3478", "turns:relay.example.org:5349?transport=tcp"]
    flags = [flag for url in urls for flag in ("--url", url)]
    assert _run(monkeypatch, "secret", "--file", tmp_path / "secrets", "--id", "alice", "--ttl", 3600, *flags) == 0
    (server,) = json.loads(capsys.readouterr().out)["iceServers"]
    expected = make_credential(b"today", 1_700_003_600, "alice")
    assert server == {"urls": urls, "username": expected.username, "credential": expected.password}


def test_secret_from_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the secret is in a variable, no file is needed; without --url the relay's own default address is given."""
    monkeypatch.setenv("RELAYD_TEST_SECRETS", "today")
    assert _run(monkeypatch, "secret", "--env", "RELAYD_TEST_SECRETS") == 0
    (server,) = json.loads(capsys.readouterr().out)["iceServers"]
    assert server["urls"] == ["turn:127.0.0.1:3478"]
    assert server["username"].isdigit()


@pytest.mark.parametrize("ttl", ["0", "-5", "1h", "999999999999"])
def test_lifetime_is_checked(ttl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lifetime that is no sane number of seconds is a usage error."""
    with pytest.raises(SystemExit):
        _run(monkeypatch, "secret", "--env", "HOME", f"--ttl={ttl}")


def test_too_long_id_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An id that fits USERNAME only without the expiry before it is refused."""
    monkeypatch.setenv("RELAYD_TEST_SECRETS", "today")
    assert _run(monkeypatch, "secret", "--env", "RELAYD_TEST_SECRETS", "--id", "x" * 508) == 1
    assert "--id" in capsys.readouterr().err
