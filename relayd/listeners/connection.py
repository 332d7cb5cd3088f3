"""One TURN client on a connection: who it is, what it may cost, and the joining of what is to be written to it.

Only whole messages count as a sign of life, so that a slow drip of bytes is none. A client that does not read has its
datagrams dropped, as UDP would, and is disconnected when it leaves more than `MAX_OWED` of responses unread.

`ClientConnection` holds for every connection; `StreamClient` is the one that speaks TURN and nothing else.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any, ClassVar

from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from relayd.address import AppConnection, FiveTuple, Path, TransportAddress, source_of
from relayd.config import ListenerSettings
from relayd.errors import DecodeError
from relayd.interfaces import IRelayService, IStreamPath
from relayd.listeners.admission import Admission
from relayd.listeners.direct_writes import write_now
from relayd.listeners.liveness import Liveness
from relayd.listeners.proxied import ProxiedConnection
from relayd.listeners.tls_records import write_records
from relayd.listeners.told_addresses import LOCAL_NETWORK, ToldAddresses
from relayd.pipe.stream_end import StreamEnd
from relayd.stun.framing import CONNECTION_BIND, StreamSplitter, channel_frame
from relayd.twisted_address import from_twisted

TCP = 6  # IP protocol number

CLOSE_GRACE = 2.0  # seconds for what was written to leave, and for a TLS client's close_notify
MAX_JOINED = 65_536  # bytes that may wait for the end of a turn; also what a transport of Twisted buffers unpaused
MAX_OWED = 65_536  # bytes of responses that a client may leave unread on top of that: several hundred of them

_BIND_REFUSED = b"\x01\x1b"  # the type of an error response to ConnectionBind (RFC 6062 section 6.1)

REQUESTS_PER_TURN = 32  # messages that no flow takes, some 20 us each; the rest waits while all others have their turn


class ConnectionHost(typing.Protocol):
    """What a connection needs of the listener that accepted it."""

    clock: Any  # IReactorTime
    service: IRelayService
    settings: ListenerSettings
    admission: Admission
    told: ToldAddresses
    behind_proxy: bool
    local_server: TransportAddress  # what clients connect to where that is no IP address

    @property
    def closing(self) -> bool:
        """Whether new connections come too late."""

    def connected(self, client: ClientConnection) -> None:
        """A connection came."""

    def disconnected(self, client: ClientConnection) -> None:
        """A connection went."""

    def flush_soon(self, client: ClientConnection) -> None:
        """Call the client's `flush` when this turn of the reactor is over."""

    def trusts(self, proxy: TransportAddress | None) -> bool:
        """Whether a proxy is believed in who its clients are. None is a Unix socket."""

    def warn_once(self, topic: str, text: str) -> None:
        """Tell the operator of what may be a mistake of theirs, once for each topic."""


