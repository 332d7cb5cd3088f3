"""One source that begins handshake after handshake, each of which costs a signature, on every port that speaks TLS."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from twisted.internet.threads import deferToThread

from relayd.address import AppConnection
from relayd.config import ListenerSettings
from relayd.interfaces import TurnedAway
from relayd.listeners.turn import TurnListenerFactory
from relayd.listeners.web_factory import AnyListenerFactory
from tests.behaviour.house.suite import HouseCase
from tests.behaviour.test_listeners import unverified
from tests.support.house import USERS
from tests.support.turn_client import TurnClient, eventually
from tests.support.wires import PATIENCE, connect

MOST = 3
PERIOD = ListenerSettings().first_message_timeout


class HandshakeCase(HouseCase):
    """With a limit that is soon reached."""

    settings = {"max_connections_per_source": MOST, "trust_proxy": ()}
    ways = (AppConnection.TLS, AppConnection.WSS)

    async def shake(self, listener: Any, header: bytes = b"") -> bool:
        """Whether a handshake on a connection of its own is taken up; it is broken off at once."""
        (server,) = listener.addresses

        def shake() -> bool:
            try:
                connected = socket.create_connection((server.host, server.port), PATIENCE)
                connected.sendall(header)
                with connected, unverified().wrap_socket(connected):
                    return True
            except (ConnectionError, ssl.SSLEOFError):
                return False

        done: bool = await deferToThread(shake)
        await eventually(lambda: listener.admission.total == 0)
        return done

    def listener(self, kind: AppConnection) -> Any:
        address = self.house.address(kind, "127.0.0.1")
        return next(each for each in self.house.daemon.listeners if address in each.addresses)


class HandshakeTests(HandshakeCase):
    async def test_who_begins_too_many(self) -> None:
        """Is refused for the rest of the period, though no connection of theirs is left. Other ports go on."""
        for listener in map(self.listener, self.ways):
            assert [await self.shake(listener) for _ in range(MOST + 2)] == [True] * MOST + [False] * 2
            assert listener.turned_away == {TurnedAway.HANDSHAKES: 2}
        await (await self.client(kind=AppConnection.TCP)).relayed()
        self.house.reactor.advance(PERIOD)
        for listener in map(self.listener, self.ways):
            assert await self.shake(listener)


class MixedHandshakeTests(HandshakeTests):
    """The kind `any`."""

    mixed = True

    async def test_plain_connections_are_none(self) -> None:
        """What speaks TURN without TLS on such a port is not counted, however often it comes."""
        listener = self.listener(AppConnection.TLS)
        (server,) = listener.addresses
        for _ in range(2 * MOST):
            wire = await connect(AppConnection.TCP, server, self.certificate)
            client = TurnClient(wire, AppConnection.TCP, "alice", USERS["alice"])
            await client.relayed()
            await client.close()
            await eventually(lambda: listener.admission.total == 0)
        assert listener.turned_away == {}
        assert await self.shake(listener)


class TrustedTests(HandshakeCase):
    """From where a proxy of ours may be, which is by default this host."""

    settings = {"max_connections_per_source": MOST}

    async def test_a_proxy_brings_everybody(self) -> None:
        """So there is no limit for it."""
        for listener in map(self.listener, self.ways):
            assert all([await self.shake(listener) for _ in range(MOST + 2)])
            assert listener.turned_away == {}

    async def test_clients_that_a_proxy_names(self) -> None:
        """Where it says ahead of TLS for whom it connects, each of them is a source."""
        made = self.certificate
        for factory in (TurnListenerFactory(), AnyListenerFactory("relayd.web.pages.make_pages")):
            listener: Any = await factory.listen(
                f"haproxy:ssl:0:interface=127.0.0.1:privateKey={made.key}:certKey={made.certificate}",
                self.house.reactor,
                self.house.service,
                self.house.daemon.data_plane,
                ListenerSettings(max_connections_per_source=MOST),
            )
            self.addCleanup(listener.close)
            headers = [b"PROXY TCP4 198.51.100.%d 192.0.2.1 50000 443\r\n" % host for host in (7, 8)]
            tried = [await self.shake(listener, headers[0]) for _ in range(MOST + 2)]
            assert tried == [True] * MOST + [False] * 2
            assert await self.shake(listener, headers[1])
