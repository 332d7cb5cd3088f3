"""An HTTP proxy in the test's own process, which knows CONNECT alone, with Basic authentication or none."""

from __future__ import annotations

import base64
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.internet.protocol import ServerFactory
from twisted.python.failure import Failure

from tests.support.turn_client import eventually
from tests.support.wires import reactor


class _Half(StreamProtocol):
    """One side of a tunnel: what it receives goes to the other, and so does its end."""

    other: Any = None

    def __init__(self, proxy: HttpProxyServer) -> None:
        self._proxy = proxy

    def connectionMade(self) -> None:
        self._proxy.open.add(self)

    def dataReceived(self, data: bytes) -> None:
        self.other.transport.write(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._proxy.open.discard(self)
        if self.other is not None:
            self.other.transport.loseConnection()


class _Client(_Half):
    """Who asks for a tunnel."""

    def __init__(self, proxy: HttpProxyServer) -> None:
        super().__init__(proxy)
        self._request = b""

    def dataReceived(self, data: bytes) -> None:
        if self.other is not None:
            super().dataReceived(data)
            return
        self._request += data
        if self._request.endswith(b"\r\n\r\n"):
            Deferred.fromCoroutine(self._serve(self._request.decode("ascii")))

    async def _serve(self, request: str) -> None:
        transport: Any = self.transport
        method, target, _ = request.split("\r\n")[0].split(" ")
        self._proxy.targets.append(target)
        assert method == "CONNECT"
        if self._proxy.credentials not in request:
            transport.write(b"HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic realm=test\r\n\r\n")
            transport.loseConnection()
            return
        host, _, port = target.rpartition(":")
        try:
            other = await connectProtocol(HostnameEndpoint(reactor, host.strip("[]"), int(port)), _Half(self._proxy))
        except Exception:
            transport.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            transport.loseConnection()
            return
        self.other, other.other = other, self
        transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")


class HttpProxyServer:
    """Listens from the beginning, on a free port of `host`; `targets` are what it was asked for, refused or not."""

    def __init__(self, host: str, user: str = "", password: str = "") -> None:
        self.host = host
        self.targets: list[str] = []
        self.open: set[_Half] = set()  # both sides of each tunnel
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.credentials = f"\r\nProxy-Authorization: Basic {encoded}\r\n" if user else ""
        factory = ServerFactory()
        factory.noisy = False
        factory.buildProtocol = lambda address: _Client(self)  # type: ignore[method-assign, assignment]
        self._port: Any = reactor.listenTCP(0, factory, interface=host)
        self.port: int = self._port.getHost().port

    async def stop(self) -> None:
        """Fires once every tunnel is gone."""
        await self._port.stopListening()
        for half in tuple(self.open):
            half.transport.abortConnection()  # type: ignore[union-attr]
        await eventually(lambda: not self.open)
