"""The TURN client core: one allocation on one server, sans-IO (RFC 8489, 8656).

Theory of operation. The verbs `allocate`, `close` and `connection_lost` and the server's answers move it along:

    state        allocate    granted      refused, silent, redirected,     close                     answer to deletion
                                          refresh failed, connection_lost                            or CLOSE_PATIENCE
    NEW          ALLOCATING  -            ENDED                            ENDED                     -
    ALLOCATING   -           ALLOCATED    ENDED                            CLOSING (unchallenged:    -
                                                                           ENDED)
    ALLOCATED    -           -            ENDED                            CLOSING                   -
    CLOSING      -           -            ENDED                            -                         ENDED
    ENDED        -           -            -                                -                         -

`Ended` or `Redirected` is the last output. `permit`, `bind`, `send` and `connect` are for ALLOCATED; `ClientPeers` and
`ClientConnections` keep what they ask for, and `ClientRequests` every request on its way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from relayd.address import AppConnection, Family, TransportAddress
from relayd.core import Deadlines, Entropy
from relayd.errors import DecodeError, RelaydError, ServerUnavailable
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute
from relayd.stun.message import TRANSACTION_ID_SIZE, Class, Message, Method, decode, encode
from relayd.turn.client_authentication import ClientAuthentication
from relayd.turn.client_connections import ClientConnections, ConnectionBind
from relayd.turn.client_outputs import Allocated, Answered, Ended, Redirected, TransmitData
from relayd.turn.client_peers import ClientPeers
from relayd.turn.client_requests import ClientRequests, Redirection
from relayd.turn.outputs import PeerTls
from relayd.turn.settings import UDP

DEFAULT_LIFETIME = 600  # seconds; RFC 8656 section 3.2, for a server that does not say
REFRESH_MARGIN = 60.0  # seconds before the end; a Refresh that is lost again and again takes 39.5 of them
MIN_REFRESH = 5.0  # seconds between two, however short a lifetime the server grants
KEEPALIVE = 20.0  # seconds of silence after which a NAT or a proxy may forget us: many do after 30, most after 60
# Seconds without a word from the server until it is asked for one. A server that restarted or a network that is gone
# say nothing, and proxies cut what is silent in their direction for 60.
SILENCE = 45.0
# Seconds without a word from the server after which no request is made any more over UDP. The allocation may be there
# still, but nothing tells a network that is away from one that was left: from there this socket reaches nobody.
OUTAGE = 120.0
# Deviation: RFC 8489 section 6.2.1 would have a request wait for 39.5 s, and nobody waits so long to leave.
CLOSE_PATIENCE = 3.0  # seconds: three transmissions. What is not deleted by then expires by itself.


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What does not change while a client core runs."""

    app_connection: AppConnection
    username: str
    password: str
    families: tuple[Family, ...] = (Family.IPV4,)  # of the relayed addresses: one of them, or IPv4 and IPv6
    transport: int = UDP  # to peers: UDP, or TCP (RFC 6062)
    accepts_tls: bool = False  # over TCP, whether peers that connect have to speak TLS (docs/protocol.rst)


class _State(Enum):
    NEW = auto()
    ALLOCATING = auto()
    ALLOCATED = auto()
    CLOSING = auto()
    ENDED = auto()


class _Due(Enum):
    REFRESH = auto()
    KEEPALIVE = auto()
    GIVE_UP_CLOSING = auto()


