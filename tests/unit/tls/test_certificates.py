"""Promises about renewed certificates, on a simulated clock: what is taken, when, and what the log says."""

from __future__ import annotations

import datetime
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent

from relayd.errors import ConfigurationError
from relayd.tls import pem as pem_module
from relayd.tls.certificates import LOOK_INTERVAL, WARNING_INTERVAL, Certificates, Current
from relayd.tls.pem import MAX_FILE, WARNING_TIME, Pair
from tests.support.certificate import Certificate, make_certificate, replace_certificate, serial_number
from tests.support.chain import make_chain

DAY = 86_400.0


def serial_of(pair: Pair) -> int:
    return pair.certificates[0].serial_number


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


class Bench:
    """One pair in `directory`, of which somebody takes the serial number, and a clock."""

    def __init__(self, directory: Path, events: Sequence[LogEvent], lasts: float = 90 * DAY) -> None:
        self.files = make_certificate(directory, datetime.timedelta(seconds=lasts))
        self.clock = Clock()
        self.certificates = Certificates()
        self.current = self.use(serial_of)
        self._next = directory / "next"
        self._events = events
        self._read = 0

    def use(self, make: Callable[[Pair], Any]) -> Current[Any]:
        return self.certificates.pair(self.files.certificate, self.files.key, make)

    def renew(self) -> int:
        return serial_number(replace_certificate(self.files, self._next))

    def other(self) -> Certificate:
        """Files that could be put in place of ours."""
        self._next.mkdir(exist_ok=True)
        return make_certificate(self._next)

    def looks(self, count: int) -> None:
        for _ in range(count):
            self.clock.advance(LOOK_INTERVAL)

    def said(self) -> list[str]:
        """The lines of the log since the last time."""
        lines = [str(formatEvent(event)) for event in self._events]
        new, self._read = lines[self._read :], len(lines)
        return new


@pytest.fixture
def events() -> Iterator[Sequence[LogEvent]]:
    with capturedLogs() as captured:
        yield captured


@pytest.fixture
def bench(tmp_path: Path, events: Sequence[LogEvent]) -> Iterator[Bench]:
    made = Bench(tmp_path, events)
    made.certificates.start(made.clock)
    yield made
    made.certificates.stop()
    assert made.clock.getDelayedCalls() == []


def test_a_renewed_pair_is_taken(bench: Bench) -> None:
    """Within two looks, and the log says in one line which it is, and nothing of the key."""
    before = bench.current.value
    serial = bench.renew()
    bench.looks(1)
    assert bench.current.value == before
    bench.looks(1)
    assert bench.current.value == serial
    bench.looks(10)
    (line,) = bench.said()
    assert line.startswith(f"{bench.files.certificate}: renewed: CN=localhost, serial number {serial:x}, until 20")
    assert "PRIVATE" not in line


def test_half_of_a_pair(bench: Bench) -> None:
    """A certificate whose key is yet to come changes nothing; that is said once, and the key is all that is missing."""
    before, other = bench.current.value, bench.other()
    os.replace(other.certificate, bench.files.certificate)
    bench.looks(10)
    assert bench.current.value == before
    (line,) = bench.said()
    assert line.startswith(f"{bench.files.key}: the private key does not belong to the certificate")
    assert "what is in use stays" in line
    os.replace(other.key, bench.files.key)
    bench.looks(2)
    assert bench.current.value == serial_number(bench.files) != before
    (line,) = bench.said()
    assert ": renewed: " in line


def test_a_pair_that_is_replaced_between_two_looks_is_never_torn(bench: Bench) -> None:
    """Files that change from look to look are left alone, without a word, until they are the same for two."""
    before = bench.current.value
    for _ in range(3):
        other = bench.other()
        os.replace(other.certificate, bench.files.certificate)
        bench.looks(1)
        os.replace(other.key, bench.files.key)
        bench.looks(1)
        assert bench.current.value == before
    assert bench.said() == []
    bench.looks(1)
    assert bench.current.value == serial_number(bench.files)


