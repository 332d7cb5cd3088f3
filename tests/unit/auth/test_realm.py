"""Authenticator: every checker is asked in order, Twisted's own as they are; it never fails, nor lets in by mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.cred.checkers import ANONYMOUS, FilePasswordDB, ICredentialsChecker
from twisted.cred.credentials import IUsernameDigestHash, IUsernameHashedPassword, IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.strcred import makeChecker
from twisted.internet import defer
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent
from zope.interface import implementer
from zope.interface.verify import verifyClass, verifyObject

from relayd.auth import realm as realm_module
from relayd.auth.credentials import LongTermCredentials
from relayd.auth.realm import CHECKER_TIMEOUT, COMPLAINT_INTERVAL, Authenticator, TurnRealm, TurnUser
from relayd.auth.throttle import GuessThrottle
from relayd.errors import ConfigurationError
from relayd.interfaces import IStunCredentials, ITurnUser, IUserHashChecker
from relayd.stun.integrity import PasswordAlgorithm, long_term_key, userhash
from relayd.turn.outputs import Authenticated, AuthenticateUser, NotAuthenticated
from tests.unit.auth.claims import REALM, claim

Answer = Authenticated | NotAuthenticated
MD5, SHA256 = PasswordAlgorithm.MD5, PasswordAlgorithm.SHA256


@implementer(ICredentialsChecker)
class Scripted:
    """A third party's checker, which does what the test says with the credentials."""

    def __init__(
        self,
        script: Callable[[LongTermCredentials], object],
        interfaces: Sequence[object] = (IUsernameHashedPassword,),
    ) -> None:
        self.credentialInterfaces = interfaces
        self.script = script
        self.asked = 0

    def requestAvatarId(self, credentials: LongTermCredentials) -> defer.Deferred[Any]:
        self.asked += 1
        return defer.maybeDeferred(self.script, credentials)


@implementer(IUserHashChecker)
class Keys(Scripted):
    """A checker that holds one user's keys and finds USERHASH."""

    def __init__(self, name: str, password: str) -> None:
        super().__init__(self._check, (IStunCredentials,))
        self.name, self.password = name, password

    def _check(self, credentials: LongTermCredentials) -> str:
        key = long_term_key(credentials.algorithm, self.name, credentials.realm, self.password)
        if credentials.name == self.name and credentials.check_key(key):
            return self.name
        raise UnauthorizedLogin()

    def username_for(self, wanted: bytes, realm: str) -> str | None:
        return self.name if wanted == userhash(self.name, realm) else None


@pytest.fixture
def clock() -> Clock:
    """Stands at an hour after the epoch."""
    made = Clock()
    made.advance(3600)
    return made


def ask(authenticator: Authenticator, request: AuthenticateUser) -> Answer:
    """The answer, which has to be there at once."""
    answers: list[Answer] = []
    authenticator.authenticate(request).addCallback(answers.append)
    assert len(answers) == 1
    return answers[0]


def accepts(authenticator: Authenticator, request: AuthenticateUser) -> bool:
    return isinstance(ask(authenticator, request), Authenticated)


def _refuse(credentials: LongTermCredentials) -> object:
    raise UnauthorizedLogin()


def _password(password: str) -> Callable[[LongTermCredentials], object]:
    def script(credentials: LongTermCredentials) -> object:
        if credentials.checkPassword(password):
            return credentials.username
        raise UnauthorizedLogin()

    return script


@pytest.mark.parametrize("algorithm", [MD5, SHA256])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_twisteds_own_checkers_work_unmodified(
    kind: str, algorithm: PasswordAlgorithm, tmp_path: Path, clock: Clock
) -> None:
    """`--auth memory:` and `--auth file:` verify STUN credentials, though one compares str and the other bytes."""
    (tmp_path / "users").write_bytes("zoe:x\nalice:sesame\nr\u00e9my:s\u00e9same\n".encode())
    spec = "memory:alice:sesame:r\u00e9my:s\u00e9same" if kind == "memory" else f"file:{tmp_path / 'users'}"
    authenticator = Authenticator([makeChecker(spec)], clock)
    for name, password in (("alice", "sesame"), ("r\u00e9my", "s\u00e9same")):
        answer = ask(authenticator, claim(name, password, algorithm=algorithm))
        assert answer == Authenticated(name, long_term_key(algorithm, name, REALM, password))
    assert not accepts(authenticator, claim("alice", "x", algorithm=algorithm))
    assert not accepts(authenticator, claim("nobody", "sesame", algorithm=algorithm))


