"""The portable data plane keeps every promise of the suite, over IPv4 and IPv6."""

from __future__ import annotations

from twisted.internet import reactor

from relayd.dataplane.portable import PortablePlane
from tests.behaviour import dataplane_suite


class PortableIPv4Tests(dataplane_suite.DataPlaneSuite):
    def make_plane(self) -> PortablePlane:
        return PortablePlane(reactor)


class PortableIPv6Tests(PortableIPv4Tests):
    host = "::1"
