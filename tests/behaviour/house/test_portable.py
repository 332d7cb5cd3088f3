"""The whole relay on the portable data plane, over every way in and both families."""

from __future__ import annotations

from relayd.address import AppConnection
from tests.behaviour.house.suite import DatagramSuite, HouseCase, HouseSuite


class PortableUdpTests(DatagramSuite, HouseCase):
    kind = AppConnection.UDP


class PortableUdp6Tests(PortableUdpTests):
    host = "::1"


class PortableTcpTests(HouseSuite, HouseCase):
    kind = AppConnection.TCP


class PortableTcp6Tests(PortableTcpTests):
    host = "::1"


class PortableTlsTests(HouseSuite, HouseCase):
    kind = AppConnection.TLS


class PortableDtlsTests(DatagramSuite, HouseCase):
    kind = AppConnection.DTLS


class PortableDtls6Tests(PortableDtlsTests):
    host = "::1"


class PortableWsTests(HouseSuite, HouseCase):
    kind = AppConnection.WS


class PortableWs6Tests(PortableWsTests):
    host = "::1"


class PortableWssTests(HouseSuite, HouseCase):
    kind = AppConnection.WSS