def test_memory_checker_filled_with_bytes_works(clock: Clock) -> None:
    """The in-memory checker as its documentation says it is filled, with bytes, works as well."""
    checker = makeChecker("memory:")
    checker.addUser(b"alice", b"sesame")
    assert accepts(Authenticator([checker], clock), claim("alice", "sesame"))


def test_every_checker_is_tried_in_order(clock: Clock) -> None:
    """Of several --auth of one kind each counts, which cred's portal alone would not do; the first that holds ends
    it.
    """
    last = Scripted(_password("three"))
    authenticator = Authenticator([makeChecker("memory:alice:one"), makeChecker("memory:alice:two"), last], clock)
    assert accepts(authenticator, claim("alice", "one"))
    assert accepts(authenticator, claim("alice", "two"))
    assert last.asked == 0
    assert accepts(authenticator, claim("alice", "three"))
    assert not accepts(authenticator, claim("alice", "four"))


def test_unreadable_password_file_refuses_and_serves_on(tmp_path: Path, clock: Clock) -> None:
    """Twisted's file checker raises where others fail; the next checker is asked all the same."""
    authenticator = Authenticator([FilePasswordDB(str(tmp_path / "gone")), makeChecker("memory:bob:pw")], clock)
    assert not accepts(authenticator, claim("alice", "sesame"))
    assert accepts(authenticator, claim("bob", "pw"))


def test_digest_checker_restricts_the_algorithms(clock: Clock) -> None:
    """A checker that holds MD5 hashes verifies them, and SHA-256 is not offered then."""
    digits = long_term_key(MD5, "alice", REALM, "sesame").hex()

    def script(credentials: LongTermCredentials) -> object:
        return credentials.username if credentials.checkHash(digits) else defer.fail(UnauthorizedLogin())

    authenticator = Authenticator([Scripted(script, [IUsernameDigestHash])], clock)
    assert authenticator.algorithms == (MD5,)
    assert accepts(authenticator, claim("alice", "sesame"))
    assert Authenticator([makeChecker("memory:a:b")], clock).algorithms == (SHA256, MD5)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "%n%s", "' OR 1=1 --", "\u202ex", "x" * 763, "", "\ud800"])
def test_hostile_names_are_refused_quietly(name: str, clock: Clock, logged: list[LogEvent]) -> None:
    """No USERNAME, however formed, raises, gets in or writes to the log."""
    request = claim("alice", "sesame")
    request.username = name
    authenticator = Authenticator([makeChecker("memory:alice:sesame"), Keys("alice", "sesame")], clock)
    assert ask(authenticator, request) == NotAuthenticated()
    assert logged == []


def test_name_is_prepared(clock: Clock) -> None:
    """A name sent with a no-break space is the user whose name has a plain one, and the answer says it so."""
    request = claim("alice b", "sesame")
    request.username = "alice\u00a0b"
    answer = ask(Authenticator([makeChecker("memory:alice b:sesame")], clock), request)
    assert isinstance(answer, Authenticated)
    assert answer.username == "alice b"


def test_userhash_finds_the_user(clock: Clock) -> None:
    """USERHASH (RFC 8489 section 9.2.4) is resolved by whichever checker knows it; an unknown one is nobody."""
    authenticator = Authenticator([makeChecker("memory:zoe:x"), Keys("bob", "pw"), Keys("alice", "sesame")], clock)
    answer = ask(authenticator, claim("alice", "sesame", algorithm=SHA256, hashed=True))
    assert answer == Authenticated("alice", long_term_key(SHA256, "alice", REALM, "sesame"))
    assert not accepts(authenticator, claim("alice", "wrong", hashed=True))
    assert not accepts(authenticator, claim("carol", "sesame", hashed=True))


