"""Tries one way to a relay: reach it, allocate, send datagrams out of the relayed address and back into it.

A relayed address that sends to itself exercises the whole way of a packet, with one allocation and without a peer.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Timeout
from twisted.internet.protocol import DatagramProtocol

from relayd.address import TransportAddress
from relayd.client.relayed import RelayedPort
from relayd.client.transports.uri import TurnUri
from relayd.client.turn import TurnClient
from relayd.errors import RelaydError, RemoteError

ECHO_TIMEOUT = 2.0  # seconds: what takes longer is of no use to a call
PAYLOAD = 200  # bytes of a datagram: about that of a voice call
_TAG = 16  # of them are random, and tell one from another

_CURES = {
    401: "check the user name and the password",
    403: "this user, or this network, may not allocate here",
    420: "the relay does not know what was asked for: TLS with peers is something that only relayd has",
    437: "an earlier allocation holds this very socket; try again",
    440: "the relay has no address of that family",
    442: "the relay relays no TCP, or has no certificate to show to peers (--peer-certificate)",
    486: "this user has as many allocations as are allowed; unused ones end within minutes",
    508: "the relay is full, or out of ports",
}


@dataclass(slots=True)
class Outcome:
    """What came of one way. Times are seconds; `error` is a line for the user, None where everything worked."""

    uri: TurnUri
    reached: float | None = None  # from the beginning to an open connection, that of TLS aside
    allocated: float | None = None  # from there to the allocation
    relayed: TransportAddress | None = None
    echoes: list[float] = field(default_factory=list)
    lost: int = 0
    error: str | None = None


class _Echoes(DatagramProtocol):
    """Waits for its own datagrams."""

    noisy = False

    def __init__(self) -> None:
        self._awaited: dict[bytes, Deferred[None]] = {}

    def expect(self, payload: bytes) -> Deferred[None]:
        self._awaited[payload] = Deferred()
        return self._awaited[payload]

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        waiting = self._awaited.pop(datagram, None)
        if waiting is not None and not waiting.called:
            waiting.callback(None)


async def ping(reactor: Any, client: TurnClient, count: int, patience: float) -> Outcome:
    """Try the way of `client` with `count` echoes; allocating may take `patience` seconds. Never fails."""
    outcome = Outcome(client.uri)
    began = reactor.seconds()
    echoes = _Echoes()

    def connected() -> None:
        outcome.reached = reactor.seconds() - began

    try:
        port = await client.allocate(echoes, connected).addTimeout(patience, reactor)
    except Timeout:
        stage = "not reached" if outcome.reached is None else "reached, but no answer"
        outcome.error = f"{stage} within {patience:g} seconds"
        return outcome
    except RelaydError as error:
        outcome.error = explain(error)
        return outcome
    outcome.allocated = reactor.seconds() - began - (outcome.reached or 0.0)
    outcome.relayed = port.relayed_addresses[0]
    try:
        await _echo(reactor, port, echoes, count, outcome)
    except RemoteError as error:
        outcome.error = f"allocated, but no echo: {error}: the relay refuses its own address as a peer"
    except RelaydError as error:
        outcome.error = f"allocated, but no echo: {error}"
    await port.stopListening()
    return outcome


def explain(error: RelaydError) -> str:
    """What went wrong, and what to do about it where that is known."""
    cure = _CURES.get(error.code) if isinstance(error, RemoteError) else None
    return str(error) if cure is None else f"{error}: {cure}"


async def _echo(reactor: Any, port: RelayedPort, echoes: _Echoes, count: int, outcome: Outcome) -> None:
    relayed = port.relayed_addresses[0]
    await port.permit(relayed.host)
    for _ in range(count):
        payload = secrets.token_bytes(_TAG) + bytes(PAYLOAD - _TAG)
        waiting = echoes.expect(payload)
        sent = reactor.seconds()
        port.write(payload, (relayed.host, relayed.port))
        try:
            await waiting.addTimeout(ECHO_TIMEOUT, reactor)
        except Timeout:
            outcome.lost += 1
        else:
            outcome.echoes.append(reactor.seconds() - sent)
    if outcome.lost:
        outcome.error = f"allocated at {relayed}, but {outcome.lost} of {count} echoes did not come back"
