"""The command line and the TOML file: what they accept, and the one line with which they refuse."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from relayd.address import TransportAddress
from relayd.auth.user_table import UserTable
from relayd.config import RelayAddress
from relayd.tap import Options
from relayd.turn.peer_rules import parse_cidr


def parse(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(list(arguments))
    return options


def refusal(*arguments: str) -> str:
    """The line on standard error with which these options are refused."""
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    message = stopped.value.code
    assert isinstance(message, str), "a text as exit code is what Python prints on standard error, with status 1"
    assert "\n" not in message
    assert message.startswith("relayd: ")
    return message


def test_no_options_are_enough() -> None:
    """Everything has a default."""
    options = parse()
    assert options.settings.listen == ()
    assert options.settings.realm == "relayd"
    assert options.checkers == []


def test_every_option_is_read() -> None:
    """Each option ends up in its field, repeatable ones in the order given."""
    settings = parse(
        *("--listen", "turn=udp:3478:interface=192.0.2.1", "--listen", "turn=tcp:3478"),
        *("--realm", "example.org", "--relay-address", "10.0.0.5=203.0.113.7", "--relay-address", "2001:db8::5"),
        *("--relay-ports", "50000-50099", "--allow-peer", "10.0.0.0/8", "--deny-peer", "192.0.2.7"),
        *("--user-quota", "5", "--total-quota", "0", "--max-bandwidth", "125000"),
        *("--default-lifetime", "700", "--max-lifetime", "7200"),
        *("--max-connections", "50", "--max-connections-per-source", "5", "--trust-proxy", "10.0.0.9"),
        *("--status-from", "10.0.0.0/8", "--status-from", "::1"),
        *("--web-origin", "https://App.example.org:443", "--web-origin", "http://[::1]:8080"),
        *("--policy", "redirect:192.0.2.9", "--observe", "json:-"),
        *("--data-plane", "portable", "--log-format", "json"),
    ).settings
    assert settings.listen == (("turn", "udp:3478:interface=192.0.2.1"), ("turn", "tcp:3478"))
    assert settings.realm == "example.org"
    assert settings.relay_address == (
        RelayAddress(TransportAddress.parse("10.0.0.5", 0), TransportAddress.parse("203.0.113.7", 0)),
        RelayAddress(TransportAddress.parse("2001:db8::5", 0), TransportAddress.parse("2001:db8::5", 0)),
    )
    assert settings.relay_ports == (50000, 50099)
    assert settings.allow_peer == (parse_cidr("10.0.0.0/8"),)
    assert settings.deny_peer == (parse_cidr("192.0.2.7"),)
    assert (settings.user_quota, settings.total_quota, settings.max_bandwidth) == (5, 0, 125000)
    assert (settings.default_lifetime, settings.max_lifetime) == (700, 7200)
    assert (settings.max_connections, settings.max_connections_per_source) == (50, 5)
    assert settings.trust_proxy == (parse_cidr("10.0.0.9"),)
    assert settings.status_from == (parse_cidr("10.0.0.0/8"), parse_cidr("::1"))
    assert settings.web_origin == ("https://app.example.org", "http://[::1]:8080")
    assert settings.policy == (("redirect", "192.0.2.9"),)
    assert settings.observe == (("json", "-"),)
    assert (settings.data_plane, settings.log_format) == ("portable", "json")


def test_trust_proxy_none() -> None:
    """Proxies on this host are trusted unless others are named, or nobody."""
    assert parse().settings.trust_proxy == (parse_cidr("127.0.0.0/8"), parse_cidr("::1"))
    assert parse("--trust-proxy", "none").settings.trust_proxy == ()


def test_status_from_none() -> None:
    """The pages for the operator are for this host by default, and can be for nobody."""
    assert parse().settings.status_from == (parse_cidr("127.0.0.0/8"), parse_cidr("::1"))
    assert parse("--status-from", "none").settings.status_from == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lisen", "x"], ["--lisen", "did you mean listen?"]),
        (["stray"], ["'stray'", "--help"]),
        (["--realm"], ["--realm", "argument"]),
        (["--listen", "udp:3478"], ["--listen udp:3478", "KIND=ENDPOINT"]),
        (["--listen", "tcp:3478:interface=127.0.0.1"], ["KIND=ENDPOINT"]),
        (["--status-from", "everybody"], ["--status-from everybody", "192.0.2.0/24"]),
        (["--status-from", "none", "--status-from", "10.0.0.0/8"], ["--status-from none", "alone"]),
        (["--trust-proxy", "none", "--trust-proxy", "10.0.0.0/8"], ["--trust-proxy none", "alone"]),
        (["--trust-proxy", "nginx"], ["--trust-proxy nginx", "192.0.2.0/24"]),
        (["--web-origin", "app.example.org"], ["--web-origin app.example.org", "not an origin", "https://"]),
        (["--web-origin", "https://app.example.org/page"], ["not an origin"]),
        (["--web-origin", "null"], ["not an origin"]),
        (["--relay-address", "relay.example.org"], ["--relay-address relay.example.org", "not an IP address"]),
        (["--relay-address", "10.0.0.1=2001:db8::1"], ["one family"]),
        (["--relay-address", "0.0.0.0"], ["every address"]),
        (["--relay-ports", "5-1"], ["--relay-ports 5-1", "49152-65535"]),
        (["--relay-ports", "2000-1999"], ["--relay-ports 2000-1999", "LO-HI"]),
        (["--relay-ports", "50000-70000"], ["--relay-ports 50000-70000", "LO-HI"]),
        (["--allow-peer", "10.0.0.0/33"], ["--allow-peer 10.0.0.0/33"]),
        (["--deny-peer", "10.0.0.1/8"], ["--deny-peer 10.0.0.1/8"]),
        (["--user-quota", "-1"], ["--user-quota -1", "allocations"]),
        (["--total-quota", "many"], ["--total-quota many"]),
        (["--max-bandwidth", "1.5"], ["--max-bandwidth 1.5", "bytes a second"]),
        (["--max-bandwidth", "٣"], ["--max-bandwidth"]),
        (["--default-lifetime", "0"], ["--default-lifetime 0", "from 1 up"]),
        (["--default-lifetime", "4000"], ["--default-lifetime 4000", "--max-lifetime 3600"]),
        (["--log-format", "xml"], ["--log-format xml", "human, json"]),
        (["--realm", ""], ["--realm"]),
        (["--realm", "a\nb"], ["--realm"]),
        (["--config", "/nonexistent/relayd.toml"], ["/nonexistent/relayd.toml", "No such file"]),
        (["--auth", "sqlit:/x"], ["--auth sqlit", "did you mean sqlite?"]),
        (["--auth", "unix"], ["--auth unix", "--help-auth"]),
        (["--auth", "file:/nonexistent/users"], ["--auth file:/nonexistent/users", "No such file"]),
    ],
)
def test_bad_option_is_refused_in_one_line(arguments: list[str], words: list[str]) -> None:
    """Whatever is wrong, the line names the option, what was written, and what to do."""
    message = refusal(*arguments)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "description", ["memory:alice:s3cret:bob", "secret:s3cret", "nosuch:s3cret", "anonymous:s3cret"]
)
def test_refused_auth_keeps_its_secret(description: str) -> None:
    """What follows the type of an --auth may be a password, so no error repeats it."""
    assert "s3cret" not in refusal("--auth", description)


def test_auth_is_repeatable() -> None:
    """Several user databases may be given, Twisted's own among them."""
    assert len(parse("--auth", "memory:alice:x", "--auth", "memory:bob:y").checkers) == 2


