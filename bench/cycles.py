"""Allocation cycles: 401, Allocate, CreatePermission, Refresh(0), each by a fresh client with real credentials."""

from __future__ import annotations

import errno
import itertools
import select
import socket
import time
from typing import TYPE_CHECKING

from bench import wire
from bench.client import answer_challenge, is_loopback, local_address, loopback_source
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.servers import Server

LANES = 16
"""Cycles that are under way at once, so that the server need not wait for the generator."""
SILENCE_SECONDS = 0.5
"""Nothing from any lane for so long: requests were lost, and are sent again."""
MOST_SILENCES = 10
PORTS = range(10_240, 32_768)
"""Used in turn, below those that systems give out: a server may remember a deleted allocation's 5-tuple for a while."""
_numbers = itertools.count()
_UDP = bytes((17, 0, 0, 0))
_ALLOCATE = [(wire.REQUESTED_TRANSPORT, _UDP)]
_DELETE = [(wire.LIFETIME, bytes(4))]


class Lane:
    """One client after another, each from a port of its own, each through one cycle."""

    def __init__(self, server: Server, number: int, poll: select.epoll) -> None:
        self.server = server
        self.cycles = 0
        self._host = loopback_source(number) if is_loopback(server.udp[0]) else ""
        self._ports = itertools.cycle(PORTS)
        self._poll = poll
        self._permission = [(wire.XOR_PEER_ADDRESS, wire.xor_address((local_address(server.udp), 9)))]
        self._begin()

    def _begin(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._bind()
        self.sock.connect(self.server.udp)
        self._poll.register(self.sock.fileno(), select.EPOLLIN)
        self._credentials: wire.Credentials | None = None
        self._ask(wire.ALLOCATE, _ALLOCATE)

    def _bind(self) -> None:
        for port in itertools.islice(self._ports, len(PORTS)):
            try:
                return self.sock.bind((self._host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        raise BenchError("no port is left for another client")

    def _ask(self, method: int, attributes: list[tuple[int, bytes]]) -> None:
        self._method = method
        self._pending = wire.request(method, attributes, self._credentials)
        self.repeat()

    def repeat(self) -> None:
        """Send the request under way, once more."""
        self.sock.send(self._pending)

    def advance(self, more: bool) -> None:
        """Read a response, and ask what comes next; after a whole cycle begin another if there are to be `more`.

        Raises BenchError for an error that is not the first 401.
        """
        try:
            data = self.sock.recv(2048)
        except BlockingIOError:
            return
        if data[8:20] != self._pending[8:20]:
            return
        answer = wire.parse(data)
        if self._credentials is None:
            self._credentials = answer_challenge(answer, self.server.username, self.server.password)
            self._ask(wire.ALLOCATE, _ALLOCATE)
        elif answer.kind != self._method | wire.SUCCESS:
            raise BenchError(f"in a cycle a request of method {self._method} was answered with error {answer.error}")
        elif self._method == wire.ALLOCATE:
            self._ask(wire.CREATE_PERMISSION, self._permission)
        elif self._method == wire.CREATE_PERMISSION:
            self._ask(wire.REFRESH, _DELETE)
        else:
            self.cycles += 1
            self.close()
            if more:
                self._begin()

    @property
    def busy(self) -> bool:
        """Whether a cycle is under way: none is abandoned, because its allocation would stay."""
        return self.sock.fileno() >= 0

    def close(self) -> None:
        """Close the socket of the client under way."""
        self.sock.close()


def run_cycles(server: Server, seconds: float) -> tuple[int, int]:
    """As many cycles as the server begins in that time; (cycles, times that requests had to be repeated)."""
    silences = 0
    with select.epoll() as poll:
        lanes = [Lane(server, next(_numbers), poll) for _ in range(LANES)]
        try:
            until = time.perf_counter() + seconds
            while any(lane.busy for lane in lanes):
                more = time.perf_counter() < until
                ready = {fd for fd, _ in poll.poll(SILENCE_SECONDS)}
                silences += not ready
                if silences > MOST_SILENCES:
                    raise BenchError("the server leaves requests of allocation cycles unanswered")
                for lane in lanes:
                    if lane.sock.fileno() in ready:
                        lane.advance(more)
                    elif not ready and lane.busy:
                        lane.repeat()
            return sum(lane.cycles for lane in lanes), silences
        finally:
            for lane in lanes:
                lane.close()
