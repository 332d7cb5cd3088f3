"""The floor control that tests use the relay for keeps to RFC 8855 when nothing is in between."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.support.bfcp import RELIABLE, UNRELIABLE, AttributeType, Primitive, RequestStatus, identifier
from tests.support.floor_control import FloorControlServer, FloorParticipant, Standing, standing


def result(answer: Deferred[Any]) -> Any:
    """What it has been fired with."""
    results: list[Any] = []
    answer.addCallback(results.append)
    return results[0]


def participant(server: FloorControlServer, user: int, version: int, conference: int = 1) -> FloorParticipant:
    """One that talks with the server directly."""
    made = FloorParticipant(conference, user, lambda message: server.received(message, made.received), version)
    return made


@pytest.mark.parametrize("version", [RELIABLE, UNRELIABLE])
def test_a_floor_goes_from_one_to_the_next(version: int) -> None:
    """In the order in which it was asked for; everybody hears of each step, and acknowledges what is to be."""
    server = FloorControlServer(1, {7}, {10, 11, 12})
    first, second, third = (participant(server, user, version) for user in (10, 11, 12))
    assert result(first.request(7)) == Standing(1, RequestStatus.GRANTED, 0)
    assert result(second.request(7)) == Standing(2, RequestStatus.ACCEPTED, 1)
    assert result(third.request(7)) == Standing(3, RequestStatus.ACCEPTED, 2)
    assert result(first.release(1)) == Standing(1, RequestStatus.RELEASED, 0)
    assert [standing(message) for message in second.told.pending] == [Standing(2, RequestStatus.GRANTED, 0)]
    assert [standing(message) for message in third.told.pending] == [Standing(3, RequestStatus.ACCEPTED, 1)]
    assert {message.transaction == 0 for message in third.told.pending} == {version == RELIABLE}
    assert server.unacknowledged == set()
    assert result(second.ask(Primitive.GOODBYE)).primitive == Primitive.GOODBYE_ACK
    assert server.queue(7) == [12]


def test_refusals() -> None:
    """Each has the error code that says why (section 5.2.6)."""
    server = FloorControlServer(1, {7}, {10})
    known = participant(server, 10, RELIABLE)
    floor = identifier(AttributeType.FLOOR_ID, 8)
    request = identifier(AttributeType.FLOOR_REQUEST_ID, 9)
    asked = [
        participant(server, 10, RELIABLE, conference=2).ask(Primitive.HELLO),
        participant(server, 99, RELIABLE).ask(Primitive.HELLO),
        known.ask(200),
        known.ask(Primitive.FLOOR_REQUEST, floor),
        known.ask(Primitive.FLOOR_RELEASE, request),
    ]
    errors = [result(answer) for answer in asked]
    assert {error.primitive for error in errors} == {Primitive.ERROR}
    assert [error.get(AttributeType.ERROR_CODE).value[0] for error in errors] == [1, 2, 3, 6, 7]
