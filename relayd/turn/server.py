"""The TURN and STUN server core: the verbs by which the shell drives it, sans-IO (RFC 8489, 8656, 5780).

Theory of operation. A request goes through these stages; each may refuse it, and two of them may have to wait for the
shell:

    receive -> Binding: answered at once, within the throttle
            -> others: credentials read -> proof checked (AuthenticateUser, or the allocation's own key)
                       -> unknown attributes -> the method -> Allocate only: OpenRelay -> answered

Data, from clients and from peers, meets an allocation or is dropped. `Requests` decides, `Allocations` keeps and ends,
`relaying` says what an allocation lets through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from relayd.address import AppConnection, Path, TransportAddress
from relayd.core import Entropy
from relayd.errors import DecodeError, RemoteError
from relayd.stun.attributes import Icmp
from relayd.stun.framing import MAX_CHANNEL, MIN_CHANNEL, decode_channel_data
from relayd.stun.message import TRANSACTION_ID_SIZE, Class, Message, Method, decode
from relayd.turn import outputs as out
from relayd.turn.allocation import Allocation
from relayd.turn.allocations import Allocations
from relayd.turn.outputs import EndReason, Relay
from relayd.turn.relaying import (
    Guard,
    channel_data_to_peer,
    connection_attempt,
    data_to_client,
    icmp_to_client,
    send_to_peer,
)
from relayd.turn.requests import Requests
from relayd.turn.settings import TurnSettings
from relayd.turn.transaction import Transaction

_FIRST_OF_CHANNEL_DATA = MIN_CHANNEL >> 8  # the first byte tells STUN from ChannelData (RFC 8656 section 12.5)
_LAST_OF_CHANNEL_DATA = MAX_CHANNEL >> 8


class TurnServer:
    """The core. Feed it with the verbs below, then drain `next_output`, then arm a timer for `next_timer`."""

    def __init__(self, settings: TurnSettings, entropy: Entropy, peer_rules: Guard) -> None:
        self._entropy = entropy
        self._guard = peer_rules
        self._outputs: deque[Any] = deque()
        self._allocations = Allocations(settings, entropy, self._outputs)
        self._requests = Requests(settings, entropy, peer_rules, self._allocations, self._outputs)
        self._is_shut_down = False

    # --- what the shell asks --------------------------------------------------------------------------------------

    def next_output(self) -> Any | None:
        """The next thing for the shell to do, one of the classes of `relayd.turn.outputs`."""
        return self._outputs.popleft() if self._outputs else None

    def next_timer(self) -> float | None:
        """When `handle_timer` is wanted next."""
        expiry, timeout = self._allocations.next_deadline(), self._requests.next_deadline()
        if expiry is None or timeout is None:
            return timeout if expiry is None else expiry
        return min(expiry, timeout)

    def holds(self, path: Path) -> bool:
        """Whether the core may have something to send on that path of its own accord."""
        on_path = self._allocations.on(path) is not None or self._requests.wait_on(path)
        return on_path or self.is_data_connection(path)

    def is_data_connection(self, path: Path) -> bool:
        """Whether that path is a client data connection: it carries a peer's bytes, and no TURN any more."""
        return self._allocations.connections.bound_on(path) is not None

    def allocation_of(self, path: Path) -> Allocation | None:
        """The allocation of a path, to be read and not changed."""
        return self._allocations.on(path)

    def sessions(self) -> Iterator[Allocation]:
        """All allocations, to be read and not changed."""
        return iter(self._allocations)

    def count(self, app_connection: AppConnection) -> int:
        """How many allocations there are over one kind of way in."""
        return self._allocations.count(app_connection)

    # --- verbs ----------------------------------------------------------------------------------------------------

    def receive(self, path: Path, data: bytes, now: float) -> None:
        """A whole STUN message, or ChannelData that no flow took, from a client."""
        if self._is_shut_down:
            return
        try:
            if data and 0x40 <= data[0] <= 0x7F:
                self._receive_channel_data(path, data, now)
                return
            message = decode(data)
            if message.cls is Class.REQUEST:
                self._requests.receive(Transaction(path, message, data), now)
            elif message.cls is Class.INDICATION and message.method == Method.SEND:
                self._receive_send(path, message, now)
            # Anything else is a keep-alive, or not for a server: silently discarded (RFC 8489 section 6.3).
        except DecodeError:
            self._outputs.append(out.RequestRefused(path, 0, 0))

    def receive_from_peer(self, relay: Relay, peer: TransportAddress, data: bytes, now: float) -> None:
        """A datagram, perhaps empty, that came to a relayed address and that no flow took."""
        allocation = self._allocations.of(relay)
        if allocation is not None and allocation.expires > now:
            self._put(data_to_client(allocation, relay, peer, data, self._entropy(TRANSACTION_ID_SIZE), now))

    def peer_error(
        self, relay: Relay, peer: TransportAddress, icmp_type: int, icmp_code: int, data: int, now: float
    ) -> None:
        """An ICMP error about a datagram that went from a relayed address to a peer; `data` is its 32-bit field."""
        allocation = self._allocations.of(relay)
        if allocation is not None and allocation.expires > now:
            icmp = Icmp(icmp_type, icmp_code, data)
            self._put(icmp_to_client(allocation, peer, icmp, self._entropy(TRANSACTION_ID_SIZE), now))

    def awaits(self, relay: Relay, peer: TransportAddress, now: float) -> bool:
        """Whether a TCP connection of that peer's would be taken (RFC 6062 section 5.3)."""
        allocation = self._allocations.of(relay)
        if allocation is None or allocation.expires <= now or not allocation.permits(peer.ip, now):
            return False
        # The permission was for the address alone, and a policy may have come to think otherwise of it.
        if not self._guard.may_reach(allocation.username, peer):
            return False
        return self._allocations.connections.has_room(allocation)

    def peer_arrived(self, relay: Relay, peer: TransportAddress, connection: out.Connection, now: float) -> None:
        """A peer opened a TCP connection to a relayed address (RFC 6062 section 5.3)."""
        allocation = self._allocations.of(relay)
        if allocation is None or not self.awaits(relay, peer, now):
            self._outputs.append(out.ClosePeerConnection(connection))
            return
        connections = self._allocations.connections
        try:
            number = connections.connected(connections.begin(allocation, peer), connection, now)
        except RemoteError:
            self._outputs.append(out.ClosePeerConnection(connection))
            return
        self._put(connection_attempt(allocation, peer, number, self._entropy(TRANSACTION_ID_SIZE)))

    def peer_connection_closed(self, connection: out.Connection, now: float) -> None:
        """A peer data connection, joined or not, is closed."""
        self._allocations.connections.closed(connection)

    def path_closed(self, path: Path, now: float) -> None:
        """The connection behind a path is gone: so is its allocation, and nothing more is to be sent."""
        self._requests.give_up_path(path)
        self._allocations.connections.data_path_closed(path)
        allocation = self._allocations.on(path)
        if allocation is not None:
            self._allocations.end(allocation, EndReason.CONNECTION_CLOSED, now)

    def relay_failed(self, relay: Relay, now: float) -> None:
        """A relayed address broke. Its whole allocation ends: half of a dual one would be a surprise to its client."""
        allocation = self._allocations.of(relay)
        if allocation is not None:
            self._allocations.end(allocation, EndReason.RELAY_FAILED, now)
        else:
            self._allocations.drop_reserved_relay(relay)

    def end_user(self, username: str, reason: EndReason, now: float) -> None:
        """End every allocation of a user (the prepared name), also those about to be."""
        self._requests.give_up_user(username)
        for allocation in self._allocations:
            if allocation.username == username:
                self._allocations.end(allocation, reason, now)

    def peer_rules_changed(self, now: float) -> None:
        """The guard may answer differently now: ask it again about every permission and channel, and drop what it
        refuses.
        """
        for allocation in self._allocations:
            username = allocation.username
            for binding in list(allocation.channels.values()):
                if not self._guard.may_reach(username, binding.peer):
                    self._allocations.unbind(allocation, binding)
            for connection in self._allocations.connections.of(allocation):
                if not self._guard.may_reach(username, connection.peer):
                    self._allocations.connections.end(connection)
            for ip in list(allocation.permissions):
                if not self._guard.may_reach(username, TransportAddress(ip, 0)):
                    del allocation.permissions[ip]

    def shutdown(self, now: float) -> None:
        """End everything; whatever is received afterwards is ignored."""
        self._is_shut_down = True
        self._requests.give_up_all()
        for allocation in self._allocations:
            self._allocations.end(allocation, EndReason.SHUTDOWN, now)
        self._allocations.drop_reservations()

    def answer(self, id: int, result: Any, now: float) -> None:
        """The result of AuthenticateUser, OpenRelay or ConnectToPeer. For an id that is no longer awaited, what it
        brings is closed.
        """
        self._requests.answer(id, result, now)

    def handle_timer(self, now: float) -> None:
        """End and forget what is due."""
        self._allocations.expire(now)
        self._requests.expire(now)

    # --- from the client ------------------------------------------------------------------------------------------

    def _receive_channel_data(self, path: Path, data: bytes, now: float) -> None:
        allocation = self._allocations.on(path)
        if allocation is not None and allocation.expires > now:
            number, payload = decode_channel_data(data)
            self._put(channel_data_to_peer(allocation, number, payload, now))

    def _receive_send(self, path: Path, message: Message, now: float) -> None:
        allocation = self._allocations.on(path)
        if allocation is not None and allocation.expires > now:
            self._put(send_to_peer(allocation, message, self._guard, now))

    def _put(self, output: Any | None) -> None:
        if output is not None:
            self._outputs.append(output)
