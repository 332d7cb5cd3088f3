"""The command `relayd-client`: `ping` shows which ways to a relay work, and how fast; `forward` lets an application use
one that knows nothing of TURN. No secret is an argument.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from getpass import getpass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.defer import Deferred
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.internet.task import deferLater, react

from relayd.address import AppConnection, Family
from relayd.client.forward import Forward
from relayd.client.forward_command import forward
from relayd.client.ping import Outcome, explain, ping
from relayd.client.turn import TurnClient
from relayd.client.uri import TurnUri
from relayd.errors import ConfigurationError, DecodeError, RelaydError
from relayd.stun.text import opaque_string

PASSWORD_VARIABLE = "RELAYD_PASSWORD"  # of the environment
MAX_ECHOES = 1000
MAX_TIMEOUT = 600.0  # seconds

Clients = Callable[[Any, tuple[Family, ...]], list[TurnClient]]

_HEADINGS = ("way", "server", "reach", "allocate", "echo min/avg/max", "relayed address")
_WIDTHS = (4, 44, 9, 9, 21, 0)  # characters; all but the last are padded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit status. 0: all ways work, or what was forwarded was stopped. 1: a way does not
    work, or a line on stderr says what is wrong. argparse itself exits 2.
    """
    options = _parser().parse_args(arguments)
    try:
        clients = _clients(options)
    except ConfigurationError as error:
        print(f"relayd-client: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        print("relayd-client: nothing done", file=sys.stderr)
        return 1
    failed: list[int] = []

    async def run(reactor: Any) -> None:
        await deferLater(reactor, 0)  # until the reactor runs, and with it what it does about signals
        failed.append(await options.run(reactor, options, clients))

    with suppress(SystemExit):  # with which react always ends
        react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
    if not failed:
        print("relayd-client: stopped before it was done", file=sys.stderr)
    return 0 if failed == [0] else 1


async def _ping(reactor: Any, options: argparse.Namespace, clients: Clients) -> int:
    families = (Family.IPV6 if options.ipv6 else Family.IPV4,)
    return await ping_all(reactor, clients(reactor, families), options.count, options.timeout)


async def _forward(reactor: Any, options: argparse.Namespace, clients: Clients) -> int:
    def say(line: str) -> None:
        print(line, flush=True)

    try:
        await forward(reactor, options.forwards, lambda families: clients(reactor, families), options.timeout, say)
    except RelaydError as error:
        print(f"relayd-client: {explain(error)}", file=sys.stderr)
        return 1
    return 0


async def ping_all(reactor: Any, clients: Sequence[TurnClient], count: int, patience: float) -> int:
    """Try one after the other, and print a row for each as soon as it is known; gives how many failed."""
    print(_row(_HEADINGS), flush=True)
    failed = 0
    for client in clients:
        outcome = await ping(reactor, client, count, patience)
        failed += outcome.error is not None
        print(describe(outcome), flush=True)
    return failed


def describe(outcome: Outcome) -> str:
    """The row of one way, or why it does not work."""
    begin = (outcome.uri.app_connection.value, str(outcome.uri))
    if outcome.error is not None or outcome.relayed is None:
        return _row((*begin, f"failed: {outcome.error}"))
    echoes = outcome.echoes
    times = "/".join(f"{1000 * value:.1f}" for value in (min(echoes), sum(echoes) / len(echoes), max(echoes)))
    return _row((*begin, _ms(outcome.reached), _ms(outcome.allocated), f"{times} ms", str(outcome.relayed)))


def _row(cells: Sequence[str]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=False)).rstrip()


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


