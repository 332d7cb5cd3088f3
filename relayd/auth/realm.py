"""Finds out who a client is: cred's realm for users of the relay, and the authority that asks every checker in turn."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from traceback import extract_tb
from typing import Any

from twisted.cred.checkers import (
    FilePasswordDB,
    ICredentialsChecker,
    InMemoryUsernamePasswordDatabaseDontUse,
)
from twisted.cred.credentials import IUsernameDigestHash, IUsernameHashedPassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import Interface, implementer

from relayd.auth.credentials import LongTermCredentials
from relayd.auth.throttle import GuessThrottle
from relayd.errors import ConfigurationError, DecodeError
from relayd.interfaces import IStunCredentials, ITurnUser, IUserHashChecker
from relayd.stun.integrity import PasswordAlgorithm
from relayd.stun.text import opaque_string
from relayd.turn.outputs import Authenticated, AuthenticateUser, NotAuthenticated

CHECKER_TIMEOUT = 10.0  # seconds; a client repeats its request for 39.5 s (RFC 8489 section 6.2.1)
MAX_PENDING = 1000  # checks that may wait at once: a slow user database must not let a flood of requests pile up
COMPLAINT_INTERVAL = 60.0  # seconds between two log lines about one checker

CREDENTIAL_INTERFACES: tuple[type[Interface], ...] = (IStunCredentials, IUsernameHashedPassword, IUsernameDigestHash)
"""What a checker may ask for; also the `supportedInterfaces` of strcred's options."""

_log = Logger()


@implementer(ITurnUser)
@dataclass(frozen=True, slots=True)
class TurnUser:
    """Someone who may use the relay. A checker may give one as the avatar ID, to say when the credentials end."""

    username: str
    expires: float | None = None  # seconds since the epoch


def _leave() -> None:
    """Cred wants to tell avatars that their session ended; allocations end by themselves."""


@implementer(IRealm)
class TurnRealm:
    """Gives `ITurnUser`s for what checkers return: a name in bytes or text, or an `ITurnUser` already."""

    def requestAvatar(
        self,
        avatarId: object,  # noqa: N803
        mind: object,
        *interfaces: type[Interface],
    ) -> tuple[type[Interface], object, Callable[[], None]]:
        """The avatar. Raises UnauthorizedLogin for what names nobody, such as cred's ANONYMOUS, or another kind of
        avatar.
        """
        if ITurnUser not in interfaces:
            raise UnauthorizedLogin()
        name = avatarId.decode("utf-8", "replace") if isinstance(avatarId, bytes) else avatarId
        if isinstance(name, str) and name:
            return ITurnUser, TurnUser(name), _leave
        if ITurnUser.providedBy(name):
            return ITurnUser, name, _leave
        raise UnauthorizedLogin()


class _Source:
    """One checker: a portal of its own, because cred's portal keeps only one checker per interface."""

    def __init__(self, checker: ICredentialsChecker) -> None:
        asked = set(checker.credentialInterfaces)
        if not asked & set(CREDENTIAL_INTERFACES):
            raise ConfigurationError(
                f"--auth: {type(checker).__name__} wants passwords as the user typed them, which STUN never sends; "
                "use one that holds passwords or long-term keys"
            )
        self.checker = checker
        self.portal = Portal(TurnRealm(), [checker])
        self.finds_userhash = IUserHashChecker.providedBy(checker)
        self.md5_only = not asked & {IStunCredentials, IUsernameHashedPassword}
        self.encodings = _username_encodings(checker)
        self.complained_at: float | None = None


def _username_encodings(checker: ICredentialsChecker) -> tuple[Callable[[str], bytes | str], ...]:
    # Cred documents user names as bytes, but its memory: plugin fills the checker with str. Nobody else can be known to
    # keep to either, so both are tried; where it is known, a useless second look-up is spared.
    if isinstance(checker, FilePasswordDB):
        return (str.encode,)
    if isinstance(checker, InMemoryUsernamePasswordDatabaseDontUse):
        return (str, str.encode)
    return (str.encode, str)


