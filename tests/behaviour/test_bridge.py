# mypy: disable-error-code="no-untyped-call"
"""Both data planes bridge, over IPv4 and IPv6."""

from __future__ import annotations

import errno
import sys
from typing import Any

import pytest
from twisted.internet import reactor

from relayd.dataplane.factories import BatchedPlaneFactory
from relayd.dataplane.portable import PortablePlane
from relayd.interfaces import IDataPlane
from tests.behaviour import bridge_suite

if sys.platform != "linux":
    pytest.skip("only Linux can make a socket deaf", allow_module_level=True)

unavailable = BatchedPlaneFactory().unavailable()


class PortableIPv4Tests(bridge_suite.BridgeSuite):
    def make_plane(self) -> IDataPlane:
        return PortablePlane(reactor)


class PortableIPv6Tests(PortableIPv4Tests):
    host = "::1"


@pytest.mark.skipif(unavailable is not None, reason=f"no batched data plane here: {unavailable}")
class BatchedIPv4Tests(bridge_suite.BridgeSuite):
    def make_plane(self) -> IDataPlane:
        return BatchedPlaneFactory().make(reactor)


class BatchedIPv6Tests(BatchedIPv4Tests):
    host = "::1"


class BatchedWithoutSegmentsTests(BatchedIPv4Tests):
    """The kernel refuses runs: all that crosses arrives all the same."""

    def setUp(self) -> None:
        super().setUp()
        from relayd.dataplane import batched
        from relayd.dataplane.libc import MSGHDR, ffi, sendmmsg

        def send_many(fd: int, messages: Any, count: int, flags: int) -> int:
            if MSGHDR.unpack(bytes(ffi.buffer(messages, MSGHDR.size)))[5]:  # it has a control message
                ffi.errno = errno.EINVAL
                return -1
            return int(sendmmsg(fd, messages, 1, flags))

        self.patch(batched, "sendmmsg", send_many)
        self.patch(batched, "try_segments", lambda *arguments: errno.EINVAL)
