"""A third party's plugins for relayd: a listener, a checker, a policy and an observer. Nothing in relayd knows of it.

It is written as an outsider would write it: against relayd.interfaces, and the values that those name.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernameHashedPassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.strcred import ICheckerFactory
from twisted.internet.defer import Deferred, fail, succeed
from twisted.plugin import IPlugin
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.errors import ConfigurationError
from relayd.interfaces import (
    IAllocationObserver,
    IAllocationObserverFactory,
    IClientPath,
    IDatagramPort,
    IDatagramReceiver,
    IDataPlane,
    IListener,
    IListenerFactory,
    IPolicy,
    IPolicyFactory,
    IRelayService,
    TurnedAway,
)
from relayd.turn.outputs import OpenRelay, RelayRefused


@implementer(IListener, IDatagramReceiver)
class KnockListener:
    """UDP whose datagrams begin with the word `knock`: a way in that only its own clients know."""

    kind = "knock"
    app_connection = "udp"
    behind_proxy = False
    WORD = b"knock"

    def __init__(self, service: IRelayService, data_plane: IDataPlane, port: int) -> None:
        self._service = service
        self._port: IDatagramPort = data_plane.open_port(
            TransportAddress.parse("127.0.0.1", port), self.app_connection, self
        )
        self.addresses = [self._port.address]
        self.turned_away: Counter[TurnedAway] = Counter()
        self.description = f"knock {self._port.address}"

    def datagram_received(self, client: IClientPath, data: bytes) -> None:
        if data.startswith(self.WORD):
            self._service.receive(client, data.removeprefix(self.WORD))

    def close(self) -> None:
        self._port.close()


@implementer(IPlugin, IListenerFactory)
class KnockFactory:
    kind = "knock"
    help = "STUN and TURN behind a word at the start of each datagram."
    argument_format = "knock=PORT"

    def listen(
        self, endpoint: str, reactor: Any, service: IRelayService, data_plane: IDataPlane, settings: Any
    ) -> Deferred[IListener]:
        if not endpoint.isdigit():
            return fail(ConfigurationError(f"knock={endpoint}: not a port: write knock=5000"))
        return succeed(KnockListener(service, data_plane, int(endpoint)))


@implementer(ICredentialsChecker)
class PalindromeChecker:
    """Everybody's password is the name written backwards."""

    credentialInterfaces = (IUsernameHashedPassword,)

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:
        name = credentials.username if isinstance(credentials.username, bytes) else credentials.username.encode()
        if credentials.checkPassword(name[::-1]):
            return succeed(name)
        return fail(UnauthorizedLogin())


@implementer(IPlugin, ICheckerFactory)
class PalindromeFactory:
    authType = "palindrome"
    authHelp = "Everybody's password is the name written backwards."
    argStringFormat = "Nothing."
    credentialInterfaces = (IUsernameHashedPassword,)

    def generateChecker(self, argument_string: str = "") -> PalindromeChecker:
        return PalindromeChecker()


@implementer(IPolicy)
class ListPolicy:
    """Refuses allocations of the users in a list."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def may_allocate(self, request: OpenRelay) -> RelayRefused | None:
        return RelayRefused(403) if request.username in self._names else None

    def may_reach(self, username: str, peer: TransportAddress) -> bool:
        return True

    def bandwidth(self, username: str) -> int | None:
        return None


@implementer(IPlugin, IPolicyFactory)
class ListPolicyFactory:
    policy_type = "notwelcome"
    help = "Refuses the users that are named."
    argument_format = "notwelcome:NAME,NAME,..."

    def make(self, arguments: str, reactor: Any) -> ListPolicy:
        return ListPolicy(arguments.split(","))


@implementer(IAllocationObserver)
class DiaryObserver:
    """Writes the class of each event into a file, one a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def observe(self, event: Any) -> None:
        with self._path.open("a", encoding="utf-8") as diary:
            diary.write(f"{type(event).__name__}\n")


@implementer(IPlugin, IAllocationObserverFactory)
class DiaryFactory:
    observer_type = "diary"
    help = "Writes the class of each event into a file."
    argument_format = "diary:PATH"

    def make(self, arguments: str, reactor: Any) -> DiaryObserver:
        return DiaryObserver(Path(arguments))
