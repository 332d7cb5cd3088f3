"""Requests that wait for an answer from the shell: absorbing their retransmissions, and bounding how many there are.

Those that wait for a peer, which may be silent for half a minute, are bounded by themselves: else a client with a few
of them could not refresh its allocation meanwhile, and some clients with many would leave no room for anybody. On one
path there are no more of them than its allocation may have connections.
"""

from __future__ import annotations

from typing import ClassVar, Generic, Protocol, TypeVar

from relayd.address import Path
from relayd.errors import RemoteError
from relayd.turn.transaction import Transaction

MAX_PENDING = 10_000  # requests in all, about 1 KB each; reached only if a user database stalls, or all peers do
MAX_PENDING_PER_PATH = 16  # requests; clients send the next one when they have the answer to the last
PENDING_LIFETIME = 39.5  # seconds; RFC 8489 section 6.2.1: when a client gives a transaction up


class Waiting(Protocol):
    """What is common to all that waits."""

    for_peer: ClassVar[bool]

    @property
    def transaction(self) -> Transaction: ...

    @property
    def expires(self) -> float: ...


Kind = TypeVar("Kind", bound=Waiting)


class PendingTransactions(Generic[Kind]):
    """What waits, by the id of the output that it waits for, and by path and transaction id."""

    def __init__(self) -> None:
        self._by_id: dict[int, Kind] = {}
        self._by_path: dict[Path, dict[bytes, int]] = {}
        self._count = {False: 0, True: 0}  # those that do not wait for a peer, and those that do
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def has_path(self, path: Path) -> bool:
        """Whether anything waits on that path."""
        return path in self._by_path

    def is_pending(self, path: Path, transaction_id: bytes) -> bool:
        """Whether this is the retransmission of a request that is being worked on."""
        waiting = self._by_path.get(path)
        return waiting is not None and transaction_id in waiting

    def check_room(self, path: Path) -> None:
        """Raises RemoteError 500, which tells the client to try again later, where too much waits already."""
        on_path = sum(not waiting.for_peer for _, waiting in self.on(path))
        if self._count[False] >= MAX_PENDING or on_path >= MAX_PENDING_PER_PATH:
            raise RemoteError(500)

    def check_room_for_peer(self) -> None:
        """The same for what waits for a peer."""
        if self._count[True] >= MAX_PENDING:
            raise RemoteError(500)

    def next_deadline(self) -> float | None:
        """When the oldest is to be given up. All wait equally long, so it is the first of the dictionary."""
        for waiting in self._by_id.values():
            return waiting.expires
        return None

    def overdue(self, now: float) -> list[int]:
        """The ids of those that are to be given up."""
        return [number for number, waiting in self._by_id.items() if waiting.expires <= now]

    def add(self, waiting: Kind) -> int:
        """Keep it; gives the id for the output that asks the shell."""
        path = waiting.transaction.path
        self._last_id += 1
        self._count[waiting.for_peer] += 1
        self._by_id[self._last_id] = waiting
        self._by_path.setdefault(path, {})[waiting.transaction.message.transaction_id] = self._last_id
        return self._last_id

    def remove(self, id: int) -> Kind | None:
        """Take out what waited for that answer; None if nothing did, or no longer."""
        waiting = self._by_id.pop(id, None)
        if waiting is not None:
            self._count[waiting.for_peer] -= 1
            path = waiting.transaction.path
            on_path = self._by_path[path]
            del on_path[waiting.transaction.message.transaction_id]
            if not on_path:
                del self._by_path[path]
        return waiting

    def on(self, path: Path) -> list[tuple[int, Kind]]:
        """All that waits on a path, with its ids."""
        return [(number, self._by_id[number]) for number in self._by_path.get(path, {}).values()]

    def all(self) -> list[tuple[int, Kind]]:
        """All that waits, with its ids."""
        return list(self._by_id.items())
