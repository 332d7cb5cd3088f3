"""Two aioice agents that may only meet through the relay do so, and talk both ways, whatever leads them to it."""

from __future__ import annotations

import asyncio
import ssl
from typing import cast

import pytest
from aioice import Connection, TransportPolicy

from tests.support.servers import ON_BOTH_DATA_PLANES, PASSWORD, USER, TurnServer

PATIENCE = 20.0  # seconds for one whole conversation, which takes well under one
SIZES = (1, 100, 1200)  # bytes of payload; the first needs padding on a stream


def agent(server: TurnServer, path: str, controlling: bool) -> Connection:
    """An agent that gathers nothing but a relayed candidate. On TLS it verifies the server's certificate."""
    trust = ssl.create_default_context(cafile=str(server.certificate.certificate))
    return Connection(
        ice_controlling=controlling,
        turn_server=("127.0.0.1", server.secure if path == "tls" else server.plain),
        turn_username=USER,
        turn_password=PASSWORD,
        turn_ssl=cast(bool, trust if path == "tls" else False),  # annotated as bool, and handed to asyncio as it is
        turn_transport="udp" if path == "udp" else "tcp",
        transport_policy=TransportPolicy.RELAY,
    )


async def introduce(left: Connection, right: Connection) -> None:
    """What signalling does: each agent's candidates and credentials go to the other; then both connect."""
    await asyncio.gather(left.gather_candidates(), right.gather_candidates())
    for one, other in ((left, right), (right, left)):
        assert [candidate.type for candidate in one.local_candidates] == ["relay"]
        for candidate in one.local_candidates:
            await other.add_remote_candidate(candidate)
        await other.add_remote_candidate(None)
        other.remote_username, other.remote_password = one.local_username, one.local_password
    await asyncio.gather(left.connect(), right.connect())


async def converse(server: TurnServer, left_path: str, right_path: str) -> None:
    left, right = agent(server, left_path, True), agent(server, right_path, False)
    try:
        await introduce(left, right)
        for one, other in ((left, right), (right, left)):
            for size in SIZES:
                await one.send(bytes([size % 251]) * size)
                assert await other.recv() == bytes([size % 251]) * size
    finally:
        await asyncio.gather(left.close(), right.close())


@ON_BOTH_DATA_PLANES
@pytest.mark.parametrize(
    ("left", "right"), [("udp", "udp"), ("tcp", "tcp"), ("tls", "tls"), ("udp", "tcp"), ("tls", "udp")]
)
def test_two_agents(server: TurnServer, left: str, right: str, still_serves: None) -> None:
    """Agents on the same and on different kinds of path connect relay-only and exchange data both ways."""
    asyncio.run(asyncio.wait_for(converse(server, left, right), PATIENCE))


@ON_BOTH_DATA_PLANES
def test_agents_leave_nothing(server: TurnServer, still_serves: None) -> None:
    """When the agents have closed, the server holds not one descriptor more than before they came."""

    async def repeatedly() -> None:
        for path in ("udp", "tcp", "tls") * 2:
            await asyncio.wait_for(converse(server, path, path), PATIENCE)

    before = server.descriptors()
    asyncio.run(repeatedly())
    assert server.process.wait_until(lambda: server.descriptors() <= before, patience=5.0), server.descriptors()
