"""Certificates as authorities issue them: a client that trusts the root alone must come to trust ours."""

from __future__ import annotations

import socket
import ssl

import pytest

from tests.behaviour.test_listeners import ListenerTest
from tests.support.chain import make_chain

PROXY_HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 443\r\n"


def handshake(port: int, root: str, header: bytes = b"") -> None:
    """Raises ssl.SSLCertVerificationError where the chain does not lead to the root."""
    with socket.create_connection(("127.0.0.1", port), 10) as connected:
        connected.sendall(header)
        ssl.create_default_context(cafile=root).wrap_socket(connected, server_hostname="localhost").close()


class ChainTests(ListenerTest):
    async def shake(self, endpoint: str, header: bytes = b"") -> None:
        listener = await self.listen(endpoint)
        await self.in_thread(handshake, listener.addresses[0].port, str(self.chain.root), header)

    def setUp(self) -> None:
        super().setUp()
        self.chain = make_chain(self.directory)

    async def test_one_file(self) -> None:
        """`certKey=fullchain.pem`, keyed or positional, is all that it takes."""
        await self.shake(f"ssl:0:interface=127.0.0.1:privateKey={self.chain.key}:certKey={self.chain.full}")
        await self.shake(f"ssl:0:{self.chain.key}:{self.chain.full}:interface=127.0.0.1")

    async def test_key_and_certificates_in_one_file(self) -> None:
        """So does a file that has the key as well."""
        everything = self.directory / "all.pem"
        everything.write_bytes(self.chain.key.read_bytes() + self.chain.full.read_bytes())
        await self.shake(f"ssl:0:interface=127.0.0.1:privateKey={everything}")

    async def test_two_files(self) -> None:
        """`extraCertChain=` is what it is in Twisted."""
        files = f"certKey={self.chain.leaf}:extraCertChain={self.chain.intermediate}"
        await self.shake(f"ssl:0:interface=127.0.0.1:privateKey={self.chain.key}:{files}")

    async def test_behind_a_proxy(self) -> None:
        """The same holds where a PROXY header comes first."""
        files = f"privateKey={self.chain.key}:certKey={self.chain.full}"
        await self.shake(f"haproxy:ssl:0:interface=127.0.0.1:{files}", PROXY_HEADER)

    async def test_leaf_alone(self) -> None:
        """Without the intermediate the client says no: these tests would notice."""
        with pytest.raises(ssl.SSLCertVerificationError):
            await self.shake(f"ssl:0:interface=127.0.0.1:privateKey={self.chain.key}:certKey={self.chain.leaf}")

    async def test_unreadable_intermediate(self) -> None:
        """A broken certificate behind a good one is an error at the start, not at the first client."""
        broken = self.directory / "broken.pem"
        between = b"-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n"
        broken.write_bytes(self.chain.leaf.read_bytes() + between)
        assert str(broken) in await self.refusal(f"ssl:0:privateKey={self.chain.key}:certKey={broken}")
