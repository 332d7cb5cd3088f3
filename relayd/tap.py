"""`twistd relayd`: the options, which are the manual, and makeService, which has the parts joined. Opens nothing."""

from __future__ import annotations

import re
from typing import Any

from twisted.application.service import IService
from twisted.cred import strcred
from twisted.cred.checkers import ICredentialsChecker
from twisted.python import usage
from zope.interface.interface import InterfaceClass

import relayd
from relayd import config
from relayd.auth.realm import CREDENTIAL_INTERFACES
from relayd.configfile import nearest, read_config_file
from relayd.end_signals import heed_the_first
from relayd.errors import ConfigurationError
from relayd.interfaces import (
    IAllocationObserverFactory,
    IDataPlaneFactory,
    IListenerFactory,
    IPeerTransportFactory,
    IPolicyFactory,
)
from relayd.launch.clock import keep_time
from relayd.launch.daemon import complaint, end_on_hangup, look_on_signal
from relayd.launch.plugins import all_plugins, describe_plugins
from relayd.launch.wiring import build_daemon


class Options(usage.Options, strcred.AuthOptionMixin):
    """What the command line and the `--config` file say. After parsing, `settings` and `checkers` hold it."""

    synopsis = "[options]"
    longdesc = (
        "A TURN relay: clients behind firewalls reach peers through it. Without any option it is on loopback only, "
        "makes a user for this run and prints how to use it. Options marked * may be given several times. Errors "
        "are one line on standard error, with exit status 1. `twistd --help` lists twistd's own options, such as "
        "--nodaemon, --logfile, --uid and --pidfile."
    )
    supportedInterfaces = CREDENTIAL_INTERFACES

    optParameters = [
        ["config", None, None, "TOML file with these options under the same names; a flag wins over the file."],
        ["realm", None, None, "Realm of the users, usually a domain. [default: relayd]"],
        ["relay-ports", None, None, "LO-HI: relayed addresses take their ports from here. [default: 49152-65535]"],
        ["peer-ca", None, None, "PEM file: whom to trust about peers with TLS. [default: whom the system trusts]"],
        ["peer-certificate", None, None, "PEM file with what is shown to peers that connect with TLS, and its chain."],
        ["peer-key", None, None, "PEM file with the private key of --peer-certificate."],
        ["user-quota", None, None, "Allocations that one user may hold; 0: unlimited. [default: 100]"],
        ["total-quota", None, None, "Allocations altogether; 0: unlimited. [default: 0]"],
        ["max-bandwidth", None, None, "Bytes a second per allocation, both ways together; 0: unlimited. [default: 0]"],
        ["default-lifetime", None, None, "Seconds that an allocation lasts unless the client asks. [default: 600]"],
        ["max-lifetime", None, None, "Seconds that an allocation lasts at most between refreshes. [default: 3600]"],
        ["max-connections", None, None, "Connections (or DTLS sessions) per listener. [default: 10000]"],
        ["max-connections-per-source", None, None, "The same from one IPv4 address or IPv6 /64. [default: 200]"],
        ["data-plane", None, None, "How packets are moved. [default: the best one here; see --help-data-plane]"],
        ["log-format", None, None, "human, or json: allocations as JSON lines on standard output. [default: human]"],
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.texts: dict[str, list[str]] = {}
        self.settings = config.Settings()
        self.checkers: list[ICredentialsChecker] = []

    # --- what may be given several times ------------------------------------------------------------------------------

    def opt_listen(self, text: str) -> None:
        """* KIND=ENDPOINT: a way in, as --help-listen explains. [default: UDP, TCP and web on loopback]"""
        self._collect("listen", text)

    def opt_auth(self, text: str) -> None:
        """* TYPE:ARGS: a user database; see --help-auth. [default: one random user, printed at the start]"""
        self._collect("auth", text)

    def opt_relay_address(self, text: str) -> None:
        """* ADDRESS, or ADDRESS=PUBLIC behind a 1:1 NAT: what to relay from. [default: where we listen]"""
        self._collect("relay-address", text)

    def opt_allow_peer(self, text: str) -> None:
        """* CIDR: peers that may be reached, even private, loopback and other ranges that are denied without it."""
        self._collect("allow-peer", text)

    def opt_deny_peer(self, text: str) -> None:
        """* CIDR: peers that may not be reached, beside those ranges; --allow-peer wins."""
        self._collect("deny-peer", text)

    def opt_trust_proxy(self, text: str) -> None:
        """* CIDR: proxies that may say who the client is, in a PROXY or HTTP header; or none. [default: loopback]"""
        self._collect("trust-proxy", text)

    def opt_web_origin(self, text: str) -> None:
        """* ORIGIN: web site whose pages may open a WebSocket here, beside our own; or a * for any."""
        self._collect("web-origin", text)

    def opt_status_from(self, text: str) -> None:
        """* CIDR: who may read the status page and the metrics; or none. [default: loopback]"""
        self._collect("status-from", text)

    def opt_policy(self, text: str) -> None:
        """* TYPE:ARGS: who may allocate, reach whom, and how fast; all must agree; see --help-policy."""
        self._collect("policy", text)

    def opt_observe(self, text: str) -> None:
        """* TYPE:ARGS: who is told of allocations; see --help-observe."""
        self._collect("observe", text)

    def _collect(self, name: str, text: str) -> None:
        self.texts.setdefault(name, []).append(text)

    # --- the lists of plugins -----------------------------------------------------------------------------------------

    def opt_help_listen(self) -> None:
        """List the KINDs of --listen and exit."""
        self._show(IListenerFactory, "--listen KIND=ENDPOINT", "kind", "argument_format")

    def opt_help_peers(self) -> None:
        """List the ways out, which clients choose by REQUESTED-TRANSPORT, and exit."""
        self._show(IPeerTransportFactory, "chosen by the client, per allocation", "kind", None)

    def opt_help_policy(self) -> None:
        """List the TYPEs of --policy and exit."""
        self._show(IPolicyFactory, "--policy TYPE:ARGS", "policy_type", "argument_format")

    def opt_help_observe(self) -> None:
        """List the TYPEs of --observe and exit."""
        self._show(IAllocationObserverFactory, "--observe TYPE:ARGS", "observer_type", "argument_format")

    def opt_help_data_plane(self) -> None:
        """List the NAMEs of --data-plane, say which can be used here, and exit."""
        planes = sorted(all_plugins(IDataPlaneFactory), key=lambda plane: -plane.preference)
        rows = [(plane.name, _availability(plane), plane.help) for plane in planes]
        self.authOutput.write(describe_plugins("--data-plane NAME", rows))
        raise SystemExit(0)

    def opt_version(self) -> None:
        """Print the version of relayd and exit."""
        self.authOutput.write(f"relayd {relayd.__version__}\n")
        raise SystemExit(0)

    def _show(self, interface: InterfaceClass, usage_line: str, name: str, argument_format: str | None) -> None:
        rows = [
            (getattr(plugin, name), getattr(plugin, argument_format) if argument_format else "", plugin.help)
            for plugin in all_plugins(interface)
        ]
        self.authOutput.write(describe_plugins(usage_line, rows))
        raise SystemExit(0)

    # --- reading ------------------------------------------------------------------------------------------------------

    def parseOptions(self, options: Any = None) -> None:
        """Ends the process with one line on standard error, where twistd would print its whole usage before it."""
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as why:
            raise SystemExit(complaint(self._explain(str(why)))) from None
        except ConfigurationError as why:
            raise SystemExit(complaint(str(why))) from None

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"{arguments[0]!r} is not an option: all options start with --; see --help")

    def postOptions(self) -> None:
        where = dict.fromkeys(self.texts, "")
        for name in config.SINGLE:
            if self[name] is not None:
                self.texts[name] = [self[name]]
        if self["config"] is not None:
            path = self["config"]
            written = read_config_file(path, config.SINGLE, [*config.REPEATABLE, "auth"], config.NUMBERS)
            where = {name: f"{path}: " for name in written if name not in self.texts}
            self.texts = {**written, **self.texts}
        self.settings = config.make_settings(
            {name: _read(where.get(name, ""), name, texts) for name, texts in self.texts.items() if name != "auth"}
        )
        for text in self.texts.get("auth", []):
            self._add_auth(where.get("auth", ""), text)

    def _add_auth(self, where: str, text: str) -> None:
        # The arguments may hold a password: no message repeats them.
        auth_type, _, arguments = text.partition(":")
        what = f"{where}--auth {auth_type}"
        if auth_type == "file":
            _check_readable(what, arguments)
        try:
            checker = strcred.makeChecker(text)
            self.addChecker(checker)  # type: ignore[no-untyped-call]
        except strcred.InvalidAuthType:
            factories = self._checkerFactoriesForOptHelpAuth()  # type: ignore[no-untyped-call]
            known = {factory.authType for factory in factories}
            raise ConfigurationError(f"{what}: there is no such plugin: {nearest(auth_type, known)}") from None
        except strcred.UnsupportedInterfaces:
            raise ConfigurationError(f"{what}: cannot prove STUN credentials: take another, see --help-auth") from None
        except ConfigurationError as why:
            raise ConfigurationError(f"{where}{why}") from None
        except Exception as why:  # whatever a third party's factory thinks of its arguments
            kind = type(why).__name__
            raise ConfigurationError(f"{what}: bad arguments ({kind}): see --help-auth-type {auth_type}") from None
        self.checkers.append(checker)

    def _explain(self, message: str) -> str:
        unknown = re.fullmatch(r"option --(\S+) not recognized", message)
        if unknown is None:
            return message
        known = [name.rstrip("=") for name in self.longOpt]
        return f"--{unknown[1]}: there is no such option: {nearest(unknown[1], known)}"


