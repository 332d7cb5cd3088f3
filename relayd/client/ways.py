"""What every command of `relayd-client` is told: ways to a relay, a proxy in between, the user, and whom to trust.

No secret is an argument: each is in the environment, asked for, or a line
from a pipe.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from getpass import getpass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.ssl import Certificate, trustRootFromCertificates

from relayd.address import AppConnection, Family
from relayd.client.transports.proxy import HttpProxy, proxy_from_environment
from relayd.client.transports.uri import TurnUri
from relayd.client.turn import TurnClient
from relayd.errors import ConfigurationError, DecodeError
from relayd.stun.text import opaque_string

PASSWORD_VARIABLE = "RELAYD_PASSWORD"  # of the environment
PROXY_PASSWORD_VARIABLE = "RELAYD_PROXY_PASSWORD"
DIRECT = "direct"  # instead of a proxy: whatever the environment says, none

Clients = Callable[[Any, tuple[Family, ...]], list[list[TurnClient]]]

# A host, perhaps with a port. What begins as a URI does is one, and its errors are its own.
_HOST = re.compile(r"(?!(?:turns?|wss?):)(?P<host>\[[^\]]*\]|[^\[\]:/?#@\s]+)(?P<port>:[0-9]+)?", re.IGNORECASE)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `clients` reads, beside `servers`."""
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
        "--proxy",
        metavar="URL",
        help="an HTTP proxy to go through, http://HOST:PORT or http://USER@HOST:PORT, for tcp, tls, ws and wss; by "
        "default ws and wss go where http_proxy, https_proxy and no_proxy in the environment say, all else straight; "
        f"{DIRECT!r}: through none",
    )
    parser.add_argument(
        "--proxy-password-env",
        default=PROXY_PASSWORD_VARIABLE,
        metavar="NAME",
        help="the environment variable that has the password of USER (default: %(default)s); without it that is asked "
        "for, or read as a line from a pipe, behind the other one",
    )


def clients(options: argparse.Namespace) -> Clients:
    """What makes the clients of each server, one for each way, given the reactor and the families of relayed addresses.

    Raises ConfigurationError.
    """
    proxy = None if options.proxy in (None, DIRECT) else _proxy(options.proxy)
    servers = [ways_to(server, through_proxy=proxy is not None) for server in options.servers]
    found = {
        uri: proxy_from_environment(uri) if options.proxy is None else None for server in servers for uri in server
    }
    trust_root = None if options.ca is None else read_trust_root(options.ca)
    username: str = options.user
    _check("--user", username)
    # Who got something else wrong is not asked for passwords first.
    password = _secret(options.password_env, "Password: ")
    _check("the password", password)
    if proxy is not None and proxy.username is not None:
        prompt = f"Password of {proxy.username} for the proxy: "
        proxy = proxy.with_user(proxy.username, _secret(options.proxy_password_env, prompt))

    def client(reactor: Any, uri: TurnUri, families: tuple[Family, ...]) -> TurnClient:
        way = proxy or found[uri]
        return TurnClient(reactor, uri, username, password, families=families, trust_root=trust_root, proxy=way)

    return lambda reactor, families: [[client(reactor, uri, families) for uri in server] for server in servers]


def ways_to(server: str, *, through_proxy: bool = False) -> list[TurnUri]:
    """The URIs that an argument stands for: of a host all ways, on the usual ports or on its own; of `turn:` without a
    transport both. Those that no proxy carries are left out `through_proxy`, unless nothing else is asked for.

    Raises ConfigurationError.
    """
    match = _HOST.fullmatch(server)
    if match is not None:
        host, port = match["host"], match["port"] or ""
        turn = (f"{scheme}:{host}{port}?transport={way}" for way in ("udp", "tcp") for scheme in ("turn", "turns"))
        uris = [TurnUri.parse(text) for text in (*turn, f"wss://{host}{port}")]
    else:
        uri = TurnUri.parse(server)
        uris = [uri]
        if not uri.says_transport and uri.app_connection is AppConnection.UDP:
            uris.append(uri._replace(app_connection=AppConnection.TCP))
    if through_proxy and len(uris) > 1:
        uris = [uri for uri in uris if not uri.app_connection.is_datagram]
    return uris


def read_trust_root(path: Path) -> Any:
    """The certificates in a file, as Twisted wants them. Raises ConfigurationError."""
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"--ca {path}: {error.strerror}; check the path and its permissions") from None
    except ValueError:
        raise ConfigurationError(
            f"--ca {path}: no PEM certificates; give a file with BEGIN CERTIFICATE in it"
        ) from None
    return trustRootFromCertificates([Certificate.loadPEM(each.public_bytes(Encoding.PEM)) for each in certificates])


def _proxy(text: str) -> HttpProxy:
    try:
        proxy = HttpProxy.parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"--proxy: {error}") from None
    if proxy.password:
        raise ConfigurationError(
            "--proxy: a password there would be in the process list; write http://USER@HOST:PORT, and put it into the "
            f"environment ({PROXY_PASSWORD_VARIABLE})"
        )
    return proxy


def _secret(variable: str, prompt: str) -> str:
    found = os.environ.get(variable)
    if found is not None:
        return found
    if sys.stdin.isatty():
        return getpass(prompt)
    try:
        return sys.stdin.readline().removesuffix("\n")
    except UnicodeDecodeError:
        raise ConfigurationError("the password on stdin is not UTF-8") from None


def _check(what: str, text: str) -> None:
    try:
        opaque_string(text)
    except DecodeError:
        raise ConfigurationError(f"{what} is empty, or has characters that RFC 8265 disallows") from None