class TestConfigFile:
    """`--config`: the same names, read by the same readers."""

    def write(self, directory: Path, text: str) -> str:
        path = directory / "relayd.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def test_same_names(self, tmp_path: Path) -> None:
        """A file says the same as flags do; lists stand for repeated ones, and one text for a list of one."""
        path = self.write(
            tmp_path,
            'listen = ["turn=udp:3478", "turn=tcp:3478"]\nrealm = "example.org"\nuser-quota = 7\n'
            'allow-peer = "10.0.0.0/8"\nauth = ["memory:alice:x"]\n',
        )
        options = parse("--config", path)
        assert (
            options.settings
            == parse(
                *("--listen", "turn=udp:3478", "--listen", "turn=tcp:3478", "--realm", "example.org"),
                *("--user-quota", "7", "--allow-peer", "10.0.0.0/8"),
            ).settings
        )
        assert len(options.checkers) == 1

    def test_flag_wins(self, tmp_path: Path) -> None:
        """What is given as a flag replaces what the file says, lists as a whole; the rest of the file holds."""
        path = self.write(
            tmp_path, 'listen = ["turn=udp:1"]\nrealm = "a"\nuser-quota = 7\nauth = ["memory:a:b", "memory:c:d"]\n'
        )
        options = parse("--config", path, "--listen", "turn=tcp:2", "--realm", "b", "--auth", "memory:e:f")
        assert options.settings.listen == (("turn", "tcp:2"),)
        assert options.settings.realm == "b"
        assert options.settings.user_quota == 7
        assert len(options.checkers) == 1

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('relm = "x"', ["'relm'", "did you mean realm?"]),
            ('config = "x"', ["'config'"]),
            ('[listen]\nx = "y"', ["listen", "list of texts"]),
            ("realm = 5", ["realm", "one text in quotes"]),
            ('realm = {name = "x"}', ["realm", "one text in quotes"]),
            ("data-plane = 1979-05-27", ["data-plane", "one text in quotes"]),
            ("relay-ports = 50000", ["relay-ports", "one text in quotes"]),
            ("policy = 5", ["policy", "list of texts"]),
            ('allow-peer = ["10.0.0.0/8", 10]', ["allow-peer", "list of texts"]),
            ('auth = ["memory:alice:s3cret", 5]', ["auth", "list of texts"]),
            ('user-quota = "7"', ["user-quota", "whole number"]),
            ("user-quota = [7]", ["user-quota", "whole number"]),
            ("realm = x", ["not TOML", "line 1"]),
            ("user-quota = true", ["user-quota", "whole number"]),
            ("user-quota = 1.5", ["user-quota", "whole number"]),
            ('realm = ["a", "b"]', ["realm", "one text"]),
            ("user-quota = -1", ["--user-quota -1"]),
            ('relay-ports = "9-1"', ["--relay-ports 9-1"]),
            ('auth = ["nosuch:s3cret"]', ["--auth nosuch"]),
        ],
    )
    def test_bad_file_is_refused_in_one_line(self, tmp_path: Path, text: str, words: list[str]) -> None:
        """The line names the file, the key, and what to do; a value is never shown where it may be a secret."""
        path = self.write(tmp_path, text)
        message = refusal("--config", path)
        for word in [path, *words]:
            assert word in message
        assert "s3cret" not in message

    @pytest.mark.parametrize("auth", ["secret:s3cret", "sqlite:/nonexistent/users", "file:/nonexistent/users"])
    def test_bad_auth_in_the_file(self, tmp_path: Path, auth: str) -> None:
        """A user database that is not one is complained of with the name of the file that asks for it."""
        file = tmp_path / "relayd.toml"
        file.write_text(f'auth = ["{auth}"]\n', encoding="utf-8")
        message = refusal("--config", str(file))
        assert str(file) in message
        assert "s3cret" not in message

    def test_binary_file(self, tmp_path: Path) -> None:
        """A file that is no text at all is refused like any other."""
        path = tmp_path / "relayd.toml"
        path.write_bytes(b"\xff\xfe\x00")
        assert "not TOML" in refusal("--config", str(path))

    @pytest.mark.parametrize(
        "example", sorted((Path(__file__).parents[3] / "etc").glob("*.toml")), ids=lambda path: str(path.name)
    )
    def test_examples_are_read(self, example: Path, tmp_path: Path) -> None:
        """Every example in etc/ is a configuration that works, once its secrets are where it says."""
        (tmp_path / "turn-secrets").write_text("0123456789abcdef\n", encoding="utf-8")
        UserTable.create(tmp_path / "users.sqlite").close()
        text = example.read_text(encoding="utf-8").replace("/etc/relayd/", f"{tmp_path}/")
        options = parse("--config", self.write(tmp_path, text))
        assert options.settings.listen
        assert options.checkers


@pytest.mark.parametrize(
    "option", ["--help-listen", "--help-policy", "--help-observe", "--help-peers", "--help-data-plane"]
)
def test_help_lists_kinds(option: str) -> None:
    """Each list names at least one kind, with its arguments and its help, and ends with status 0."""
    options = Options()
    options.authOutput = io.StringIO()
    with pytest.raises(SystemExit) as stopped:
        options.parseOptions([option])
    assert stopped.value.code == 0
    text = options.authOutput.getvalue()
    assert text.startswith("Usage: ")
    assert len(text.splitlines()) > 3


def test_help_is_the_manual(capsys: pytest.CaptureFixture[str]) -> None:
    """--help tells of every option."""
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in Options().longOpt:
        assert f"--{name}" in text
