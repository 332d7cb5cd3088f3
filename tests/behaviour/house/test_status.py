"""The operator's pages on real sockets: what they show is what really happens, and only this host sees it."""

from __future__ import annotations

import json
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from relayd.address import AppConnection
from relayd.turn.peer_rules import parse_cidr
from tests.behaviour.house.suite import NUMBER
from tests.behaviour.house.test_client_tcp import TcpCase
from tests.behaviour.house.test_web import WebCase
from tests.support.turn_client import code_of, eventually, pause
from tests.support.wires import patiently


class StatusCase(WebCase):
    """Asks for pages."""

    async def ask(self, path: str, *headers: str) -> tuple[int, str]:
        """The status and the body of the answer, on a connection that is closed behind it."""
        raw = await self.raw()
        lines = [f"GET {path} HTTP/1.1", f"Host: {self.host}", "Connection: close", *headers]
        raw.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        await raw.closed
        head, _, body = raw.heard.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    async def status(self, path: str = "/status.json") -> dict[str, Any]:
        status, body = await self.ask(path)
        assert status == 200
        return json.loads(body)  # type: ignore[no-any-return]

    async def metric(self, name: str, **labels: str) -> float:
        _, body = await self.ask("/metrics")
        (value,) = (
            sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        )
        return value


class StatusTests(StatusCase):
    """What a relay shows."""

    async def test_traffic_is_counted_as_it_goes(self) -> None:
        """Datagrams through a flow and around it show in document and metrics, while they go and when it is over."""
        peer = self.peer()
        client, relayed = await self.bound(peer)
        for _ in range(5):
            client.channel_data(NUMBER, bytes(100))
            await peer.next()
        peer.write(bytes(40), relayed)
        await client.next_data()
        kind = self.kind.value
        labels = {"app_connection": kind, "direction": "to_peers"}
        assert await self.metric("relayd_relayed_bytes_total", **labels) == 500
        assert await self.metric("relayd_allocations", app_connection=kind) == 1
        await self.pass_seconds(5)
        status = await self.status()
        assert status["allocations"][kind] == 1
        assert status["traffic"] == {
            "sent_packets": 5,
            "sent_bytes": 500,
            "received_packets": 1,
            "received_bytes": 40,
            "dropped": 0,
            "bridged": 0,
        }
        assert abs(sum(status["history"]["sent_bytes"]) - 500) <= 2  # each second is rounded
        assert max(status["history"]["allocations"]) == 1
        assert [each["session"] for each in status["sessions"]] == [
            each.session_id for each in self.house.core.sessions()
        ]
        assert code_of(await client.refresh(0)) == 0
        after = await self.status(f"/status.json?since={status['history']['next']}")
        assert after["allocations"][kind] == 0
        assert after["traffic"] == status["traffic"]
        assert await self.metric("relayd_relayed_bytes_total", **labels) == 500
        assert await self.metric("relayd_allocations_ended_total", app_connection=kind, reason="deleted") == 1

    async def test_refusals_are_counted(self) -> None:
        """A wrong password and a peer that is not allowed count under their reasons."""
        stranger = await self.client("mallory")
        assert code_of(await stranger.allocate()) == 401
        peer = self.peer()
        client, _ = await self.bound(peer)
        assert code_of(await client.permit(peer.address._replace(ip=bytes([10, 0, 0, 1])))) == 403
        refused = {each["reason"]: each["count"] for each in (await self.status())["refusals"]}
        assert refused["unauthorized"] == 3
        assert refused["peer-forbidden"] == 1
        assert await self.metric("relayd_requests_refused_total", code="403", reason="peer-forbidden") == 1

    async def test_every_way_in_is_listed(self) -> None:
        """With the addresses that it really got."""
        listed = (await self.status())["listeners"]
        assert len(listed) == len(self.house.daemon.listeners)
        for kind in (AppConnection.UDP, AppConnection.DTLS, AppConnection.WSS):
            address = str(self.house.address(kind, "::1"))
            assert any(each["app_connection"] == kind and each["addresses"] == [address] for each in listed)

    async def test_a_silent_relay_sleeps(self) -> None:
        """Without an allocation no delayed call wakes it up for its history, however often somebody looks."""
        for _ in range(3):
            await self.status()
        await eventually(lambda: self.listener.admission.total == 0)
        await pause(0.05)
        assert self.house.pending() == []


class WssStatusTests(StatusTests):
    kind = AppConnection.WSS
    data_plane = "batched"


class TcpStatusTests(StatusCase, TcpCase):
    """What is shown of TCP connections with peers."""

    async def test_connections_are_counted(self) -> None:
        """While they last, and all that there were."""
        allocation, _, _ = await self.pair()
        kind = self.kind.value
        assert (await self.status())["peer_connections"][kind] == 1
        assert await self.metric("relayd_peer_connections", app_connection=kind) == 1
        await patiently(allocation.close())
        assert (await self.status())["peer_connections"][kind] == 0
        assert await self.metric("relayd_peer_connections_opened_total", app_connection=kind) == 1


class ClosedStatusTests(StatusCase):
    """`--status-from` names others."""

    settings = {"status_from": (parse_cidr("192.0.2.0/24"),)}

    async def test_this_host_is_not_let_in(self) -> None:
        """It is told so; its WebSockets open as ever."""
        for path in ("/", "/status.json", "/metrics"):
            status, body = await self.ask(path)
            assert status == 403
            assert "--status-from 127.0.0.1" in body
        assert (await self.ask("/healthz")) == (200, "ok\n")
        await self.websocket("/")
