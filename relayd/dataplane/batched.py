"""The data plane for Linux: receives and sends many datagrams per system call and copies no payload in Python.

Theory of operation. All sockets are in an epoll set of the plane's own; the reactor watches that set's one descriptor,
because a reactor event per socket would cost more than the packets. A turn takes what is ready, batch by batch (see
`relayd.dataplane.buffers`). Within a batch, neighbours of one flow and one size are a run, which leaves as one
UDP_SEGMENT send, or is handed as a whole to the client's connection. When very many come one by one, they are left to
gather (see `relayd.dataplane.moderation`).

Up (client to peer) a run is sent at once, for each relay has a socket of its own. Down (peer to client) runs are queued
over all relays that are ready and leave together in one sendmmsg, for clients share a socket. Across (client to client,
where the peer is a relay of this plane, see `relayd.dataplane.bridge`) a run is queued as if it had come down.
Everything that is queued is flushed before anyone above is called: so order is kept, and whatever the call closes has
nothing left to send. Only what those above answer to a batch waits for its end, or until something else is to leave by
that port: to and fro between them and the kernel's network code, both would lose their place in the processor's caches
each time.

What no flow takes and what is limited goes the slow way of `relayd.dataplane.plane`.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Hashable, Sequence
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.address import TransportAddress
from relayd.dataplane.buffers import (
    HEADER,
    RUN_BYTES,
    SLOTS,
    SOCKADDR_SIZE,
    Frames,
    Inbox,
    Outbox,
    pack_sockaddr,
    unpack_sockaddr,
)
from relayd.dataplane.flow import Flow
from relayd.dataplane.libc import MSGHDR, Memory, ffi, last_error, recvmmsg, sendmmsg, sendmsg
from relayd.dataplane.moderation import PAUSE, Moderation
from relayd.dataplane.plane import BUSY, CHANNEL_HEADER, DatagramPath, DatagramPort, DataPlane, PlaneSocket, Relay
from relayd.dataplane.segments import by_size, less_than, try_segments
from relayd.dataplane.sockets import LARGEST_PAYLOAD
from relayd.interfaces import IDatagramReceiver, IRelayReceiver

DATAGRAMS_PER_TURN = 1024
"""After about that many (2 ms of work) the reactor gets its turn, however much more there is."""

ANSWERS_TOGETHER = 16
"""Answers that wait for one another: the first is held back by 1 to 3 ms at most (a request takes 50 to 200 us)."""

EVENTS_PER_POLL = 64
"""Sockets that are served before the epoll set is asked again; it gives those that waited longest first."""

_READY = select.EPOLLIN
_NOTHING = ffi.NULL
_log = Logger()


class Route:
    """What the kernel is told to forward one flow, in memory that does not move: both sockaddrs, and for a datagram
    that comes alone, in the first slot of its inbox, the whole message each way.
    """

    __slots__ = (
        "port",
        "number_word",
        "peer_at",
        "client_at",
        "name_size_up",
        "name_size_down",
        "up_most",
        "down_most",
        "lone_up",
        "lone_down",
        "_block",
    )

    def __init__(self, port: BatchedPort, flow: Flow) -> None:
        peer = pack_sockaddr(flow.peer)
        client = pack_sockaddr(flow.client.path.client)
        relay: Any = flow.relay
        block = self._block = Memory(2 * MSGHDR.size + len(peer) + len(client))
        block.view[2 * MSGHDR.size :] = peer + client
        self.port = port
        self.peer_at = block.at + 2 * MSGHDR.size
        self.client_at = self.peer_at + len(peer)
        MSGHDR.pack_into(block.view, 0, self.peer_at, len(peer), port.inbox.gather[0], 1, 0, 0)
        MSGHDR.pack_into(block.view, MSGHDR.size, self.client_at, len(client), relay.inbox.frames.gather[0], 1, 0, 0)
        self.lone_up = block.pointer(0)
        self.lone_down = block.pointer(MSGHDR.size)
        self.name_size_up = len(peer)
        self.name_size_down = len(client)
        # A ChannelData header as a little-endian processor stores it: two halves in network order.
        self.number_word = socket.htons(flow.number)
        # Longest datagram that may go in a UDP_SEGMENT run each way; lowered when the kernel refuses one.
        self.up_most = self.down_most = RUN_BYTES


class BatchedPort(DatagramPort):
    """A client-side port."""

    __slots__ = ("inbox", "answers", "handing_up")
    inbox: Inbox
    answers: list[tuple[TransportAddress, bytes]]
    handing_up: bool

    def answer(self, client: TransportAddress, data: bytes) -> bool:
        """See `DatagramPort.answer`. True also for what is kept back, though it may yet be dropped."""
        if not self.handing_up or self.closed:
            return self.send(client, data)
        self.answers.append((client, data))
        if len(self.answers) >= ANSWERS_TOGETHER:
            self.send_answers()
        return True

    def send(self, destination: TransportAddress, data: bytes) -> bool:
        if self.answers:
            self.send_answers()
        return super().send(destination, data)

    def send_answers(self) -> None:
        """Send what `answer` kept back."""
        answers, self.answers = self.answers, []
        for client, data in answers:
            super().send(client, data)

    def close(self) -> None:
        self.send_answers()
        super().close()

    def hand_up(self, client: TransportAddress, data: bytes) -> None:
        self.handing_up = True
        super().hand_up(client, data)
        self.handing_up = False

    def read(self) -> int:
        """Read and forward one batch; gives the number of datagrams."""
        inbox = self.inbox
        plane: Any = self.plane
        if inbox.filled:
            plane.flush()
        count = recvmmsg(self.fd, inbox.messages[0], SLOTS, 0, _NOTHING)
        if count <= 0:
            return 0
        flows = self.flows
        if count == 1 and inbox.lengths[0] >= HEADER:
            # Paced traffic: what is set up for a batch would cost more than the one datagram.
            key, size = inbox.first_head()
            flow = flows.get(key)
            if flow is not None and inbox.lengths[0] >= size + HEADER and send_lone_up(flow, inbox, size):
                return 1
        send_up = plane.send_up
        run: Flow | None = None
        run_key, run_size, run_first, slot = b"", 0, 0, -1
        for (key, size), length in zip(inbox.heads(0, count), inbox.lengths[:count].tolist(), strict=False):
            slot += 1
            if run is not None:
                if key == run_key and size == run_size and length >= size + HEADER:
                    continue
                send_up(run, inbox, run_first, slot - run_first, run_size)
            run = flows.get(key) if length >= HEADER else None
            if run is None:
                if self.closed:
                    return count
                plane.flush()
                self.hand_up(unpack_sockaddr(key[: inbox.name_size]), inbox.datagram(slot, length))
            elif length < size + HEADER:
                run = None  # it claims more than came: dropped
            else:
                run_key, run_size, run_first = key, size, slot
        if run is not None:
            send_up(run, inbox, run_first, count - run_first, run_size)
        if self.answers:
            self.send_answers()
        return count


class BatchedRelay(Relay):
    """A relayed transport address."""

    __slots__ = ("inbox", "run_most")
    inbox: Inbox
    run_most: int  # longest datagram that `send_run` may send in a UDP_SEGMENT run; lowered when the kernel refuses one

    def send_run(self, peer: TransportAddress, payloads: Sequence[bytes]) -> None:
        """See `IRelay.send_run`: neighbours of one size leave in one system call."""
        if self.limit is not None or self.closed or len(peer.ip) != len(self.address.ip):
            super().send_run(peer, payloads)
            return
        for size, run in by_size(payloads):
            most = min(SLOTS, RUN_BYTES // size) if 0 < size <= self.run_most else 1
            for start in range(0, len(run), most):
                piece = run[start : start + most]
                if len(piece) == 1:
                    self.send(peer, piece[0])
                else:
                    self._send_segments(peer, piece, size)

    def _send_segments(self, peer: TransportAddress, run: Sequence[bytes], size: int) -> None:
        neighbour: Any = self.neighbours.get(peer)
        if neighbour is not None:
            flow = neighbour.flow_from(self)
            if flow is None:
                super().send_run(peer, run)
                return
            neighbour.take_run(flow, run, size)
            self.counters.bridged += len(run)
            code = 0
        else:
            code = try_segments(self.socket, run, size, peer)
        if not code:
            self.counters.sent_packets += len(run)
            self.counters.sent_bytes += len(run) * size
        elif code in BUSY:
            self.counters.dropped += len(run)
        else:
            self.run_most = less_than(size, code, self.run_most)
            super().send_run(peer, run)

    def flow_from(self, sender: Relay) -> Flow | None:
        """The flow for what another relay sends here, if a run of it may pass at once."""
        return self.flows.get(sender.key) if self.limit is None and self.waiting is None else None

    def take_run(self, flow: Flow, run: Sequence[bytes], size: int) -> None:
        """From another relay of this plane, for the client of `flow_from`: payloads of `size` bytes, at most 65,000."""
        route: Any = flow.plane_state
        if route is None:
            self._pass_run_down(flow, run, size)
            return
        header, total = CHANNEL_HEADER.pack(flow.number, size), size + HEADER
        most = RUN_BYTES // total if total <= route.down_most else 1
        for start in range(0, len(run), most):
            piece = run[start : start + most]
            if len(piece) == 1:
                self.pass_down(flow, piece[0])
                continue
            frames = [part for payload in piece for part in (header, payload)]
            code = try_segments(route.port.socket, frames, total, flow.client.path.client)
            if not code:
                self.counters.received_packets += len(piece)
                self.counters.received_bytes += len(piece) * size
            elif code in BUSY:
                self.counters.dropped += len(piece)
            else:
                route.down_most = less_than(total, code, route.down_most)
                for payload in piece:
                    self.pass_down(flow, payload)

    def read(self) -> int:
        """Read one batch and queue it for the clients; gives the number of datagrams."""
        inbox = self.inbox
        plane: Any = self.plane
        if inbox.filled > SLOTS // 2:
            plane.flush()
        first = inbox.filled
        count = recvmmsg(self.fd, inbox.messages[first], SLOTS - first, 0, _NOTHING)
        if count <= 0:
            self.receive_failed(last_error())
            return 0
        self.failures = 0
        flows = self.flows
        if count == 1 and self.limit is None:
            # Paced traffic, and interleaved flows: what is set up for a run would cost more than the one datagram.
            flow = flows.get(inbox.name(first))
            if flow is not None and flow.plane_state is not None:
                if plane.one_is_ready and not first and send_lone_down(flow, inbox, inbox.lengths[0]):
                    return 1
                plane.queue_down(flow, inbox.frames, first, 1, inbox.lengths[first])
                inbox.filled = first + 1
                return 1
        run: Flow | None = None
        run_name, run_length, run_first, slot, end = b"", 0, 0, first - 1, first + count
        for (name,), length in zip(inbox.heads(first, count), inbox.lengths[first:end].tolist(), strict=False):
            slot += 1
            if run is not None:
                if name == run_name and length == run_length:
                    continue
                self.forward(run, inbox, run_first, slot - run_first, run_length)
                if self.closed:
                    return count
                run = None
            flow = flows.get(name)
            if flow is not None and self.limit is None:
                run, run_name, run_length, run_first = flow, name, length, slot
                continue
            plane.flush()
            if flow is not None:
                self.pass_down(flow, inbox.payload(slot, length))
            else:
                self.hand_up(unpack_sockaddr(name), inbox.payload(slot, length))
            if self.closed:
                return count
        if run is not None:
            self.forward(run, inbox, run_first, end - run_first, run_length)
        if plane.queued:
            inbox.filled = end
        return count

    def forward(self, flow: Flow, inbox: Inbox, first: int, count: int, size: int) -> None:
        """Towards the client: what is in `count` slots from `first`, `size` bytes each. There must be no limit."""
        plane: Any = self.plane
        if flow.plane_state is not None:
            plane.queue_down(flow, inbox.frames, first, count, size)
            inbox.filled = first + count
            return
        plane.flush()
        most = max(1, RUN_BYTES // size) if size else count  # so that what a connection holds for its client is bounded
        for start in range(first, first + count, most):
            self._pass_run_down(flow, inbox.payloads(start, min(most, first + count - start), size), size)

    def _pass_run_down(self, flow: Flow, payloads: Sequence[bytes], size: int) -> None:
        """To the connection of a client that is on none of the plane's ports. There is no limit."""
        passed = 0
        try:
            passed = flow.client.send_channel_data_run(flow.number, payloads)
        except Exception:
            _log.failure("A client path failed on ChannelData")
        counters = self.counters
        counters.received_packets += passed
        counters.received_bytes += passed * size
        counters.dropped += len(payloads) - passed


