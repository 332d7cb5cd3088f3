"""Stand-ins for what a listener meets: a service that records, and a data plane that opens nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

from relayd.address import TransportAddress
from relayd.listeners.client_ports import Hosts


class FakeService:
    """Records what listeners tell it. `answer`, if set, is sent back for every message."""

    def __init__(self) -> None:
        self.received: list[tuple[Any, bytes]] = []
        self.closed: list[Any] = []
        self.allocated: set[Any] = set()
        self.answer: bytes | None = None

    @property
    def messages(self) -> list[bytes]:
        return [data for _, data in self.received]

    def receive(self, client: Any, data: bytes) -> None:
        self.received.append((client, data))
        if self.answer is not None:
            client.send(self.answer)

    def path_closed(self, client: Any) -> None:
        self.closed.append(client)

    def has_allocation(self, client: Any) -> bool:
        return client in self.allocated


class FakePort:
    """A client-side port that keeps what is sent through it."""

    def __init__(self, plane: FakeDataPlane, address: TransportAddress, app_connection: str, receiver: Any) -> None:
        self.address = address
        self.app_connection = app_connection
        self.receiver = receiver
        self.siblings: list[Any] = []
        self.sent: list[tuple[TransportAddress, bytes]] = []
        self.full = False
        self._plane = plane

    def send(self, destination: TransportAddress, data: bytes) -> bool:
        if self.full:
            return False
        self.sent.append((destination, data))
        return True

    def close(self) -> None:
        self._plane.ports.pop(self.address, None)


class FakeDataPlane:
    """Opens ports as an operating system would: numbers for port 0, EADDRINUSE for what is taken or in `taken`.

    Addresses in `missing` (port 0) are not of this machine.
    """

    def __init__(self) -> None:
        self.ports: dict[TransportAddress, FakePort] = {}
        self.taken: set[TransportAddress] = set()
        self.missing: set[TransportAddress] = set()
        self.error = 0
        self._next = 40000

    def open_port(self, address: TransportAddress, app_connection: str, receiver: Any) -> FakePort:
        if address.with_port(0) in self.missing:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        if not address.port:
            self._next += 1
            address = address.with_port(self._next)
        number = self.error or (errno.EADDRINUSE if address in self.ports or address in self.taken else 0)
        if number:
            raise OSError(number, os.strerror(number))
        port = self.ports[address] = FakePort(self, address, app_connection, receiver)
        return port


class FakeRelay:
    """A relay that keeps what is sent through it."""

    def __init__(self) -> None:
        self.sent: list[tuple[TransportAddress, bytes]] = []
        self.runs: list[int] = []  # how many datagrams each `send_run` brought

    def send(self, peer: TransportAddress, data: bytes, dont_fragment: bool = False) -> bool:
        self.sent.append((peer, data))
        return True

    def send_run(self, peer: TransportAddress, payloads: Sequence[bytes]) -> None:
        self.runs.append(len(payloads))
        self.sent += [(peer, payload) for payload in payloads]


def hosts_of(*hosts: TransportAddress) -> Hosts:
    """A host with these addresses and no others."""
    return lambda family: [host for host in hosts if host.family is family]
