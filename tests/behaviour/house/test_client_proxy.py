"""relayd's own client through an HTTP proxy, over every way in that such a proxy carries, against the whole relay."""

from __future__ import annotations

from typing import Any

from relayd.address import AppConnection
from relayd.client import HttpProxy, TurnClient
from relayd.errors import ServerUnavailable
from tests.behaviour.house.test_client import CertificateSuite, ClientCase, ClientSuite, Collector, failure_of
from tests.support.http_proxy import HttpProxyServer
from tests.support.ports import free_ports

USER, PASSWORD = "carol", "let me out"


class ProxyCase(ClientCase):
    """A proxy beside the relay, and clients that know their way through."""

    kind = AppConnection.TCP
    hops = 3

    def setUp(self) -> None:
        super().setUp()
        self.proxy = HttpProxyServer(self.host, USER, PASSWORD)
        self.addCleanup(self.proxy.stop)

    def turn_client(self, *arguments: Any, **options: Any) -> TurnClient:
        options.setdefault("proxy", HttpProxy(self.host, self.proxy.port, USER, PASSWORD))
        return super().turn_client(*arguments, **options)


class ProxySuite(ClientSuite):
    """What holds for every way through a proxy, beside all that holds without one."""

    async def test_it_is_really_used(self: Any) -> None:
        """All that a session sends goes through one tunnel, to the relay by its address."""
        port, _ = await self.relayed()
        host = f"[{self.host}]" if ":" in self.host else self.host
        assert self.proxy.targets == [f"{host}:{self.house.address(self.kind, self.host).port}"]
        assert len(self.proxy.open) == 2
        assert port.mapped_address.port in {half.transport.getHost().port for half in self.proxy.open}

    async def test_who_are_you(self: Any) -> None:
        """Without a password, or with a wrong one, the proxy's refusal is told, and the relay hears nothing of us."""
        for proxy, words in (
            (HttpProxy(self.host, self.proxy.port), "it wants to know who we are"),
            (HttpProxy(self.host, self.proxy.port, USER, "wrong"), "it refuses the user name or the password"),
        ):
            error = await failure_of(self.turn_client(proxy=proxy).allocate(Collector()))
            assert isinstance(error, ServerUnavailable)
            assert words in str(error)
        assert self.house.recorder.events == []

    async def test_nobody_behind_it(self: Any) -> None:
        """A relay that the proxy does not reach is the proxy's word, not ours."""
        client = self.turn_client()
        client.uri = client.uri._replace(port=free_ports())
        assert "502 Bad Gateway: it does not reach the server" in str(await failure_of(client.allocate(Collector())))

    async def test_no_proxy_there(self: Any) -> None:
        """A proxy that is not there is told from a relay that is not."""
        client = self.turn_client(proxy=HttpProxy(self.host, free_ports()))
        error = str(await failure_of(client.allocate(Collector())))
        assert error.startswith("the proxy http://")
        assert "Connection refused" in error

    async def test_the_relay_is_no_proxy(self: Any) -> None:
        """Who takes a TURN server for a proxy learns that it is none."""
        address = self.house.address(AppConnection.TCP, self.host)
        client = self.turn_client(proxy=HttpProxy(self.host, address.port))
        error = str(await failure_of(client.allocate(Collector())))
        assert error.startswith("the proxy http://")

    async def test_another_server(self: Any) -> None:
        """A relay that names another one is left for it, through the same proxy."""
        await self.redirect_to_another()
        await self.relayed()
        assert (self.house.sessions(), self.other.sessions()) == (0, 1)
        assert len(self.proxy.targets) == 2


class TcpProxyTests(ProxySuite, ProxyCase):
    pass


class TlsProxyTests(CertificateSuite, ProxySuite, ProxyCase):
    kind = AppConnection.TLS


class Ws6ProxyTests(ProxySuite, ProxyCase):
    kind = AppConnection.WS
    host = "::1"


class WssProxyTests(CertificateSuite, ProxySuite, ProxyCase):
    kind = AppConnection.WSS


class Wss6ProxyTests(ProxySuite, ProxyCase):
    kind = AppConnection.WSS
    host = "::1"
