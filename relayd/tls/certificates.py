"""Reads certificates from PEM files, and again when the files change, so that a renewed one takes no restart.

Whoever shows a certificate, or believes one, says once what it makes of the files (`Certificates.pair`,
`Certificates.authorities`), and from then on takes `Current.value` for each new handshake. Sessions that last keep what
they began with.

Tools replace certificate and key one after the other, or write while we read. So files that changed are read when they
have been the same for two looks, and what does not read, or is no pair, changes nothing.

One timer looks at all of them. On demand, the handshake of some client would wait for the disk, and what is wrong with
a new file would be said when the next client comes, not while whoever put it there is looking.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from OpenSSL import SSL
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from relayd.errors import ConfigurationError
from relayd.tls.pem import Authorities, Pair, read_authorities, read_file, read_pair

LOOK_INTERVAL = 5.0  # seconds: a change is taken within two of them, and a look costs a stat for each file
WARNING_INTERVAL = 86_400.0  # seconds between two warnings of a certificate that comes to its end

_log = Logger()

Content = Pair | Authorities
Made = TypeVar("Made")


class Current(Generic[Made]):
    """What was made of files when they were last in order. Ask for `value` each time anew."""

    __slots__ = ("value",)

    def __init__(self, value: Made) -> None:
        self.value = value


class _Watched:
    """Files that are read together, and what was made of them."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], Content]) -> None:
        """Raises OSError and ConfigurationError, as `read` does."""
        self.paths = paths
        self._read = read
        self._seen = self._judged = self._stamps()
        self.content = read()
        self._users: list[tuple[Callable[[Any], Any], Current[Any]]] = []
        self._complaint: str | None = None
        self._is_unreadable = False
        self._warn_at = float("-inf")

    def use(self, make: Callable[[Any], Made]) -> Current[Made]:
        """Raises ConfigurationError where nothing can be made of it."""
        current = Current(_made(make, self.content, self.paths))
        self._users.append((make, current))
        return current

    def look(self, now: float, at_once: bool) -> None:
        """Take what changed: `at_once`, or when it has been the same for two looks. Says when the end is near."""
        stamps = self._stamps()
        if self._is_unreadable or stamps != self._judged:
            if at_once or stamps == self._seen:
                self._judge(stamps)
            self._seen = stamps
        self._warn(now)

    def check_access(self) -> None:
        """Complain now if the files can no longer be read, as when the process gave up its privileges."""
        try:
            for path in self.paths:
                read_file(path)
        except OSError as error:
            self._is_unreadable = True
            self._complain(error)
        except ConfigurationError:
            pass  # something that is being replaced: the next looks will tell

    def _judge(self, stamps: list[object]) -> None:
        self._judged = stamps
        self._is_unreadable = False
        try:
            content = self._read()
            is_new = content.certificates != self.content.certificates
            values = [_made(make, content, self.paths) for make, _ in self._users] if is_new else []
        except (OSError, ConfigurationError) as error:
            # Directories, the number of descriptors: what keeps it from being read need not show in the stamps.
            self._is_unreadable = isinstance(error, OSError)
            self._complain(error)
            return
        had_complaint, self._complaint = self._complaint is not None, None
        if is_new:
            self.content = content
            for value, (_, current) in zip(values, self._users, strict=True):
                current.value = value
            self._warn_at = float("-inf")
            _log.info(
                "{path}: renewed: {what}; sessions that last keep what they began with",
                path=self.paths[0],
                what=content.description,
            )
        elif had_complaint:
            _log.info("{path}: in order again: {what}", path=self.paths[0], what=content.description)

    def _complain(self, error: OSError | ConfigurationError) -> None:
        if isinstance(error, PermissionError):
            what = (
                f"{error.filename}: user {os.geteuid()} may not read it: what is in use stays, and nothing renewed is "
                "taken until that user may read the file and search its directories"
            )
        elif isinstance(error, OSError):
            what = f"{error.filename}: {error.strerror}: what is in use stays until it can be read"
        else:
            what = f"{error}: what is in use stays, and the files are read again when they change"
        if what != self._complaint:
            self._complaint = what
            _log.warn("{what}", what=what)

    def _warn(self, now: float) -> None:
        if now < self._warn_at:
            return
        warning = self.content.warning(now)
        if warning is not None:
            self._warn_at = now + WARNING_INTERVAL
            _log.warn("{path}: the certificate {warning}", path=self.paths[0], warning=warning)

    def _stamps(self) -> list[object]:
        """Differs when a file was written, replaced, or made readable."""
        stamps: list[object] = []
        for path in self.paths:
            try:
                found = os.stat(path)
            except OSError as error:
                stamps.append(error.errno)
            else:
                stamps.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        return stamps


