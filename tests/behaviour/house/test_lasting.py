"""A lasting port of ours and a relay that restarts, forgets, or is cut off: the application goes on."""

from __future__ import annotations

from typing import Any

from relayd.address import AppConnection, TransportAddress
from relayd.client.lasting import LastingPort, Observer
from relayd.client.relayed import RelayedPort
from relayd.errors import RelaydError, RemoteError
from relayd.turn.client import SILENCE
from tests.behaviour.house.suite import certificate
from tests.behaviour.house.test_client import ClientCase, Collector, failure_of
from tests.support.house import USERS, House, WarpedReactor
from tests.support.turn_client import Peer, eventually
from tests.support.wires import patiently, reactor


class Impatient(Observer):
    """Keeps what it is told, and lets no time pass but that of the pauses: attempts have all of theirs."""

    def __init__(self, clock: WarpedReactor) -> None:
        self.relayed: list[TransportAddress] = []
        self.errors: list[RelaydError] = []
        self._clock = clock

    def allocated(self, port: RelayedPort) -> None:
        self.relayed += port.relayed_addresses

    def waiting(self, error: RelaydError, pause: float) -> None:
        self.errors.append(error)
        reactor.callLater(0, self._clock.advance, pause)


class LastingCase(ClientCase):
    """A relay that can restart, and a lasting port whose clock is the test's own."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = WarpedReactor()
        self.observer = Impatient(self.clock)

    async def lasting(self) -> tuple[LastingPort, Collector]:
        collector = Collector()
        port = await patiently(self.turn_client(clock=self.clock).listen(collector, self.observer))
        self.addCleanup(self.nothing_is_due)
        self.addCleanup(port.stopListening)
        return port, collector

    async def nothing_is_due(self) -> None:
        """Nothing outlives the client for long. An attempt that is cancelled closes in the turns to come."""
        await eventually(lambda: self.clock.pending() == [])

    async def restart(self, users: dict[str, str] | None = None) -> None:
        """The relay forgets everything, and is back at the same place."""
        await self.house.stop()
        self.start_again(users or USERS)

    def start_again(self, users: dict[str, str]) -> None:
        self.house = House(self.data_plane, certificate(), users, self.house.ports)
        self.house.start()

    async def until(self, holds: Any) -> None:
        """Let time pass for the client until it asks whether the relay is there, and wait for what it does then."""
        self.clock.advance(SILENCE)
        await eventually(holds)


class LastingSuite:
    """The promises. Mixed into `LastingCase`."""

    async def test_the_relay_restarts(self: Any) -> None:
        """The application gets another relayed address, where its peers reach it without a word of its own."""
        peer: Peer = self.peer()
        port, collector = await self.lasting()
        await patiently(port.bind(self.host, peer.address.port))
        await self.restart()
        await self.until(lambda: len(self.observer.relayed) == 2)
        assert self.observer.relayed[1] == port.relayed_addresses[0]
        await patiently(port.bind(self.host, peer.address.port))
        peer.write(b"found you", port.relayed_addresses[0])
        assert await patiently(collector.received.get()) == (b"found you", (self.host, peer.address.port))
        port.write(b"here I am", (self.host, peer.address.port))
        assert await peer.next() == (b"here I am", port.relayed_addresses[0])
        assert not collector.is_stopped
        await patiently(port.stopListening())
        assert collector.is_stopped
        assert self.house.sessions() == 0
        assert self.house.end_reasons == ["deleted"]

    async def test_the_password_changes(self: Any) -> None:
        """A relay that no longer knows the user is asked once, and that is the end."""
        port, collector = await self.lasting()
        ended = port.when_ended()
        await self.restart({"alice": "another"})
        await self.until(lambda: ended.called)
        error = await patiently(ended)
        assert isinstance(error, RemoteError)
        assert error.code == 401
        assert collector.is_stopped
        assert isinstance(await failure_of(port.permit(self.host)), RemoteError)

    async def test_the_relay_is_away(self: Any) -> None:
        """A relay that is not there is tried again and again, until it is, or until the application has enough."""
        port, _ = await self.lasting()
        ended = port.when_ended()
        await self.house.stop()
        if not self.kind.is_datagram:  # which would find out when the allocation expires, and that takes its time
            await self.until(lambda: len(self.observer.errors) > 3)
        self.start_again(USERS)
        await self.until(lambda: len(self.observer.relayed) == 2)
        await self.house.stop()
        await patiently(port.stopListening())
        assert await patiently(ended) is None

    async def test_the_allocation_ends(self: Any) -> None:
        """An allocation that the operator ends is followed by another, within a minute of silence."""
        await self.lasting()
        self.house.service.end_user("alice")
        assert self.house.sessions() == 0
        await self.until(lambda: len(self.observer.relayed) == 2)
        assert self.house.sessions() == 1

    async def test_nobody_there_at_first(self: Any) -> None:
        """Where there is no first allocation, that is an error at once."""
        await self.house.stop()
        listening = self.turn_client(clock=self.clock).listen(Collector(), self.observer)
        if self.kind.is_datagram:
            await self.until(lambda: listening.called)
        await failure_of(listening)
        assert self.observer.errors == []
        await self.nothing_is_due()
        await self.restart()


class CutSuite(LastingSuite):
    """What holds on connections that can be cut."""

    async def test_the_connection_is_cut(self: Any) -> None:
        """A connection that breaks costs the relayed address, and nothing more."""
        port, _ = await self.lasting()
        port._port._session._connection.transport.abortConnection()
        await self.until(lambda: len(self.observer.relayed) == 2)
        await eventually(lambda: self.house.sessions() == 1)
        assert len(self.observer.errors) == 1


class UdpLastingTests(LastingSuite, LastingCase):
    pass


class Udp6LastingTests(LastingSuite, LastingCase):
    host = "::1"


class TcpLastingTests(CutSuite, LastingCase):
    kind = AppConnection.TCP


class TlsLastingTests(CutSuite, LastingCase):
    kind = AppConnection.TLS


class WsLastingTests(CutSuite, LastingCase):
    kind = AppConnection.WS


class WssLastingTests(CutSuite, LastingCase):
    kind = AppConnection.WSS


class DtlsLastingTests(LastingSuite, LastingCase):
    kind = AppConnection.DTLS
