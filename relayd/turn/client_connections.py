"""The client's TCP connections to and from peers (RFC 6062): Connect, ConnectionAttempt, and ConnectionBind.

Theory of operation. On the control connection, `ClientConnections` asks for a connection to a peer or is told of one
from a peer; either gives a CONNECTION-ID. On a connection of its own, a `ConnectionBind` then makes that the peer's:

    BINDING -> (success) -> Bound: all bytes behind the answer are the peer's
            -> (error, silence, no TURN) -> NotBound
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from relayd.address import TransportAddress
from relayd.core import Entropy
from relayd.errors import DecodeError, RelaydError, ServerUnavailable
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute
from relayd.stun.framing import MIN_CHANNEL, STUN_HEADER_SIZE
from relayd.stun.message import Class, Message, Method, decode
from relayd.turn.client_authentication import ClientAuthentication
from relayd.turn.client_outputs import Answered, ConnectionAttempted, PeerConnected
from relayd.turn.client_requests import ClientRequests
from relayd.turn.outputs import PeerTls


class ClientConnections:
    """What one TCP allocation asks and hears on its control connection."""

    def __init__(self, requests: ClientRequests, outputs: deque[Any]) -> None:
        self._requests = requests
        self._outputs = outputs
        self._waiting: set[int] = set()

    def connect(self, peer: TransportAddress, tls: PeerTls | None, id: int, now: float) -> None:
        """Connect (section 4.3), with TLS between relay and peer if `tls` says so (docs/protocol.rst)."""
        attributes: list[tuple[Attribute[Any], Any]] = [(a.XOR_PEER_ADDRESS, peer)]
        if tls is not None:
            attributes.append((a.PEER_TLS, tls.server_name))
            if tls.protocols:
                attributes.append((a.PEER_ALPN, tls.protocols))
        self._waiting.add(id)
        self._requests.ask(
            Method.CONNECT,
            attributes,
            lambda message, _: self._connected(id, message),
            lambda error, _: self._not_connected(id, error),
            now,
        )

    def attempted(self, message: Message) -> None:
        """A ConnectionAttempt indication (section 4.4). Raises DecodeError."""
        peer, number = message.get(a.XOR_PEER_ADDRESS), message.get(a.CONNECTION_ID)
        if peer is not None and number is not None and not message.unknown_required():
            self._outputs.append(ConnectionAttempted(peer, number))

    def end(self, error: RelaydError) -> None:
        """The allocation is gone: whoever waits is told."""
        self._outputs += [Answered(number, error) for number in sorted(self._waiting)]
        self._waiting.clear()

    def _connected(self, id: int, message: Message) -> None:
        number, protocols = message.get(a.CONNECTION_ID), message.get(a.PEER_ALPN)
        if number is None:
            raise DecodeError("no CONNECTION-ID")
        self._waiting.discard(id)
        self._outputs.append(PeerConnected(id, number, protocols[0] if protocols else None))

    def _not_connected(self, id: int, error: RelaydError) -> None:
        self._waiting.discard(id)
        self._outputs.append(Answered(id, error))


@dataclass(slots=True)
class Bound:
    """The connection is the peer's from now on. `early` is what came of it behind the answer."""

    early: bytes


@dataclass(slots=True)
class NotBound:
    """It came to nothing; the connection is to be closed."""

    error: RelaydError


class ConnectionBind:
    """The core of one data connection until it is bound (section 4.3). Drive it as `TurnClientCore`.

    `Bound` or `NotBound` is its last output, and `Transmit` what comes before. It takes bytes, not messages: only it
    knows which answer is the last thing that belongs to TURN.
    """

    def __init__(self, number: int, authentication: ClientAuthentication, entropy: Entropy) -> None:
        """`authentication` has the latest challenge of the control connection, and is ours alone."""
        self._number = number
        self._outputs: deque[Any] = deque()
        self._requests = ClientRequests(authentication, False, entropy, self._outputs)
        self._received = b""
        self._is_over = False

    def begin(self, now: float) -> None:
        """The connection is there."""
        self._requests.ask(
            Method.CONNECTION_BIND,
            [(a.CONNECTION_ID, self._number)],
            lambda _, when: self._end(Bound(b"")),
            lambda error, when: self._end(NotBound(error)),
            now,
        )

    def receive(self, data: bytes, now: float) -> None:
        """Bytes that came on the connection."""
        self._received += data
        try:
            while not self._is_over and self._take_message(now):
                pass
        except DecodeError:
            self._end(NotBound(ServerUnavailable("what answers there is no TURN server")))
        if self._is_over and self._outputs and isinstance(self._outputs[-1], Bound):
            self._outputs[-1].early += self._received
            self._received = b""

    def next_output(self) -> Any | None:
        """`Transmit`, `Bound` or `NotBound`."""
        return self._outputs.popleft() if self._outputs else None

    def next_timer(self) -> float | None:
        """When `handle_timer` is wanted next."""
        return self._requests.next_deadline()

    def handle_timer(self, now: float) -> None:
        """Give up what is due."""
        self._requests.expire(now)

    def _take_message(self, now: float) -> bool:
        """Whether there was one; all are STUN, since a data connection has no channels."""
        received = self._received
        if received[:1] >= bytes((MIN_CHANNEL >> 8,)):
            raise DecodeError("not STUN")
        size = STUN_HEADER_SIZE + int.from_bytes(received[2:4])
        if len(received) < max(size, STUN_HEADER_SIZE):
            return False
        self._received = received[size:]
        message = decode(received[:size])
        if message.cls in (Class.SUCCESS, Class.ERROR):
            self._requests.receive(message, now)
        return True

    def _end(self, outcome: Bound | NotBound) -> None:
        if not self._is_over:
            self._is_over = True
            self._requests.drop_all()
            self._outputs.append(outcome)
