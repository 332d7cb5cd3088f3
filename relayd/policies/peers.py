"""The peer rules as a guard. Our own endpoints belong to the rules, and are known only once the listeners are open."""

from __future__ import annotations

from collections.abc import Iterable

from relayd.address import TransportAddress
from relayd.turn.peer_rules import Network, PeerRules


class PeerGuard:
    """Answers from rules that are completed by `listening_on`; until then there is no client who could ask."""

    def __init__(self, allow: Iterable[Network], deny: Iterable[Network]) -> None:
        self._allow = tuple(allow)
        self._deny = tuple(deny)
        self._rules = PeerRules(self._allow, self._deny)

    def listening_on(self, own: Iterable[TransportAddress]) -> None:
        """Refuse these endpoints from now on, whatever is allowed."""
        self._rules = PeerRules(self._allow, self._deny, own)

    def may_reach(self, username: str, peer: TransportAddress) -> bool:
        """See `relayd.interfaces.IPolicy.may_reach`; the rules are the same for every user."""
        return self._rules.may_reach(username, peer)
