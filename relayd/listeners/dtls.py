"""TURN over DTLS (RFC 7350): one session core for each client, fed from a client-side port of the data plane.

Nothing is kept for a client before its cookie has come back. A client that starts again from the same address and port
replaces its old session when the new handshake is complete, and not before: until then anybody could have sent the
hello. The allocation ends with the session.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from zope.interface import implementer

from relayd.address import AppConnection, Path, TransportAddress, source_of
from relayd.config import ListenerSettings
from relayd.core import Entropy
from relayd.dtls import (
    Deliver,
    DtlsContext,
    DtlsServer,
    DtlsSession,
    Ended,
    Established,
    Output,
    Transmit,
    is_client_hello,
)
from relayd.errors import ConfigurationError
from relayd.interfaces import IClientPath, IDatagramReceiver, IDataPlane, IListener, IRelayService, TurnedAway
from relayd.listeners.admission import Admission
from relayd.listeners.client_ports import ClientPorts, Hosts
from relayd.listeners.endpoint import Endpoint, cannot_listen, tls_files
from relayd.listeners.liveness import Liveness
from relayd.listeners.stream import SWEEP_INTERVAL
from relayd.local_addresses import local_addresses
from relayd.pump import Pump
from relayd.stun.framing import CHANNEL_HEADER_SIZE, encode_channel_data
from relayd.tls.certificates import Current

ARGUMENTS = ("privateKey", "certKey", "extraCertChain", "interface")

_APPLICATION_DATA = 23  # DTLS content types
_ALERT = 21


@implementer(IClientPath)
class DtlsClient:
    """One DTLS session, and the path of its client. `below` is the same client as the port reaches it, unencrypted."""

    def __init__(self, listener: DtlsListener, below: IClientPath, session: DtlsSession) -> None:
        self.path: Path = below.path
        self.flows: dict[int, Any] = {}
        self.session = session
        self.liveness = Liveness(listener.clock.seconds())
        self._listener = listener
        self._below = below
        self._pump: Pump[Output] = Pump(session, listener.clock, self._perform)

    def start(self) -> None:
        """Send what the session has to say first."""
        self._pump.run()

    def datagram_received(self, datagram: bytes) -> None:
        """An encrypted datagram from the client."""
        self.session.receive(datagram, self._listener.clock.seconds())
        self._pump.run()

    def send(self, data: bytes) -> bool:
        """See `IClientPath.send`."""
        sent = self.session.send(data)
        self._pump.run()
        return sent

    def send_channel_data(self, number: int, payload: bytes) -> bool:
        """See `IClientPath.send_channel_data`."""
        return self.send(encode_channel_data(number, payload, padded=False))

    def send_channel_data_run(self, number: int, payloads: Sequence[bytes]) -> int:
        """See `IClientPath.send_channel_data_run`."""
        return sum([self.send_channel_data(number, payload) for payload in payloads])

    def send_from(self, source: TransportAddress, destination: TransportAddress, data: bytes) -> bool:
        """A session has one address at each end."""
        return False

    def close(self) -> None:
        """End the session with close_notify."""
        self.session.close()
        self._pump.run()

    def _perform(self, output: Output) -> None:
        match output:
            case Transmit():
                self._below.send(output.datagram)
            case Deliver():
                self._deliver(output.data)
            case Established():
                self._listener.established(self)
            case Ended():
                self._pump.stop()
                self._listener.ended(self)

    def _deliver(self, data: bytes) -> None:
        if not data or self.session.ended:
            return
        self.liveness.heard = True
        if data[0] >= 0x40 and len(data) >= CHANNEL_HEADER_SIZE:
            flow = self.flows.get(data[0] << 8 | data[1])
            if flow is not None:
                # The length field counts: clients pad over datagrams too. One that lies is dropped.
                end = CHANNEL_HEADER_SIZE + (data[2] << 8 | data[3])
                if end <= len(data):
                    flow.relay.send(flow.peer, data[CHANNEL_HEADER_SIZE:end])
                return
        self._listener.service.receive(self, data)


@implementer(IListener, IDatagramReceiver)
class DtlsListener:
    """One DTLS endpoint and its sessions. `open_dtls` makes it."""

    kind = "turn"
    app_connection = AppConnection.DTLS.value
    behind_proxy = False
    _log = Logger()

    def __init__(
        self,
        context: Current[DtlsContext],
        clock: Any,
        service: IRelayService,
        settings: ListenerSettings,
        entropy: Entropy = secrets.token_bytes,
        hosts: Hosts = local_addresses,
    ) -> None:
        self.clock = clock
        self.service = service
        self.settings = settings
        self.admission = Admission(settings)
        self._context = context
        self._server = DtlsServer(context.value, entropy)
        self._ports = ClientPorts(self.app_connection, self, hosts)
        self._clients: dict[Path, DtlsClient] = {}
        # Handshakes under way, of new clients and of those that start again.
        self._handshakes: dict[Path, DtlsClient] = {}
        self._sweep_call: IDelayedCall | None = None

    @property
    def turned_away(self) -> Counter[TurnedAway]:
        return self.admission.turned_away

    @property
    def addresses(self) -> list[TransportAddress]:
        """Where it listens."""
        return self._ports.addresses

    @property
    def description(self) -> str:
        return self._ports.description

    def open(self, address: TransportAddress, data_plane: IDataPlane) -> None:
        """Open the port, or one for each address of a wildcard. Raises OSError."""
        self._ports.open(address, data_plane)

    def datagram_received(self, client: IClientPath, data: bytes) -> None:
        """See `IDatagramReceiver`."""
        if not self._ports.opened:
            return
        path = client.path
        current, handshake = self._clients.get(path), self._handshakes.get(path)
        if is_client_hello(data) and not any(
            known is not None and known.session.began_with(data) for known in (handshake, current)
        ):
            self._hello(client, data)
        elif handshake is None:
            if current is not None:
                current.datagram_received(data)
        elif current is not None and data and data[0] in (_APPLICATION_DATA, _ALERT):
            # Neither belongs to a handshake that goes well; both may be the old session's.
            current.datagram_received(data)
        else:
            handshake.datagram_received(data)

    def established(self, client: DtlsClient) -> None:
        """A handshake is complete: from now on this is the session at its path."""
        path = client.path
        if self._handshakes.get(path) is client:
            del self._handshakes[path]
        old = self._clients.pop(path, None)
        if old is not None:
            self._forget(old)
            self.service.path_closed(old)
            old.close()
        self._clients[path] = client

    def ended(self, client: DtlsClient) -> None:
        """A session is over, or its handshake failed."""
        path = client.path
        if self._handshakes.get(path) is client:
            del self._handshakes[path]
            self._forget(client)
        elif self._clients.get(path) is client:
            del self._clients[path]
            self._forget(client)
            self.service.path_closed(client)

    def close(self) -> Deferred[None]:
        """End all sessions, then close the ports."""
        for client in [*self._handshakes.values(), *self._clients.values()]:
            client.close()
        if self._sweep_call is not None:
            self._sweep_call.cancel()
            self._sweep_call = None
        self._ports.close()
        return succeed(None)

    def _hello(self, client: IClientPath, data: bytes) -> None:
        now = self.clock.seconds()
        source = source_of(client.path.client.ip)
        if not self.admission.handshakes.has_room(source, now):
            return
        self._server.show(self._context.value)
        answer = self._server.receive(repr(client.path.client).encode(), data, now)
        if isinstance(answer, Transmit):
            client.send(answer.datagram)
        elif answer is not None:
            self.admission.handshakes.count(source)
            self._begin(client, answer)

    def _begin(self, below: IClientPath, session: DtlsSession) -> None:
        """A cookie came back: from here on the client costs us something."""
        abandoned = self._handshakes.get(below.path)
        if abandoned is not None:
            abandoned.close()
        source = source_of(below.path.client.ip)
        if not self.admission.enter():
            return
        if not self.admission.claim(source):
            self.admission.leave()
            return
        client = self._handshakes[below.path] = DtlsClient(self, below, session)
        if self._sweep_call is None:
            self._sweep_call = self.clock.callLater(SWEEP_INTERVAL, self._sweep)
        client.start()

    def _forget(self, client: DtlsClient) -> None:
        self.admission.leave()
        self.admission.release(source_of(client.path.client.ip))

    def _sweep(self) -> None:
        self._sweep_call = None
        now = self.clock.seconds()
        for client in [*self._handshakes.values(), *self._clients.values()]:
            try:
                if client.liveness.has_expired(now, self.settings) and not self._is_in_use(client):
                    client.close()
            except Exception:
                self._log.failure("could not look after a session")
        if self._clients or self._handshakes:
            self._sweep_call = self.clock.callLater(SWEEP_INTERVAL, self._sweep)

    def _is_in_use(self, client: DtlsClient) -> bool:
        return self._clients.get(client.path) is client and self.service.has_allocation(client)


def open_dtls(
    description: str,
    clock: Any,
    service: IRelayService,
    data_plane: IDataPlane,
    settings: ListenerSettings,
    hosts: Hosts = local_addresses,
) -> DtlsListener:
    """Open `dtls:PORT` with `privateKey=`, `certKey=`, `extraCertChain=` and `interface=`. Raises ConfigurationError.

    The defaults are those of Twisted's `ssl:`: one file for key and certificate, `server.pem`.
    """
    endpoint = Endpoint(description, ARGUMENTS)
    address = endpoint.address()
    files = tls_files(endpoint.options)
    try:
        context = settings.certificates.pair(
            files.certificate, files.key, lambda pair: DtlsContext(pair.certificates_pem, pair.key_pem), files.chain
        )
        listener = DtlsListener(context, clock, service, settings, hosts=hosts)
        listener.open(address, data_plane)
    except ConfigurationError as error:
        raise endpoint.error(str(error)) from error
    except OSError as error:
        raise cannot_listen(description, error) from error
    return listener
