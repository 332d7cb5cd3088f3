"""The portable data plane keeps every promise of the suite, over IPv4 and IPv6."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from relayd.dataplane.portable import PortablePlane
from tests.behaviour.dataplane_suite import DataPlaneSuite


class PortableIPv4Tests(DataPlaneSuite, TestCase):
    def make_plane(self) -> PortablePlane:
        return PortablePlane(reactor)


class PortableIPv6Tests(PortableIPv4Tests):
    host = "::1"
