"""One client core with one connection to one server: the shell around `TurnClientCore`."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from relayd.address import TransportAddress
from relayd.client.transports.connections import connect
from relayd.client.transports.server import Connection, Server
from relayd.client.transports.streams import StreamConnection
from relayd.core import Entropy
from relayd.errors import RelaydError, ServerUnavailable
from relayd.pump import Pump
from relayd.stun.attributes import Icmp
from relayd.turn import client_outputs as out
from relayd.turn.client import ClientSettings, TurnClientCore
from relayd.turn.client_connections import ConnectionBind
from relayd.turn.outputs import PeerTls


class Owner:
    """Who uses a session: told what happens once there is an allocation. Does nothing by itself."""

    def data_received(self, peer: TransportAddress, data: bytes) -> None:
        """A datagram from a peer."""

    def connection_attempted(self, peer: TransportAddress, number: int) -> None:
        """A peer opened a TCP connection to the relayed address: `number` is its CONNECTION-ID."""

    def icmp_received(self, peer: TransportAddress, icmp: Icmp) -> None:
        """An ICMP error about a datagram to a peer."""

    def session_ended(self, error: RelaydError | None) -> None:
        """The allocation is gone."""


class Session:
    """Opens the way, allocates, carries data, deletes the allocation and closes the way. Used once."""

    _log = Logger()

    def __init__(self, reactor: Any, settings: ClientSettings, entropy: Entropy) -> None:
        """Raises DecodeError as `TurnClientCore` does."""
        self.owner = Owner()
        self._reactor = reactor
        self._core = TurnClientCore(settings, entropy)
        self._pump: Pump[Any] = Pump(self._core, reactor, self._perform)
        self._connection: Connection | None = None
        self._allocating: Deferred[out.Allocated | out.Redirected] | None = None
        self._answers: dict[int, Deferred[Any]] = {}
        self._server: Server | None = None
        self._has_ended = False
        self._dropped = 0
        self._is_closed = False
        self._waiting: list[Deferred[None]] = []  # for it to be closed

    @property
    def dropped(self) -> int:
        """How many datagrams were dropped because the way to the server was congested."""
        return self._dropped if self._connection is None else self._connection.dropped

    async def connect(self, server: Server, trust_root: Any) -> None:
        """Open the way. Fails as `relayd.client.transports.connections.connect` does."""
        self._connection = connection = await connect(self._reactor, server, trust_root, self)
        remote = connection.remote if isinstance(connection, StreamConnection) and server.proxy is None else None
        # A name may stand for several servers, and this one has what follows.
        self._server = server if remote is None else server._replace(host=remote)

    def allocate(self) -> Deferred[out.Allocated | out.Redirected]:
        """Ask for an allocation. Fails with RemoteError for what the server refuses, ServerUnavailable else."""
        self._allocating = Deferred()
        allocating = self._allocating
        self._core.allocate(self._now())
        self._pump.run()
        return allocating

    def permit(self, peer: TransportAddress) -> Deferred[None]:
        """Let in what comes from the address of `peer`, and keep it so."""
        return self._answer_to(self._core.permit(peer, self._now()))

    def bind(self, peer: TransportAddress) -> Deferred[None]:
        """Bind a channel to `peer`, and keep it bound."""
        return self._answer_to(self._core.bind(peer, self._now()))

    def connect_to_peer(self, peer: TransportAddress, tls: PeerTls | None) -> Deferred[out.PeerConnected]:
        """Have the relay open a TCP connection to a peer."""
        return self._answer_to(self._core.connect(peer, tls, self._now()))

    @property
    def server(self) -> Server:
        """Exactly the one that we are connected to, for other connections to it."""
        assert self._server is not None  # nobody asks before
        return self._server

    def connection_bind(self, number: int) -> ConnectionBind:
        """The core of the data connection for that CONNECTION-ID."""
        return self._core.connection_bind(number)

    def send(self, peer: TransportAddress, data: bytes) -> None:
        """Send one datagram. Raises ValueError where it is too long."""
        self._core.send(peer, data, self._now())
        self._pump.run()

    def close(self) -> Deferred[None]:
        """Delete the allocation, close the way; fires when both is done, some seconds from now at most."""
        if self._is_closed:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if not self._has_ended:
            self._core.close(self._now())
            self._pump.run()
        return waiting

    # --- from the connection --------------------------------------------------------------------------------------

    def message_received(self, data: bytes) -> None:
        self._core.receive(data, self._now())
        self._pump.run()

    def connection_doubtful(self, error: ServerUnavailable) -> None:
        # An allocation outlives a moment without a network; a server that was never heard of is worth no such patience.
        if not self._core.is_allocated:
            self.connection_lost(error)

    def connection_lost(self, error: ServerUnavailable) -> None:
        self._core.connection_lost(error, self._now())
        self._pump.run()

    # --- what the core wants --------------------------------------------------------------------------------------

    def _perform(self, output: Any) -> None:
        if isinstance(output, out.TransmitData):
            if self._connection is not None:
                self._connection.write_data(output.data)
        elif isinstance(output, out.DataReceived):
            self.owner.data_received(output.peer, output.data)
        elif isinstance(output, out.Transmit):
            if self._connection is not None:
                self._connection.write(output.data)
        elif isinstance(output, out.Answered):
            answer = self._answers.pop(output.id, None)
            if answer is not None:
                answer.callback(None) if output.error is None else answer.errback(output.error)
        elif isinstance(output, out.PeerConnected):
            answer = self._answers.pop(output.id, None)
            if answer is not None:
                answer.callback(output)
        elif isinstance(output, out.ConnectionAttempted):
            self.owner.connection_attempted(output.peer, output.number)
        elif isinstance(output, out.IcmpReceived):
            self.owner.icmp_received(output.peer, output.icmp)
        elif isinstance(output, out.PermissionLost):
            host = TransportAddress(output.ip, 0).host
            self._log.warn("no permission for {host}: {error}", host=host, error=output.error)
        elif isinstance(output, out.ChannelLost):
            self._log.warn("no channel to {peer}: {error}", peer=output.peer, error=output.error)
        else:
            self._conclude(output)

    def _conclude(self, output: out.Allocated | out.Redirected | out.Ended) -> None:
        allocating, self._allocating = self._allocating, None
        if not isinstance(output, out.Allocated):
            self._has_ended = True
            self._pump.stop()
            self._dropped = self.dropped
            connection, self._connection = self._connection, None
            (succeed(None) if connection is None else connection.close()).addBoth(self._finish)
        if not isinstance(output, out.Ended):
            if allocating is not None:
                allocating.callback(output)
        elif allocating is not None:
            allocating.errback(output.error or ServerUnavailable("closed while allocating"))
        else:
            self.owner.session_ended(output.error)

    def _finish(self, _: Any) -> None:
        self._is_closed = True
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def _answer_to(self, id: int) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred(lambda _: self._forget(id))
        self._answers[id] = answer
        self._pump.run()
        return answer

    def _forget(self, id: int) -> None:
        self._answers.pop(id, None)

    def _now(self) -> float:
        return float(self._reactor.seconds())
