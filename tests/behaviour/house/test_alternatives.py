"""Several ways to a real relay at once: one allocation remains, and one that lost leaves nothing behind."""

from __future__ import annotations

from typing import Any

from relayd.address import AppConnection
from relayd.client import TurnClient, TurnUri
from relayd.client.alternatives import STAGGER, Alternatives, Progress
from relayd.turn.outputs import AllocationCreated
from tests.behaviour.house.test_client import ClientCase, Collector
from tests.support.house import USERS, WarpedReactor
from tests.support.turn_client import eventually, pause
from tests.support.wires import patiently

WAYS = [kind for kind in AppConnection if kind is not AppConnection.DC]
PATIENCE = 60.0  # seconds, more than is let pass


class AlternativesTests(ClientCase):
    async def test_all_at_once(self) -> None:
        """Of all ways that begin in the same moment, or a turn of the reactor apart, one is left in the end."""
        for turns in range(8):
            clock = WarpedReactor()
            alternatives = Alternatives(clock, self.clients(clock), PATIENCE, Progress())
            waiting = alternatives.allocate(Collector())
            for _ in WAYS:
                clock.advance(STAGGER)
                for _ in range(turns):
                    await pause()
            port = await patiently(waiting)
            await eventually(lambda: self.house.sessions() == 1)
            await patiently(port.stopListening())
            await eventually(lambda: self.house.sessions() == 0)
            await eventually(lambda clock=clock: clock.pending() == [])
        assert len(self.house.recorder.of(AllocationCreated)) >= 8

    def clients(self, clock: Any) -> list[TurnClient]:
        uris = [TurnUri(self.host, self.house.address(kind, self.host).port, kind) for kind in WAYS]
        return [TurnClient(clock, uri, "alice", USERS["alice"], trust_root=self.trust_root()) for uri in uris]