def makeService(options: Options) -> IService:
    """The service that twistd runs. Ends the process with one line on standard error if it cannot be made."""
    from twisted.internet import reactor  # not before twistd's --reactor was obeyed

    end_on_hangup(reactor)
    keep_time(reactor)
    try:
        daemon = build_daemon(options.settings, options.checkers, reactor, _is_daemon(options))
    except ConfigurationError as why:
        raise SystemExit(complaint(str(why))) from None
    look_on_signal(reactor, daemon.certificates)
    heed_the_first(reactor)
    return daemon


def _is_daemon(options: Options) -> bool:
    parent = getattr(options, "parent", None)
    return parent is not None and not parent.get("nodaemon")


def _read(where: str, name: str, texts: list[str]) -> Any:
    reader = config.REPEATABLE.get(name) or config.SINGLE[name]
    values = []
    for text in texts:
        try:
            values.append(reader(text))
        except ConfigurationError as why:
            raise ConfigurationError(f"{where}--{name} {text}: {why}") from None
    return tuple(values) if name in config.REPEATABLE else values[0]


def _check_readable(what: str, path: str) -> None:
    # Twisted's checker opens its file at the first login only, which is late to hear of a missing one.
    try:
        with open(path, "rb"):
            pass
    except OSError as why:
        raise ConfigurationError(f"{what}:{path}: cannot be read ({why.strerror}): check the path") from None


def _availability(plane: Any) -> str:
    reason = plane.unavailable()
    return f"(not here: {reason})" if reason else ""