@implementer(IReadDescriptor)
class BatchedPlane(DataPlane):
    """Batches of datagrams, as one reader of the reactor. Flows are keyed by sockaddrs as the kernel writes them."""

    name = "batched"

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self._epoll = select.epoll()
        self._sockets: dict[int, BatchedPort | BatchedRelay] = {}
        self._port_inboxes: dict[int, Inbox] = {}
        self._relay_inboxes: dict[int, Inbox] = {}
        self._inboxes: list[Inbox] = []  # all of them
        self._single = Outbox()
        self._put_single = self._single.put
        self._single_message = self._single.messages[0]
        self._outbox = Outbox()
        self._queued_port: BatchedPort | None = None
        self.queued: list[tuple[Flow, Frames, int, int, int]] = []
        self.one_is_ready = False  # so that nothing can be gained by queueing what it brings
        self._moderation = Moderation(self.seconds())
        self.reactor.addReader(self)

    # The reactor's side.

    def fileno(self) -> int:
        return -1 if self._closed else self._epoll.fileno()

    def logPrefix(self) -> str:
        return "data plane"

    def connectionLost(self, reason: Failure) -> None:
        self.close()

    def doRead(self) -> None:
        # Whatever left this method would make the reactor drop the plane.
        try:
            self._turn()
        except Exception:
            _log.failure("The data plane failed on a batch")

    def _turn(self) -> None:
        moderation = self._moderation
        if moderation.pauses:
            time.sleep(PAUSE)
        budget = DATAGRAMS_PER_TURN
        while budget > 0 and not self._closed:
            events = self._epoll.poll(0, EVENTS_PER_POLL)
            if not events:
                break
            self.one_is_ready = len(events) == 1
            for fd, event in events:
                opened = self._sockets.get(fd)
                if opened is None:
                    continue  # closed by what came before it
                budget -= opened.read() or 1
                if event != _READY and isinstance(opened, BatchedRelay) and not opened.closed:
                    self.flush()
                    opened.read_errors()
            self.flush()
        if moderation.served(DATAGRAMS_PER_TURN - budget):
            moderation.judge(self.seconds())

    # The plane's side.

    def make_port(self, opened: socket.socket, app_connection: str, receiver: IDatagramReceiver) -> BatchedPort:
        port = BatchedPort(self, opened, app_connection, receiver)
        port.inbox = self._inbox(self._port_inboxes, port.address, split=True)
        port.answers = []
        port.handing_up = False
        return port

    def make_relay(self, opened: socket.socket, receiver: IRelayReceiver) -> BatchedRelay:
        relay = BatchedRelay(self, opened, receiver)
        relay.inbox = self._inbox(self._relay_inboxes, relay.address, split=False)
        relay.run_most = RUN_BYTES
        return relay

    def watch(self, opened: PlaneSocket) -> None:
        assert isinstance(opened, BatchedPort | BatchedRelay)
        self._epoll.register(opened.fd, _READY)
        self._sockets[opened.fd] = opened

    def unwatch(self, opened: PlaneSocket) -> None:
        # The epoll set forgets the descriptor by itself when it is closed.
        self._sockets.pop(opened.fd, None)

    def client_key(self, client: TransportAddress, number: int) -> Hashable:
        return pack_sockaddr(client) + number.to_bytes(2, "big")

    def peer_key(self, peer: TransportAddress) -> Hashable:
        return pack_sockaddr(peer)

    def install_flow(self, flow: Flow) -> None:
        self._relay_of(flow)  # says so if it is not ours
        client = flow.client
        if isinstance(client, DatagramPath) and isinstance(client.port, BatchedPort) and client.port.plane is self:
            flow.plane_state = Route(client.port, flow)
        super().install_flow(flow)

    def close(self) -> None:
        if self._closed:
            return
        super().close()
        self.reactor.removeReader(self)
        self._epoll.close()

    # The fast path.

    def send_up(self, flow: Flow, inbox: Inbox, first: int, count: int, size: int) -> None:
        """Send the payloads in `count` slots from `first`, all of `size` bytes, to the peer."""
        relay: Any = flow.relay
        neighbour = relay.neighbours.get(flow.peer)
        if neighbour is not None:
            self.send_across(flow, neighbour, inbox, first, count, size)
            return
        route: Any = flow.plane_state
        sizes = inbox.sizes
        sizes[first] = size
        for slot in range(first + 1, first + count) if count > 1 else ():
            sizes[slot] = size
        if count > 1 and (size * count > RUN_BYTES or not 0 < size <= route.up_most or relay.limit is not None):
            most = RUN_BYTES // size if 0 < size <= route.up_most and relay.limit is None else 1
            for start in range(first, first + count, most):
                self.send_up(flow, inbox, start, min(most, first + count - start), size)
            return
        counters = relay.counters
        if relay.limit is None or relay.within_limit(size):
            self._put_single(0, route.peer_at, route.name_size_up, inbox.gather[first], count, size)
            message = self._single_message
            # As in Relay.send, the first attempt may only bring the news of an ICMP error.
            if sendmsg(relay.fd, message, 0) >= 0 or (last_error() not in BUSY and sendmsg(relay.fd, message, 0) >= 0):
                counters.sent_packets += count
                counters.sent_bytes += count * size
                return
            if count > 1 and (code := last_error()) not in BUSY:
                route.up_most = less_than(size, code, route.up_most)
                for slot in range(first, first + count):
                    self.send_up(flow, inbox, slot, 1, size)
                return
        counters.dropped += count

    def send_across(self, flow: Flow, neighbour: BatchedRelay, inbox: Inbox, first: int, count: int, size: int) -> None:
        """Give the payloads in `count` slots from `first`, all of `size` bytes, to another relay of this plane."""
        relay: Any = flow.relay
        onward = neighbour.flow_from(relay)  # the receiver's, towards its client
        if onward is None or relay.limit is not None or size > LARGEST_PAYLOAD[len(flow.peer.ip)]:
            self.flush()
            for slot in range(first, first + count):
                relay.send(flow.peer, inbox.payload(slot, size))
            return
        counters = relay.counters
        counters.sent_packets += count
        counters.sent_bytes += count * size
        counters.bridged += count
        neighbour.forward(onward, inbox, first, count, size)

    def queue_down(self, flow: Flow, frames: Frames, first: int, count: int, size: int) -> None:
        """Put the payloads in `count` slots from `first`, of `size` bytes each, in line for the client."""
        route: Any = flow.plane_state
        total = size + HEADER
        if count > 1 and (total * count > RUN_BYTES or total > route.down_most):
            most = RUN_BYTES // total if total <= route.down_most else 1
            for start in range(first, first + count, most):
                self.queue_down(flow, frames, start, min(most, first + count - start), size)
            return
        queued = self.queued
        if route.port is not self._queued_port or len(queued) == SLOTS:
            self.flush()
            self._queued_port = route.port
            queued = self.queued
        headers, sizes = frames.headers, frames.sizes
        word = route.number_word | socket.htons(size) << 16
        headers[first] = word
        sizes[first] = total
        for slot in range(first + 1, first + count) if count > 1 else ():
            headers[slot] = word
            sizes[slot] = total
        self._outbox.put(len(queued), route.client_at, route.name_size_down, frames.gather[first], count, total)
        queued.append((flow, frames, first, count, size))
        counters = flow.relay.counters
        counters.received_packets += count
        counters.received_bytes += count * size

    def flush(self) -> None:
        """Send what `queue_down` put in line."""
        queued = self.queued
        if not queued:
            return
        self.queued = []
        for inbox in self._inboxes:
            inbox.filled = 0
        port = self._queued_port
        self._queued_port = None
        if port is not None and port.answers:
            port.send_answers()
        done, messages = 0, self._outbox.messages
        while done < len(queued):
            sent = -1
            if port is not None and not port.closed:
                sent = sendmmsg(port.fd, messages[done], len(queued) - done, 0)
            if sent > 0:
                done += sent
            else:
                self._not_sent(port, *queued[done])
                done += 1

    def _not_sent(self, port: Any, flow: Flow, frames: Frames, first: int, count: int, size: int) -> None:
        # It was counted when it was queued, since almost all are sent; now the count is put right.
        code = last_error()
        counters, route = flow.relay.counters, flow.plane_state
        lost = count
        if count > 1 and not port.closed and code not in BUSY and isinstance(route, Route):
            route.down_most = less_than(size + HEADER, code, route.down_most)
            for slot in range(first, first + count):
                self._single.put(0, route.client_at, route.name_size_down, frames.gather[slot], 1, 0)
                lost -= sendmsg(port.fd, self._single.messages[0], 0) >= 0
        counters.received_packets -= lost
        counters.received_bytes -= lost * size
        counters.dropped += lost

    def _inbox(self, inboxes: dict[int, Inbox], address: TransportAddress, split: bool) -> Inbox:
        name_size = SOCKADDR_SIZE[len(address.ip)]
        if name_size not in inboxes:
            inboxes[name_size] = Inbox(name_size, split)
            self._inboxes.append(inboxes[name_size])
        return inboxes[name_size]


def send_lone_up(flow: Flow, inbox: Inbox, size: int) -> bool:
    """Send the payload in the first slot, of `size` bytes, to the peer. False: to be sent in the ordinary way."""
    relay: Any = flow.relay
    if relay.limit is not None or flow.peer in relay.neighbours:
        return False
    route: Any = flow.plane_state
    inbox.sizes[0] = size
    if sendmsg(relay.fd, route.lone_up, 0) < 0:
        return False
    counters = relay.counters
    counters.sent_packets += 1
    counters.sent_bytes += size
    return True


def send_lone_down(flow: Flow, inbox: Inbox, size: int) -> bool:
    """Send the payload in the first slot, of `size` bytes, to the client. False: to be queued in the ordinary way."""
    route: Any = flow.plane_state
    frames = inbox.frames
    frames.headers[0] = route.number_word | socket.htons(size) << 16
    frames.sizes[0] = size + HEADER
    if sendmsg(route.port.fd, route.lone_down, 0) < 0:
        return False
    counters = flow.relay.counters
    counters.received_packets += 1
    counters.received_bytes += size
    return True
