"""Someone who can write a PROXY header, and claims to be a client that is there already."""

from __future__ import annotations

from typing import Any

from relayd.address import AppConnection
from relayd.config import ListenerSettings
from relayd.listeners.stream import listen_stream
from relayd.stun.framing import encode_channel_data
from relayd.stun.message import Method
from tests.behaviour.house.suite import NUMBER, HouseCase, certificate
from tests.support.turn_client import TurnClient, code_of, eventually, pause
from tests.support.wires import connect, patiently


class ImpostorTests(HouseCase):
    kind = AppConnection.TCP

    async def impostor(self, victim: TurnClient) -> TurnClient:
        """A connection through a `haproxy:` endpoint whose header gives the victim's addresses."""
        listener: Any = await listen_stream(
            "haproxy:tcp:0:interface=127.0.0.1", self.house.reactor, self.house.service, ListenerSettings()
        )
        self.addCleanup(listener.close)
        wire = await connect(AppConnection.TCP, listener.addresses[0], certificate())
        self.addCleanup(wire.close)
        port, server = victim.wire.local.port, self.house.address(AppConnection.TCP, self.host)
        wire.write(b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n" % (port, server.port))
        return TurnClient(wire, AppConnection.TCP, "mallory", "wrong")

    async def test_its_data_goes_nowhere(self) -> None:
        """An impostor's ChannelData and Send indications do not leave through the allocation that it claims."""
        peer = self.peer()
        victim, relayed = await self.bound(peer)
        for message in ("channel", "indication"):
            impostor = await self.impostor(victim)
            if message == "channel":
                impostor.wire.write(encode_channel_data(NUMBER, b"forged", padded=True))
            else:
                impostor.indicate(peer.address, b"forged")
            await patiently(impostor.wire.closed)
        victim.channel_data(NUMBER, b"genuine")
        assert await peer.next() == (b"genuine", relayed)

    async def test_its_answers_go_nowhere(self) -> None:
        """What an impostor asks is not answered to the client that it claims to be."""
        victim, _ = await self.bound(self.peer())
        before = victim.answers
        impostor = await self.impostor(victim)
        impostor.wire.write(impostor.request(Method.BINDING))
        await patiently(impostor.wire.closed)
        await pause(0.01)
        assert victim.answers == before

    async def test_its_end_ends_nothing(self) -> None:
        """When the connection of an impostor closes, the allocation of whom it claimed to be goes on."""
        peer = self.peer()
        victim, relayed = await self.bound(peer)
        impostor = await self.impostor(victim)
        impostor.wire.write(b"\x00")  # so that it is known who it claims to be
        await pause(0.05)
        await impostor.close()
        await pause(0.05)
        peer.write(b"still there", relayed)
        assert await victim.next_data() == (NUMBER, b"still there")
        assert code_of(await victim.refresh(600)) == 0

    async def test_it_is_not_kept_alive(self) -> None:
        """An allocation keeps its own connection open, not the one of an impostor."""
        victim, _ = await self.bound(self.peer())
        impostor = await self.impostor(victim)
        impostor.wire.write(b"\x00")
        await pause(0.05)
        for _ in range(15):
            self.house.reactor.advance(1)
            await pause(0.002)
        await patiently(impostor.wire.closed)
        await eventually(lambda: self.house.sessions() == 1)
        assert code_of(await victim.refresh(600)) == 0
