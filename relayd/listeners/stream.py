"""TURN over any byte stream that a Twisted endpoint accepts: TCP, TLS, Unix sockets, what systemd or a proxy gives.

A connection costs no delayed call of its own: its listener sweeps all of them once a second, and joins what they want
to write in one turn of the reactor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IDelayedCall, IListeningPort, ILoggingContext, IProtocolNegotiationFactory
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.accept_log import AcceptLog
from relayd.address import TransportAddress, source_of
from relayd.config import ListenerSettings
from relayd.dtls import ALPN
from relayd.errors import ConfigurationError
from relayd.interfaces import IListener, IRelayService, TurnedAway
from relayd.listeners.admission import Admission
from relayd.listeners.connection import CLOSE_GRACE, ClientConnection, StreamClient
from relayd.listeners.endpoint import cannot_listen, split_arguments
from relayd.listeners.internet_ports import InternetPorts
from relayd.listeners.proxied import ProxiedFactory
from relayd.listeners.told_addresses import ToldAddresses, local_address
from relayd.turn.peer_rules import is_in
from relayd.twisted_address import from_twisted

SWEEP_INTERVAL = 1.0  # seconds: how exact the timeouts are, none of which is worth a delayed call per connection

_PROXIED = "haproxy:"
_SAFE_METHODS = frozenset({"TLS_METHOD", "SSLv23_METHOD"})  # these leave the minimum, TLS 1.2, to Twisted

Listener = TypeVar("Listener", bound="StreamListener")


@implementer(IListener, IProtocolNegotiationFactory, ILoggingContext)
class StreamListener(ServerFactory):
    """One stream endpoint and its connections, which are made by `connection`. `open_stream` opens it."""

    kind = "turn"
    connection: type[ClientConnection] = StreamClient
    alpn: Sequence[bytes] = ALPN
    noisy = False
    _log = Logger()

    def __init__(self, description: str, clock: Any, service: IRelayService, settings: ListenerSettings) -> None:
        self.clock = clock
        self.service = service
        self.settings = settings
        self.admission = Admission(settings)
        self.told = ToldAddresses()
        self.local_server = local_address(description)
        self.behind_proxy = description.startswith(_PROXIED)
        self.app_connection = (self.connection.secure if _is_tls(description) else self.connection.plain).value
        self._endpoint = description
        self._port: IListeningPort | None = None
        self._clients: set[ClientConnection] = set()
        self._to_flush: list[ClientConnection] = []
        self._flush_call: IDelayedCall | None = None
        self._sweep_call: IDelayedCall | None = None
        self._empty: Deferred[None] | None = None
        self._patient_until = 0.0  # once it closes
        self._warned: set[str] = set()

    @property
    def turned_away(self) -> Counter[TurnedAway]:
        return self.admission.turned_away

    @property
    def addresses(self) -> list[TransportAddress]:
        """Where it listens; empty for a Unix socket."""
        address = from_twisted(self._port.getHost()) if self._port is not None else None
        return [] if address is None else [address]

    @property
    def description(self) -> str:
        where = " ".join(str(address) for address in self.addresses)
        return f"{self.spoken} {where or self._endpoint}"

    @property
    def spoken(self) -> str:
        """The app_connections that its clients can get, for the operator."""
        return self.app_connection

    def logPrefix(self) -> str:
        """What Twisted's port calls us when it logs that it starts, which no `noisy` prevents."""
        return f"{self.kind}={self._endpoint}"

    def buildProtocol(self, addr: Any) -> ClientConnection:
        # Never None, which Twisted's TLS and PROXY wrappers do not take for an answer: refusals come in connectionMade.
        return self.connection(self)

    def over_tls(self, tls: TLSMemoryBIOFactory) -> Any:
        """What accepts on an endpoint with TLS, in which we are wrapped."""
        return tls

    def listening(self, port: IListeningPort) -> None:
        """The endpoint is open."""
        self._port = port
        AcceptLog(self.description, self.clock).attach(port)

    def close(self) -> Deferred[None]:
        """Stop accepting and close all connections, by force after `CLOSE_GRACE`."""
        if self._empty is not None or self._port is None:
            return succeed(None)
        self._empty = Deferred()
        self._patient_until = self.clock.seconds() + CLOSE_GRACE
        stopped = maybeDeferred(self._port.stopListening)
        for client in list(self._clients):
            client.close()
        self._settle()
        empty = self._empty
        return stopped.addBoth(lambda _: empty)

    @property
    def closing(self) -> bool:
        """Whether `close` was called."""
        return self._empty is not None

    def acceptableProtocols(self) -> list[bytes]:
        """ALPN (RFC 7443 for TURN), for endpoints with TLS. A client without ALPN is served as well.

        A client that offers other protocols only is refused by Twisted with a fatal alert, as RFC 7301 has it.
        """
        return list(self.alpn)

    def connected(self, client: ClientConnection) -> None:
        """A connection came."""
        self._clients.add(client)
        if self._sweep_call is None:
            self._sweep_call = self.clock.callLater(SWEEP_INTERVAL, self._sweep)

    def disconnected(self, client: ClientConnection) -> None:
        """A connection went."""
        self._clients.discard(client)
        self._settle()

    def flush_soon(self, client: ClientConnection) -> None:
        """Call the client's `flush` when this turn of the reactor is over."""
        self._to_flush.append(client)
        if self._flush_call is None:
            self._flush_call = self.clock.callLater(0, self._flush)

    def trusts(self, proxy: TransportAddress | None) -> bool:
        """Whether a proxy may say who its clients are. None is a Unix socket: its permissions say who may use it."""
        return proxy is None or is_in(proxy, self.settings.trusted_proxies)

    def may_shake_hands(self, client: TransportAddress | None) -> bool:
        """Whether the client's source has not begun too many TLS handshakes. A trusted proxy brings everybody."""
        if client is None or self.trusts(client):
            return True
        return self.admission.handshakes.has_room(source_of(client.ip), self.clock.seconds())

    def shakes_hands(self, client: TransportAddress | None) -> None:
        """Count one."""
        if client is not None and not self.trusts(client):
            self.admission.handshakes.count(source_of(client.ip))

    def warn_once(self, topic: str, text: str) -> None:
        """Tell the operator of what may be a mistake of theirs, once for each topic: strangers can bring it about."""
        if topic not in self._warned:
            self._warned.add(topic)
            self._log.warn("{listener}: {text}", listener=self.description, text=text)

    def _flush(self) -> None:
        self._flush_call = None
        clients, self._to_flush = self._to_flush, []
        for client in clients:
            client.flush()

    def _sweep(self) -> None:
        self._sweep_call = None
        now = self.clock.seconds()
        # Data connections have a grace of their own, which is longer than whoever restarts the relay ought to wait.
        out_of_patience = self.closing and now >= self._patient_until
        for client in list(self._clients):
            try:
                if out_of_patience:
                    client.abort()
                else:
                    client.sweep(now)
            except Exception:
                self._log.failure("could not look after a connection")
        if self._clients and self._sweep_call is None:
            self._sweep_call = self.clock.callLater(SWEEP_INTERVAL, self._sweep)

    def _settle(self) -> None:
        """Without connections there is nothing to wait for."""
        if self._clients:
            return
        for call in (self._flush_call, self._sweep_call):
            if call is not None:
                call.cancel()
        self._flush_call = self._sweep_call = None
        self._to_flush.clear()
        if self._empty is not None and not self._empty.called:
            self._empty.callback(None)