@pytest.mark.parametrize(
    ("part", "spoil", "words"),
    [
        ("certificate", lambda path: path.write_bytes(b""), "no certificate in PEM format"),
        ("certificate", lambda path: path.write_bytes(b"\xff" * 5000), "no certificate in PEM format"),
        ("certificate", lambda path: os.truncate(path, 300), "no certificate in PEM format"),
        ("certificate", lambda path: path.write_bytes(path.read_bytes() * 2 + path.read_bytes()[:99]), "is not whole"),
        ("certificate", lambda path: path.write_bytes(b"x" * (MAX_FILE + 1)), "larger than"),
        ("certificate", lambda path: path.unlink(), "No such file"),
        ("key", lambda path: path.write_bytes(b""), "no private key in PEM format"),
        ("key", lambda path: os.truncate(path, 100), "no private key in PEM format"),
        ("key", lambda path: path.unlink(), "No such file"),
        ("key", make_directory, "Is a directory"),
        ("key", make_pipe, "is no file"),
    ],
)
def test_files_that_are_of_no_use(part: str, spoil: Callable[[Path], Any], words: str, bench: Bench) -> None:
    """They change nothing, however often they are looked at; the log names the file once; whole ones are taken."""
    before = bench.current.value
    bench.renew()
    path: Path = getattr(bench.files, part)
    spoil(path)
    bench.looks(10)
    assert bench.current.value == before
    (line,) = bench.said()
    assert line.startswith(f"{path}: ")
    assert words in line
    if path.is_dir():
        path.rmdir()
    serial = bench.renew()
    bench.looks(2)
    assert bench.current.value == serial


def test_an_encrypted_key(bench: Bench) -> None:
    """It is refused with a word about it; nobody is asked for its password."""
    key: Any = serialization.load_pem_private_key(bench.files.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"password")
    bench.files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    bench.looks(2)
    (line,) = bench.said()
    assert line.startswith(f"{bench.files.key}: the private key is encrypted")


def test_the_same_again(bench: Bench) -> None:
    """Files that were written anew with what they held are no news, and what was made of them stays."""
    made: list[Pair] = []
    bench.use(made.append)
    bench.files.certificate.write_bytes(bench.files.certificate.read_bytes())
    bench.looks(3)
    assert bench.said() == []
    assert len(made) == 1


def test_put_back(bench: Bench) -> None:
    """When what was wrong is undone the log says that, too."""
    content = bench.files.certificate.read_bytes()
    bench.files.certificate.write_bytes(b"")
    bench.looks(3)
    bench.said()
    bench.files.certificate.write_bytes(content)
    bench.looks(3)
    (line,) = bench.said()
    assert ": in order again: CN=localhost" in line


def test_who_cannot_use_it_keeps_all_from_taking_it(bench: Bench) -> None:
    """What one listener's OpenSSL refuses none takes: they show the same certificate, and the log says why."""
    serials = [bench.current.value]

    def make(pair: Pair) -> int:
        if serial_of(pair) not in serials:
            raise SSL.Error([("SSL routines", "", "ee key too small")])
        return serial_of(pair)

    strict = bench.use(make)
    bench.renew()
    bench.looks(3)
    assert [bench.current.value, strict.value] == serials * 2
    (line,) = bench.said()
    assert line.startswith(f"{bench.files.certificate}: OpenSSL refuses it: ee key too small")
    serials.append(bench.renew())
    bench.looks(3)
    assert [bench.current.value, strict.value] == serials[1:] * 2
    assert len(bench.said()) == 1, "once for each file, however many listeners show it"


def test_a_mistake_of_ours_is_logged_once_and_harms_no_other_files(bench: Bench, tmp_path: Path) -> None:
    """An exception ends neither the looking nor the renewal of other certificates."""
    (tmp_path / "b").mkdir()
    second = make_certificate(tmp_path / "b")
    current = bench.certificates.pair(second.certificate, second.key, serial_of)

    def make(pair: Pair) -> int:
        if serial_of(pair) != bench.current.value:
            raise ZeroDivisionError
        return 0

    bench.use(make)
    bench.renew()
    renewed = serial_number(replace_certificate(second, tmp_path / "next"))
    bench.looks(10)
    assert current.value == renewed
    assert len([line for line in bench.said() if "could not look" in line]) == 1


def test_at_once(bench: Bench) -> None:
    """Who asks for it waits for no timer."""
    serial = bench.renew()
    bench.certificates.look()
    assert bench.current.value == serial


