"""What the data planes have in common: ports, relays, client paths and tables of flows, but not how datagrams are read.

Everything here is the slow path: one call per datagram, right on every platform. `portable` uses it for all traffic,
`batched` for whatever its fast path does not take.
"""

from __future__ import annotations

import errno
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from relayd.address import AppConnection, FiveTuple, Path, TransportAddress
from relayd.dataplane.bridge import Bridge, Queue
from relayd.dataplane.flow import Flow
from relayd.dataplane.sockets import (
    HAS_DONT_FRAGMENT,
    enlarge_buffers,
    local_address,
    open_udp,
    prepare_relayed,
    set_dont_fragment,
    take_error,
    to_sockaddr,
)
from relayd.interfaces import (
    Counters,
    IClientPath,
    IDatagramPort,
    IDatagramReceiver,
    IDataPlane,
    IRelay,
    IRelayReceiver,
)
from relayd.rate import TokenBucket, datagram_cost

CHANNEL_HEADER = struct.Struct("!HH")
"""ChannelData: channel number, length of the payload (RFC 8656 section 12.4)."""

ERRORS_PER_TURN = 16
"""Entries that are taken off one relay's error queue per event; the rest waits, so that ICMP cannot starve data."""

ERROR_RATE, ERROR_BURST = 10.0, 10.0
"""ICMP errors per second, and at once, that one relay hands up. More is discarded: it would say the same again."""

FAILURES_TOLERATED = 64
"""Receive errors in a row, nothing read in between, after which a relayed socket is taken for broken."""

_UDP = 17  # IP protocol number
BUSY = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS)
_log = Logger()


@implementer(IClientPath)
class DatagramPath:
    """A client of one of our own UDP ports. Made for the occasion: equal clients have equal `path`s, not one object."""

    __slots__ = ("path", "flows", "port")

    def __init__(self, port: DatagramPort, client: TransportAddress) -> None:
        self.path = Path(FiveTuple(client, port.address, _UDP), port.app_connection)
        self.flows: dict[int, Any] = {}
        self.port = port

    def send(self, data: bytes) -> bool:
        return self.port.answer(self.path.client, data)

    def send_channel_data(self, number: int, payload: bytes) -> bool:
        # RFC 8656 section 12.5: over UDP padding is not required, so there is none.
        return self.port.send(self.path.client, CHANNEL_HEADER.pack(number, len(payload)) + payload)

    def send_channel_data_run(self, number: int, payloads: Sequence[bytes]) -> int:
        return sum([self.send_channel_data(number, payload) for payload in payloads])

    def send_from(self, source: TransportAddress, destination: TransportAddress, data: bytes) -> bool:
        for sibling in self.port.siblings:
            if sibling.address == source:
                return bool(sibling.send(destination, data))
        return False

    def close(self) -> None:
        """Nothing to do: there is no connection."""


class PlaneSocket:
    """An open socket of a plane, and its flows under the key that the plane gives them."""

    __slots__ = ("plane", "socket", "fd", "address", "flows", "closed")

    def __init__(self, plane: DataPlane, opened: socket.socket) -> None:
        self.plane = plane
        self.socket = opened
        self.fd = opened.fileno()
        self.address = local_address(opened)
        self.flows: dict[Hashable, Flow] = {}
        self.closed = False

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        for flow in list(self.flows.values()):
            self.plane.remove_flow(flow)
        self.plane.forget(self)
        self.socket.close()


@implementer(IDatagramPort)
class DatagramPort(PlaneSocket):
    """A client-side port."""

    __slots__ = ("app_connection", "receiver", "siblings")

    def __init__(
        self, plane: DataPlane, opened: socket.socket, app_connection: str, receiver: IDatagramReceiver
    ) -> None:
        super().__init__(plane, opened)
        self.app_connection = AppConnection(app_connection)
        self.receiver = receiver
        self.siblings: list[Any] = []

    def send(self, destination: TransportAddress, data: bytes) -> bool:
        if self.closed or len(destination.ip) != len(self.address.ip):
            return False
        try:
            self.socket.sendto(data, to_sockaddr(destination))
        except OSError:
            return False
        return True

    def answer(self, client: TransportAddress, data: bytes) -> bool:
        """As `send`; but from within `hand_up` a plane may let several leave together, before anything else does."""
        return self.send(client, data)

    def hand_up(self, client: TransportAddress, data: bytes) -> None:
        """Give the receiver what no flow took. What it raises is its own fault and ends nothing."""
        try:
            self.receiver.datagram_received(DatagramPath(self, client), data)
        except Exception:
            _log.failure("A receiver failed on a datagram from {client}", client=client)


