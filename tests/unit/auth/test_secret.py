"""`secret:`: time-limited credentials hold while they last, secrets rotate, and none is taken from the command line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from twisted.cred.strcred import makeChecker
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent

from relayd.auth import secret as secret_module
from relayd.auth.realm import Authenticator
from relayd.auth.secret import (
    MAX_SECRET_FILE,
    MAX_SECRETS,
    SecretChecker,
    SecretCheckerFactory,
    SecretFile,
    make_credential,
    secrets_from_environment,
)
from relayd.errors import ConfigurationError
from relayd.turn.outputs import Authenticated
from tests.unit.auth.claims import claim

NOW = 1_700_000_000.0
OLD, NEW = b"the former secret", b"the secret of today"


def _user(checker: SecretChecker, username: str, password: str) -> str | None:
    clock = Clock()
    clock.advance(NOW)
    answers: list[object] = []
    Authenticator([checker], clock).authenticate(claim(username, password)).addCallback(answers.append)
    return answers[0].username if isinstance(answers[0], Authenticated) else None


def _holds(checker: SecretChecker, secret: bytes) -> bool:
    return _user(checker, *make_credential(secret, int(NOW) + 60, "alice")) == "alice"


def _checker(*secrets: bytes) -> SecretChecker:
    return SecretChecker(lambda: secrets, lambda: NOW)


def _write(path: Path, content: bytes, moment: int) -> None:
    """Write with a modification time of its own, as a file system with fine time stamps would show."""
    path.write_bytes(content)
    os.utime(path, (moment, moment))
    path.chmod(0o600)


def test_known_credential() -> None:
    """The convention to the letter: a pair made with OpenSSL's HMAC for secret `north` and a name with an id."""
    credential = make_credential(b"north", 1_700_003_600, "alice")
    assert credential.username == "1700003600:alice"
    # printf %s 1700003600:alice | openssl dgst -sha1 -hmac north -binary | base64
    assert credential.password == "wjwSXO2ch1B6VaLTLMy2Avn5O9o="


def test_user_is_the_id_or_the_whole_name() -> None:
    """All credentials of one id are one user, for quotas and the log; without an id each is its own."""
    checker = _checker(NEW)
    assert _user(checker, *make_credential(NEW, int(NOW) + 60, "alice")) == "alice"
    assert _user(checker, *make_credential(NEW, int(NOW) + 61, "al:ice")) == "al:ice"
    assert _user(checker, *make_credential(NEW, int(NOW) + 62)) == str(int(NOW) + 62)


def test_expired_is_refused_from_the_second_on() -> None:
    """A credential holds until its expiry and not at it."""
    assert _user(_checker(NEW), *make_credential(NEW, int(NOW) + 1, "alice"))
    assert not _user(_checker(NEW), *make_credential(NEW, int(NOW), "alice"))
    assert not _user(_checker(NEW), *make_credential(NEW, 0, "alice"))


def test_any_secret_in_force_holds() -> None:
    """While secrets are rotated the former and the new one both count; a third does not."""
    assert _holds(_checker(NEW, OLD), OLD)
    assert _holds(_checker(NEW, OLD), NEW)
    assert not _holds(_checker(NEW, OLD), b"guessed")
    assert not _holds(_checker(), NEW)


@pytest.mark.parametrize(
    "head", ["", "alice", "-1", "+9999999999", "1e12", "9" * 13, "9" * 400, "\u0661" * 10, " 9999999999"]
)
def test_names_that_begin_with_no_expiry_are_refused(head: str) -> None:
    """Only decimal ASCII digits of a sane length are an expiry, even if the password is made right."""
    name = f"{head}:alice"
    assert not _user(_checker(NEW), name, secret_module._password(NEW, name))


def test_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """Adding and removing a secret takes effect at the next request; comments and blank lines are skipped."""
    path = tmp_path / "secrets"
    _write(path, b"# rotated weekly\n\n" + OLD + b"\n", 1)
    checker = SecretChecker(SecretFile(str(path)).secrets, lambda: NOW)
    assert _holds(checker, OLD)
    assert not _holds(checker, NEW)
    _write(path, NEW + b"\r\n" + OLD, 2)
    assert _holds(checker, OLD)
    assert _holds(checker, NEW)
    _write(path, NEW, 3)
    assert not _holds(checker, OLD)
    assert _holds(checker, NEW)


