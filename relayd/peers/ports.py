"""Chooses where a relayed address is opened: among the configured addresses and ports, at random. Opens nothing.

Which ports are free is known by the operating system and nobody else, so nothing is booked here that could leak: a
port is tried by opening it, and is free again when its relay is closed. Candidates come in random order (RFC 8656
section 7.2 asks for RFC 6056) by a random stride through the range, which meets each port once and builds no runs of
used ports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from errno import EACCES, EADDRINUSE, EMFILE, ENFILE, ENOBUFS, ENOMEM

from relayd.address import Family, TransportAddress
from relayd.config import RelayAddress, RelaySettings
from relayd.core import Entropy
from relayd.errors import CannotRelay, ConfigurationError, RelayUnavailable

_DRAWN = 16  # bytes of entropy for each search: where it begins, and its stride

MAX_TRIES = 256  # ports tried for one request: at a few microseconds each, finds one in a range that is 98 % full

_TAKEN = frozenset({EADDRINUSE, EACCES})  # this port cannot be had, another one might
_EXHAUSTED = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM})


class RelayPorts:
    """The configured addresses and their ports."""

    def __init__(self, settings: RelaySettings, entropy: Entropy) -> None:
        self._addresses = {family: [each for each in settings.addresses if each.family is family] for family in Family}
        self._ports = range(settings.lowest_port, settings.highest_port + 1)
        self._entropy = entropy
        self.families = frozenset(address.family for address in settings.addresses)
        self.default_family = Family.IPV4 if Family.IPV4 in self.families else Family.IPV6

    def candidates(self, family: Family, even: bool = False, pair: bool = False) -> Iterator[tuple[RelayAddress, int]]:
        """Up to `MAX_TRIES` places to try: `even` ports only, and with `pair` those with a port of ours behind."""
        ports, addresses = self._ports, self._addresses[family]
        if even:
            ports = ports[ports.start & 1 :: 2]
        if pair and ports and ports[-1] == self._ports[-1]:
            ports = ports[:-1]
        count = len(addresses) * len(ports)
        if not count:
            return
        drawn, start = divmod(int.from_bytes(self._entropy(_DRAWN), "big"), count)
        stride = 1 + drawn % count
        while math.gcd(stride, count) != 1:
            stride += 1
        for turn in range(min(count, MAX_TRIES)):
            which, at = divmod((start + turn * stride) % count, len(ports))
            yield addresses[which], ports[at]


def check_settings(settings: RelaySettings, probe: Callable[[TransportAddress], object]) -> None:
    """Raises ConfigurationError where nothing could ever be opened, and CannotRelay for an address of another machine.

    `probe` binds an address (with port 0), gives it back, and raises OSError where it cannot.
    """
    if not settings.addresses:
        raise ConfigurationError("no relay address: give at least one with --relay-address")
    if not 1 <= settings.lowest_port <= settings.highest_port <= 65535:
        ports = f"{settings.lowest_port}-{settings.highest_port}"
        raise ConfigurationError(f"relay ports {ports}: give LOW-HIGH within 1-65535 with --relay-ports")
    for address in settings.addresses:
        try:
            probe(address.bound.with_port(0))
        except OSError as error:
            raise CannotRelay(
                f"cannot relay from {address.bound.host}: {error.strerror or error}; "
                "give --relay-address an address of this machine"
            ) from error


def cannot_relay(address: RelayAddress, error: OSError) -> RelayUnavailable | None:
    """What it means that a port of that address could not be opened. None: that port is taken, another may be free."""
    if error.errno in _TAKEN:
        return None
    reason = f"cannot relay from {address.bound.host}: {error.strerror or error}"
    return RelayUnavailable(reason, exhausted=is_exhausted(error.errno))


def is_exhausted(error_number: int | None) -> bool:
    """Whether that is the error of a process or a system which ran out of descriptors or memory."""
    return error_number in _EXHAUSTED
