"""`TurnClient`: from a server's URI and a user to a relayed address, on another server where that one redirects us."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import AbstractDatagramProtocol
from twisted.internet.ssl import CertificateOptions

from relayd.address import Family, TransportAddress
from relayd.client.lasting import LastingPort, Observer
from relayd.client.relayed import RelayedPort
from relayd.client.session import Session
from relayd.client.tcp import TcpAllocation
from relayd.client.transports.datagrams import resolve
from relayd.client.transports.proxy import HttpProxy
from relayd.client.transports.server import Server
from relayd.client.transports.uri import TurnUri
from relayd.core import Entropy
from relayd.errors import ConfigurationError, DecodeError, ServerUnavailable
from relayd.turn.client import ClientSettings
from relayd.turn.client_outputs import Allocated, Redirected
from relayd.turn.settings import TCP

MAX_REDIRECTIONS = 5  # servers that name another one, before this is a circle
MAX_ADDRESSES = 4  # of one name over UDP and DTLS: one that is silent costs 39.5 seconds


class TurnClient:
    """One user of one server. Each `allocate` and each `listen` has a connection and an allocation of its own."""

    def __init__(
        self,
        reactor: Any,
        uri: str | TurnUri,
        username: str,
        password: str,
        *,
        families: Iterable[Family] = (Family.IPV4,),
        trust_root: Any = None,
        proxy: str | HttpProxy | None = None,
        entropy: Entropy = secrets.token_bytes,
    ) -> None:
        """`uri` is a TURN URI or a WebSocket URL. `families` is what the relayed address is to be: one family, or both.
        `trust_root`, a Certificate or an IOpenSSLTrustRoot, is what certificates are verified by; None: what the
        platform trusts.
        `proxy` is an HTTP proxy to go through, or its URL; it carries TCP, TLS and WebSocket.

        Raises ConfigurationError for what is no such URI, proxy, family or trust root.
        """
        wanted = frozenset(families)
        if not wanted or not wanted <= frozenset(Family):
            raise ConfigurationError("families: give Family.IPV4, Family.IPV6 or both, in a tuple")
        if trust_root is not None:
            try:
                CertificateOptions(trustRoot=trust_root)
            except TypeError:  # which would else be raised where nobody hears of it, once there is a connection
                raise ConfigurationError(
                    "trust_root: give a Certificate of twisted.internet.ssl, or what trustRootFromCertificates makes"
                ) from None
        self.uri = TurnUri.parse(uri) if isinstance(uri, str) else uri
        self.proxy = HttpProxy.parse(proxy) if isinstance(proxy, str) else proxy
        self._reactor = reactor
        self._trust_root = trust_root
        self._entropy = entropy
        self._settings = ClientSettings(self.uri.app_connection, username, password, tuple(sorted(wanted)))

    def allocate(
        self, protocol: AbstractDatagramProtocol, connected: Callable[[], None] = lambda: None
    ) -> Deferred[RelayedPort]:
        """Allocate, and run `protocol` on the relayed address. `connected` is called when the server is reached.

        Fails with RemoteError for what the server refuses (401, 403, 437, 440, 442, 486, 508, ...), ServerUnavailable
        where there is none, and ConfigurationError for what cannot work. Cancelling closes what is open.
        """
        return Deferred.fromCoroutine(self._allocate(protocol, connected))

    def listen(self, protocol: AbstractDatagramProtocol, observer: Observer | None = None) -> Deferred[LastingPort]:
        """Run `protocol` on a relayed address, and on another one whenever that is lost; `observer` is told which.

        Fails as `allocate` does where there is no first one. Cancelling closes what is open.
        """
        return Deferred.fromCoroutine(self._listen(protocol, observer or Observer()))

    async def _listen(self, protocol: AbstractDatagramProtocol, observer: Observer) -> LastingPort:
        port = LastingPort(self._reactor, self, protocol, observer, self._entropy)
        await port.start()
        return port

    def allocate_tcp(
        self, connected: Callable[[], None] = lambda: None, *, accept_tls: bool = False
    ) -> Deferred[TcpAllocation]:
        """Allocate for TCP to and from peers (RFC 6062), in the manner of `allocate`. With `accept_tls` the peers that
        connect to the relayed address have to speak TLS, in which the relay shows its certificate (docs/protocol.rst):
        a relay without one answers 442, and a relay that knows nothing of that 420.

        Fails with ConfigurationError over UDP and DTLS: the data connections go where this one goes.
        """
        return Deferred.fromCoroutine(self._allocate_tcp(connected, accept_tls))

    async def _allocate_tcp(self, connected: Callable[[], None], accept_tls: bool) -> TcpAllocation:
        kind = self.uri.app_connection
        if kind.is_datagram:
            raise ConfigurationError(
                f"TCP to peers does not go over {kind.value}: use tcp, tls, ws or wss to the relay"
            )
        settings = replace(self._settings, transport=TCP, accepts_tls=accept_tls)
        session, allocated = await self._reach(settings, connected)
        allocation = TcpAllocation(self._reactor, session, allocated, self.uri, self._trust_root)
        allocation.start()
        return allocation

    async def _allocate(self, protocol: AbstractDatagramProtocol, connected: Callable[[], None]) -> RelayedPort:
        session, allocated = await self._reach(self._settings, connected)
        return await self._start(RelayedPort(session, allocated, protocol, self.uri))

    async def _reach(self, settings: ClientSettings, connected: Callable[[], None]) -> tuple[Session, Allocated]:
        """A session that has an allocation, with whatever server it is that gives one."""
        uri = self.uri
        server = Server(uri.host, uri.port, uri.app_connection, uri.host, uri.resource, self.proxy)
        asked: set[tuple[str, int]] = set()
        while True:
            asked.add((server.host, server.port))
            session, result = await self._attempt_each(settings, server, connected)
            if not isinstance(result, Redirected):
                return session, result
            await session.close()
            # RFC 8489 section 10: not to one that was asked already
            address = result.server
            if (address.host, address.port) in asked or len(asked) > MAX_REDIRECTIONS:
                raise ServerUnavailable(f"the servers send us round in a circle; the last word was {address}")
            tls_name = result.domain or server.tls_name
            server = server._replace(host=address.host, port=address.port, tls_name=tls_name)

    async def _attempt_each(
        self, settings: ClientSettings, server: Server, connected: Callable[[], None]
    ) -> tuple[Session, Allocated | Redirected]:
        """`_attempt` at one address of the server's name after the other, until one answers."""
        *others, last = await self._addresses(server)
        for address in others:
            with suppress(ServerUnavailable):
                return await self._attempt(settings, server._replace(host=address), connected)
        return await self._attempt(settings, server._replace(host=last), connected)

    async def _addresses(self, server: Server) -> list[str]:
        """Where to look for a server. For streams that is its name: Twisted tries its addresses side by side."""
        if not server.app_connection.is_datagram or server.proxy is not None:
            return [server.host]
        try:
            TransportAddress.parse(server.host, server.port)
        except DecodeError:
            return (await resolve(self._reactor, server.host))[:MAX_ADDRESSES] or [server.host]
        return [server.host]

    async def _start(self, relayed: RelayedPort) -> RelayedPort:
        try:
            relayed.start()
        except Exception:
            await relayed.stopListening()
            raise
        return relayed

    async def _attempt(
        self, settings: ClientSettings, server: Server, connected: Callable[[], None]
    ) -> tuple[Session, Allocated | Redirected]:
        try:
            session = Session(self._reactor, settings, self._entropy)
        except DecodeError:
            raise ConfigurationError(
                "the user name or the password is empty, too long, or has characters that RFC 8265 disallows"
            ) from None
        try:
            await session.connect(server, self._trust_root)
            connected()
            return session, await session.allocate()
        except CancelledError:
            session.close()  # which takes its time; whoever cancels does not want to wait
            raise
        except Exception:
            await session.close()
            raise
