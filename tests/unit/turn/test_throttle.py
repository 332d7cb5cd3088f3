"""Unauthenticated answers are capped by source, in fixed memory; those who proved themselves are not."""

from __future__ import annotations

import random

import pytest

from relayd.address import AppConnection
from relayd.stun.message import Method
from relayd.turn import outputs as out
from relayd.turn.settings import TurnSettings
from relayd.turn.throttle import AnswerThrottle
from tests.unit.turn.parties import PEER, REALM, Client, Shell, code_of

SETTINGS = TurnSettings(REALM, unauthenticated_rate=10.0, unauthenticated_burst=20.0)


def answered(client: Client, method: Method, times: int) -> int:
    return sum(len(client.send(client.encode(method))) for _ in range(times))


@pytest.mark.parametrize("method", [Method.BINDING, Method.ALLOCATE, Method.REFRESH])
def test_capped(method: Method) -> None:
    """One source gets its burst and then its rate, whatever it sends from whichever port; what is dropped is told."""
    shell = Shell(SETTINGS)
    clients = [Client(shell, port) for port in (40_000, 40_001)]
    assert sum(answered(client, method, 100) for client in clients) == 20
    assert shell.told[-1] == out.RequestRefused(clients[1].path, method, 0)
    shell.advance(1)
    assert answered(clients[0], method, 100) == 10
    shell.advance(100)
    assert answered(clients[0], method, 100) == 20
    shell.assert_nothing_left()


def test_others_are_not_touched() -> None:
    """A flood from one source costs no other source its answers; an IPv6 /64 is one source."""
    shell = Shell(SETTINGS)
    answered(Client(shell, host="203.0.7.7"), Method.BINDING, 100)
    assert answered(Client(shell, host="203.0.7.8"), Method.BINDING, 5) == 5
    answered(Client(shell, host="2a00::1"), Method.BINDING, 100)
    assert answered(Client(shell, host="2a00::2"), Method.BINDING, 5) == 0
    assert answered(Client(shell, host="2a00:0:0:1::1"), Method.BINDING, 5) == 5


@pytest.mark.parametrize("kind", [AppConnection.TCP, AppConnection.TLS, AppConnection.DTLS, AppConnection.WSS])
def test_connections_are_not_capped(kind: AppConnection) -> None:
    """Where a handshake proved the address nobody can be hit by our answers."""
    assert answered(Client(Shell(SETTINGS), app_connection=kind), Method.BINDING, 100) == 100


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_is_not_capped(host: str) -> None:
    """Nobody outside can forge a loopback source."""
    assert answered(Client(Shell(SETTINGS), host=host), Method.BINDING, 100) == 100


def test_authenticated_requests_are_not_capped() -> None:
    """A client with valid credentials is served while its neighbours behind the same NAT flood."""
    shell = Shell(SETTINGS)
    client = Client(shell)
    client.allocate()
    answered(Client(shell, 40_001), Method.BINDING, 100)
    for _ in range(50):
        assert code_of(client.permit(PEER)) == 0
        assert code_of(client.refresh()) == 0


def test_memory_is_fixed() -> None:
    """Many thousand sources leave the table as large as it was, and the clock may even step back."""
    throttle = AnswerThrottle(10.0, 20.0, random.Random(1).randbytes)
    shell = Shell(SETTINGS)
    size = len(throttle._spent)
    for number in range(20_000):
        path = Client(shell, host=f"198.{number >> 16}.{number >> 8 & 255}.{number & 255}").path
        assert throttle.allows(path, 1000.0 - number / 1000)
    assert len(throttle._spent) == len(throttle._at) == size
