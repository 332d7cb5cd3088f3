"""The client-side ports of one datagram endpoint, opened together. A wildcard becomes one port for each local address.

A single socket on a wildcard would answer from whatever address routing picks, and a client that wrote to another
address of this host takes no answer from there. An address that appears later is not heard: that takes a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EADDRINUSE, EADDRNOTAVAIL, EINVAL, ENODEV

from relayd.address import Family, TransportAddress
from relayd.interfaces import IDatagramPort, IDatagramReceiver, IDataPlane
from relayd.local_addresses import is_link_local, local_addresses

Hosts = Callable[[Family], Sequence[TransportAddress]]
"""Gives the addresses (port 0) of this host in one family."""

PORT_ATTEMPTS = 16
"""Port numbers from the system that are tried for all addresses; each is free on the first one only."""

_CANNOT_BIND = frozenset({EADDRNOTAVAIL, EINVAL, ENODEV})


class ClientPorts:
    """Opens ports for one receiver and closes them together; iterate over `opened`."""

    def __init__(self, app_connection: str, receiver: IDatagramReceiver, hosts: Hosts = local_addresses) -> None:
        self.opened: list[IDatagramPort] = []
        self._app_connection = app_connection
        self._receiver = receiver
        self._hosts = hosts
        self._wildcard: TransportAddress | None = None

    @property
    def addresses(self) -> list[TransportAddress]:
        """Where the ports are bound."""
        return [port.address for port in self.opened]

    @property
    def description(self) -> str:
        """For the operator: a wildcard as it was written, and for how many addresses it stands."""
        if self._wildcard is None:
            return " ".join([self._app_connection, *map(str, self.addresses)])
        count = len(self.opened)
        return f"{self._app_connection} {self._wildcard} ({count} {'address' if count == 1 else 'addresses'})"

    def open(self, address: TransportAddress, data_plane: IDataPlane) -> None:
        """Open one port, or for a wildcard one for each local address of its family, all with one number.

        Raises OSError with the address in its text; what was opened, by earlier calls too, is closed then.
        """
        try:
            if address.is_wildcard:
                self._open_everywhere(address, data_plane)
            else:
                self._open_one(address, data_plane)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close all ports. Idempotent."""
        while self.opened:
            self.opened.pop().close()

    def _open_everywhere(self, wildcard: TransportAddress, data_plane: IDataPlane) -> None:
        hosts = self._hosts(wildcard.family)
        for attempts_left in reversed(range(PORT_ATTEMPTS)):
            try:
                self._open_each(hosts, wildcard.port, data_plane)
                break
            except OSError as error:
                # Another number may be free on all of them, unless a certain one was asked for.
                if wildcard.port or error.errno != EADDRINUSE or not attempts_left:
                    raise
                self.close()
        if not self.opened:
            raise OSError(EADDRNOTAVAIL, f"this host has no {'IPv4' if len(wildcard.ip) == 4 else 'IPv6'} address")
        self._wildcard = wildcard.with_port(self.opened[0].address.port)

    def _open_each(self, hosts: Sequence[TransportAddress], number: int, data_plane: IDataPlane) -> None:
        for host in hosts:
            try:
                self._open_one(host.with_port(number), data_plane)
            except OSError as error:
                # Where an interface is down its link-local address is listed, and cannot be bound.
                if error.errno in _CANNOT_BIND and is_link_local(host):
                    continue
                raise
            number = self.opened[0].address.port

    def _open_one(self, address: TransportAddress, data_plane: IDataPlane) -> None:
        try:
            self.opened.append(data_plane.open_port(address, self._app_connection, self._receiver))
        except OSError as error:
            # Which of several it was is worth a word.
            raise OSError(error.errno, f"{address}: {error.strerror}") from error
