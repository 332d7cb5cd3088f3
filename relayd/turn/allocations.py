"""All allocations of a server: by path and by relay, and exactly how many there are, for quotas and for the status
page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from relayd.address import AppConnection, Path
from relayd.errors import RemoteError
from relayd.turn.allocation import Allocation
from relayd.turn.outputs import Relay


class Allocations:
    """The allocations there are, and the places that are held for those about to be."""

    def __init__(self, user_quota: int, total_quota: int) -> None:
        self._user_quota = user_quota
        self._total_quota = total_quota
        self._by_path: dict[Path, Allocation] = {}
        self._by_relay: dict[Relay, Allocation] = {}
        self._taken: dict[str, int] = {}  # by user name: allocations and places held
        self._total = 0
        self.by_app_connection: Counter[AppConnection] = Counter()

    def __len__(self) -> int:
        return len(self._by_path)

    def __iter__(self) -> Iterator[Allocation]:
        """Every allocation, also while they are removed."""
        return iter(list(self._by_path.values()))

    def on(self, path: Path) -> Allocation | None:
        """The allocation of a path."""
        return self._by_path.get(path)

    def of(self, relay: Relay) -> Allocation | None:
        """The allocation that a relay belongs to."""
        return self._by_relay.get(relay)

    def of_user(self, username: str) -> list[Allocation]:
        """The allocations of one user. Slow: for when one is revoked."""
        return [allocation for allocation in self._by_path.values() if allocation.username == username]

    # --- places: taken when an Allocate is accepted, given back when it fails or its allocation ends --------------

    def take_place(self, username: str) -> None:
        """Count one more for this user. Raises RemoteError: 486 at the user's quota, 508 at the total one."""
        taken = self._taken.get(username, 0)
        if self._user_quota and taken >= self._user_quota:
            raise RemoteError(486)
        if self._total_quota and self._total >= self._total_quota:
            raise RemoteError(508)
        self._taken[username] = taken + 1
        self._total += 1

    def give_place_back(self, username: str) -> None:
        """Count one less."""
        self._total -= 1
        left = self._taken[username] - 1
        if left:
            self._taken[username] = left
        else:
            del self._taken[username]

    @property
    def places_taken(self) -> int:
        """Allocations, and those about to be."""
        return self._total

    # --- the allocations themselves -------------------------------------------------------------------------------

    def add(self, allocation: Allocation) -> None:
        """Put it into the place that was taken for it."""
        self._by_path[allocation.path] = allocation
        for relay, _ in allocation.relays:
            self._by_relay[relay] = allocation
        self.by_app_connection[allocation.path.app_connection] += 1

    def drop_relay(self, relay: Relay) -> None:
        """One half of a dual allocation is gone."""
        del self._by_relay[relay]

    def remove(self, allocation: Allocation) -> None:
        """Take it out, and give its place back."""
        del self._by_path[allocation.path]
        for relay, _ in allocation.relays:
            del self._by_relay[relay]
        self.by_app_connection[allocation.path.app_connection] -= 1
        self.give_place_back(allocation.username)