def test_file_that_is_gone_or_empty_lets_nobody_in(tmp_path: Path, logged: list[LogEvent]) -> None:
    """Withdrawing the file withdraws its secrets, the log says so once, and a new file counts."""
    path = tmp_path / "secrets"
    _write(path, NEW, 1)
    checker = SecretChecker(SecretFile(str(path)).secrets, lambda: NOW)
    path.unlink()
    assert not _holds(checker, NEW)
    assert not _holds(checker, NEW)
    assert [str(path) in str(formatEvent(event)) for event in logged] == [True]
    _write(path, NEW, 1)
    assert _holds(checker, NEW)
    _write(path, b"# nothing\n", 2)
    assert not _holds(checker, NEW)
    assert len(logged) == 2


def test_running_out_of_descriptors_keeps_the_former_secrets(
    tmp_path: Path, logged: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed file that cannot be opened for want of a descriptor disturbs nobody, and is read later."""
    path = tmp_path / "secrets"
    _write(path, OLD, 1)
    checker = SecretChecker(SecretFile(str(path)).secrets, lambda: NOW)
    _write(path, NEW, 2)

    def no_descriptor(*arguments: object) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(secret_module, "open", no_descriptor, raising=False)
        assert _holds(checker, OLD)
        assert _holds(checker, OLD)
    assert len(logged) == 1
    assert _holds(checker, NEW)


def test_relative_path_survives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon leaves its directory; the file is still the one that was named."""
    _write(tmp_path / "secrets", NEW, 1)
    monkeypatch.chdir(tmp_path)
    file = SecretFile("secrets")
    monkeypatch.chdir("/")
    _write(tmp_path / "secrets", OLD, 2)
    assert file.secrets() == (OLD,)


def test_file_open_to_everybody_is_remarked(tmp_path: Path, logged: list[LogEvent]) -> None:
    """A secret that every local user can read is worth a warning, which does not contain it."""
    path = tmp_path / "secrets"
    _write(path, NEW, 1)
    SecretFile(str(path))
    assert logged == []
    path.chmod(0o644)
    SecretFile(str(path))
    assert str(path) in str(formatEvent(logged[0]))
    assert NEW.decode() not in repr(logged[0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "holds no secret"),
        (b"# only this\n\n", "holds no secret"),
        (b"s\n" * (MAX_SECRETS + 1), "at most"),
        (b"x" * (MAX_SECRET_FILE + 1), "larger than"),
    ],
)
def test_unusable_file_is_one_clear_line(content: bytes | None, said: str, tmp_path: Path) -> None:
    """At the start a file without usable secrets is an error that names the file and what is wrong."""
    path = tmp_path / "secrets"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said) as caught:
        makeChecker(f"secret:file={path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_directory_is_not_a_file(tmp_path: Path) -> None:
    """A path of the wrong kind is an error with the system's word for it."""
    with pytest.raises(ConfigurationError, match="directory"):
        SecretFile(str(tmp_path))


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets in a variable are separated by commas or newlines."""
    monkeypatch.setenv("RELAYD_TEST_SECRETS", f" {NEW.decode()},{OLD.decode()}\nthird\n")
    assert secrets_from_environment("RELAYD_TEST_SECRETS") == (NEW, OLD, b"third")
    checker = SecretCheckerFactory().generateChecker("env=RELAYD_TEST_SECRETS")
    assert checker._secrets() == (NEW, OLD, b"third")


def test_environment_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is missing or empty is named."""
    monkeypatch.delenv("RELAYD_TEST_SECRETS", raising=False)
    with pytest.raises(ConfigurationError, match="RELAYD_TEST_SECRETS"):
        makeChecker("secret:env=RELAYD_TEST_SECRETS")
    monkeypatch.setenv("RELAYD_TEST_SECRETS", ", ,")
    with pytest.raises(ConfigurationError, match="holds no secret"):
        makeChecker("secret:env=RELAYD_TEST_SECRETS")


@pytest.mark.parametrize(
    "argument", ["", "n0rth-s3cret", "file", "file=", "env=", "n0rth=s3cret", "secret=n0rth-s3cret"]
)
def test_literal_secret_is_refused_and_not_repeated(argument: str) -> None:
    """A secret on the command line is an error that says what to do instead, without the secret."""
    with pytest.raises(ConfigurationError, match="file=PATH or env=NAME") as caught:
        makeChecker(f"secret:{argument}")
    assert "n0rth" not in str(caught.value)
