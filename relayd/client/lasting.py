"""`LastingPort`: a relayed port that outlives its allocations. When one ends, it makes the next.

Theory of operation. `start` allocates once, and fails as that fails: a mistake shows at once. From then on:

    state       the allocation ends   the pause is over   allocated   refused for good   else failed   stopListening
    ALLOCATED   PAUSED                -                   -           -                  -             ENDED
    PAUSED      -                     ATTEMPTING          -           -                  -             ENDED
    ATTEMPTING  -                     -                   ALLOCATED   ENDED              PAUSED        ENDED

`Succession` has the rules for pauses and for giving up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IUDPTransport
from twisted.internet.protocol import AbstractDatagramProtocol, DatagramProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.client.relayed import NoBroadcast, RelayedPort, peer_address
from relayd.client.succession import Succession
from relayd.core import Entropy
from relayd.errors import RelaydError, RemoteError, ServerUnavailable
from relayd.twisted_address import TwistedAddress


class Allocator(Protocol):
    """Makes allocations, as `TurnClient` does: every step of that has a limit of its own."""

    def allocate(self, protocol: AbstractDatagramProtocol) -> Deferred[RelayedPort]: ...


class Observer:
    """Told how a lasting port fares. Does nothing by itself."""

    def allocated(self, port: RelayedPort) -> None:
        """There is an allocation, the first one or another: with another relayed address, most likely."""

    def waiting(self, error: RelaydError, pause: float) -> None:
        """The allocation ended, or an attempt to get one failed, with `error`; the next is in `pause` seconds."""


class _Inlet(DatagramProtocol):
    """What runs on each of the allocations: passes on what comes in, and keeps their ends from the protocol."""

    noisy = False

    def __init__(self, protocol: AbstractDatagramProtocol, allocated: Callable[[RelayedPort], None]) -> None:
        self._protocol = protocol
        self._allocated = allocated

    def startProtocol(self) -> None:
        port: Any = self.transport
        self._allocated(port)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self._protocol.datagramReceived(datagram, addr)

    def connectionRefused(self) -> None:
        refused = getattr(self._protocol, "connectionRefused", None)
        if refused is not None:
            refused()


@implementer(IUDPTransport)
class LastingPort(NoBroadcast):
    """What `TurnClient.listen` gives: used as a `RelayedPort`, which its docstrings explain.

    What `permit`, `bind` and `connect` asked for holds for all allocations to come. What is written while there is none
    is dropped. The protocol is started once, and stopped at the end of it all.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        client: Allocator,
        protocol: AbstractDatagramProtocol,
        observer: Observer,
        entropy: Entropy,
    ) -> None:
        self._client = client
        self._protocol = protocol
        self._observer = observer
        self._port: RelayedPort | None = None
        self._is_started = False
        self._succession = Succession(clock, self._attempt, self._lost, self._waits, entropy)
        self._is_over = False
        self._error: RelaydError | None = None
        self._ended: list[Deferred[RelaydError | None]] = []
        self._connected: tuple[str, int] | None = None
        self._wanted: dict[tuple[str, int | None], list[Deferred[None]]] = {}  # port None: a permission
        self._dropped = 0

    async def start(self) -> None:
        """Make the first allocation. Fails as `TurnClient.allocate` does. `TurnClient` has done so."""
        first = await self._attempt()
        self._succession.begin(first).addErrback(self._explain).addCallback(self._conclude)

    # --- addresses ------------------------------------------------------------------------------------------------

    @property
    def relayed_addresses(self) -> tuple[TransportAddress, ...]:
        """Where peers reach us; nothing between two allocations."""
        return () if self._port is None else self._port.relayed_addresses

    @property
    def mapped_address(self) -> TransportAddress | None:
        """Our own address as the server sees it, if there is an allocation and it said so."""
        return None if self._port is None else self._port.mapped_address

    def getHost(self) -> TwistedAddress:
        """The (first) relayed address. Raises ServerUnavailable between two allocations."""
        if self._port is None:
            raise ServerUnavailable("there is no relayed address at the moment")
        return self._port.getHost()

    # --- peers ----------------------------------------------------------------------------------------------------

    def permit(self, host: str) -> Deferred[None]:
        """Let in what comes from `host`. Between two allocations it waits for the next.

        Fails with RemoteError where the server refuses, which ends it. Fails with ServerUnavailable where the
        allocation ends before; the next one is asked all the same.
        """
        peer_address(host, 1)
        return self._want(host, None)

    def bind(self, host: str, port: int) -> Deferred[None]:
        """Bind a channel, in the manner of `permit`."""
        peer_address(host, port)
        return self._want(host, port)

    def write(self, packet: bytes, addr: tuple[str, int] | None = None) -> None:
        """Send one datagram, as `RelayedPort.write` does; dropped between two allocations."""
        if self._port is not None:
            self._port.write(packet, addr)
        else:
            self._dropped += 1

    def connect(self, host: str, port: int) -> None:
        """Have but one peer from now on, in both directions."""
        peer_address(host, port)
        self._connected = (host, port)
        if self._port is not None:
            self._port.connect(host, port)

    @property
    def dropped(self) -> int:
        """How many datagrams were not sent: the way to the relay was congested, or there was no allocation."""
        return self._dropped + (0 if self._port is None else self._port.dropped)

    # --- the end --------------------------------------------------------------------------------------------------

    def when_ended(self) -> Deferred[RelaydError | None]:
        """Fires when there will be no other allocation: with the error that is permanent, or None if stopped."""
        if self._is_over:
            return succeed(self._error)
        waiting: Deferred[RelaydError | None] = Deferred()
        self._ended.append(waiting)
        return waiting

    def stopListening(self) -> Deferred[None]:
        """Delete the allocation and leave the server; fires when that is done."""
        if self._port is not None:
            return self._port.stopListening()
        self._succession.stop()
        return succeed(None)

    # --- from one allocation to the next ----------------------------------------------------------------------------

    def _attempt(self) -> Deferred[RelayedPort]:
        return self._client.allocate(_Inlet(self._protocol, self._allocated))

    def _lost(self, port: RelayedPort) -> None:
        self._port = None
        self._dropped += port.dropped

    def _waits(self, error: RelaydError, pause: float) -> None:
        self._tell(self._observer.waiting, error, pause)

    def _allocated(self, port: RelayedPort) -> None:
        self._port = port
        if self._connected is not None:
            port.connect(*self._connected)
        for host, number in list(self._wanted):
            self._ask(port, host, number)
        if not self._is_started:
            self._is_started = True
            self._protocol.makeConnection(self)
        self._tell(self._observer.allocated, port)

    def _explain(self, failure: Failure) -> RelaydError:
        self._log.failure("no other allocation can be made", failure)
        return ServerUnavailable("no other allocation can be made: there is a bug, and it is in the log")

    def _conclude(self, error: RelaydError | None) -> None:
        self._is_over = True
        self._error = error
        for waiting in self._wanted.values():
            for each in waiting:
                each.errback(error or ServerUnavailable("there is no allocation"))
        self._wanted.clear()
        self._tell(self._protocol.doStop)
        ended, self._ended = self._ended, []
        for each_end in ended:
            each_end.callback(error)

    def _tell(self, listener: Callable[..., Any], *arguments: Any) -> None:
        try:
            listener(*arguments)
        except Exception:
            self._log.failure("an application failed when it was told of its port")

    # --- what is asked of every allocation --------------------------------------------------------------------------

    def _want(self, host: str, number: int | None) -> Deferred[None]:
        wanted: Deferred[None] = Deferred()
        if self._is_over:
            wanted.errback(self._error or ServerUnavailable("there is no allocation"))
            return wanted
        self._wanted.setdefault((host, number), []).append(wanted)
        if self._port is not None:
            self._ask(self._port, host, number)
        return wanted

    def _ask(self, port: RelayedPort, host: str, number: int | None) -> None:
        answer = port.permit(host) if number is None else port.bind(host, number)
        answer.addCallbacks(self._granted, self._refused, callbackArgs=(host, number), errbackArgs=(host, number))

    def _granted(self, _: None, host: str, number: int | None) -> None:
        waiting = self._wanted.pop((host, number), [])
        self._wanted[host, number] = []
        for each in waiting:
            each.callback(None)

    def _refused(self, failure: Failure, host: str, number: int | None) -> None:
        waiting = self._wanted.pop((host, number), [])
        if not failure.check(RemoteError):
            self._wanted[host, number] = []
        for each in waiting:
            each.errback(failure)
