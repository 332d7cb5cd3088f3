"""What `relayd-client forward` does, from the words of its user to the end of the forwarding."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from relayd.address import Family, TransportAddress
from relayd.client.alternatives import Alternatives
from relayd.client.datagrams import resolve
from relayd.client.forward import Forward
from relayd.client.forwarding import Forwarding, Route
from relayd.client.narration import Narration
from relayd.client.turn import TurnClient
from relayd.errors import ConfigurationError, DecodeError

MakeClients = Callable[[tuple[Family, ...]], Sequence[TurnClient]]


async def forward(
    reactor: Any, forwards: Sequence[Forward], clients: MakeClients, patience: float, say: Callable[[str], None]
) -> None:
    """Forward until the process is told to stop, and then leave in order.

    `clients` makes one for each way to the relay, whose allocations are to be of the given families; each way has
    `patience` seconds. Raises RelaydError for what went wrong.
    """
    routes = [await route_of(reactor, each) for each in forwards]
    families = tuple(sorted({route.peer.family for route in routes}))
    narration = Narration(reactor, say)
    client = Alternatives(reactor, clients(families), patience, narration)
    forwarding = Forwarding(reactor, client, narration, secrets.token_bytes)
    # The reactor stops when all allocations are deleted.
    reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(forwarding.stop()))
    narration.count(forwarding)
    try:
        error = await forwarding.serve(routes)
        if error is not None:
            raise error
    finally:
        narration.end()
        await forwarding.stop()
        narration.say_count(forwarding)
    say("stopped")


async def route_of(reactor: Any, wanted: Forward) -> Route:
    """Look up the peer. Of a name with addresses of both families, IPv4 is taken: each relay has it.

    Raises ConfigurationError.
    """
    try:
        peer = TransportAddress.parse(wanted.host, wanted.peer_port)
    except DecodeError:
        hosts = await resolve(reactor, wanted.host)
        if not hosts:
            raise ConfigurationError(f"{wanted.host}: there is no address of that name") from None
        peers = [TransportAddress.parse(host, wanted.peer_port) for host in hosts]
        peer = min(peers, key=lambda each: each.family)
    return Route(wanted.interface, wanted.port, peer)
