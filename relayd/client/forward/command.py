"""What `relayd-client forward` does, from the words of its user to the end of the forwarding."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, FirstError, gatherResults

from relayd.address import Family, TransportAddress
from relayd.client.alternatives import Alternatives
from relayd.client.forward.datagrams import Forwarding, Route
from relayd.client.forward.narration import Narration
from relayd.client.forward.reception import Reception
from relayd.client.forward.streams import StreamForwarding, StreamRoute
from relayd.client.forward.words import Forward, Welcome
from relayd.client.transports.datagrams import resolve
from relayd.client.turn import TurnClient
from relayd.errors import ConfigurationError, DecodeError
from relayd.turn.outputs import PeerTls

MakeClients = Callable[[tuple[Family, ...]], Sequence[TurnClient]]


class Wanted(NamedTuple):
    """What is to be forwarded: datagrams, connections, and connections that the relay continues in TLS; and which
    connections of peers, in the clear and in TLS with the relay.
    """

    udp: Sequence[Forward] = ()
    tcp: Sequence[Forward] = ()
    tls: Sequence[Forward] = ()
    accept: Sequence[Welcome] = ()
    accept_tls: Sequence[Welcome] = ()


async def forward(
    reactor: Any, wanted: Wanted, clients: MakeClients, patience: float, say: Callable[[str], None]
) -> None:
    """Forward until the process is told to stop, and then leave in order.

    `clients` makes one for each way to the relay, whose allocations are to be of the given families; each way has
    `patience` seconds. Raises RelaydError for what went wrong.
    """
    narration = Narration(reactor, say)
    parts = await _parts(reactor, wanted, clients, patience, narration)
    left: Deferred[None] = Deferred()

    async def stop() -> None:
        await gatherResults([Deferred.fromCoroutine(part.stop()) for part, _ in parts])

    def shut_down() -> Deferred[None]:
        Deferred.fromCoroutine(stop())
        return left

    # The reactor stops when all allocations are deleted, and that was said.
    reactor.addSystemEventTrigger("before", "shutdown", shut_down)
    narration.count()
    try:
        jobs = [Deferred.fromCoroutine(_serve(part, what)) for part, what in parts]
        await gatherResults(jobs, consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()
    finally:
        try:
            await stop()
            narration.say_count()
            paired = [part.pairs.made for part, _ in parts if not isinstance(part, Forwarding)]
            if paired:
                say(f"connections: {sum(paired)}")
        finally:
            narration.end()
            # Not at once: we may be within the end of a connection, and the reactor would go on to close all there are.
            reactor.callLater(0, left.callback, None)
    say("stopped")


_Part = Forwarding | StreamForwarding | Reception


async def _parts(
    reactor: Any, wanted: Wanted, clients: MakeClients, patience: float, narration: Narration
) -> list[tuple[_Part, Sequence[Any]]]:
    """What forwards, each with what it is to serve. Raises ConfigurationError for what cannot be."""

    def alternatives(peers: Iterable[TransportAddress], is_stream: bool) -> Alternatives:
        families = tuple(sorted({peer.family for peer in peers}))
        ways = [each for each in clients(families) if not (is_stream and each.uri.app_connection.is_datagram)]
        if not ways:
            raise ConfigurationError("TCP goes over tcp, tls, ws or wss to the relay: name such a way")
        return Alternatives(reactor, ways, patience, narration)

    parts: list[tuple[_Part, Sequence[Any]]] = []
    routes = [await route_of(reactor, each) for each in wanted.udp]
    if routes:
        ways = alternatives((route.peer for route in routes), False)
        datagrams = narration.datagrams = Forwarding(reactor, ways, narration, secrets.token_bytes)
        parts.append((datagrams, routes))
    stream_routes = [StreamRoute(*await route_of(reactor, each)) for each in wanted.tcp]
    stream_routes += [StreamRoute(*await route_of(reactor, each), _tls_with(each)) for each in wanted.tls]
    if stream_routes:
        ways = alternatives((route.peer for route in stream_routes), True)
        parts.append((StreamForwarding(reactor, ways, narration), stream_routes))
    for accepted, is_tls in ((wanted.accept, False), (wanted.accept_tls, True)):
        welcomes = [await welcome_of(reactor, each) for each in accepted]
        if welcomes:
            _check_unambiguous(welcomes)
            ways = alternatives((TransportAddress.parse(each.peer, 0) for each in welcomes), True)
            allocate = partial(ways.allocate_tcp, accept_tls=is_tls)
            parts.append((Reception(reactor, allocate, is_tls, narration, secrets.token_bytes), welcomes))
    return parts


async def _serve(part: _Part, what: Sequence[Any]) -> None:
    error = await part.serve(what)
    if error is not None:
        raise error


def _check_unambiguous(welcomes: Sequence[Welcome]) -> None:
    for peer, times in Counter(each.peer for each in welcomes).items():
        if times > 1:
            raise ConfigurationError(f"{peer} is accepted {times} times: it can be led to one local port only")


def _tls_with(wanted: Forward) -> PeerTls:
    """Raises ConfigurationError for a name that no certificate can be for."""
    try:
        return PeerTls(wanted.host.encode("idna").decode("ascii"))
    except UnicodeError:
        raise ConfigurationError(f"{wanted.host!r}: no certificate can be for such a name") from None


async def route_of(reactor: Any, wanted: Forward) -> Route:
    """Look up the peer. Raises ConfigurationError."""
    return Route(wanted.interface, wanted.port, await _address_of(reactor, wanted.host, wanted.peer_port))


async def welcome_of(reactor: Any, wanted: Welcome) -> Welcome:
    """Look up the peer. Raises ConfigurationError."""
    return wanted._replace(peer=(await _address_of(reactor, wanted.peer, 0)).host)


async def _address_of(reactor: Any, host: str, port: int) -> TransportAddress:
    """Of a name with addresses of both families, IPv4 is taken: each relay has it. Raises ConfigurationError."""
    try:
        return TransportAddress.parse(host, port)
    except DecodeError:
        hosts = await resolve(reactor, host)
        if not hosts:
            raise ConfigurationError(f"{host}: there is no address of that name") from None
        return min((TransportAddress.parse(each, port) for each in hosts), key=lambda each: each.family)