def test_userhash_is_promised_only_if_all_keep_the_promise(clock: Clock) -> None:
    """The nonce may announce USERHASH only when every checker can look one up, and there is one."""
    assert Authenticator([Keys("alice", "sesame")], clock).supports_userhash
    assert not Authenticator([Keys("alice", "sesame"), makeChecker("memory:a:b")], clock).supports_userhash
    assert not Authenticator([], clock).supports_userhash


def test_expired_user_is_refused(clock: Clock) -> None:
    """A checker that returns an ITurnUser says with it when the credentials end, and then they have ended."""

    def script(credentials: LongTermCredentials) -> object:
        return TurnUser("alice", 4000.0) if credentials.checkPassword("sesame") else defer.fail(UnauthorizedLogin())

    authenticator = Authenticator([Scripted(script)], clock)
    assert accepts(authenticator, claim("alice", "sesame"))
    clock.advance(400)
    assert not accepts(authenticator, claim("alice", "sesame"))


@pytest.mark.parametrize("avatar", [ANONYMOUS, b"", "", 7, None])
def test_avatar_that_names_nobody_is_refused(avatar: object, clock: Clock) -> None:
    """A checker that accepts without saying whom has let nobody in."""

    def script(credentials: LongTermCredentials) -> object:
        credentials.checkPassword("sesame")
        return avatar

    assert not accepts(Authenticator([Scripted(script)], clock), claim("alice", "sesame"))


def test_acceptance_without_a_comparison_is_refused(clock: Clock, logged: list[LogEvent]) -> None:
    """Without a verified key no answer could be signed: a checker that just says yes opens nothing, and the log
    tells.
    """
    authenticator = Authenticator([Scripted(lambda credentials: credentials.username)], clock)
    assert not accepts(authenticator, claim("alice", "sesame"))
    assert "without checking the password" in str(formatEvent(logged[0]))


def test_exceptions_are_logged_once_and_without_their_text(clock: Clock, logged: list[LogEvent]) -> None:
    """A broken checker counts as a refusal; its log line comes once a minute and repeats nothing that the error
    quotes.
    """

    def script(credentials: LongTermCredentials) -> object:
        raise ValueError("bad row: alice:hunter2")

    authenticator = Authenticator([Scripted(script), makeChecker("memory:bob:pw")], clock)
    for _ in range(5):
        assert not accepts(authenticator, claim("alice", "hunter2"))
    assert accepts(authenticator, claim("bob", "pw"))
    assert len(logged) == 1
    text = str(formatEvent(logged[0]))
    assert "ValueError" in text
    assert "hunter2" not in text + repr(logged[0])
    clock.advance(COMPLAINT_INTERVAL)
    assert not accepts(authenticator, claim("alice", "hunter2"))
    assert len(logged) == 2


def test_unusable_stored_password_is_told_to_the_operator(clock: Clock, logged: list[LogEvent]) -> None:
    """Our own errors, written without secrets, are logged as they are."""
    assert not accepts(Authenticator([makeChecker("memory:alice:bell\x07")], clock), claim("alice", "x"))
    text = str(formatEvent(logged[0]))
    assert "'alice'" in text
    assert "bell" not in text