# --- arguments ------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="relayd-client", description="Use TURN relays from the command line.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "Allocate over each way and send datagrams to the relayed address itself; print what works, with times."
    made = commands.add_parser("ping", help=text, description=text, allow_abbrev=False)
    made.set_defaults(run=_ping)
    made.add_argument(
        "servers",
        nargs="+",
        metavar="SERVER",
        help="a TURN URI, such as turns:example.org:443; one of turn: without ?transport= stands for udp and tcp, and "
        "a name alone for udp, tcp and tls",
    )
    _add_common(made)
    made.add_argument("--count", type=_count, default=5, metavar="N", help="echoes for each way; default: %(default)s")
    made.add_argument("--ipv6", action="store_true", help="ask for an IPv6 relayed address")
    text = "Listen on local UDP ports and pass on what comes to peers, through a relay, until it is stopped."
    made = commands.add_parser("forward", help=text, description=text, allow_abbrev=False)
    made.set_defaults(run=_forward)
    made.add_argument(
        "servers", nargs="+", metavar="SERVER", help="as for ping; of several ways the first one that works is used"
    )
    _add_common(made)
    made.add_argument(
        "--udp",
        dest="forwards",
        type=_forward_of,
        action="append",
        required=True,
        metavar="[ADDRESS:]PORT=PEER:PORT",
        help="a local port, on 127.0.0.1 unless there is an ADDRESS, and the peer behind it; may come several times",
    )
    made.add_argument("--tcp", type=_no_tcp, metavar="...", help="not yet: peers are reached over UDP only")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", required=True, metavar="NAME")
    parser.add_argument(
        "--password-env",
        default=PASSWORD_VARIABLE,
        metavar="NAME",
        help="the environment variable that has the password (default: %(default)s); without it the password is asked "
        "for, or read as a line from a pipe",
    )
    parser.add_argument("--ca", type=Path, metavar="FILE", help="PEM certificates to trust instead of the system's")
    parser.add_argument(
        "--timeout", type=_timeout, default=10.0, metavar="SECONDS", help="for an allocation; default: %(default)g"
    )


def _forward_of(text: str) -> Forward:
    try:
        return Forward.parse(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _no_tcp(text: str) -> str:
    raise argparse.ArgumentTypeError(
        "TCP to a peer takes a TCP allocation (RFC 6062), which does not exist here yet; --udp forwards UDP"
    )


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MAX_ECHOES):
        raise argparse.ArgumentTypeError(f"a number from 1 to {MAX_ECHOES} is wanted")
    return int(text)


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT:
        raise argparse.ArgumentTypeError(f"seconds up to {MAX_TIMEOUT:g} are wanted")
    return seconds


def _clients(options: argparse.Namespace) -> Clients:
    """What makes a client for each way, given the reactor and the families of the relayed addresses. Raises
    ConfigurationError.
    """
    uris = [uri for server in options.servers for uri in ways_to(server)]
    trust_root = None if options.ca is None else _trust_root(options.ca)
    _check("--user", options.user)
    password = os.environ.get(options.password_env)
    if password is None:
        password = _read_password()
    _check("the password", password)
    return lambda reactor, families: [
        TurnClient(reactor, uri, options.user, password, families=families, trust_root=trust_root) for uri in uris
    ]


def ways_to(server: str) -> list[TurnUri]:
    """The URIs that an argument stands for. Raises ConfigurationError."""
    if ":" not in server or server.startswith("["):
        texts = [f"turn:{server}?transport=udp", f"turn:{server}?transport=tcp", f"turns:{server}?transport=tcp"]
        return [TurnUri.parse(text) for text in texts]
    uri = TurnUri.parse(server)
    if uri.says_transport or uri.app_connection is not AppConnection.UDP:
        return [uri]
    return [uri, uri._replace(app_connection=AppConnection.TCP)]


def _trust_root(path: Path) -> Any:
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"--ca {path}: {error.strerror}; check the path and its permissions") from None
    except ValueError:
        raise ConfigurationError(
            f"--ca {path}: no PEM certificates; give a file with BEGIN CERTIFICATE in it"
        ) from None
    return trustRootFromCertificates([Certificate.loadPEM(each.public_bytes(Encoding.PEM)) for each in certificates])


def _read_password() -> str:
    if sys.stdin.isatty():
        return getpass("Password: ")
    try:
        return sys.stdin.readline().removesuffix("\n")
    except UnicodeDecodeError:
        raise ConfigurationError("the password on stdin is not UTF-8") from None


def _check(what: str, text: str) -> None:
    try:
        opaque_string(text)
    except DecodeError:
        raise ConfigurationError(f"{what} is empty, or has characters that RFC 8265 disallows") from None
