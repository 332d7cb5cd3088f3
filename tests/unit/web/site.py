"""The site of a relay that shows its status, on a simulated clock, and requests to it as they look on the wire."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from relayd.address import TransportAddress
from relayd.config import RelayAddress
from relayd.launch.status import RelayStatus
from relayd.tls.certificates import Certificates
from tests.unit.listeners.web_bench import WebBench

HERE = IPv4Address("TCP", "127.0.0.1", 40000)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Site:
    """`settings` go to the listener."""

    def __init__(self, endpoint: str = "tcp:8080", **settings: Any) -> None:
        relay = RelayAddress(TransportAddress.parse("10.0.0.5", 0), TransportAddress.parse("198.51.100.7", 0))
        self.clock = Clock()
        self.certificates = Certificates()
        self.status = RelayStatus(self.clock, "portable", [relay], self.certificates)
        self.bench = WebBench(endpoint, status=self.status, **settings)
        self.status.listeners = (self.bench.listener,)

    @property
    def statistics(self) -> Any:
        return self.status.statistics

    def ask(
        self,
        path: str,
        *headers: str,
        client: Any = HERE,
        host: str | None = "127.0.0.1:8080",
        method: str = "GET",
        version: str = "1.1",
    ) -> Answer:
        """One request on a connection of its own."""
        connection, transport = self.bench.connect(client)
        lines = [f"{method} {path} HTTP/{version}", *([f"Host: {host}"] if host is not None else []), *headers]
        connection.dataReceived("\r\n".join(lines).encode() + b"\r\n\r\n")
        head, _, body = b"".join(transport.writes).partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in rest)
        return Answer(int(first.split()[1]), {name.lower(): value for name, value in fields.items()}, body)
