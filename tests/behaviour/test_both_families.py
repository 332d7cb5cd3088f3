"""Every IPv4 address and every IPv6 address, as two listeners on one port number."""

from __future__ import annotations

import socket

from tests.behaviour.test_listeners import ListenerTest
from tests.support.ports import LOOPBACK, free_ports


class BothFamiliesTests(ListenerTest):
    async def test_one_port_number(self) -> None:
        """`interface=\\:\\:` takes IPv6 only: a listener on IPv4 can have the same port, whichever comes first."""
        for kind in ("tcp:{}", f"ssl:{{}}:{self.files}", "haproxy:tcp:{}", f"haproxy:ssl:{{}}:{self.files}"):
            for first, second in (("", r":interface=\:\:"), (r":interface=\:\:", "")):
                port = free_ports()
                one = await self.listen(kind.format(port) + first)
                other = await self.listen(kind.format(port) + second)
                for host in LOOPBACK:
                    connected = await self.in_thread(socket.create_connection, (host, port), 10)
                    connected.close()
                await one.close()
                await other.close()

    async def test_ipv6_port_in_use(self) -> None:
        """What is said of a port that is taken names it."""
        taken = await self.listen(r"tcp:0:interface=\:\:")
        port = taken.addresses[0].port
        assert "Address already in use" in await self.refusal(rf"tcp:{port}:interface=\:\:")
