"""Where two allocations of one relay meet: what one relayed address sends to another goes over inside, without a trip
through the kernel's UDP (draft-chenxin section 3.3).

Theory of operation. A relay looks each destination up among the relays that are open at that moment: an address that
was closed, or opened again by somebody else, can never be met by a stale entry. The receiving relay then does what it
does with any datagram from that address. If it has a flow for it, the payload goes to its client at once. If not, it is
for the receiver above, who alone decides on permissions; it waits for a turn of its own, as it would in the receive
buffer of a socket. For the sender may be in the middle of a batch, or be the receiver itself (the core, carrying out a
Send indication), and what goes up costs ten times what a flow costs. While anything waits for a relay, all that comes
later waits behind it, so order is kept.

Nothing is decided here: permissions, limits and counters are those of the two relays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from relayd.address import TransportAddress
from relayd.dataplane.sockets import LARGEST_PAYLOAD
from relayd.rate import datagram_cost

if TYPE_CHECKING:
    from relayd.dataplane.plane import Relay

WAITING_BYTES = 212_992
"""Payload that may wait for one relay, short datagrams counted as 64 bytes: what Linux gives a socket to receive in."""

SERVED_PER_TURN = 128
"""Datagrams that go up before the reactor gets its turn: 2 to 3 ms."""


class Queue:
    """What waits for one relay: (sender, the sender's key in tables of flows, payload)."""

    __slots__ = ("datagrams", "size")

    def __init__(self) -> None:
        self.datagrams: deque[tuple[TransportAddress, Hashable, bytes]] = deque()
        self.size = 0


class Bridge:
    """The open relays of a data plane by address, and what waits for them."""

    def __init__(self, reactor: Any) -> None:
        self.relays: dict[TransportAddress, Relay] = {}
        self._reactor = reactor
        self._line: deque[Relay] = deque()  # those for which something waits, the next one first
        self._call: Any = None

    def opened(self, relay: Relay) -> None:
        """A relay can be reached from now on. On a wildcard it could not be told by its address."""
        if not relay.address.is_wildcard:
            self.relays[relay.address] = relay
            relay.neighbours = self.relays

    def closed(self, relay: Relay) -> None:
        """It is gone, and with it what waits for it."""
        if self.relays.get(relay.address) is relay:
            del self.relays[relay.address]
        if relay.waiting is not None:
            relay.waiting = None
            self._line.remove(relay)
        if not self._line and self._call is not None:
            self._call.cancel()
            self._call = None

    def cross(self, sender: Relay, target: Relay, data: bytes) -> bool:
        """Hand a datagram over. False: dropped, because no datagram between their addresses could be that long."""
        if len(data) > LARGEST_PAYLOAD[len(target.address.ip)]:
            return False
        flow = target.flows.get(sender.key) if target.waiting is None else None
        if flow is not None:
            target.pass_down(flow, data)
        else:
            self._wait(sender, target, data)
        sender.counters.bridged += 1
        return True

    def _wait(self, sender: Relay, target: Relay, data: bytes) -> None:
        queue = target.waiting
        if queue is None:
            queue = target.waiting = Queue()
            self._line.append(target)
        cost = datagram_cost(len(data))
        if queue.size + cost > WAITING_BYTES:
            target.counters.dropped += 1
            return
        queue.size += cost
        queue.datagrams.append((sender.address, sender.key, data))
        if self._call is None:
            self._call = self._reactor.callLater(0, self._serve)

    def _serve(self) -> None:
        """One datagram of each relay in turn: a flood for one delays the others by as much as it is delayed itself."""
        self._call = None
        for _ in range(SERVED_PER_TURN):
            if not self._line:
                return
            target = self._line.popleft()
            queue = target.waiting
            assert queue is not None
            address, key, data = queue.datagrams.popleft()
            queue.size -= datagram_cost(len(data))
            if queue.datagrams:
                self._line.append(target)
            else:
                target.waiting = None
            flow = target.flows.get(key)
            if flow is not None:
                target.pass_down(flow, data)
            else:
                target.hand_up(address, data)
        if self._line and self._call is None:
            self._call = self._reactor.callLater(0, self._serve)
