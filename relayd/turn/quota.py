"""How many allocations there may be: counted exactly, from the moment an Allocate is accepted until its allocation
ends.
"""

from __future__ import annotations

from relayd.errors import RemoteError


class Quota:
    """Places for each user name and in all. A limit of 0 is none."""

    __slots__ = ("_per_user", "_total", "_taken_by", "taken")

    def __init__(self, per_user: int, total: int) -> None:
        self._per_user = per_user
        self._total = total
        self._taken_by: dict[str, int] = {}
        self.taken = 0  # in all

    def take(self, username: str) -> None:
        """Take a place. Raises RemoteError: 486 at the user's limit (RFC 8656 section 7.2, step 10), 508 at the
        total.
        """
        taken = self._taken_by.get(username, 0)
        if self._per_user and taken >= self._per_user:
            raise RemoteError(486)
        if self._total and self.taken >= self._total:
            raise RemoteError(508)
        self._taken_by[username] = taken + 1
        self.taken += 1

    def give_back(self, username: str) -> None:
        """Give back a place that was taken."""
        self.taken -= 1
        left = self._taken_by[username] - 1
        if left:
            self._taken_by[username] = left
        else:
            del self._taken_by[username]
