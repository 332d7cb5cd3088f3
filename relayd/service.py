"""RelayService: the one allocation service. Feeds the TURN core and carries out what it decides; decides nothing
itself.

It knows interfaces only: never a listener, a peer transport or a data plane by name. Whoever builds it
(`relayd.launch.wiring`) hands it those; whoever hears a client calls `receive`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import AppConnection, Path, TransportAddress
from relayd.dataplane.flow import Flow
from relayd.dataplane.hairpin import Hairpin
from relayd.errors import PeerNotAuthenticated, PeerUnreachable, RelayUnavailable
from relayd.interfaces import (
    IAllocationObserver,
    IClientPath,
    IDataPlane,
    IPeerConnection,
    IPeerTransport,
    IPolicy,
    IRelay,
    IRelayService,
    ITcpRelay,
    ITcpRelayReceiver,
)
from relayd.pump import Pump
from relayd.rate import TokenBucket, datagram_cost
from relayd.turn import outputs as out
from relayd.turn.server import TurnServer

# A bucket smaller than the largest datagram could never let one pass.
_SMALLEST_BURST = 65_535  # bytes

_NO_NAT = Hairpin()


class Authenticator(Protocol):
    """Finds keys; `relayd.auth.realm` has the one made of cred checkers."""

    def authenticate(self, request: out.AuthenticateUser) -> Deferred[out.Authenticated | out.NotAuthenticated]: ...


@implementer(IRelayService, ITcpRelayReceiver)
class RelayService:
    """One TURN core, the clients that it holds, and the flows that it installed.

    `max_bandwidth` is in payload bytes per second and allocation, both directions together; None: unlimited.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        core: TurnServer,
        data_plane: IDataPlane,
        peer_transports: Iterable[IPeerTransport],
        authenticator: Authenticator,
        policies: Sequence[IPolicy] = (),
        observers: Iterable[IAllocationObserver] = (),
        max_bandwidth: int | None = None,
        hairpin: Hairpin = _NO_NAT,
        tcp_hairpin: Hairpin = _NO_NAT,
    ) -> None:
        self.core = core
        self._clock = clock
        self._data_plane = data_plane
        self._peer_transports = {transport.transport: transport for transport in peer_transports}
        self._authenticator = authenticator
        self._policies = tuple(policies)
        self._observers = list(observers)
        self._max_bandwidth = max_bandwidth
        self._hairpin = hairpin
        self._tcp_hairpin = tcp_hairpin  # of its own: a relayed TCP port says nothing about who has it for UDP
        # A client is held for the time of one call at least, so that its answer finds the way back; beyond it only
        # while the core holds its path too, or a flood of spoofed sources would fill the table. The doubtful ones
        # are looked at last.
        self._clients: dict[Path, IClientPath] = {}
        self._doubtful: set[Path] = set()
        self._depth = 0
        self._flows: dict[tuple[IRelay, int], Flow] = {}
        self._reserved: dict[IRelay, TransportAddress] = {}
        self._exhausted = False
        self._pump = Pump(core, clock, self._perform)
        self._perform_by_type: dict[type, Callable[[Any], None]] = {
            out.Send: self._send,
            out.Deliver: self._deliver,
            out.SendToPeer: self._send_to_peer,
            out.InstallFlow: self._install_flow,
            out.RemoveFlow: self._remove_flow,
            out.AuthenticateUser: self._authenticate,
            out.OpenRelay: self._open_relay,
            out.CloseRelay: self._close_relay,
            out.ConnectToPeer: self._connect_to_peer,
            out.JoinConnections: self._join_connections,
            out.ClosePeerConnection: self._close_peer_connection,
        }

    # --- what listeners call (IRelayService) --------------------------------------------------------------------------

    def receive(self, client: IClientPath, data: bytes) -> None:
        path = client.path
        held = self._clients.get(path)
        if held is None:
            self._clients[path] = client
            self._doubtful.add(path)
        elif held is not client and path.app_connection is not AppConnection.UDP:
            # A PROXY header can claim any address. What is not signed (ChannelData, a Send indication, the end of the
            # connection) must not reach the allocation of whoever really has it.
            client.close()
            return
        self._tell_core(self.core.receive, path, data)

    def path_closed(self, client: IClientPath) -> None:
        if self._clients.get(client.path, client) is not client:
            return  # another connection has this path
        self._tell_core(self.core.path_closed, client.path)
        self._clients.pop(client.path, None)

    def has_allocation(self, client: IClientPath) -> bool:
        path = client.path
        if self._clients.get(path) is not client:
            return False
        return self.core.allocation_of(path) is not None or self.core.is_data_connection(path)

    # --- what relays call (ITcpRelayReceiver) -------------------------------------------------------------------------

    def peer_datagram(self, relay: IRelay, peer: TransportAddress, data: bytes) -> None:
        self._tell_core(self.core.receive_from_peer, relay, self._hairpin.to_advertised(peer), data)

    def peer_error(self, relay: IRelay, peer: TransportAddress, icmp_type: int, icmp_code: int, data: int) -> None:
        self._tell_core(self.core.peer_error, relay, self._hairpin.to_advertised(peer), icmp_type, icmp_code, data)

    def relay_failed(self, relay: IRelay) -> None:
        self._tell_core(self.core.relay_failed, relay)

    def awaits_peer(self, relay: ITcpRelay, peer: TransportAddress) -> bool:
        return self.core.awaits(relay, self._tcp_hairpin.to_advertised(peer), self._clock.seconds())

    def peer_arrived(self, relay: ITcpRelay, connection: IPeerConnection) -> None:
        peer = self._tcp_hairpin.to_advertised(connection.peer)
        self._tell_core(self.core.peer_arrived, relay, peer, connection)

    def peer_connection_lost(self, connection: IPeerConnection) -> None:
        self._tell_core(self.core.peer_connection_closed, connection)

    # --- what the operator calls --------------------------------------------------------------------------------------

    def add_observer(self, observer: IAllocationObserver) -> None:
        self._observers.append(observer)

    def end_user(self, username: str) -> None:
        """End every allocation of a user whose right to them was withdrawn."""
        self._tell_core(self.core.end_user, username, out.EndReason.REVOKED)

    def peer_rules_changed(self) -> None:
        """The peer rules or a policy changed its mind: ask again about every permission and channel there is."""
        self._tell_core(self.core.peer_rules_changed)

    def close(self) -> None:
        """End every allocation and stop the clock. Listeners, and then the data plane, are to be closed after; what is
        heard in between is ignored.
        """
        self._tell_core(self.core.shutdown)
        self._pump.stop()
        self._clients.clear()

    # --- carrying out -------------------------------------------------------------------------------------------------

    def _tell_core(self, verb: Callable[..., None], *arguments: Any) -> None:
        # Whatever a client or a peer can make the core stumble over must not end the listener or relay that called us.
        self._depth += 1
        try:
            verb(*arguments, self._clock.seconds())
        except Exception:
            self._log.failure("the TURN core failed in {verb}", verb=verb.__name__)
        try:
            self._pump.run()
        finally:
            self._depth -= 1
        # An answer that comes at once calls us from within the pump, where outputs may still be waiting for their
        # client.
        if self._doubtful and not self._depth:
            for path in self._doubtful:
                if not self.core.holds(path):
                    self._clients.pop(path, None)
            self._doubtful.clear()

    def _perform(self, output: Any) -> None:
        self._perform_by_type.get(type(output), self._observe)(output)

    def _observe(self, event: Any) -> None:
        for observer in self._observers:
            try:
                observer.observe(event)
            except Exception:
                self._log.failure("an observer failed on {kind}", kind=type(event).__name__)
        if isinstance(event, out.AllocationEnded):
            self._doubtful.add(event.path)

    def _send(self, output: out.Send) -> None:
        client = self._clients.get(output.path)
        if client is None:
            return  # closed while the answer was under way
        if output.source is None and output.destination is None:
            client.send(output.data)
        else:
            server, origin = output.path.five_tuple.server, output.path.client
            client.send_from(output.source or server, output.destination or origin, output.data)

    def _deliver(self, output: out.Deliver) -> None:
        relay: Any = output.relay
        client = self._clients.get(output.path)
        within = relay.limit is None or relay.limit.take(datagram_cost(output.size), self._clock.seconds())
        if client is not None and within and client.send(output.data):
            relay.counters.received_packets += 1
            relay.counters.received_bytes += output.size
        else:
            relay.counters.dropped += 1

    def _send_to_peer(self, output: out.SendToPeer) -> None:
        relay: Any = output.relay
        relay.send(self._hairpin.to_bound(output.peer), output.data, output.dont_fragment)

    def _install_flow(self, output: out.InstallFlow) -> None:
        relay: Any = output.relay
        flow = Flow(self._clients[output.path], output.number, relay, self._hairpin.to_bound(output.peer))
        self._flows[relay, output.number] = flow
        self._data_plane.install_flow(flow)

    def _remove_flow(self, output: out.RemoveFlow) -> None:
        relay: Any = output.relay
        flow = self._flows.pop((relay, output.number), None)
        if flow is not None:
            self._data_plane.remove_flow(flow)

    def _close_relay(self, output: out.CloseRelay) -> None:
        relay: Any = output.relay
        self._reserved.pop(relay, None)
        self._hairpin_of(relay).closed(relay.address)
        relay.close()

    def _hairpin_of(self, relay: IRelay) -> Hairpin:
        return self._tcp_hairpin if ITcpRelay.providedBy(relay) else self._hairpin

    def _connect_to_peer(self, request: out.ConnectToPeer) -> None:
        relay: Any = request.relay

        def failed(failure: Failure) -> None:
            error, code = failure.value, 447
            if isinstance(error, PeerNotAuthenticated):
                code = 460
            elif isinstance(error, RelayUnavailable):
                self._note_unavailable("connection to a peer", error)
                code = 508
            elif not isinstance(error, PeerUnreachable):
                self._log.failure("could not connect to a peer", failure)
            self._answer(request, out.PeerNotConnected(code))

        def reached(connection: IPeerConnection) -> None:
            self._answer(request, out.PeerConnected(connection, connection.protocol))

        connecting = maybeDeferred(relay.connect, self._tcp_hairpin.to_bound(request.peer), request.tls)
        connecting.addCallbacks(reached, failed)

    def _join_connections(self, output: out.JoinConnections) -> None:
        connection: Any = output.connection
        client: Any = self._clients.get(output.path)
        if client is None:
            connection.close()  # the client hung up while the answer was under way
            return
        stream = client.data_connection()
        connection.join(stream)
        stream.join(connection)

    def _close_peer_connection(self, output: out.ClosePeerConnection) -> None:
        connection: Any = output.connection
        connection.close()

    def _answer(self, request: out.AuthenticateUser | out.OpenRelay | out.ConnectToPeer, result: Any) -> None:
        self._doubtful.add(request.path)
        self._tell_core(self.core.answer, request.id, result)

    def _authenticate(self, request: out.AuthenticateUser) -> None:
        def failed(failure: Failure) -> None:
            self._log.failure("authentication failed to give an answer", failure)
            self._answer(request, out.NotAuthenticated())

        answered = self._authenticator.authenticate(request)
        answered.addCallbacks(lambda result: self._answer(request, result), failed)

    # --- opening relayed addresses ------------------------------------------------------------------------------------

    def _open_relay(self, request: out.OpenRelay) -> None:
        def failed(failure: Failure) -> None:
            self._log.failure("could not decide on an allocation", failure)
            self._answer(request, out.RelayRefused(500))

        decided = Deferred.fromCoroutine(self._decide_and_open(request))
        decided.addCallbacks(lambda result: self._answer(request, result), failed)

    async def _decide_and_open(self, request: out.OpenRelay) -> out.RelayOpened | out.RelayRefused:
        for policy in self._policies:
            decided = policy.may_allocate(request)
            refusal: out.RelayRefused | None = await decided if isinstance(decided, Deferred) else decided
            if refusal is not None:
                return refusal
        limit = self._limit_for(request.username)
        if request.reservation is not None:
            reserved: Any = request.reservation
            advertised = self._reserved.pop(reserved, None)
            if advertised is None:
                return out.RelayRefused(508)  # the client left while a policy decided, and the port was closed
            reserved.limit = limit
            return out.RelayOpened(relays=((reserved, advertised),))
        transport = self._peer_transports.get(request.transport)
        if transport is None:
            return out.RelayRefused(442)
        return await self._open_families(transport, request, limit)

    async def _open_families(
        self, transport: IPeerTransport, request: out.OpenRelay, limit: TokenBucket | None
    ) -> out.RelayOpened | out.RelayRefused:
        relays: list[tuple[IRelay, TransportAddress]] = []
        failed = reserved_relay = None
        try:
            for family in request.families:
                try:
                    relay, advertised, reserved = await transport.open(
                        family, self, even_port=request.even_port, reserve_next=request.reserve_next
                    )
                except RelayUnavailable as unavailable:
                    self._note_unavailable("relayed address", unavailable)
                    failed = (family, 508)
                    continue
                relay.limit = limit
                if request.tls:
                    relay.accepts_tls = True
                relays.append((relay, advertised))
                if reserved is not None:
                    reserved_relay, self._reserved[reserved_relay] = reserved[0], reserved[1]
        except BaseException:
            for relay, _ in relays:
                relay.close()
            raise
        if not relays:
            return out.RelayRefused(508)
        if failed is None:
            self._exhausted = False
        for relay in (*(relay for relay, _ in relays), *([reserved_relay] if reserved_relay is not None else ())):
            self._hairpin_of(relay).opened(relay.address)
        return out.RelayOpened(relays=tuple(relays), failed=failed, reserved=reserved_relay)

    def _limit_for(self, username: str) -> TokenBucket | None:
        opinions = [policy.bandwidth(username) for policy in self._policies]
        rates = [rate for rate in (self._max_bandwidth, *opinions) if rate is not None]
        if not rates:
            return None
        rate = min(rates)
        return TokenBucket(rate, max(rate, _SMALLEST_BURST), self._clock.seconds())

    def _note_unavailable(self, what: str, unavailable: RelayUnavailable) -> None:
        # Once until it works again: whoever runs us out of descriptors must not fill the log as well.
        if not self._exhausted:
            self._exhausted = True
            self._log.error(
                "no {what} could be opened: {reason}; new ones are answered 508, the others go on",
                what=what,
                reason=str(unavailable),
            )
