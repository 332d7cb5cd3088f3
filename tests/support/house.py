"""A whole relay in the test's own process, wired as twistd wires it, on free loopback ports and a clock to set forward.

Sockets, data plane, listeners, checkers and the core are the real ones; only the log is caught and the clock is warped.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any, cast

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet import reactor as the_reactor
from twisted.internet.interfaces import IDelayedCall
from zope.interface import directlyProvides, implementer, providedBy

from relayd.address import AppConnection, TransportAddress
from relayd.config import RelayAddress, Settings
from relayd.interfaces import IAllocationObserver
from relayd.launch.daemon import RelayDaemon
from relayd.launch.wiring import build_daemon
from relayd.observers.log import JsonLines
from relayd.turn.outputs import AllocationEnded
from relayd.turn.peer_rules import parse_cidr
from tests.support.certificate import Certificate

REALM = "example.org"
USERS = {"alice": "correct-horse", "bob": "battery-staple"}
WEB = (AppConnection.WS, AppConnection.WSS)
HOSTS = ("127.0.0.1", "::1")
# Beyond those that Linux gives to who wants any port, as our listeners do: a relayed port with the number of a
# listener, be it of another transport, is refused as a peer.
RELAY_PORTS = (61_000, 65_535)
NO_PORTS: Mapping[tuple[AppConnection, str], int] = {}


class WarpedReactor:
    """The reactor with a clock of its own. Descriptors and connections are the real reactor's and take real time."""

    def __init__(self) -> None:
        self._real: Any = the_reactor
        self._ahead = 0.0
        self._calls: list[IDelayedCall] = []
        directlyProvides(self, providedBy(the_reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def seconds(self) -> float:
        return float(self._real.seconds()) + self._ahead

    def callLater(self, delay: float, function: Any, *arguments: Any, **keywords: Any) -> IDelayedCall:
        call: IDelayedCall = self._real.callLater(delay, function, *arguments, **keywords)
        self._calls = [*self.pending(), call]
        return call

    def pending(self) -> list[IDelayedCall]:
        """The delayed calls of the relay that are yet to come: none, once it has stopped."""
        return [call for call in self._calls if call.active()]

    def advance(self, seconds: float) -> None:
        """Set the clock forward. What is due by then is called in the next turns of the reactor, in order of time."""
        self._ahead += seconds
        for call in self.pending():
            call.reset(max(0.0, call.getTime() - self._real.seconds() - seconds))


@implementer(IAllocationObserver)
class Recorder:
    """Keeps every lifecycle event."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def observe(self, event: Any) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class House:
    """The relay. `start` it, connect clients to `address(...)`, `stop` it."""

    def __init__(
        self,
        data_plane: str,
        certificate: Certificate,
        users: Mapping[str, str] = USERS,
        ports: Mapping[tuple[AppConnection, str], int] = NO_PORTS,
        *,
        mixed: bool = False,
        **settings: Any,
    ) -> None:
        """`settings` go to `relayd.config.Settings`; loopback peers are allowed unless they say otherwise.

        `ports` are those of another house that has stopped, to be where that was; without them any that are free. With
        `mixed` streams come to listeners of the kind `any`.
        """
        self.reactor = WarpedReactor()
        self.recorder = Recorder()
        self._log: list[str] = []
        keys = f"privateKey={certificate.key}:certKey={certificate.certificate}"
        self._ways = [
            (AppConnection(kind), host)
            for host in HOSTS
            for kind in (AppConnection.UDP, AppConnection.TCP, AppConnection.TLS, AppConnection.DTLS, *WEB)
        ]
        words = {"udp": "udp:{}", "tcp": "tcp:{}", "tls": f"ssl:{{}}:{keys}", "dtls": f"dtls:{{}}:{keys}"}
        words |= {"ws": words["tcp"], "wss": words["tls"]}
        kinds = dict.fromkeys(AppConnection, "turn") | dict.fromkeys(WEB, "web")
        if mixed:
            kinds |= dict.fromkeys((AppConnection.TCP, AppConnection.TLS, *WEB), "any")
        relays = [TransportAddress.parse(host, 0) for host in HOSTS]
        defaults: dict[str, Any] = {
            "listen": tuple(
                (
                    kinds[kind],
                    words[kind].format(ports.get((kind, host), 0)) + f":interface={host}".replace("::1", r"\:\:1"),
                )
                for kind, host in self._ways
            ),
            "realm": REALM,
            "relay_address": tuple(RelayAddress(address, address) for address in relays),
            "relay_ports": RELAY_PORTS,
            "allow_peer": (parse_cidr("127.0.0.0/8"), parse_cidr("::1")),
            "data_plane": data_plane,
        }
        checker = InMemoryUsernamePasswordDatabaseDontUse()
        for name, password in users.items():
            checker.addUser(name.encode(), password.encode())
        self.daemon: RelayDaemon = build_daemon(
            Settings(**{**defaults, **settings}), [checker], self.reactor, is_daemon=False
        )
        self.service = self.daemon.relay_service
        self.core = self.service.core
        self.service.add_observer(self.recorder)
        self.service.add_observer(JsonLines(self._log.append, cast(Any, self.reactor)))

    def start(self) -> None:
        self.daemon.privilegedStartService()
        self.daemon.startService()
        self._addresses = {
            way: listener.addresses[0] for way, listener in zip(self._ways, self.daemon.listeners, strict=True)
        }

    async def stop(self) -> None:
        await self.daemon.stopService()

    def address(self, kind: AppConnection, host: str) -> TransportAddress:
        """Where clients of that kind are heard."""
        return self._addresses[kind, host]

    @property
    def ports(self) -> dict[tuple[AppConnection, str], int]:
        """The port of each way in."""
        return {way: address.port for way, address in self._addresses.items()}

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of the allocation log."""
        return [json.loads(line) for line in self._log]

    @property
    def end_reasons(self) -> list[str]:
        return [event.reason.value for event in self.recorder.of(AllocationEnded)]

    def pending(self) -> list[IDelayedCall]:
        """The delayed calls that somebody caused: without the next look at the certificates, which is always due."""
        return [call for call in self.reactor.pending() if call is not self.daemon.certificates._call]

    def sessions(self) -> int:
        """How many allocations there are."""
        return len(list(self.core.sessions()))

    def quota_taken(self) -> int:
        """How many places in the quota are taken."""
        return self.core._allocations.quota.taken

    def assert_holds_nothing(self) -> None:
        """No allocation, quota, reservation, pending request, client or flow: whatever came was forgotten."""
        service, core = self.service, self.core
        assert self.sessions() == 0
        assert self.quota_taken() == 0
        assert core.next_timer() is None  # so nothing waits, is reserved, or lasts
        assert core.next_output() is None
        assert service._clients == {}
        assert service._flows == {}
        assert service._reserved == {}
        assert service._doubtful == set()


def descriptors() -> set[str]:
    """Every descriptor of this process, with what it refers to: the difference of two calls is what was left open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing itself was one
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return {each for each in found if not each.endswith("/fd")}