@implementer(IStreamPath, IPushProducer)
class ClientConnection(Protocol):
    """One connection, and the path of its client. Subclasses say how messages lie in its bytes."""

    plain: ClassVar[AppConnection]
    secure: ClassVar[AppConnection]  # over TLS
    padded: ClassVar[bool]  # whether ChannelData is padded to four bytes
    _joins = True  # whether messages may be one piece before they reach the transport

    path: Path  # set before the service sees this object
    remote: TransportAddress | None  # who is connected, once `_identify` found out; None for a Unix socket

    def __init__(self, listener: ConnectionHost) -> None:
        self.flows: dict[int, Any] = {}
        self._listener = listener
        self._service = listener.service
        self._waiting: list[bytes] = []  # for the one write at the end of this turn
        self._waiting_size = 0
        self._owed = 0
        self._requests = 0  # served in this turn
        self._held: list[bytes] = []  # messages for the next turn; until then nothing more is read
        self._next_turn: IDelayedCall | None = None
        self._liveness = Liveness(listener.clock.seconds())
        self._closing_since = 0.0
        self._source: bytes | None = None
        self._admitted = self._identified = self._receiving = False
        self._paused = self._closing = False
        self._binding = False  # a ConnectionBind was passed on and not refused: what follows may not be TURN
        self._data: StreamEnd | None = None  # a client data connection, which it then is until it ends

    # --- what the transport calls ---

    def connectionMade(self) -> None:
        self._listener.connected(self)
        self._admitted = not self._listener.closing and self._listener.admission.enter()
        if not self._admitted:
            self.abort()
            return
        transport: Any = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        self._start(transport)
        if not self._listener.behind_proxy:  # else only its header says who that is
            self._identify()

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._closing = True
        self._waiting.clear()
        self._held.clear()
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        self._leave()
        if self._data is not None:
            self._data.lost(reason)
        if self._is_path():
            self._service.path_closed(self)
        self._listener.disconnected(self)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._owed = 0

    def stopProducing(self) -> None:
        """The transport is going down; `connectionLost` follows."""

    # --- what the service and the data plane call ---

    def send(self, data: bytes) -> bool:
        """See `IClientPath.send`."""
        if self._closing or (self._paused and not self._may_owe(data)):
            return False
        if self._binding:
            if self._data is not None:
                return False
            if data.startswith(_BIND_REFUSED):
                self._binding = False
                self._hold(self._behind_bind())
        self._write(self.framed(data))
        return True

    def send_channel_data(self, number: int, payload: bytes) -> bool:
        """See `IClientPath.send_channel_data`."""
        return self.send_channel_data_run(number, (payload,)) == 1

    def send_channel_data_run(self, number: int, payloads: Sequence[bytes]) -> int:
        """See `IClientPath.send_channel_data_run`."""
        if self._paused or self._closing:
            return 0
        before, after = self.channel_frame(number, len(payloads[0]))
        if self._joins:
            self._write(before + (after + before).join(payloads) + after)
        else:
            for payload in payloads:
                self._write(before + payload + after)
        return len(payloads)

    def send_from(self, source: TransportAddress, destination: TransportAddress, data: bytes) -> bool:
        """A connection has one address at each end."""
        return False

    def close(self) -> None:
        """Close once everything written is sent, or `CLOSE_GRACE` is over."""
        if self._data is not None:
            self._data.close()
        elif not self._closing:
            self._hang_up()

    @property
    def is_proxy(self) -> bool:
        """Whether who is connected is a proxy that did not say for whom, though it speaks the PROXY protocol."""
        return self._listener.behind_proxy and self._listener.trusts(self.remote)

    def data_connection(self) -> StreamEnd:
        """See `IStreamPath.data_connection`."""
        self.flush()  # the answer goes first
        transport: Any = self.transport
        transport.unregisterProducer()
        self._paused = False
        self._data = self._make_end(transport)
        return self._data

    # --- what the listener calls ---

    def abort(self) -> None:
        """End the connection without another word."""
        self._closing = True
        self._waiting.clear()
        transport: Any = self.transport
        getattr(transport, "abortConnection", transport.loseConnection)()

    def flush(self) -> None:
        """Hand everything written since the last time to the transport, as one piece."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        self._waiting_size = 0
        self._hand_over(waiting)

    def sweep(self, now: float) -> None:
        """End the connection if it has been silent, or closing, for too long."""
        if self._is_leaving:
            return  # it has a time limit of its own, and what it carried is not to be cut
        if self._closing:
            if now - self._closing_since >= CLOSE_GRACE:
                self._closing_since = now
                self.abort()
        elif self._liveness.has_expired(now, self._listener.settings) and not self._is_in_use():
            self.close()

    def inherit(self, predecessor: ClientConnection) -> None:
        """Take up where another one on the same transport left: the time that it had goes on."""
        self._liveness = predecessor._liveness

    # --- what a subclass says ---

    def framed(self, message: bytes) -> bytes:
        """One whole message as it goes on the wire: here, as it is."""
        return message

    def channel_frame(self, number: int, size: int) -> tuple[bytes, bytes]:
        """What goes before and behind `size` bytes of payload, for `framed` ChannelData."""
        return channel_frame(number, size, padded=self.padded)

    def _make_end(self, transport: Any) -> StreamEnd:
        """The end of a client data connection, with what came behind the ConnectionBind already."""
        return StreamEnd(transport, self._listener.clock, half_closes=False)

    def _behind_bind(self) -> list[bytes]:
        """Messages that came behind a ConnectionBind that was refused."""
        return []

    def _start(self, transport: Any) -> None:
        transport.registerProducer(self, True)

    def _is_path(self) -> bool:
        """Whether the service may have heard of it."""
        return self._identified

    def _hand_over(self, waiting: list[bytes]) -> None:
        write_now(self.transport, waiting[0] if len(waiting) == 1 else b"".join(waiting))

    # --- within ---

    def _begin_turn(self) -> None:
        """What is written until `_end_turn` leaves with that, as one piece."""
        self._receiving = True
        self._requests = 0

    def _end_turn(self) -> None:
        self._receiving = False
        self.flush()

    def _serve(self, messages: list[bytes]) -> None:
        """Serve whole messages from the client: now, or behind those that already wait for the next turn."""
        if self._closing:
            return
        self._liveness.heard = True
        if self._held:
            self._held += messages  # TLS had them already, or they came in one segment
        else:
            self._take(messages)

    def _take(self, messages: list[bytes]) -> None:
        """As many as one turn of the reactor may have."""
        flows = self.flows
        remaining = iter(messages)
        flow: Any = None
        run: list[bytes] = []  # neighbours of one flow, which leave together
        for message in remaining:
            # The type of a STUN message is below 0x4000 (RFC 8489 section 5): there is no flow of that number.
            found = flows.get(message[0] << 8 | message[1])
            if run and found is not flow:
                flow.relay.send_run(flow.peer, run)
                run = []
            flow = found
            if flow is not None:
                run.append(message[4:])
                continue
            if self._requests == REQUESTS_PER_TURN:
                self._hold([message, *remaining])
                break
            self._requests += 1
            if message.startswith(CONNECTION_BIND):
                self._binding = True
                self._pause_reading()
            self._service.receive(self, message)
            if self._closing:
                break
        if run:
            flow.relay.send_run(flow.peer, run)

    def _hold(self, messages: list[bytes]) -> None:
        self._held += messages
        self._pause_reading()
        if self._next_turn is None:
            self._next_turn = self._listener.clock.callLater(0, self._go_on)

    def _pause_reading(self) -> None:
        transport: Any = self.transport
        transport.pauseProducing()

    def _go_on(self) -> None:
        self._next_turn = None
        held, self._held = self._held, []
        if self._closing:
            return
        self._begin_turn()
        self._take(held)
        self._end_turn()
        if not self._held and not self._closing and not self._binding:
            transport: Any = self.transport
            transport.resumeProducing()

    @property
    def _is_leaving(self) -> bool:
        """Whether it is a data connection that closes."""
        return self._data is not None and self._data.closing

    def _begin_to_close(self) -> None:
        if not self._closing:
            self._closing = True
            self._closing_since = self._listener.clock.seconds()

    def _hang_up(self) -> None:
        self.flush()
        self._begin_to_close()
        transport: Any = self.transport
        transport.unregisterProducer()  # or TLS would wait for it
        transport.loseConnection()

    def _is_in_use(self) -> bool:
        return self._is_path() and self._service.has_allocation(self)

    def _ready(self) -> bool:
        return not self._closing and (self._identified or self._identify())

    def _identify(self) -> bool:
        """Find out who that is; False if it may not stay."""
        transport: Any = self.transport
        self.remote = from_twisted(transport.getPeer())
        if not self._welcome():
            self.abort()
            return False
        self._identified = True
        return True

    def _welcome(self) -> bool:
        """Count the client and give it a path. False if its source has too many connections."""
        client = self.remote or self._listener.told.invent()
        # Whoever brings everybody is no source.
        if not self.is_proxy and not self._claim(client):
            return False
        self._set_path(client, self._is_secure())
        return True

    def _claim_remote(self) -> bool:
        """Count who is connected. A trusted proxy brings everybody: it is no source, and may tell its clients later."""
        return self._listener.trusts(self.remote) or (self.remote is not None and self._claim(self.remote))

    def _claim(self, client: TransportAddress) -> bool:
        # Connections of a Unix socket are all local and have no source: only their total is bounded.
        if not client.ip.startswith(LOCAL_NETWORK):
            source = source_of(client.ip)
            if not self._listener.admission.claim(source):
                return False
            self._source = source
        return True

    def _leave(self) -> None:
        """Make room for others."""
        if self._admitted:
            self._listener.admission.leave()
            self._admitted = False
        if self._source is not None:
            self._listener.admission.release(self._source)
            self._source = None

    def _set_path(self, client: TransportAddress, secure: bool) -> None:
        transport: Any = self.transport
        server = from_twisted(transport.getHost()) or self._listener.local_server
        five_tuple = FiveTuple(client, server, TCP)
        self.path = Path(five_tuple, self.secure if secure else self.plain)

    def _is_secure(self) -> bool:
        """Whether TLS ends here, or ended at a proxy that said so in its header."""
        return ISSLTransport.providedBy(self.transport) or getattr(self.transport, "client_used_tls", False)

    def _write(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_size += len(data)
        if self._waiting_size >= MAX_JOINED:
            self.flush()
        elif len(self._waiting) == 1 and not self._receiving:
            self._listener.flush_soon(self)

    def _may_owe(self, data: bytes) -> bool:
        """Whether a paused client gets this all the same: responses, up to a bound. What carries data may be lost."""
        # ChannelData, or class 0b01 of STUN, an indication (RFC 8489 section 5).
        if data[0] >= 0x40 or (not data[0] & 0x01 and data[1] & 0x10):
            return False
        self._owed += len(data)
        if self._owed > MAX_OWED:
            self.abort()
            return False
        return True


class StreamClient(ClientConnection):
    """STUN and ChannelData one behind the other (RFC 8656 section 2.1), over TCP or TLS."""

    plain = AppConnection.TCP
    secure = AppConnection.TLS
    padded = True

    def __init__(self, listener: ConnectionHost) -> None:
        super().__init__(listener)
        self._splitter = StreamSplitter()
        self._began = False

    # --- what the transport calls for a data connection (IHalfCloseableProtocol) ---

    def readConnectionLost(self) -> None:
        """The client has said all."""
        if self._data is not None:
            self._data.heard_all()

    def writeConnectionLost(self) -> None:
        """It was told that the peer has."""

    # --- within ---

    def _make_end(self, transport: Any) -> StreamEnd:
        # Twisted's TLS cannot end one direction alone, and the TCP connection below must not.
        alsoProvides(self, IHalfCloseableProtocol)
        half_closes = isinstance(transport, Connection)
        if isinstance(transport, ProxiedConnection):
            half_closes = transport.take_half_closes()
        end = StreamEnd(transport, self._listener.clock, half_closes)
        rest = self._splitter.rest()
        if rest:
            end.received(rest)
        return end

    def _behind_bind(self) -> list[bytes]:
        try:
            return self._splitter.go_on()
        except DecodeError:
            self.abort()
            return []

    def _start(self, transport: Any) -> None:
        self._joins = not isinstance(transport, TLSMemoryBIOProtocol)
        super()._start(transport)

    def dataReceived(self, data: bytes) -> None:
        if self._data is not None:
            self._data.received(data)
            return
        if not self._ready():
            return
        if not self._began and data:
            # ChannelData needs a channel, a channel an allocation, and that a request on this connection (RFC 8656
            # section 12): what begins like ChannelData is some other protocol, such as HTTP, whose first letters would
            # else pass for the header of a long message.
            if data[0] >= 0x40:
                self.abort()
                return
            self._began = True
        try:
            messages = self._splitter.receive(data)
        except DecodeError:
            self.abort()
            return
        if messages:
            self._begin_turn()
            self._serve(messages)
            self._end_turn()

    def _hand_over(self, waiting: list[bytes]) -> None:
        transport: Any = self.transport
        if self._joins:
            super()._hand_over(waiting)
        else:
            write_records(transport, waiting)