class Authenticator:
    """Answers the core's `AuthenticateUser`: tries each checker in order until one holds the key that the client has.

    Of several checkers with the same user name, any whose password fits will do. Checkers that answer at once are
    answered at once: nothing waits for another reactor turn.
    """

    def __init__(
        self, checkers: Sequence[ICredentialsChecker], clock: IReactorTime, throttle: GuessThrottle | None = None
    ) -> None:
        """`clock`: the reactor; its `seconds()` are seconds since the epoch. Raises ConfigurationError for a checker
        that cannot verify what STUN sends.
        """
        self._sources = [_Source(checker) for checker in checkers]
        self._clock = clock
        self._throttle = throttle or GuessThrottle(secrets.token_bytes(32))
        self._pending = 0
        self._decoy = secrets.token_hex(16)

    @property
    def supports_userhash(self) -> bool:
        """Whether the nonce may promise that USERHASH works (RFC 8489 section 9.2.1): every checker can look one up."""
        return bool(self._sources) and all(source.finds_userhash for source in self._sources)

    @property
    def algorithms(self) -> tuple[PasswordAlgorithm, ...]:
        """What PASSWORD-ALGORITHMS may offer, best first: SHA-256 only if no checker holds bare MD5 hashes."""
        if any(source.md5_only for source in self._sources):
            return (PasswordAlgorithm.MD5,)
        return (PasswordAlgorithm.SHA256, PasswordAlgorithm.MD5)

    def authenticate(self, request: AuthenticateUser) -> Deferred[Authenticated | NotAuthenticated]:
        """Who that is. The Deferred never fails: whatever goes wrong is logged without secrets, and nobody is let in.

        `Authenticated.username` is the user's name as the checker has it, the same for all credentials of one user.
        """
        return Deferred.fromCoroutine(self._authenticate(request))

    async def _authenticate(self, request: AuthenticateUser) -> Authenticated | NotAuthenticated:
        ip = request.path.client.ip
        if self._pending >= MAX_PENDING or self._throttle.blocked(ip, self._clock.seconds()):
            return NotAuthenticated()
        self._pending += 1
        try:
            found = await self._ask_sources(request)
        finally:
            self._pending -= 1
        if found is None:
            self._throttle.failed(ip, self._clock.seconds())
            return NotAuthenticated()
        return found

    async def _ask_sources(self, request: AuthenticateUser) -> Authenticated | None:
        compared = False
        for source in self._sources:
            name = await self._name(source, request)
            for credentials in self._claims(source, request, name):
                user = await self._ask(source, credentials)
                if user is not None and credentials.key is not None:
                    return Authenticated(user.username, credentials.key)
                compared = compared or credentials.compared
                if credentials.compared:
                    break  # the user is there under this form of the name, and it was another password
        if not compared:
            # Nobody knew the name. Do once what a wrong password costs, so that the time does not tell.
            decoy = LongTermCredentials("", "decoy", request.realm, request.algorithm, request.proof)
            decoy.checkPassword(self._decoy)
        return None

    def _claims(self, source: _Source, request: AuthenticateUser, name: str | None) -> Iterable[LongTermCredentials]:
        if name is not None:
            for encode in source.encodings:
                yield LongTermCredentials(encode(name), name, request.realm, request.algorithm, request.proof)

    async def _name(self, source: _Source, request: AuthenticateUser) -> str | None:
        """The prepared user name, or None if this checker cannot tell or it is none."""
        try:
            if request.username is not None:
                return opaque_string(request.username)
            if request.userhash is None or not source.finds_userhash:
                return None
            found: Any = source.checker.username_for(request.userhash, request.realm)  # type: ignore[attr-defined]
            name: str | None = await self._in_time(found) if isinstance(found, Deferred) else found
            return name
        except DecodeError:
            return None
        except Exception as error:
            self._complain(source, error)
            return None

    async def _ask(self, source: _Source, credentials: LongTermCredentials) -> ITurnUser | None:
        try:
            _, user, _ = await self._in_time(source.portal.login(credentials, None, ITurnUser))
        except UnauthorizedLogin:
            return None
        except Exception as error:
            self._complain(source, error)
            return None
        if credentials.key is None:
            self._complain(source, ConfigurationError("it let a user in without checking the password"))
            return None
        if user.expires is not None and user.expires <= self._clock.seconds():
            return None
        return user  # type: ignore[no-any-return]

    def _in_time(self, waiting: Deferred[Any]) -> Deferred[Any]:
        if not waiting.called or waiting.paused:
            waiting.addTimeout(CHECKER_TIMEOUT, self._clock)
        return waiting

    def _complain(self, source: _Source, error: Exception) -> None:
        now = self._clock.seconds()
        if source.complained_at is not None and 0 <= now - source.complained_at < COMPLAINT_INTERVAL:
            return
        source.complained_at = now
        # The text of a foreign exception may hold the row that it choked on. Our own errors are written to be read.
        if isinstance(error, ConfigurationError):
            what = str(error)
        else:
            frames = extract_tb(error.__traceback__)
            where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
            what = f"{type(error).__name__}{where}"
        _log.error("users cannot be verified by {checker}: {what}", checker=type(source.checker).__name__, what=what)
