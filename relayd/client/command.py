"""The command `relayd-client`: `ping` shows which ways to a relay work, and how fast; `forward` lets an application use
one that knows nothing of TURN. No secret is an argument.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater, react

from relayd.address import Family
from relayd.client.forward.command import Wanted, forward
from relayd.client.forward.words import Forward, Welcome
from relayd.client.ping import Outcome, explain, ping
from relayd.client.turn import TurnClient
from relayd.client.ways import Clients, add_options, clients
from relayd.end_signals import heed_the_first
from relayd.errors import ConfigurationError, RelaydError

MAX_ECHOES = 1000
STAGGER = 0.05  # seconds from one way's beginning to the next one's: handshakes at once would slow each other down
MAX_TIMEOUT = 600.0  # seconds

_HEADINGS = ("way", "server", "reach", "allocate", "echo min/avg/max", "relayed address")
_WIDTHS = (4, 44, 9, 9, 21, 0)  # characters; all but the last are padded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit status. 0: a way to every server works, or what was forwarded was stopped. 1: no
    way to a server works, or a line on stderr says what is wrong. argparse itself exits 2.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is _forward and not any(_wanted(options)):
        parser.error("what is to be forwarded? Give --udp, --tcp, --tls, --accept or --accept-tls")
    try:
        make_clients = clients(options)
    except ConfigurationError as error:
        print(f"relayd-client: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        print("relayd-client: nothing done", file=sys.stderr)
        return 1
    failed: list[int] = []

    async def run(reactor: Any) -> None:
        await deferLater(reactor, 0)  # until the reactor runs, and with it what it does about signals
        heed_the_first(reactor)
        failed.append(await options.run(reactor, options, make_clients))

    with suppress(SystemExit):  # with which react always ends
        react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
    if not failed:
        print("relayd-client: stopped before it was done", file=sys.stderr)
    return 0 if failed == [0] else 1


async def _ping(reactor: Any, options: argparse.Namespace, make_clients: Clients) -> int:
    families = (Family.IPV6 if options.ipv6 else Family.IPV4,)
    return await ping_all(reactor, make_clients(reactor, families), options.count, options.timeout)


async def _forward(reactor: Any, options: argparse.Namespace, make_clients: Clients) -> int:
    def say(line: str) -> None:
        with suppress(OSError):  # nobody reads it any more, which is no reason to stop, nor not to
            print(line, flush=True)

    def ways(families: tuple[Family, ...]) -> list[TurnClient]:
        return [each for server in make_clients(reactor, families) for each in server]

    try:
        await forward(reactor, _wanted(options), ways, options.timeout, say)
    except RelaydError as error:
        print(f"relayd-client: {explain(error)}", file=sys.stderr)
        return 1
    return 0


def _wanted(options: argparse.Namespace) -> Wanted:
    return Wanted(options.udp, options.tcp, options.tls, options.accept, options.accept_tls)


async def ping_all(reactor: Any, servers: Sequence[Sequence[TurnClient]], count: int, patience: float) -> int:
    """Try all side by side, and print a row for each as soon as it is known; gives how many servers no way leads to."""
    clients = [client for server in servers for client in server]
    for proxy in dict.fromkeys(client.proxy for client in clients if client.proxy is not None):
        ways = ", ".join(str(client.uri) for client in clients if client.proxy == proxy)
        print(f"through the proxy {proxy}: {ways}")
    print(_row(_HEADINGS), flush=True)

    async def one(number: int, client: TurnClient) -> bool:
        await deferLater(reactor, number * STAGGER)
        outcome = await ping(reactor, client, count, patience)
        print(describe(outcome), flush=True)
        return outcome.error is None

    numbers = itertools.count()

    async def is_reached(server: Sequence[TurnClient]) -> bool:
        return any(await gatherResults([Deferred.fromCoroutine(one(next(numbers), client)) for client in server]))

    reached = await gatherResults([Deferred.fromCoroutine(is_reached(server)) for server in servers])
    return reached.count(False)


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


_OUT, _IN = "[ADDRESS:]PORT=PEER:PORT", "PEER=[HOST:]PORT"
_LOCAL = "a local {}, on 127.0.0.1 unless there is an ADDRESS, and the peer behind it; may come several times"
_TLS = "as --tcp, and the relay speaks TLS with the peer, whose certificate is to be for PEER"
_CALLER = (
    "a peer that may connect to the relayed address, and the TCP port that it is led to, on 127.0.0.1 unless there is "
    "a HOST; may come several times; needs tcp, tls, ws or wss to the relay"
)
_TLS_CALLER = "as --accept, and the peer has to speak TLS with the relay, which shows its --peer-certificate"
_FORWARDED = (  # the options of `forward` that can be repeated
    ("--udp", _OUT, Forward.parse, _LOCAL.format("UDP port")),
    ("--tcp", _OUT, Forward.parse, _LOCAL.format("TCP port") + "; needs tcp, tls, ws or wss to the relay"),
    ("--tls", _OUT, Forward.parse, _TLS),
    ("--accept", _IN, Welcome.parse, _CALLER),
    ("--accept-tls", _IN, Welcome.parse, _TLS_CALLER),
)


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
        help="a TURN URI, such as turns:example.org:443, or a WebSocket URL, such as wss://example.org/turn; turn: "
        "without ?transport= stands for udp and tcp; HOST and HOST:PORT for udp, dtls, tcp, tls and wss",
    )
    _add_common(made)
    made.add_argument("--count", type=_count, default=5, metavar="N", help="echoes for each way; default: %(default)s")
    made.add_argument("--ipv6", action="store_true", help="ask for an IPv6 relayed address")
    text = "Join local ports with peers, through a relay, in both directions, until it is stopped."
    made = commands.add_parser("forward", help=text, description=text, allow_abbrev=False)
    made.set_defaults(run=_forward)
    made.add_argument(
        "servers", nargs="+", metavar="SERVER", help="as for ping; of several ways the first one that works is used"
    )
    _add_common(made)
    for name, metavar, parse, text in _FORWARDED:
        made.add_argument(name, type=_argument(parse), action="append", default=[], metavar=metavar, help=text)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_options(parser)
    parser.add_argument(
        "--timeout", type=_timeout, default=10.0, metavar="SECONDS", help="for an allocation; default: %(default)g"
    )


def _argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """For argparse, which tells of its own errors only."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ConfigurationError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


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
