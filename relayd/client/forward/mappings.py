"""The ends of a forwarding: local ports, relayed addresses, and the mapping of a sender to one of them.

A relayed address, as the port of a NAT, tells the datagrams that come back apart by their peer alone. So each sender
has a mapping (RFC 4787 section 4.1) to a relayed address that no other sender uses for the same peer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol

from relayd.address import TransportAddress
from relayd.client.lasting import LastingPort
from relayd.errors import ConfigurationError

MAX_WAITING = 16  # datagrams of one sender that wait for its relayed address: the first words of most protocols
LARGEST_DATAGRAM = 65_535  # bytes

Sender = tuple[str, int]
"""Host and port of an application, as Twisted has them."""


class LocalPort(DatagramProtocol):
    """Where applications send to, and what they send goes to one peer."""

    noisy = False

    def __init__(self, peer: TransportAddress, receive: Callable[[LocalPort, Sender, bytes], None]) -> None:
        self.peer = peer
        self._receive = receive
        self._port: Any = None

    def open(self, reactor: Any, interface: str, port: int) -> TransportAddress:
        """Gives where it is. Raises ConfigurationError."""
        try:
            self._port = reactor.listenUDP(port, self, interface, LARGEST_DATAGRAM)
        except CannotListenError as error:
            reason = getattr(error.socketError, "strerror", None) or error.socketError
            raise ConfigurationError(f"cannot listen on {interface}, UDP port {port}: {reason}") from None
        return TransportAddress.parse(interface, self._port.getHost().port)

    def close(self) -> Deferred[None]:
        stopped: Any = None if self._port is None else self._port.stopListening()
        return succeed(None) if stopped is None else stopped

    def write(self, data: bytes, sender: Sender) -> None:
        """Raises OSError, and Twisted's MessageLengthError."""
        self._port.write(data, sender)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self._receive(self, (addr[0], addr[1]), datagram)


class RelayedAddress(DatagramProtocol):
    """One lasting port, and the mappings that share it: one for each peer."""

    noisy = False

    def __init__(self, receive: Callable[[RelayedAddress, TransportAddress, bytes], None]) -> None:
        self.port: LastingPort | None = None  # once it is open
        self.opening: Deferred[Any] = succeed(None)
        self.is_refused = False
        self.mappings: dict[TransportAddress, Mapping] = {}
        self.retired: set[TransportAddress] = set()  # peers that may still have something to say to a sender of before
        self._receive = receive

    def is_free_for(self, peer: TransportAddress) -> bool:
        """Whether a sender to that peer can use it, and hears nothing that is meant for another."""
        return not self.is_refused and peer not in self.mappings and peer not in self.retired

    @property
    def dropped(self) -> int:
        """How many datagrams were not sent."""
        return 0 if self.port is None else self.port.dropped

    def close(self) -> Deferred[None]:
        self.mappings.clear()
        self.opening.cancel()
        return succeed(None) if self.port is None else self.port.stopListening()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self._receive(self, TransportAddress.parse(*addr), datagram)


class Mapping:
    """One sender to one peer. `waiting` is what it sent before there was a relayed address."""

    __slots__ = ("local", "sender", "relayed", "waiting", "used_at")

    def __init__(self, local: LocalPort, sender: Sender, relayed: RelayedAddress, now: float) -> None:
        self.local = local
        self.sender = sender
        self.relayed = relayed
        self.waiting: deque[bytes] = deque()
        self.used_at = now
