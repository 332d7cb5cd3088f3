"""A client core as a party of the simulation: its messages go over the simulated network, its timers are its own."""

from __future__ import annotations

from typing import Any

from relayd.address import AppConnection, Family, FiveTuple, Path, TransportAddress
from relayd.turn import client_outputs as out
from relayd.turn.client import ClientSettings, TurnClientCore
from tests.simulation.parties import Simulation
from tests.unit.turn.parties import SERVER4


class ClientParty:
    """Carries out what the core asks for, and keeps what it tells. `sent` is (time, message)."""

    def __init__(
        self,
        simulation: Simulation,
        app_connection: AppConnection = AppConnection.UDP,
        password: str = "secret",
        families: tuple[Family, ...] = (Family.IPV4,),
        port: int = 40_000,
    ) -> None:
        self.simulation = simulation
        transport = 17 if app_connection.is_datagram else 6
        self.path = Path(FiveTuple(TransportAddress.parse("203.0.7.7", port), SERVER4, transport), app_connection)
        self.core = TurnClientCore(
            ClientSettings(app_connection, "alice", password, families), simulation.world.random.randbytes
        )
        self.sent: list[tuple[float, bytes]] = []
        self.told: list[Any] = []
        self.is_cut_off = False
        simulation.clients[self.path] = self  # type: ignore[assignment]

    @property
    def now(self) -> float:
        return self.simulation.world.now

    def receive(self, data: bytes) -> None:
        """A message from the server."""
        self.core.receive(data, self.now)
        self.run()

    def run(self) -> None:
        """Drain the outputs, arm the timer: what a pump does."""
        while (output := self.core.next_output()) is not None:
            if isinstance(output, out.Transmit | out.TransmitData):
                self.sent.append((self.now, output.data))
                if not self.is_cut_off:
                    network = self.simulation.network
                    network.carry(self.simulation.from_client, self.path, data=output.data)
            else:
                self.told.append(output)
        due = self.core.next_timer()
        if due is not None:
            self.simulation.world.after(max(0.0, due - self.now), self._fire)

    def _fire(self) -> None:
        due = self.core.next_timer()
        if due is not None and due <= self.now:
            self.core.handle_timer(self.now)
            self.run()

    # --- what tests do --------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Let time pass for everybody."""
        self.simulation.run_until(self.now + seconds)

    def allocate(self, patience: float = 60.0) -> Any:
        """Ask for an allocation; what the core tells first."""
        self.core.allocate(self.now)
        self.run()
        self.wait(patience)
        return self.told[0]

    def permit(self, peer: TransportAddress, patience: float = 60.0) -> Any:
        """The outcome: None, or an error."""
        return self._outcome(self.core.permit(peer, self.now), patience)

    def bind(self, peer: TransportAddress, patience: float = 60.0) -> Any:
        """The outcome: None, or an error."""
        return self._outcome(self.core.bind(peer, self.now), patience)

    def send(self, peer: TransportAddress, data: bytes) -> None:
        self.core.send(peer, data, self.now)
        self.run()

    def close(self) -> None:
        self.core.close(self.now)
        self.run()
        self.wait(10.0)

    def of(self, kind: type) -> list[Any]:
        """What was told, of one kind."""
        return [each for each in self.told if isinstance(each, kind)]

    def assert_nothing_left(self) -> None:
        """Ended, and no request, deadline, output, permission or channel is kept."""
        assert self.core.next_timer() is None
        assert self.core.next_output() is None
        assert len(self.core._requests) == 0
        assert self.core._peers._permissions == {}
        assert self.core._peers._by_peer == {}
        assert self.core._peers._by_number == {}
        assert isinstance(self.told[-1], out.Ended | out.Redirected)

    def _outcome(self, id: int, patience: float) -> Any:
        self.run()
        self.wait(patience)
        (answer,) = [each for each in self.of(out.Answered) if each.id == id]
        return answer.error
