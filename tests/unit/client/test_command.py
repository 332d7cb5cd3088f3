"""`relayd-client`: what its arguments stand for, the rows it prints, and one line for each fault of its user."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from relayd.address import TransportAddress
from relayd.client import command, ways
from relayd.client.ping import Outcome
from relayd.client.transports.uri import TurnUri
from relayd.errors import ConfigurationError

URI = TurnUri.parse("turn:192.0.2.1?transport=tcp")


@pytest.mark.parametrize(
    ("server", "uris"),
    [
        (
            "example.org",
            [
                "turn:example.org:3478?transport=udp",
                "turns:example.org:5349?transport=udp",
                "turn:example.org:3478?transport=tcp",
                "turns:example.org:5349?transport=tcp",
                "wss://example.org/turn",
            ],
        ),
        (
            "[::1]:8443",
            [
                "turn:[::1]:8443?transport=udp",
                "turns:[::1]:8443?transport=udp",
                "turn:[::1]:8443?transport=tcp",
                "turns:[::1]:8443?transport=tcp",
                "wss://[::1]:8443/turn",
            ],
        ),
        ("turn:example.org:1", ["turn:example.org:1?transport=udp", "turn:example.org:1?transport=tcp"]),
        ("turn:example.org?transport=udp", ["turn:example.org:3478?transport=udp"]),
        ("turns:example.org", ["turns:example.org:5349?transport=tcp"]),
        ("turns:[::1]:443", ["turns:[::1]:443?transport=tcp"]),
        ("ws://example.org", ["ws://example.org/turn"]),
        ("wss://example.org:8443/", ["wss://example.org:8443/"]),
    ],
)
def test_ways(server: str, uris: list[str]) -> None:
    """A host stands for every way that is spoken, a URI without a transport for both, any other for itself."""
    assert [str(uri) for uri in ways.ways_to(server)] == uris


@pytest.mark.parametrize(
    ("server", "kinds"),
    [
        ("example.org", ["tcp", "tls", "wss"]),
        ("turn:example.org", ["tcp"]),
        ("turn:example.org?transport=udp", ["udp"]),
        ("wss://example.org", ["wss"]),
    ],
)
def test_ways_through_a_proxy(server: str, kinds: list[str]) -> None:
    """Through a proxy the ways that one carries are left; who asks for UDP alone is to hear that it cannot work."""
    assert [uri.app_connection.value for uri in ways.ways_to(server, through_proxy=True)] == kinds


def test_rows() -> None:
    """A row has the times in milliseconds, or what went wrong."""
    good = Outcome(URI, 0.0012, 0.02, TransportAddress.parse("192.0.2.9", 50_000), [0.001, 0.003])
    assert command.describe(good).split() == [
        *("tcp", "turn:192.0.2.1:3478?transport=tcp", "1.2", "ms", "20.0", "ms", "1.0/2.0/3.0", "ms", "192.0.2.9:50000")
    ]
    bad = Outcome(URI, error="401 Unauthorized: check the user name and the password")
    assert command.describe(bad).endswith("failed: 401 Unauthorized: check the user name and the password")


@pytest.mark.parametrize(
    ("arguments", "stdin", "word"),
    [
        (["turn:alice:sesame@example.org"], "sesame\n", "neither user nor password"),
        (["http://example.org"], "sesame\n", "no TURN URI"),
        (["example.org:0"], "sesame\n", "0 is not a port"),
        (["[::1"], "sesame\n", "no TURN URI"),
        (["example.org", "--proxy", "https://proxy"], "sesame\n", "--proxy: only proxies that speak HTTP"),
        (["example.org", "--proxy", "http://me:sesame@proxy"], "sesame\n", "would be in the process list"),
        (["example.org", "--proxy", "http://m%3Ae@proxy"], "sesame\n", "a colon in the name"),
        (["example.org", "--proxy", "http://me@proxy"], "sesame\nsesame\x01\n", "control characters"),
        (["example.org"], "", "the password is empty"),
        (["example.org", "--ca", "/nonexistent.pem"], "sesame\n", "--ca /nonexistent.pem"),
        (["example.org", "--user", "\x00"], "sesame\n", "--user is empty"),
    ],
)
def test_faults(
    arguments: list[str],
    stdin: str,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the user got wrong is one line on stderr, without any secret, and exit status 1."""
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    monkeypatch.delenv(ways.PASSWORD_VARIABLE, raising=False)
    monkeypatch.delenv(ways.PROXY_PASSWORD_VARIABLE, raising=False)
    user = [] if "--user" in arguments else ["--user", "alice"]
    assert command.main(["ping", *user, *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert word in captured.err
    assert "sesame" not in captured.err


def test_nobody_is_asked_in_vain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A proxy in the environment that cannot be used is told before a password is asked for."""
    monkeypatch.setattr("sys.stdin", None)  # nothing can be read
    monkeypatch.setenv("https_proxy", "socks5://proxy:1080")
    assert command.main(["ping", "--user", "alice", "wss://example.org"]) == 1
    assert "https_proxy" in capsys.readouterr().err


def test_a_file_without_certificates(tmp_path: Path) -> None:
    """A --ca file that holds no certificate is said so."""
    path = tmp_path / "empty.pem"
    path.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="no PEM certificates"):
        ways.read_trust_root(path)


@pytest.mark.parametrize(
    "arguments", [["--count", "0"], ["--count", "many"], ["--timeout", "nan"], ["--timeout", "-1"]]
)
def test_bad_numbers(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers out of range are argparse's errors, exit status 2."""
    with pytest.raises(SystemExit) as caught:
        command.main(["ping", "--user", "alice", "example.org", *arguments])
    assert caught.value.code == 2
    assert "wanted" in capsys.readouterr().err
