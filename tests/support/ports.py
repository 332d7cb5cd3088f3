"""Finds free ports on loopback: the same number for UDP and TCP, on every address that a test uses."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterable

LOOPBACK = ("127.0.0.1", "127.0.0.2", "::1")
# Below those that the system gives to whoever wants any port, and so perhaps to somebody else before they are used.
_RANGE = (12_000, 32_000)
_ATTEMPTS = 200  # far more than a machine with a sane number of open ports needs


def family_of(host: str) -> socket.AddressFamily:
    """The socket family of an IP address in text."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def is_free(port: int, hosts: Iterable[str] = LOOPBACK) -> bool:
    """Whether `port` can be bound for UDP and for TCP on all `hosts`.

    SO_REUSEADDR lets a TCP port through whose last connections are in TIME_WAIT; one that is listened on stays refused.
    It is not set for UDP, where it would hide a server that still holds the port.
    """
    with contextlib.ExitStack() as stack:
        for host in hosts:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                probe = stack.enter_context(socket.socket(family_of(host), kind))
                if kind == socket.SOCK_STREAM:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError:
                    return False
    return True


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a connection to that TCP port is accepted."""
    with socket.socket(family_of(host), socket.SOCK_STREAM) as probe:
        return probe.connect_ex((host, port)) == 0


def free_ports(run: int = 1) -> int:
    """The first of `run` consecutive ports that are free, as `is_free` means it. The first one is even."""
    for _ in range(_ATTEMPTS):
        first = random.randrange(*_RANGE, 2)
        if all(is_free(port) for port in range(first, first + run)):
            return first
    raise RuntimeError(f"no {run} free ports in a row on loopback")
