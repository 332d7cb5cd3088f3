"""All allocations of a server and the ports reserved beside them: how they are found, how long they last, how they end.

Whatever ends leaves nothing behind: the outputs that take back its flows and close its relays are written here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from relayd.address import AppConnection, Family, Path
from relayd.core import Deadlines, Entropy
from relayd.turn.allocation import Allocation, ChannelBinding
from relayd.turn.outputs import AllocationEnded, CloseRelay, EndReason, Relay, RemoveFlow
from relayd.turn.peer_connections import PeerConnection, PeerConnections
from relayd.turn.quota import Quota
from relayd.turn.reservations import Reservation, Reservations
from relayd.turn.settings import TurnSettings


class Allocations:
    """The allocations there are. An allocation is added with its place in the quota taken; its end gives it back."""

    def __init__(self, settings: TurnSettings, entropy: Entropy, outputs: deque[Any]) -> None:
        self.quota = Quota(settings.user_quota, settings.total_quota)
        self._reservation_lifetime = settings.reservation_lifetime
        self._reservations = Reservations(entropy)
        self._outputs = outputs
        self._by_path: dict[Path, Allocation] = {}
        self._by_relay: dict[Relay, Allocation] = {}
        self._counts: Counter[AppConnection] = Counter()
        # An allocation, a reservation's token, or a connection that waits to be bound. An allocation's deadline here
        # may be earlier than what is due next on it, never later: then a refresh costs nothing.
        self._deadlines: Deadlines[Allocation | bytes | PeerConnection] = Deadlines()
        self.connections = PeerConnections(entropy, outputs, self._deadlines)

    # --- finding --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Allocation]:
        """Every allocation, also while they end."""
        return iter(list(self._by_path.values()))

    def on(self, path: Path) -> Allocation | None:
        """The allocation of a path."""
        return self._by_path.get(path)

    def of(self, relay: Relay) -> Allocation | None:
        """The allocation that a relay belongs to."""
        return self._by_relay.get(relay)

    def count(self, app_connection: AppConnection) -> int:
        """How many allocations there are over one kind of way in."""
        return self._counts[app_connection]

    # --- beginning, lasting, ending -------------------------------------------------------------------------------

    def add(self, allocation: Allocation) -> None:
        """Put it into the place that was taken for it."""
        self._by_path[allocation.path] = allocation
        for relay, _ in allocation.relays:
            self._by_relay[relay] = allocation
        self._counts[allocation.path.app_connection] += 1
        self._deadlines.set(allocation, allocation.expires)

    def look_in_time(self, allocation: Allocation, until: float) -> None:
        """To be called when the allocation, or one of its channels, is to last until then."""
        due = self._deadlines.get(allocation)
        if due is None or until < due:
            self._deadlines.set(allocation, until)

    def end(self, allocation: Allocation, reason: EndReason, now: float) -> None:
        """Take it out with all that hangs on it."""
        del self._by_path[allocation.path]
        self._counts[allocation.path.app_connection] -= 1
        self._deadlines.cancel(allocation)
        self.quota.give_back(allocation.username)
        for binding in list(allocation.channels.values()):
            self.unbind(allocation, binding)
        self.connections.end_all(allocation)
        self._outputs.append(
            AllocationEnded(
                allocation.session_id,
                allocation.path,
                allocation.username,
                allocation.relays + allocation.closed_relays,
                reason,
                now - allocation.created,
            )
        )
        for relay, _ in allocation.relays:
            del self._by_relay[relay]
            self._outputs.append(CloseRelay(relay))

    def end_half(self, allocation: Allocation, family: Family) -> None:
        """Take one relayed address, with its channels and permissions, out of a dual allocation."""
        for half in allocation.relays:
            relay, address = half
            if address.family is not family:
                continue
            for binding in [binding for binding in allocation.channels.values() if binding.relay == relay]:
                self.unbind(allocation, binding)
            for connection in self.connections.of(allocation):
                if len(connection.peer.ip) == len(address.ip):
                    self.connections.end(connection)
            allocation.close_half(half)
            del self._by_relay[relay]
            self._outputs.append(CloseRelay(relay))

    def unbind(self, allocation: Allocation, binding: ChannelBinding) -> None:
        """Take a channel back."""
        allocation.unbind(binding)
        self._outputs.append(RemoveFlow(allocation.path, binding.number, binding.relay, binding.peer))

    # --- reservations ---------------------------------------------------------------------------------------------

    def may_reserve(self, username: str) -> bool:
        """Whether this user may have one more port reserved."""
        return self._reservations.has_room(username)

    def reserve(self, allocation: Allocation, relay: Relay, now: float) -> None:
        """Keep the port beside the one of this allocation."""
        family = allocation.relays[0][1].family
        reservation = Reservation(relay, family, allocation.transport, allocation.username)
        allocation.token = self._reservations.add(reservation)
        self._deadlines.set(allocation.token, now + self._reservation_lifetime)

    def is_reserved(self, token: bytes) -> bool:
        """Whether a token is still good."""
        return token in self._reservations

    def reserved(self, token: bytes, username: str, transport: int) -> Reservation | None:
        """What a token stands for, if it was given to this user for this transport."""
        return self._reservations.find(token, username, transport)

    def claim_reserved(self, token: bytes) -> None:
        """The token is spent; its relay is the caller's to use or close."""
        self._reservations.remove(token)
        self._deadlines.cancel(token)

    def drop_reserved_relay(self, relay: Relay) -> None:
        """A relay that broke: nobody will get it any more."""
        token = self._reservations.token_of(relay)
        if token is not None:
            self._drop_reservation(token)

    def drop_reservations(self) -> None:
        """Close every port that waits to be claimed."""
        for token in self._reservations.tokens():
            self._drop_reservation(token)

    def _drop_reservation(self, token: bytes) -> None:
        reservation = self._reservations.remove(token)
        self._deadlines.cancel(token)
        if reservation is not None:
            self._outputs.append(CloseRelay(reservation.relay))

    # --- time -----------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `expire` is wanted."""
        return self._deadlines.next()

    def expire(self, now: float) -> None:
        """End what is due: allocations, channels, reservations, connections that nobody binds."""
        for key in self._deadlines.due(now):
            if isinstance(key, Allocation):
                self._expire_allocation(key, now)
            elif isinstance(key, PeerConnection):
                self.connections.end(key)
            else:
                self._drop_reservation(key)

    def _expire_allocation(self, allocation: Allocation, now: float) -> None:
        if allocation.expires <= now:
            self.end(allocation, EndReason.EXPIRED, now)
            return
        for binding in allocation.expired_channels(now):
            self.unbind(allocation, binding)
        self._deadlines.set(allocation, allocation.next_deadline())
