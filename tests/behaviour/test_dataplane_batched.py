"""The batched data plane keeps every promise of the suite, over IPv4 and IPv6."""

from __future__ import annotations

import pytest
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from relayd.dataplane.factories import BatchedPlaneFactory
from relayd.interfaces import IDataPlane
from tests.behaviour.dataplane_suite import DataPlaneSuite

pytestmark = pytest.mark.skipif(BatchedPlaneFactory().unavailable() is not None, reason="no batched data plane here")


class BatchedIPv4Tests(DataPlaneSuite, TestCase):
    def make_plane(self) -> IDataPlane:
        return BatchedPlaneFactory().make(reactor)


class BatchedIPv6Tests(BatchedIPv4Tests):
    host = "::1"
