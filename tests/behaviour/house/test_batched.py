"""The whole relay on the batched data plane, over every way in and both families."""

from __future__ import annotations

from relayd.address import AppConnection
from tests.behaviour.house.suite import DatagramSuite, HouseCase, HouseSuite


class BatchedUdpTests(DatagramSuite, HouseCase):
    data_plane = "batched"
    kind = AppConnection.UDP


class BatchedUdp6Tests(BatchedUdpTests):
    host = "::1"


class BatchedTcpTests(HouseSuite, HouseCase):
    data_plane = "batched"
    kind = AppConnection.TCP


class BatchedTcp6Tests(BatchedTcpTests):
    host = "::1"


class BatchedTlsTests(HouseSuite, HouseCase):
    data_plane = "batched"
    kind = AppConnection.TLS


class BatchedDtlsTests(DatagramSuite, HouseCase):
    data_plane = "batched"
    kind = AppConnection.DTLS


class BatchedDtls6Tests(BatchedDtlsTests):
    host = "::1"


class BatchedWsTests(HouseSuite, HouseCase):
    data_plane = "batched"
    kind = AppConnection.WS


class BatchedWs6Tests(BatchedWsTests):
    host = "::1"


class BatchedWssTests(HouseSuite, HouseCase):
    data_plane = "batched"
    kind = AppConnection.WSS