def listen_stream(
    description: str, reactor: Any, service: IRelayService, settings: ListenerSettings
) -> Deferred[StreamListener]:
    """Listen on a stream endpoint of Twisted or of one of its plugins. Fails with ConfigurationError."""
    return open_stream(StreamListener(description, reactor, service, settings), description, reactor)


def open_stream(listener: Listener, description: str, reactor: Any) -> Deferred[Listener]:
    """Open a listener, and give it. Fails with ConfigurationError."""

    def listen() -> Deferred[IListeningPort]:
        _refuse_old_tls(description)
        endpoint: Any  # untyped, like the endpoint plugins
        unproxied = description.removeprefix(_PROXIED)
        judge = listener if listener.behind_proxy else None
        ports = InternetPorts(reactor, unproxied, listener.settings.certificates, judge)
        if unproxied.startswith(("ssl:", "tcp:")):
            ports.check_files()
            endpoint = serverFromString(ports, unproxied)
            above: Any = listener
        else:
            endpoint = serverFromString(reactor, unproxied)
            above = ProxiedFactory(listener, listener) if listener.behind_proxy else listener
        listening: Deferred[IListeningPort] = endpoint.listen(above)
        return listening

    def explain(failure: Failure) -> Failure:
        # An endpoint plugin may fail with anything at all.
        error = failure.value
        if error is None or isinstance(error, ConfigurationError):
            return failure
        return Failure(cannot_listen(description, error))

    def opened(port: IListeningPort) -> Listener:
        listener.listening(port)
        return listener

    return maybeDeferred(listen).addCallbacks(opened, explain)


def _refuse_old_tls(description: str) -> None:
    method = split_arguments(description)[1].get("sslmethod", "TLS_METHOD")
    if method not in _SAFE_METHODS:
        raise ConfigurationError(f"{description}: sslmethod={method} would change the TLS versions: leave it out")


def _is_tls(description: str) -> bool:
    return description.removeprefix(_PROXIED).partition(":")[0] in ("ssl", "tls")