@pytest.mark.parametrize("linked", ["files", "directory"])
def test_symbolic_links(linked: str, tmp_path: Path) -> None:
    """A link that comes to lead elsewhere is a change, be it one for each file or one for all of them."""
    versions = [tmp_path / name for name in ("1", "2")]
    for directory in versions:
        directory.mkdir()
    old, new = map(make_certificate, versions)
    live = tmp_path / "live"
    names = [old.certificate.name, old.key.name]
    if linked == "directory":
        live.symlink_to(versions[0])
    else:
        live.mkdir()
        for name in names:
            (live / name).symlink_to(versions[0] / name)
    certificates, clock = Certificates(), Clock()
    current = certificates.pair(live / names[0], live / names[1], serial_of)
    certificates.start(clock)
    links = [live] if linked == "directory" else [live / name for name in names]
    for link in links:
        link.unlink()
        link.symlink_to(versions[1] if linked == "directory" else versions[1] / link.name)
    clock.pump([LOOK_INTERVAL] * 2)
    certificates.stop()
    assert current.value == serial_number(new) != serial_number(old)


def test_key_chain_and_certificates(tmp_path: Path) -> None:
    """What stands behind our own certificate, or in a file of its own, goes with it, once; a key may be beside it."""
    chain = make_chain(tmp_path)
    everything = tmp_path / "all.pem"
    everything.write_bytes(chain.key.read_bytes() + chain.full.read_bytes())
    certificates = Certificates()
    for found in (
        certificates.pair(chain.full, chain.key, lambda pair: pair),
        certificates.pair(chain.leaf, chain.key, lambda pair: pair, chain.intermediate),
        certificates.pair(chain.full, chain.key, lambda pair: pair, chain.intermediate),
        certificates.pair(everything, everything, lambda pair: pair),
    ):
        assert found.value.certificates_pem == chain.full.read_bytes()


def test_a_chain_is_renewed(tmp_path: Path) -> None:
    """An intermediate certificate that changes alone is taken as well."""
    first, second = tmp_path / "a", tmp_path / "b"
    for directory in (first, second):
        directory.mkdir()
    chain, other = make_chain(first), make_chain(second)
    certificates, clock = Certificates(), Clock()
    current = certificates.pair(chain.leaf, chain.key, lambda pair: pair, chain.intermediate)
    certificates.start(clock)
    os.replace(other.intermediate, chain.intermediate)
    certificates.look()
    certificates.stop()
    assert current.value.certificates_pem == chain.leaf.read_bytes() + chain.intermediate.read_bytes()