def test_slow_checker_is_waited_for_and_given_up(clock: Clock) -> None:
    """An answer may come later; one that never comes is a refusal after CHECKER_TIMEOUT, and no delayed call is
    left.
    """
    waiting: list[defer.Deferred[object]] = []
    shown: list[LongTermCredentials] = []

    def script(credentials: LongTermCredentials) -> object:
        shown.append(credentials)
        waiting.append(defer.Deferred())
        return waiting[-1]

    authenticator = Authenticator([Scripted(script, [IStunCredentials])], clock)
    answers: list[Answer] = []
    authenticator.authenticate(claim("alice", "sesame")).addCallback(answers.append)
    assert answers == []
    shown[0].checkPassword("sesame")
    waiting[0].callback(b"alice")
    assert isinstance(answers.pop(), Authenticated)
    assert clock.getDelayedCalls() == []

    authenticator.authenticate(claim("alice", "sesame")).addCallback(answers.append)
    while not answers:
        clock.advance(CHECKER_TIMEOUT)
    assert answers == [NotAuthenticated()]
    assert clock.getDelayedCalls() == []


def test_waiting_checks_are_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood against a slow user database is refused beyond MAX_PENDING, and the places come back."""
    monkeypatch.setattr(realm_module, "MAX_PENDING", 2)
    slow = Scripted(lambda credentials: defer.Deferred())
    authenticator = Authenticator([slow], clock)
    answers: list[Answer] = []
    for _ in range(3):
        authenticator.authenticate(claim("alice", "sesame")).addCallback(answers.append)
    assert answers == [NotAuthenticated()]
    assert slow.asked == 2
    while clock.getDelayedCalls():
        clock.advance(CHECKER_TIMEOUT)
    assert len(answers) == 3
    authenticator.authenticate(claim("alice", "sesame"))
    assert slow.asked > 3


def test_guessing_is_throttled_by_source(clock: Clock) -> None:
    """After too many failures a source is refused without asking anyone; another is served; time heals."""
    checker = Scripted(_password("sesame"))
    authenticator = Authenticator([checker], clock, GuessThrottle(bytes(32), limit=5))
    for number in range(5):
        assert not accepts(authenticator, claim("alice", f"guess {number}"))
    asked = checker.asked
    assert not accepts(authenticator, claim("alice", "sesame"))
    assert checker.asked == asked
    assert accepts(authenticator, claim("alice", "sesame", host="192.0.2.2"))
    clock.advance(60)
    assert accepts(authenticator, claim("alice", "sesame"))


def test_unknown_user_costs_a_comparison(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many MACs are computed for an unknown user as for a wrong password, so that the time does not tell them
    apart.
    """
    compared: list[str] = []
    check = LongTermCredentials.check_key

    def counted(self: LongTermCredentials, key: bytes) -> bool:
        compared.append(self.name)
        return check(self, key)

    monkeypatch.setattr(LongTermCredentials, "check_key", counted)
    for checker in (makeChecker("memory:alice:sesame"), Scripted(_refuse), Keys("alice", "sesame")):
        authenticator = Authenticator([checker], clock)
        for name in ("alice", "nobody"):
            assert not accepts(authenticator, claim(name, "wrong"))
            assert len(compared) == 1
            compared.clear()


def test_checker_that_wants_typed_passwords_is_a_configuration_error(clock: Clock) -> None:
    """A checker that STUN can never satisfy is refused at the start, not silently unused."""
    with pytest.raises(ConfigurationError, match="Scripted"):
        Authenticator([Scripted(_refuse, [IUsernamePassword])], clock)


def test_realm_gives_only_turn_users() -> None:
    """The realm keeps cred's contract: (interface, avatar, logout) for ITurnUser, and nothing for other interfaces."""
    interface, user, leave = TurnRealm().requestAvatar(b"alice", None, ITurnUser)
    assert interface is ITurnUser
    assert user == TurnUser("alice", None)
    leave()
    with pytest.raises(UnauthorizedLogin):
        TurnRealm().requestAvatar(b"alice", None, IUsernamePassword)


def test_interfaces_are_kept() -> None:
    """What claims to provide an interface has all of it."""
    assert verifyObject(ITurnUser, TurnUser("alice"))
    shown = LongTermCredentials(b"a", "a", REALM, MD5, claim("a", "b").proof)
    for interface in (IStunCredentials, IUsernameHashedPassword, IUsernameDigestHash):
        assert verifyObject(interface, shown)
    assert verifyClass(IUserHashChecker, Keys)