class Certificates:
    """All files of one relay. It looks at them again between `start` and `stop`; without that it reads them once."""

    def __init__(self) -> None:
        self._watched: dict[tuple[Path, ...], _Watched] = {}
        self._clock: IReactorTime | None = None
        self._call: IDelayedCall | None = None

    def pair(
        self, certificate: Path, key: Path, make: Callable[[Pair], Made], chain: Path | None = None
    ) -> Current[Made]:
        """What `make` makes of a certificate and its key, now and whenever they are renewed.

        `certificate` may hold more of them behind our own, and `chain` yet others; `key` may be the same file. Raises
        ConfigurationError, as `make` may: then the new files are not taken.
        """
        paths = [_absolute(path) for path in (certificate, key, chain) if path is not None]
        return self._use(paths, lambda: read_pair(*paths), make)

    def authorities(self, path: Path, make: Callable[[Authorities], Made]) -> Current[Made]:
        """The same for a file of certificates to be believed."""
        paths = [_absolute(path)]
        return self._use(paths, lambda: read_authorities(*paths), make)

    def start(self, clock: IReactorTime) -> None:
        """From now on look, on a clock that counts seconds since 1970; says what can no longer be read from here."""
        self._clock = clock
        for watched in self._watched.values():
            watched.check_access()
        self.look()

    def look(self) -> None:
        """Look at all files and, unlike the timer, take what changed at once."""
        self._look(at_once=True)

    def stop(self) -> None:
        """Look no more. Idempotent."""
        self._clock = None
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def expiries(self) -> dict[Path, float]:
        """When each certificate that is shown expires, in seconds since 1970, by its file."""
        return {
            watched.paths[0]: watched.content.expires
            for watched in self._watched.values()
            if isinstance(watched.content, Pair)
        }

    def _use(self, paths: Sequence[Path], read: Callable[[], Any], make: Callable[[Any], Made]) -> Current[Made]:
        found = self._watched.get(tuple(paths))
        if found is None:
            try:
                found = _Watched(paths, read)
            except OSError as error:
                raise ConfigurationError(
                    f"{error.filename}: {error.strerror}; check the path and its permissions"
                ) from error
        current = found.use(make)
        self._watched[tuple(paths)] = found
        self._look_later()
        return current

    def _look(self, at_once: bool = False) -> None:
        if self._clock is None:
            return
        now = self._clock.seconds()
        for watched in self._watched.values():
            try:
                watched.look(now, at_once)
            except Exception:
                _log.failure("could not look at {path}", path=watched.paths[0])
        self._look_later()

    def _look_later(self) -> None:
        if self._clock is not None and self._watched and self._call is None:
            self._call = self._clock.callLater(LOOK_INTERVAL, self._is_time)

    def _is_time(self) -> None:
        self._call = None
        self._look()


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # a daemon changes its directory


def _made(make: Callable[[Any], Made], content: Content, paths: Sequence[Path]) -> Made:
    try:
        return make(content)
    except SSL.Error as error:  # a list of (library, function, reason)
        said = ", ".join(str(each[-1]) for each in error.args[0]) if error.args else "no reason given"
        raise ConfigurationError(f"{paths[0]}: OpenSSL refuses it: {said}") from None
