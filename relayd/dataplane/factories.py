"""The data planes as plugins. Nothing of a plane is loaded before it is made, so that this works on every platform."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.interfaces import IReactorFDSet
from twisted.plugin import IPlugin
from zope.interface import implementer

from relayd.errors import ConfigurationError
from relayd.interfaces import IDataPlane, IDataPlaneFactory


@implementer(IPlugin, IDataPlaneFactory)
class PortablePlaneFactory:
    """Makes the data plane that runs anywhere."""

    name = "portable"
    preference = 0
    help = (
        "Plain UDP sockets on the reactor, one system call per datagram. Runs on every platform and every reactor that "
        "can watch descriptors (all but Windows' iocp). ICMP errors and DONT-FRAGMENT need Linux."
    )

    def unavailable(self) -> str | None:
        return None

    def make(self, reactor: Any) -> IDataPlane:
        from relayd.dataplane.portable import PortablePlane

        if not IReactorFDSet.providedBy(reactor):
            raise ConfigurationError("data plane portable: this reactor cannot watch descriptors; choose another")
        return PortablePlane(reactor)


@implementer(IPlugin, IDataPlaneFactory)
class BatchedPlaneFactory:
    """Makes the data plane for Linux."""

    name = "batched"
    preference = 10
    help = (
        "Linux only, and the default there: datagrams are received and sent many at a time (recvmmsg, sendmmsg, "
        "UDP_SEGMENT) and forwarded without a copy in Python. Needs cffi, and no compiler."
    )

    def unavailable(self) -> str | None:
        if not sys.platform.startswith("linux"):
            return "it needs Linux"
        if sys.maxsize < 2**32:
            return "it needs a 64-bit system"
        try:
            from relayd.dataplane import libc
        except ImportError as error:
            return f"it needs cffi: {error}"
        return libc.missing()

    def make(self, reactor: Any) -> IDataPlane:
        reason = self.unavailable()
        if reason is None and not IReactorFDSet.providedBy(reactor):
            reason = "this reactor cannot watch descriptors"
        if reason is not None:
            raise ConfigurationError(f"data plane batched: {reason}; choose --data-plane portable")
        from relayd.dataplane.batched import BatchedPlane

        return BatchedPlane(reactor)
