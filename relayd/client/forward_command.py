"""What `relayd-client forward` does, from the words of its user to the end of the forwarding."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, FirstError, gatherResults

from relayd.address import Family, TransportAddress
from relayd.client.alternatives import Alternatives
from relayd.client.datagrams import resolve
from relayd.client.forward import Forward
from relayd.client.forwarding import Forwarding, Route
from relayd.client.narration import Narration
from relayd.client.stream_forwarding import StreamForwarding, StreamRoute
from relayd.client.turn import TurnClient
from relayd.errors import ConfigurationError, DecodeError
from relayd.turn.outputs import PeerTls

MakeClients = Callable[[tuple[Family, ...]], Sequence[TurnClient]]


class Wanted(NamedTuple):
    """What is to be forwarded: datagrams, connections, and connections that the relay continues in TLS."""

    udp: Sequence[Forward] = ()
    tcp: Sequence[Forward] = ()
    tls: Sequence[Forward] = ()


async def forward(
    reactor: Any, wanted: Wanted, clients: MakeClients, patience: float, say: Callable[[str], None]
) -> None:
    """Forward until the process is told to stop, and then leave in order.

    `clients` makes one for each way to the relay, whose allocations are to be of the given families; each way has
    `patience` seconds. Raises RelaydError for what went wrong.
    """
    routes = [await route_of(reactor, each) for each in wanted.udp]
    stream_routes = [StreamRoute(*await route_of(reactor, each)) for each in wanted.tcp]
    stream_routes += [StreamRoute(*await route_of(reactor, each), _tls_with(each)) for each in wanted.tls]
    narration = Narration(reactor, say)
    left: Deferred[None] = Deferred()

    def alternatives(peers: list[TransportAddress], is_stream: bool) -> Alternatives:
        families = tuple(sorted({peer.family for peer in peers}))
        ways = [each for each in clients(families) if not (is_stream and each.uri.app_connection.is_datagram)]
        if not ways:
            raise ConfigurationError("TCP goes over tcp, tls, ws or wss to the relay: name such a way")
        return Alternatives(reactor, ways, patience, narration)

    datagrams = streams = None
    if routes:
        ways = alternatives([route.peer for route in routes], False)
        datagrams = Forwarding(reactor, ways, narration, secrets.token_bytes)
    if stream_routes:
        streams = StreamForwarding(reactor, alternatives([route.peer for route in stream_routes], True), narration)

    async def stop() -> None:
        parts = [part for part in (datagrams, streams) if part is not None]
        await gatherResults([Deferred.fromCoroutine(part.stop()) for part in parts])

    def shut_down() -> Deferred[None]:
        Deferred.fromCoroutine(stop())
        return left

    # The reactor stops when all allocations are deleted, and that was said.
    reactor.addSystemEventTrigger("before", "shutdown", shut_down)
    jobs: list[Any] = []
    if datagrams is not None:
        narration.count(datagrams)
        jobs.append(_serve(datagrams, routes))
    if streams is not None:
        jobs.append(streams.serve(stream_routes))
    try:
        await gatherResults([Deferred.fromCoroutine(job) for job in jobs], consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()
    finally:
        try:
            await stop()
            if datagrams is not None:
                narration.say_count(datagrams)
            if streams is not None:
                say(f"connections: {streams.made}")
        finally:
            narration.end()
            # Not at once: we may be within the end of a connection, and the reactor would go on to close all there are.
            reactor.callLater(0, left.callback, None)
    say("stopped")


async def _serve(forwarding: Forwarding, routes: Sequence[Route]) -> None:
    error = await forwarding.serve(routes)
    if error is not None:
        raise error


def _tls_with(wanted: Forward) -> PeerTls:
    """Raises ConfigurationError for a name that no certificate can be for."""
    try:
        return PeerTls(wanted.host.encode("idna").decode("ascii"))
    except UnicodeError:
        raise ConfigurationError(f"{wanted.host!r}: no certificate can be for such a name") from None


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