@implementer(IRelay)
class Relay(PlaneSocket):
    """A relayed transport address."""

    __slots__ = ("receiver", "counters", "limit", "failures", "errors_allowed", "key", "neighbours", "waiting")

    def __init__(self, plane: DataPlane, opened: socket.socket, receiver: IRelayReceiver) -> None:
        super().__init__(plane, opened)
        self.receiver = receiver
        self.counters = Counters()
        self.limit: TokenBucket | None = None
        self.failures = 0
        self.errors_allowed: TokenBucket | None = None  # made by the first error: most relays never see one
        # The bridge's: how other relays' flows know this one, whom it reaches inside, what those left for it.
        self.key = plane.peer_key(self.address)
        self.neighbours: dict[TransportAddress, Relay] = {}
        self.waiting: Queue | None = None

    def send(self, peer: TransportAddress, data: bytes, dont_fragment: bool = False) -> bool:
        counters = self.counters
        if not self.closed and self.within_limit(len(data)) and self._send(peer, data, dont_fragment):
            counters.sent_packets += 1
            counters.sent_bytes += len(data)
            return True
        counters.dropped += 1
        return False

    def send_run(self, peer: TransportAddress, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            self.send(peer, payload)

    def within_limit(self, size: int) -> bool:
        """Whether a datagram with `size` bytes of payload may pass now; if so it is charged."""
        return self.limit is None or self.limit.take(datagram_cost(size), self.plane.seconds())

    def pass_down(self, flow: Flow, payload: bytes) -> None:
        """A datagram from the peer of a flow, to its client."""
        counters = self.counters
        try:
            passed = self.within_limit(len(payload)) and flow.client.send_channel_data(flow.number, payload)
        except Exception:
            _log.failure("A client path failed on ChannelData")
            passed = False
        if passed:
            counters.received_packets += 1
            counters.received_bytes += len(payload)
        else:
            counters.dropped += 1

    def hand_up(self, peer: TransportAddress, data: bytes) -> None:
        """Give the receiver what no flow took. What it raises is its own fault and ends nothing."""
        try:
            self.receiver.peer_datagram(self, peer, data)
        except Exception:
            _log.failure("A receiver failed on a datagram from peer {peer}", peer=peer)

    def read_errors(self) -> None:
        """Hand up what lies in the error queue, a bounded number at a time and at a bounded rate."""
        for _ in range(ERRORS_PER_TURN):
            found, error = take_error(self.socket)
            if not found:
                return
            self.failures = 0
            if error is None or not self._may_report():
                continue
            try:
                self.receiver.peer_error(self, *error)
            except Exception:
                _log.failure("A receiver failed on an ICMP error about {peer}", peer=error.peer)
            if self.closed:
                return

    def receive_failed(self, code: int) -> None:
        """Reading failed with that errno. Mostly an ICMP error waits; a socket that only fails is broken."""
        if code in BUSY or code == errno.EINTR or self.closed:
            return
        self.failures += 1
        self.read_errors()
        if self.closed or self.failures < FAILURES_TOLERATED:
            return
        _log.error(
            "Relay {address} is broken and closed: {error}", address=str(self.address), error=errno.errorcode.get(code)
        )
        self.close()
        try:
            self.receiver.relay_failed(self)
        except Exception:
            _log.failure("A receiver failed on a broken relay")

    def _may_report(self) -> bool:
        now = self.plane.seconds()
        if self.errors_allowed is None:
            self.errors_allowed = TokenBucket(ERROR_RATE, ERROR_BURST, now)
        return self.errors_allowed.take(1, now)

    def _send(self, peer: TransportAddress, data: bytes, dont_fragment: bool) -> bool:
        if len(peer.ip) != len(self.address.ip):
            return False
        neighbour = self.neighbours.get(peer)
        if neighbour is not None:  # no link lies between: nothing is fragmented, whatever was asked
            return self.plane.bridge.cross(self, neighbour, data)
        if not dont_fragment:
            return self._send_now(peer, data)
        if not HAS_DONT_FRAGMENT:
            return False
        set_dont_fragment(self.socket, True)
        try:
            return self._send_now(peer, data)
        finally:
            set_dont_fragment(self.socket, False)

    def _send_now(self, peer: TransportAddress, data: bytes) -> bool:
        sockaddr = to_sockaddr(peer)
        try:
            self.socket.sendto(data, sockaddr)
            return True
        except OSError as error:
            if error.errno in BUSY:
                return False
        # An ICMP error about an earlier datagram, perhaps to another peer, is told to whoever sends next, and the
        # datagram is not sent. Being told clears it, so the second attempt fails only for a reason of its own.
        try:
            self.socket.sendto(data, sockaddr)
            return True
        except OSError:
            return False


@implementer(IDataPlane)
class DataPlane(ABC):
    """Opens, closes, and keeps the tables of flows. A plane says how it keys them and how it is told of datagrams."""

    name: str

    def __init__(self, reactor: Any) -> None:
        if not (IReactorFDSet.providedBy(reactor) and IReactorTime.providedBy(reactor)):
            raise TypeError(f"{reactor!r} cannot watch descriptors and tell the time")
        self.reactor: Any = reactor
        self.seconds = reactor.seconds
        self.bridge = Bridge(reactor)
        self._open: set[PlaneSocket] = set()
        self._closed = False

    @abstractmethod
    def watch(self, opened: PlaneSocket) -> None:
        """Start reading it. Raises OSError."""

    @abstractmethod
    def unwatch(self, opened: PlaneSocket) -> None:
        """Stop reading it; it is about to be closed."""

    @abstractmethod
    def make_port(self, opened: socket.socket, app_connection: str, receiver: IDatagramReceiver) -> DatagramPort:
        """Wrap a client-side socket."""

    @abstractmethod
    def make_relay(self, opened: socket.socket, receiver: IRelayReceiver) -> Relay:
        """Wrap a relayed socket."""

    @abstractmethod
    def client_key(self, client: TransportAddress, number: int) -> Hashable:
        """The key of a flow in the table of a client-side port."""

    @abstractmethod
    def peer_key(self, peer: TransportAddress) -> Hashable:
        """The key of a flow in the table of a relay."""

    def open_port(self, address: TransportAddress, app_connection: str, receiver: IDatagramReceiver) -> DatagramPort:
        opened = self._bind(address)
        try:
            enlarge_buffers(opened)
            port = self.make_port(opened, app_connection, receiver)
            self.watch(port)
        except BaseException:
            opened.close()
            raise
        self._open.add(port)
        return port

    def open_relay(self, address: TransportAddress, receiver: IRelayReceiver) -> Relay:
        opened = self._bind(address)
        try:
            prepare_relayed(opened)
            relay = self.make_relay(opened, receiver)
            self.watch(relay)
        except BaseException:
            opened.close()
            raise
        self._open.add(relay)
        self.bridge.opened(relay)
        return relay

    def install_flow(self, flow: Flow) -> None:
        relay = self._relay_of(flow)
        table, key = self._client_side(flow)
        replaced = table.get(key)
        if replaced is not None and replaced is not flow:
            self.remove_flow(replaced)
        if relay.closed or (isinstance(flow.client, DatagramPath) and flow.client.port.closed):
            return  # neither end will deliver anything any more
        table[key] = flow
        relay.flows[self.peer_key(flow.peer)] = flow

    def remove_flow(self, flow: Flow) -> None:
        # A flow is known by what it decides, not as an object: nobody needs to keep the one that was installed. What
        # took its place on either side since then is another decision and stays.
        relay = self._relay_of(flow)
        table, key = self._client_side(flow)
        installed = table.get(key)
        if installed is not None and installed.relay is relay and installed.peer == flow.peer:
            del table[key]
        peer_key = self.peer_key(flow.peer)
        installed = relay.flows.get(peer_key)
        if installed is not None and installed.number == flow.number and installed.client.path == flow.client.path:
            del relay.flows[peer_key]

    def forget(self, opened: PlaneSocket) -> None:
        """A port or relay closes."""
        self.unwatch(opened)
        self._open.discard(opened)
        if isinstance(opened, Relay):
            self.bridge.closed(opened)

    def close(self) -> None:
        self._closed = True
        for opened in list(self._open):
            opened.close()

    def _bind(self, address: TransportAddress) -> socket.socket:
        if self._closed:
            raise OSError(errno.ESHUTDOWN, "the data plane is closed")
        return open_udp(address)

    def _client_side(self, flow: Flow) -> tuple[dict[Any, Any], Hashable]:
        client = flow.client
        if isinstance(client, DatagramPath) and client.port.plane is self:
            return client.port.flows, self.client_key(client.path.client, flow.number)
        return client.flows, flow.number

    def _relay_of(self, flow: Flow) -> Relay:
        if not isinstance(flow.relay, Relay):
            raise TypeError(f"{flow.relay!r} is not a relay of a data plane")
        return flow.relay
