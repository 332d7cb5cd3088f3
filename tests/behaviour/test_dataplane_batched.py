# mypy: disable-error-code="no-untyped-call"
"""The batched data plane keeps every promise of the suite, over IPv4 and IPv6."""

from __future__ import annotations

import errno
from itertools import groupby
from typing import Any

import pytest
from twisted.internet import reactor

from relayd.dataplane.factories import BatchedPlaneFactory
from relayd.interfaces import IDataPlane
from tests.behaviour import dataplane_suite
from tests.behaviour.dataplane_suite import NUMBER, frame

if BatchedPlaneFactory().unavailable() is not None:
    pytest.skip("no batched data plane here", allow_module_level=True)

from relayd.dataplane import batched
from relayd.dataplane.libc import MSGHDR, ffi, sendmmsg, sendmsg


class BatchedIPv4Tests(dataplane_suite.DataPlaneSuite):
    def make_plane(self) -> IDataPlane:
        return BatchedPlaneFactory().make(reactor)

    async def test_answers_to_a_batch_leave_together(self) -> None:
        """Requests that came together are all read before the first is answered, but for as many as may wait."""
        happened: list[str] = []
        send = self.port.socket.sendto

        def spied(data: bytes, address: Any) -> int:
            happened.append("out")
            return int(send(data, address))

        def answer(client: Any, data: bytes) -> None:
            happened.append("in")
            client.send(data)

        self.port.socket = Spied(self.port.socket, sendto=spied)
        self.service.on_datagram = answer
        most = batched.ANSWERS_TOGETHER
        for count in (1, 3, most + 2):
            for _ in range(count):
                self.client.write(b"\x00", self.port.address)
            for _ in range(count):
                await self.client.next()
        together = [("in", 1), ("out", 1), ("in", 3), ("out", 3), ("in", most), ("out", most), ("in", 2), ("out", 2)]
        self.assertEqual([(key, len(list(group))) for key, group in groupby(happened)], together)


class RefusedSegmentsTests(BatchedIPv4Tests):
    """The kernel refuses runs (longer than the path MTU, a device that cannot): everything arrives all the same."""

    refusal = errno.EINVAL

    def setUp(self) -> None:
        super().setUp()
        self.refused = 0

        def refuses(message: Any) -> bool:
            control_length = MSGHDR.unpack(bytes(ffi.buffer(message, MSGHDR.size)))[5]
            self.refused += bool(control_length)
            return bool(control_length)

        def send_one(fd: int, message: Any, flags: int) -> int:
            if refuses(message):
                ffi.errno = self.refusal
                return -1
            return sendmsg(fd, message, flags)

        def send_many(fd: int, messages: Any, count: int, flags: int) -> int:
            if refuses(messages):
                ffi.errno = self.refusal
                return -1
            return sendmmsg(fd, messages, 1, flags)

        self.patch(batched, "sendmsg", send_one)
        self.patch(batched, "sendmmsg", send_many)

    async def test_learns(self) -> None:
        """After the first refusal each way, that size is not tried as a run again."""
        await self.bind()
        for _ in range(3):
            for _ in range(20):
                self.client.write(frame(NUMBER, b"u" * 200), self.port.address)
                self.peer.write(b"d" * 200, self.relay.address)
            for _ in range(20):
                await self.peer.next()
                await self.client.next()
        self.assertEqual(self.refused, 3)  # up is tried twice, for the first error may be an old ICMP error
        self.assertEqual(self.counted(), (60, 12_000, 60, 12_000, 0))

    async def test_runs_of_streams_learn(self) -> None:
        """The same for `send_run`, and nothing is lost or comes twice."""
        refused = 0
        send = self.relay.socket.sendmsg

        def refuse(buffers: Any, control: Any, flags: int, address: Any) -> int:
            nonlocal refused
            if control:
                refused += 1
                raise OSError(self.refusal, "refused")
            return int(send(buffers, control, flags, address))

        self.relay.socket = Spied(self.relay.socket, sendmsg=refuse)
        for _ in range(3):
            self.relay.send_run(self.peer.address, [b"u" * 200] * 5)
            self.assertEqual([(await self.peer.next())[0] for _ in range(5)], [b"u" * 200] * 5)
        self.assertEqual(refused, 2)  # the first error may be an old ICMP error
        self.assertEqual(self.counted(), (15, 3000, 0, 0, 0))


class Spied:
    """A socket with some methods that are others: sockets themselves cannot be patched."""

    def __init__(self, below: Any, **instead: Any) -> None:
        self._below = below
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)


class RefusedByDeviceTests(RefusedSegmentsTests):
    refusal = errno.EIO


class BatchedIPv6Tests(BatchedIPv4Tests):
    host = "::1"
