"""`Reception`: peers that connect to a relayed address are led to local TCP ports. Nothing is said here to people: that
is up to a `ReceptionAudience`.

There is one relayed address at a time, with a permission for each of the peers. When it is lost, another one takes its
place, of which the peers have to learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory

from relayd.address import TransportAddress
from relayd.client.forward.pairs import Pairs, Side
from relayd.client.forward.words import Welcome
from relayd.client.succession import Succession
from relayd.client.tcp import TcpAllocation
from relayd.client.transports.streams import silent_factory
from relayd.client.transports.wording import explain
from relayd.core import Entropy
from relayd.errors import ConfigurationError, RelaydError, RemoteError, ServerUnavailable


class ReceptionAudience:
    """Told how a reception fares. Does nothing by itself."""

    def receiving(self, allocation: TcpAllocation, welcomes: Sequence[Welcome], is_tls: bool) -> None:
        """Here we are called from now on, the first time or again."""

    def waiting(self, error: RelaydError, pause: float) -> None:
        """The relayed address is lost, or still is; the next attempt is in `pause` seconds."""

    def caller_refused(self, peer: str, error: RelaydError) -> None:
        """The relay does not let this peer call us, at a relayed address other than the first."""

    def call_failed(self, peer: TransportAddress, error: RelaydError) -> None:
        """A connection of this peer's came to nothing, and is reset."""

    def connections_crowded(self) -> None:
        """There are as many connections as there may be, and another one, which is reset."""


class _Callers(Factory):
    """Has each peer led to its own port."""

    noisy = False

    def __init__(self, build: Callable[[TransportAddress], Side | None]) -> None:
        self._build = build

    def buildProtocol(self, addr: Any) -> Side | None:
        return self._build(TransportAddress.parse(addr.host, addr.port))


class Reception:
    """`serve` it, `stop` it. `pairs` are the connections."""

    def __init__(
        self,
        reactor: Any,
        allocate: Callable[[], Deferred[TcpAllocation]],
        is_tls: bool,
        audience: ReceptionAudience,
        entropy: Entropy,
    ) -> None:
        """`is_tls`: whether the allocations that `allocate` makes have the peers speak TLS."""
        self.pairs = Pairs(reactor, audience.connections_crowded)
        self._reactor = reactor
        self._allocate = allocate
        self._is_tls = is_tls
        self._audience = audience
        self._succession = Succession(reactor, self._reopen, self._lost, audience.waiting, entropy)
        self._welcomes: dict[str, Welcome] = {}
        self._allocation: TcpAllocation | None = None
        self._is_stopping = False

    async def serve(self, welcomes: Sequence[Welcome]) -> RelaydError | None:
        """Receive until the end: gives what ended it, None where it was stopped. `stop` has to follow.

        Raises ConfigurationError where the relay does not let us be called by one of the peers, and what `allocate`
        fails with where there is no first allocation.
        """
        self._welcomes = {each.peer: each for each in welcomes}
        first = self.pairs.work(self._open_first())
        try:
            allocation = await first
        except (CancelledError, RelaydError):
            if self._is_stopping:
                return None
            raise
        return await self._succession.begin(allocation)

    async def stop(self) -> None:
        """Cut all connections and delete the allocation; back when that is done."""
        self._is_stopping = True
        self._succession.stop()
        self.pairs.stop()
        if self._allocation is not None:
            await self._allocation.close()
        await self.pairs.emptied()

    # --- relayed addresses ------------------------------------------------------------------------------------------

    async def _open_first(self) -> TcpAllocation:
        allocation, let_in, refusals = await self._open()
        for peer, refusal in refusals.items():
            raise ConfigurationError(f"the relay does not let {peer} call us: {refusal}")
        self._tell(allocation, let_in)
        return allocation

    def _reopen(self) -> Deferred[TcpAllocation]:
        return Deferred.fromCoroutine(self._open_again())

    async def _open_again(self) -> TcpAllocation:
        allocation, let_in, refusals = await self._open()
        for peer, refusal in refusals.items():
            self._audience.caller_refused(peer, refusal)
        self._tell(allocation, let_in)
        return allocation

    async def _open(self) -> tuple[TcpAllocation, list[Welcome], dict[str, RemoteError]]:
        """An allocation, who may call it, and why others may not."""
        self._allocation = allocation = await self._allocate()
        allocation.listen(_Callers(self._called), self._audience.call_failed)
        let_in: list[Welcome] = []
        refusals: dict[str, RemoteError] = {}
        answers: Any = await DeferredList(map(allocation.permit, self._welcomes), consumeErrors=True)
        for welcome, (is_granted, answer) in zip(self._welcomes.values(), answers, strict=True):
            if is_granted:
                let_in.append(welcome)
            elif answer.trap(RemoteError, ServerUnavailable) is RemoteError:
                refusals[welcome.peer] = answer.value
        return allocation, let_in, refusals

    def _tell(self, allocation: TcpAllocation, let_in: Sequence[Welcome]) -> None:
        if let_in:  # else the allocation is of no use, or gone already, and another one follows
            self._audience.receiving(allocation, let_in, self._is_tls)

    def _lost(self, _: TcpAllocation) -> None:
        self._allocation = None

    # --- connections ------------------------------------------------------------------------------------------------

    def _called(self, peer: TransportAddress) -> Side | None:
        welcome = self._welcomes.get(peer.host)
        if welcome is None:
            return None
        return self.pairs.coming(lambda: self._reach(welcome), lambda error: self._audience.call_failed(peer, error))

    async def _reach(self, welcome: Welcome) -> Side:
        """A connection with the local port."""
        endpoint = HostnameEndpoint(self._reactor, welcome.host, welcome.port)
        reaching: Deferred[Any] = endpoint.connect(silent_factory(self.pairs.other))
        side: Side = await reaching.addErrback(explain, welcome.local)
        return side
