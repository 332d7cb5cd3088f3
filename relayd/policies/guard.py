"""Who may be reached, asked of everyone who has a say: the peer rules first, then each policy. All must agree."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.logger import Logger

from relayd.address import TransportAddress
from relayd.turn.relaying import Guard


class AllOf:
    """Allows what every one of its members allows. A member that fails is a refusal: when in doubt, the peer is not
    reached.
    """

    _log = Logger()

    def __init__(self, members: Iterable[Guard]) -> None:
        self._members = tuple(members)

    def may_reach(self, username: str, peer: TransportAddress) -> bool:
        for member in self._members:
            try:
                if not member.may_reach(username, peer):
                    return False
            except Exception:
                self._log.failure("a policy failed; the peer is refused")
                return False
        return True