def test_authorities_are_renewed(bench: Bench, tmp_path: Path) -> None:
    """Whom to believe is looked at in the same way, and nobody is warned of old ones in a long list."""
    first, second = tmp_path / "a", tmp_path / "b"
    for directory in (first, second):
        directory.mkdir()
    chain, other = make_chain(first), make_chain(second)
    current = bench.certificates.authorities(chain.root, lambda authorities: authorities.certificates)
    before = current.value
    os.replace(other.root, chain.root)
    bench.looks(2)
    assert current.value != before
    assert bench.said() == [f"{chain.root}: renewed: 1 authorities; sessions that last keep what they began with"]
    bench.clock.advance(2 * bench.certificates.expiries()[bench.files.certificate])
    assert len([line for line in bench.said() if "expired" in line]) == 1


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has files fail to open with an error number, or (0) open again."""

    def forbid(number: int) -> None:
        def refuse(path: Any, *arguments: Any, **keywords: Any) -> Any:
            if number:
                raise OSError(number, os.strerror(number), str(path))
            return open(path, *arguments, **keywords)

        monkeypatch.setattr(pem_module, "open", refuse, raising=False)

    return forbid


def test_privileges_that_are_gone(tmp_path: Path, events: Sequence[LogEvent], forbid: Callable[[int], None]) -> None:
    """What only root could read is complained of at the start, once, with what to do; later it is taken."""
    bench = Bench(tmp_path, events)
    forbid(errno.EACCES)
    bench.certificates.start(bench.clock)
    bench.looks(10)
    serial = bench.renew()
    bench.looks(10)
    (line,) = bench.said()
    assert line.startswith(f"{bench.files.certificate}: user {os.geteuid()} may not read it: what is in use stays")
    forbid(0)
    bench.looks(2)
    assert bench.current.value == serial
    assert [": renewed: " in line for line in bench.said()] == [True]
    bench.certificates.stop()


def test_without_descriptors(bench: Bench, forbid: Callable[[int], None]) -> None:
    """What fails for a reason that passes is tried again, though the files do not change any more."""
    serial = bench.renew()
    forbid(errno.EMFILE)
    bench.looks(5)
    forbid(0)
    bench.looks(1)
    assert bench.current.value == serial
    assert len(bench.said()) == 2


def test_a_warning_before_the_end(bench: Bench) -> None:
    """From two weeks before the end there is a line a day, and then one a day that says it is over."""
    expires = bench.certificates.expiries()[bench.files.certificate]
    bench.clock.advance(expires - WARNING_TIME - 2 * LOOK_INTERVAL)
    assert bench.said() == []
    bench.looks(100)
    bench.clock.advance(DAY)
    first, second = bench.said()
    assert first.startswith(f"{bench.files.certificate}: the certificate expires at 20")
    assert first.endswith(": renew it")
    assert second == first
    bench.clock.advance(WARNING_TIME - DAY)
    bench.clock.advance(WARNING_INTERVAL)
    assert [" expired at 20" in line for line in bench.said()] == [True, True]


def test_a_warning_at_the_start(tmp_path: Path, events: Sequence[LogEvent]) -> None:
    """A relay that is started with such a certificate says so at once, and looks forward to another one."""
    bench = Bench(tmp_path, events)
    bench.clock.advance(bench.certificates.expiries()[bench.files.certificate] + 1)
    bench.certificates.start(bench.clock)
    (line,) = bench.said()
    assert "expired" in line
    bench.renew()
    bench.looks(2)
    renewed, warned = bench.said()
    assert ": renewed: " in renewed
    assert "expired" in warned, "the new one is of no more use on this clock"
    bench.certificates.stop()


def test_a_certificate_for_days_is_no_cause_for_alarm(tmp_path: Path, events: Sequence[LogEvent]) -> None:
    """One that lasts six days is warned of when a third of that is left, not from its first day on."""
    bench = Bench(tmp_path, events, lasts=6 * DAY)
    expires = bench.certificates.expiries()[bench.files.certificate]
    bench.clock.advance(expires - 2.1 * DAY)
    bench.certificates.start(bench.clock)
    assert bench.said() == []
    bench.clock.advance(DAY)
    assert ["expires" in line for line in bench.said()] == [True]
    bench.certificates.stop()


def test_a_relay_without_certificates_has_no_timer() -> None:
    """Nothing is looked at where there is nothing to look at; what opens late is looked at all the same."""
    certificates, clock = Certificates(), Clock()
    certificates.start(clock)
    assert clock.getDelayedCalls() == []
    certificates.stop()
    certificates.stop()


def test_what_opens_late(tmp_path: Path) -> None:
    """A listener that opens after the start has its certificate renewed as the others."""
    files = make_certificate(tmp_path)
    certificates, clock = Certificates(), Clock()
    certificates.start(clock)
    current = certificates.pair(files.certificate, files.key, serial_of)
    serial = serial_number(replace_certificate(files, tmp_path / "next"))
    clock.pump([LOOK_INTERVAL] * 2)
    assert current.value == serial
    certificates.stop()


def test_a_daemon_changes_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is the file that it was at the start."""
    files = make_certificate(tmp_path)
    certificates, clock = Certificates(), Clock()
    monkeypatch.chdir(tmp_path)
    current = certificates.pair(Path(files.certificate.name), Path(files.key.name), serial_of)
    monkeypatch.chdir("/")
    certificates.start(clock)
    serial = serial_number(replace_certificate(files, tmp_path / "next"))
    certificates.look()
    certificates.stop()
    assert current.value == serial


def test_what_cannot_be_used_at_the_start(tmp_path: Path) -> None:
    """That is an error of one line, and what could not be opened is not looked at afterwards."""
    certificates = Certificates()
    with pytest.raises(ConfigurationError, match=r"none\.pem: No such file or directory; check the path"):
        certificates.pair(tmp_path / "none.pem", tmp_path / "none.pem", serial_of)
    clock = Clock()
    certificates.start(clock)
    assert clock.getDelayedCalls() == []