class TurnClientCore:
    """The core. Feed it with the verbs below, then drain `next_output`, then arm a timer for `next_timer`."""

    def __init__(self, settings: ClientSettings, entropy: Entropy) -> None:
        """Raises DecodeError for a user name or password that cannot be used with STUN."""
        self._settings = settings
        self._entropy = entropy
        self._outputs: deque[Any] = deque()
        self._authentication = ClientAuthentication(settings.username, settings.password)
        app_connection = settings.app_connection
        self._requests = ClientRequests(self._authentication, app_connection.is_datagram, entropy, self._outputs)
        self._peers = ClientPeers(self._requests, app_connection.is_stream, entropy, self._outputs, self._failed)
        self._connections = ClientConnections(self._requests, self._outputs)
        self._state = _State.NEW
        self._deadlines: Deadlines[_Due] = Deadlines()
        self._last_id = 0
        self._sent_at = 0.0
        self._heard_at = 0.0
        self._refresh_at = 0.0
        self._expires = 0.0

    # --- what the shell asks --------------------------------------------------------------------------------------

    @property
    def is_allocated(self) -> bool:
        """Whether there is an allocation to use."""
        return self._state is _State.ALLOCATED

    def next_output(self) -> Any | None:
        """The next thing for the shell to do, one of the classes of `relayd.turn.client_outputs`."""
        return self._outputs.popleft() if self._outputs else None

    def next_timer(self) -> float | None:
        """When `handle_timer` is wanted next."""
        deadlines = (self._deadlines.next(), self._requests.next_deadline(), self._peers.next_deadline())
        return min((when for when in deadlines if when is not None), default=None)

    # --- verbs ----------------------------------------------------------------------------------------------------

    def allocate(self, now: float) -> None:
        """Ask for an allocation: `Allocated`, `Redirected` or `Ended` follows."""
        if self._state is not _State.NEW:
            raise RuntimeError("a client core allocates once")
        self._state = _State.ALLOCATING
        attributes: list[tuple[Attribute[Any], Any]] = [(a.REQUESTED_TRANSPORT, self._settings.transport)]
        # RFC 8656 section 7.1: without either of these it is IPv4
        if len(self._settings.families) > 1:
            attributes.append((a.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6))
        elif self._settings.families == (Family.IPV6,):
            attributes.append((a.REQUESTED_ADDRESS_FAMILY, Family.IPV6))
        if self._settings.accepts_tls:
            attributes.append((a.PEER_TLS, ""))
        self._requests.ask(Method.ALLOCATE, attributes, self._allocated, self._failed, now)

    def permit(self, peer: TransportAddress, now: float) -> int:
        """Let the address of a peer in and keep it in. `Answered` with the returned id follows."""
        self._last_id += 1
        if self.is_allocated:
            self._peers.permit(peer, self._last_id, now)
        else:
            self._outputs.append(Answered(self._last_id, _not_allocated()))
        return self._last_id

    def bind(self, peer: TransportAddress, now: float) -> int:
        """Bind a channel to a peer and keep it bound. `Answered` with the returned id follows."""
        self._last_id += 1
        if self.is_allocated:
            self._peers.bind(peer, self._last_id, now)
        else:
            self._outputs.append(Answered(self._last_id, _not_allocated()))
        return self._last_id

    def connect(self, peer: TransportAddress, tls: PeerTls | None, now: float) -> int:
        """Have the relay open a TCP connection to a peer. `PeerConnected`, or `Answered` with an error, follows with
        the returned id. For TCP allocations.
        """
        self._last_id += 1
        if self.is_allocated:
            self._connections.connect(peer, tls, self._last_id, now)
        else:
            self._outputs.append(Answered(self._last_id, _not_allocated()))
        return self._last_id

    def connection_bind(self, number: int) -> ConnectionBind:
        """The core of the data connection for a CONNECTION-ID."""
        return ConnectionBind(number, self._authentication.copy(), self._entropy)

    def send(self, peer: TransportAddress, data: bytes, now: float) -> None:
        """Send one datagram to a peer, perhaps an empty one; its permission is seen to. Dropped without an allocation.

        Raises ValueError where no message can carry that many bytes.
        """
        if self.is_allocated:
            self._peers.send(peer, data, now)
            self._sent_at = now

    def receive(self, data: bytes, now: float) -> None:
        """One whole message from the server. What makes no sense is dropped, as any datagram might be."""
        try:
            if data and 0x40 <= data[0] <= 0x7F:
                if self.is_allocated:
                    self._peers.receive_channel_data(data)
                    self._heard_at = now
                return
            message = decode(data)
            self._heard_at = now
            if message.cls in (Class.SUCCESS, Class.ERROR):
                self._requests.receive(message, now)
            elif message.cls is Class.INDICATION and message.method == Method.DATA and self.is_allocated:
                self._peers.receive_data(message)
            elif message.cls is Class.INDICATION and message.method == Method.CONNECTION_ATTEMPT and self.is_allocated:
                self._connections.attempted(message)
        except DecodeError:
            return

    def close(self, now: float) -> None:
        """Delete the allocation; `Ended` follows, after `CLOSE_PATIENCE` at the latest."""
        if self._state in (_State.CLOSING, _State.ENDED):
            return
        may_be_allocated = self._state is _State.ALLOCATED or self._authentication.signature is not None
        self._requests.drop_all()
        self._peers.end(_not_allocated())
        self._connections.end(_not_allocated())
        if not may_be_allocated:
            self._end(None)
            return
        self._state = _State.CLOSING
        for due in _Due:
            self._deadlines.cancel(due)
        self._deadlines.set(_Due.GIVE_UP_CLOSING, now + CLOSE_PATIENCE)
        self._requests.ask(
            Method.REFRESH, [(a.LIFETIME, 0)], lambda _, when: self._end(None), lambda error, when: self._end(None), now
        )

    def connection_lost(self, error: RelaydError, now: float) -> None:
        """The way to the server is gone, and what came over a stream with it."""
        self._end(None if self._state is _State.CLOSING else error)

    def handle_timer(self, now: float) -> None:
        """Send again, renew and give up what is due."""
        for due in self._deadlines.due(now):
            if due is _Due.REFRESH:
                self._refresh(now)
            elif due is _Due.KEEPALIVE:
                self._keep_alive(now)
            elif due is _Due.GIVE_UP_CLOSING:
                self._end(None)
        self._requests.expire(now)
        self._peers.renew(now)

    # --- the life of the allocation ---------------------------------------------------------------------------------

    def _allocated(self, message: Message, now: float) -> None:
        relayed = tuple(message.get_all(a.XOR_RELAYED_ADDRESS))
        mapped = message.get(a.XOR_MAPPED_ADDRESS)
        if not relayed:
            self._end(ServerUnavailable("the server says that it allocated, but not what"))
            return
        if self._settings.accepts_tls and message.get(a.PEER_TLS) is None:
            self._end(ServerUnavailable("the server would have peers connect without TLS"))
            return
        self._state = _State.ALLOCATED
        lifetime = self._lasts(message, now)
        self._sent_at = now
        self._deadlines.set(_Due.KEEPALIVE, now + KEEPALIVE)
        self._outputs.append(Allocated(relayed, mapped, lifetime))

    def _refresh(self, now: float) -> None:
        """Refresh, because it is time to or because nothing was heard of the server for long."""
        if now < self._next_refresh():
            self._deadlines.set(_Due.REFRESH, self._next_refresh())
        else:
            self._requests.ask(Method.REFRESH, [], self._refreshed, self._not_refreshed, now)

    def _next_refresh(self) -> float:
        return min(self._refresh_at, self._heard_at + SILENCE)

    def _refreshed(self, message: Message, now: float) -> None:
        self._lasts(message, now)

    def _not_refreshed(self, error: RelaydError, now: float) -> None:
        # Over UDP an allocation outlives a time without a network. Any other connection that is silent for so long does
        # not come back.
        is_udp = self._settings.app_connection is AppConnection.UDP
        until = min(self._expires, self._heard_at + OUTAGE) if is_udp else now
        if isinstance(error, ServerUnavailable) and now + MIN_REFRESH < until:
            self._deadlines.set(_Due.REFRESH, now + MIN_REFRESH)
        else:
            self._failed(error, now)

    def _lasts(self, message: Message, now: float) -> int:
        lifetime = message.get(a.LIFETIME)
        lifetime = DEFAULT_LIFETIME if lifetime is None else lifetime
        self._expires = now + lifetime
        self._refresh_at = now + max(lifetime - REFRESH_MARGIN, lifetime / 2, MIN_REFRESH)
        self._deadlines.set(_Due.REFRESH, self._next_refresh())
        return lifetime

    def _failed(self, error: RelaydError, now: float) -> None:
        if isinstance(error, Redirection) and self._state is _State.ALLOCATING:
            try:
                server = error.message.get(a.ALTERNATE_SERVER)
                domain = error.message.get(a.ALTERNATE_DOMAIN)
            except DecodeError:
                server = domain = None
            if server is not None:
                self._end_quietly(error)
                self._outputs.append(Redirected(server, domain))
                return
        self._end(error)

    def _keep_alive(self, now: float) -> None:
        """A Binding indication (RFC 8489 section 12.1), unless data went out lately."""
        if now >= self._sent_at + KEEPALIVE:
            self._sent_at = now
            self._outputs.append(
                TransmitData(encode(Method.BINDING, Class.INDICATION, self._entropy(TRANSACTION_ID_SIZE)))
            )
        self._deadlines.set(_Due.KEEPALIVE, self._sent_at + KEEPALIVE)

    def _end(self, error: RelaydError | None) -> None:
        if self._state is _State.ENDED:
            return
        self._end_quietly(error or _not_allocated())
        self._outputs.append(Ended(error))

    def _end_quietly(self, error: RelaydError) -> None:
        self._state = _State.ENDED
        self._requests.drop_all()
        self._peers.end(error)
        self._connections.end(error)
        for due in _Due:
            self._deadlines.cancel(due)


def _not_allocated() -> ServerUnavailable:
    return ServerUnavailable("there is no allocation")
