"""The command `relayd-user`: changes the user database, makes time-limited credentials. No secret is an argument."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from getpass import getpass
from pathlib import Path

from relayd.auth.secret import SecretFile, make_credential, secrets_from_environment
from relayd.auth.user_table import UserTable
from relayd.errors import ConfigurationError, DecodeError
from relayd.stun.attributes import MAX_USERNAME
from relayd.stun.text import opaque_string

DEFAULT_TTL = 86_400  # seconds; what applications that hand out credentials commonly use
MAX_TTL = 10 * 365 * 86_400  # seconds: more is a mistake in the unit
_DEFAULT_URL = "turn:127.0.0.1:3478"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit status. 0: done. 1: one line on stderr says what is wrong. argparse itself
    exits 2.
    """
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
    except ConfigurationError as error:
        print(f"relayd-user: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        print("relayd-user: nothing done", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="relayd-user", description="Keep the users of relayd.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    of_database = [
        command(
            "add", _add, "Add a user, or give one another password; it is asked for, or read as a line from a pipe."
        ),
        command("remove", _remove, "Remove a user; in effect at the next Allocate or Refresh."),
        command("disable", _disable, "Refuse a user from the next Allocate or Refresh on."),
        command("enable", _enable, "Let a disabled user in again."),
        command("list", _list, "Print everybody: realm, user name, and whether disabled; separated by tabs."),
    ]
    for made in of_database:
        made.add_argument("--database", type=Path, required=True, metavar="PATH", help="the PATH of --auth sqlite:PATH")
    for made in of_database[:-1]:
        made.add_argument("--realm", type=_prepared, required=True, help="the relay's --realm")
        made.add_argument("username", type=_user_name)

    made = command("secret", _secret, "Make a credential for --auth secret: and print it as iceServers JSON.")
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--file", metavar="PATH", help="the PATH of --auth secret:file=PATH; its first secret is used")
    source.add_argument("--env", metavar="NAME", help="the NAME of --auth secret:env=NAME")
    made.add_argument("--id", type=_user_name, help="whose it is, for the log and for quotas")
    made.add_argument("--ttl", type=_ttl, default=DEFAULT_TTL, metavar="SECONDS", help="default: %(default)s")
    made.add_argument(
        "--url", action="append", metavar="URL", help=f"where the relay is; repeatable; default: {_DEFAULT_URL}"
    )
    return parser


def _prepared(text: str) -> str:
    try:
        return opaque_string(text)
    except DecodeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _user_name(text: str) -> str:
    name = _prepared(text)
    if len(name.encode()) > MAX_USERNAME:
        raise argparse.ArgumentTypeError(f"longer than {MAX_USERNAME} bytes, the most that STUN carries")
    return name


def _ttl(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MAX_TTL):
        raise argparse.ArgumentTypeError(f"seconds from 1 to {MAX_TTL} are wanted")
    return int(text)


def _read_password() -> str:
    if sys.stdin.isatty():
        password = getpass("Password: ")
        if getpass("Again: ") != password:
            raise ConfigurationError("the two passwords differ; nothing done")
    else:
        try:
            password = sys.stdin.readline().removesuffix("\n")
        except UnicodeDecodeError:
            raise ConfigurationError("the password on stdin is not UTF-8; nothing done") from None
    try:
        return opaque_string(password)
    except DecodeError:
        raise ConfigurationError(
            "the password is empty, or has characters that RFC 8265 disallows; nothing done"
        ) from None


def _add(options: argparse.Namespace) -> None:
    password = _read_password()
    table = UserTable.create(options.database)
    try:
        is_new = table.put(options.username, options.realm, password)
    finally:
        table.close()
    print("added" if is_new else "password changed")


def _remove(options: argparse.Namespace) -> None:
    _change(options, lambda table: table.remove(options.username, options.realm))


def _disable(options: argparse.Namespace) -> None:
    _change(options, lambda table: table.set_disabled(options.username, options.realm, True))


def _enable(options: argparse.Namespace) -> None:
    _change(options, lambda table: table.set_disabled(options.username, options.realm, False))


def _change(options: argparse.Namespace, change: Callable[[UserTable], None]) -> None:
    table = UserTable(options.database, writable=True)
    try:
        change(table)
    finally:
        table.close()


def _list(options: argparse.Namespace) -> None:
    table = UserTable(options.database)
    try:
        for row in table.rows():
            print(row.realm, row.username, "disabled" if row.disabled else "enabled", sep="\t")
    finally:
        table.close()


def _secret(options: argparse.Namespace) -> None:
    secrets = SecretFile(options.file).secrets() if options.file is not None else secrets_from_environment(options.env)
    credential = make_credential(secrets[0], int(time.time()) + options.ttl, options.id or "")
    if len(credential.username.encode()) > MAX_USERNAME:
        raise ConfigurationError(f"--id: with the expiry before it, it is longer than {MAX_USERNAME} bytes; shorten it")
    entry = {
        "urls": options.url or [_DEFAULT_URL],
        "username": credential.username,
        "credential": credential.password,
    }
    print(json.dumps({"iceServers": [entry]}, indent=2))
