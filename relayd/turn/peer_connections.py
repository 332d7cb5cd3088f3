"""The peer data connections of TCP allocations, from Connect or arrival until they end (RFC 6062).

Theory of operation. Each is in one of three states:

    CONNECTING  a Connect waits for the shell; there is no handle yet
    PENDING     the peer is there, and its CONNECTION-ID waits to be bound, for 30 seconds at most
    BOUND       a client data connection carries its bytes; the shell joined the two

    Connect -> CONNECTING -> (answer) -> PENDING -> (ConnectionBind) -> BOUND
    a peer arrives ---------------------> PENDING

From every state it ends when the shell says that it closed, when its allocation ends, and when a rule withdraws its
peer; CONNECTING also when the shell fails, PENDING when nobody binds it. The bytes never come here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from enum import Enum, auto
from typing import Any

from relayd.address import Path, TransportAddress
from relayd.core import Deadlines, Entropy
from relayd.errors import RemoteError
from relayd.turn.allocation import Allocation
from relayd.turn.outputs import ClosePeerConnection, PeerConnectionEnded, PeerConnectionOpened

BIND_TIMEOUT = 30.0  # seconds, RFC 6062 sections 5.2 and 5.3

MAX_CONNECTIONS = 64
"""For one allocation. Each is two descriptors and their buffers; a conference server's client needs a handful."""

_ID_SIZE = 4  # bytes of CONNECTION-ID


class State(Enum):
    """See the theory of operation."""

    CONNECTING = auto()
    PENDING = auto()
    BOUND = auto()


class PeerConnection:
    """One peer data connection. `handle` is what the shell gave, `data_path` the client's end once it is bound."""

    __slots__ = ("allocation", "peer", "state", "handle", "number", "data_path")

    def __init__(self, allocation: Allocation, peer: TransportAddress) -> None:
        self.allocation = allocation
        self.peer = peer
        self.state = State.CONNECTING
        self.handle: Hashable | None = None
        self.number: int | None = None  # CONNECTION-ID
        self.data_path: Path | None = None


class PeerConnections:
    """All of a server's. What ends here is closed by the outputs that are written here."""

    def __init__(self, entropy: Entropy, outputs: deque[Any], deadlines: Deadlines[Any]) -> None:
        """`deadlines` are not ours alone: what is due of those that are pending is to be given to `end`."""
        self._entropy = entropy
        self._outputs = outputs
        self._of: dict[Allocation, dict[TransportAddress, PeerConnection]] = {}
        self._by_number: dict[int, PeerConnection] = {}
        self._by_handle: dict[Hashable, PeerConnection] = {}
        self._by_data_path: dict[Path, PeerConnection] = {}
        self._deadlines = deadlines

    def __len__(self) -> int:
        return sum(len(connections) for connections in self._of.values())

    def of(self, allocation: Allocation) -> Iterator[PeerConnection]:
        """Those of one allocation, also while they end."""
        return iter(list(self._of.get(allocation, {}).values()))

    def bound_on(self, path: Path) -> PeerConnection | None:
        """The one whose client data connection that is."""
        return self._by_data_path.get(path)

    def control_path(self, number: int) -> Path | None:
        """The path of the allocation to which a CONNECTION-ID belongs that is yet to be bound."""
        connection = self._by_number.get(number)
        return None if connection is None else connection.allocation.path

    # --- beginning ------------------------------------------------------------------------------------------------

    def begin(self, allocation: Allocation, peer: TransportAddress) -> PeerConnection:
        """A Connect was accepted. Raises RemoteError (446, 508)."""
        connections = self._of.setdefault(allocation, {})
        # RFC 6062 section 5.2: whether it is still under way, pending or bound
        if peer in connections:
            raise RemoteError(446)
        if not self.has_room(allocation):
            raise RemoteError(508)
        connection = connections[peer] = PeerConnection(allocation, peer)
        return connection

    def is_current(self, connection: PeerConnection) -> bool:
        """Whether it has not ended meanwhile."""
        return self._of.get(connection.allocation, {}).get(connection.peer) is connection

    def has_room(self, allocation: Allocation) -> bool:
        """Whether another one may begin."""
        return len(self._of.get(allocation, ())) < MAX_CONNECTIONS

    def connected(self, connection: PeerConnection, handle: Hashable, now: float, identity: str | None = None) -> int:
        """The peer is there, and proved to be `identity` if it had to. Gives the CONNECTION-ID."""
        connection.handle = handle
        connection.state = State.PENDING
        number = self._new_number()
        connection.number = number
        self._by_number[number] = connection
        self._by_handle[handle] = connection
        self._deadlines.set(connection, now + BIND_TIMEOUT)
        self._outputs.append(PeerConnectionOpened(connection.allocation.session_id, connection.peer, identity))
        return number

    def bind(self, number: int, username: str, data_path: Path) -> PeerConnection:
        """ConnectionBind. Raises RemoteError 400, which does not tell an unknown id from someone else's."""
        connection = self._by_number.get(number)
        if connection is None or connection.allocation.username != username or data_path in self._by_data_path:
            raise RemoteError(400)
        del self._by_number[number]
        self._deadlines.cancel(connection)
        connection.state = State.BOUND
        connection.data_path = data_path
        self._by_data_path[data_path] = connection
        return connection

    # --- ending ---------------------------------------------------------------------------------------------------

    def end(self, connection: PeerConnection) -> None:
        """Take it out, and have the shell close what is open of it: both ends, once they are joined."""
        handle = connection.handle
        if handle is not None:
            self._outputs.append(ClosePeerConnection(handle))
        self._forget(connection)

    def end_all(self, allocation: Allocation) -> None:
        """The allocation ends (RFC 6062 section 5.5)."""
        for connection in self.of(allocation):
            self.end(connection)

    def closed(self, handle: Hashable) -> None:
        """The shell says that it is closed, for whatever reason."""
        connection = self._by_handle.get(handle)
        if connection is not None:
            self._forget(connection)

    def data_path_closed(self, path: Path) -> None:
        """The client's end is gone, and another connection may have its path. The shell ends the peer's behind what was
        sent, and says so.
        """
        connection = self._by_data_path.pop(path, None)
        if connection is not None:
            connection.data_path = None

    # --- within ---------------------------------------------------------------------------------------------------

    def _new_number(self) -> int:
        # RFC 6062 section 6.2.1: unpredictable, because whoever knows it and the password may bind it
        while True:
            number = int.from_bytes(self._entropy(_ID_SIZE), "big")
            if number not in self._by_number:
                return number

    def _forget(self, connection: PeerConnection) -> None:
        allocation = connection.allocation
        connections = self._of[allocation]
        del connections[connection.peer]
        if not connections:
            del self._of[allocation]
        self._deadlines.cancel(connection)
        if connection.state is State.CONNECTING:
            return
        if connection.number is not None:
            self._by_number.pop(connection.number, None)
        if connection.data_path is not None:
            del self._by_data_path[connection.data_path]
        del self._by_handle[connection.handle]
        self._outputs.append(PeerConnectionEnded(allocation.session_id, connection.peer))
