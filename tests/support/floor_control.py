"""A floor control server and its participants (RFC 8855), without transports: what they say goes to a callable.

Small, made for tests: a floor has one holder and a queue without chairs and priorities, and nothing is sent twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.defer import Deferred, DeferredQueue

from tests.support.bfcp import (
    RELIABLE,
    UNRELIABLE,
    Attribute,
    AttributeType,
    BfcpError,
    ErrorCode,
    Message,
    Primitive,
    RequestStatus,
    find,
    group,
    identifier,
    request_status,
)

Reply = Callable[[Message], None]


@dataclass(frozen=True)
class FloorRequest:
    """One that is ongoing, and where its participant hears of it."""

    number: int
    floor: int
    user: int
    version: int
    reply: Reply


class FloorControlServer:
    """Serves one conference to whoever `received` brings messages from, over any transports at once."""

    def __init__(self, conference: int, floors: set[int], users: set[int]) -> None:
        self._conference = conference
        self._users = users
        self._queues: dict[int, list[FloorRequest]] = {floor: [] for floor in floors}  # the holder is the first
        self._requests = 0
        self._transactions = 0
        self.unacknowledged: set[int] = set()  # its own transactions, on unreliable transports
        self._answers: dict[int, Callable[[Message, Reply], None]] = {
            Primitive.HELLO: self._hello,
            Primitive.FLOOR_REQUEST: self._floor_request,
            Primitive.FLOOR_RELEASE: self._floor_release,
            Primitive.GOODBYE: self._goodbye,
        }

    def received(self, message: Message, reply: Reply) -> None:
        """A message from a participant, who hears what is said to `reply`."""
        if message.is_response:
            assert message.primitive == Primitive.FLOOR_REQUEST_STATUS_ACK
            self.unacknowledged.remove(message.transaction)
        elif message.conference != self._conference:
            self._refuse(message, reply, ErrorCode.NO_SUCH_CONFERENCE)
        elif message.user not in self._users:
            self._refuse(message, reply, ErrorCode.NO_SUCH_USER)
        elif message.primitive not in self._answers:
            self._refuse(message, reply, ErrorCode.UNKNOWN_PRIMITIVE)
        else:
            self._answers[message.primitive](message, reply)

    def queue(self, floor: int) -> list[int]:
        """The users who have asked for it, the holder first."""
        return [request.user for request in self._queues[floor]]

    # --- section 13, by primitive ---

    def _hello(self, message: Message, reply: Reply) -> None:
        primitives = Attribute(AttributeType.SUPPORTED_PRIMITIVES, bytes(Primitive))
        attributes = Attribute(AttributeType.SUPPORTED_ATTRIBUTES, bytes(kind << 1 for kind in AttributeType))
        self._answer(message, reply, Primitive.HELLO_ACK, primitives, attributes)

    def _floor_request(self, message: Message, reply: Reply) -> None:
        floor = message.get(AttributeType.FLOOR_ID).number
        if floor not in self._queues:
            self._refuse(message, reply, ErrorCode.INVALID_FLOOR)
            return
        self._requests += 1
        request = FloorRequest(self._requests, floor, message.user, message.version, reply)
        self._queues[floor].append(request)
        self._answer(message, reply, Primitive.FLOOR_REQUEST_STATUS, self._state(request))

    def _floor_release(self, message: Message, reply: Reply) -> None:
        number = message.get(AttributeType.FLOOR_REQUEST_ID).number
        for queue in self._queues.values():
            for request in queue:
                if (request.number, request.user) == (number, message.user):
                    state = _information(request, RequestStatus.RELEASED)
                    self._answer(message, reply, Primitive.FLOOR_REQUEST_STATUS, state)
                    self._remove(request)
                    return
        self._refuse(message, reply, ErrorCode.NO_SUCH_FLOOR_REQUEST)

    def _goodbye(self, message: Message, reply: Reply) -> None:
        self._answer(message, reply, Primitive.GOODBYE_ACK)
        for queue in self._queues.values():
            for request in [request for request in queue if request.user == message.user]:
                self._remove(request)

    # --- within ---

    def _remove(self, gone: FloorRequest) -> None:
        """Take it out of its queue, and tell those behind it that they moved up (section 13.1.2)."""
        queue = self._queues[gone.floor]
        place = queue.index(gone)
        del queue[place]
        for request in queue[place:]:
            transaction = 0  # section 8.2: on reliable transports what a server begins has no transaction of its own
            if request.version == UNRELIABLE:
                self._transactions += 1
                transaction = self._transactions
                self.unacknowledged.add(transaction)
            request.reply(
                Message(
                    Primitive.FLOOR_REQUEST_STATUS,
                    self._conference,
                    transaction,
                    request.user,
                    (self._state(request),),
                    request.version,
                )
            )

    def _state(self, request: FloorRequest) -> Attribute:
        place = self._queues[request.floor].index(request)
        return _information(request, RequestStatus.ACCEPTED if place else RequestStatus.GRANTED, place)

    def _answer(self, message: Message, reply: Reply, primitive: Primitive, *attributes: Attribute) -> None:
        reply(replace(message, primitive=primitive, attributes=attributes, is_response=message.version == UNRELIABLE))

    def _refuse(self, message: Message, reply: Reply, code: ErrorCode) -> None:
        self._answer(message, reply, Primitive.ERROR, Attribute(AttributeType.ERROR_CODE, bytes([code])))


def _information(request: FloorRequest, status: RequestStatus, position: int = 0) -> Attribute:
    """FLOOR-REQUEST-INFORMATION (section 5.2.15)."""
    return group(
        AttributeType.FLOOR_REQUEST_INFORMATION,
        request.number,
        group(AttributeType.OVERALL_REQUEST_STATUS, request.number, request_status(status, position)),
        group(AttributeType.FLOOR_REQUEST_STATUS, request.floor),
    )


@dataclass(frozen=True)
class Standing:
    """What a FloorRequestStatus says of a request: its number, its status and its place in the queue."""

    request: int
    status: RequestStatus
    position: int


def standing(message: Message) -> Standing:
    """Raises `BfcpError` if the message says no such thing."""
    if message.primitive != Primitive.FLOOR_REQUEST_STATUS:
        raise BfcpError(f"primitive {message.primitive}")
    information = message.get(AttributeType.FLOOR_REQUEST_INFORMATION)
    overall = find(information.group, AttributeType.OVERALL_REQUEST_STATUS)
    status, position = find(overall.group, AttributeType.REQUEST_STATUS).value
    return Standing(information.number, RequestStatus(status), position)


class FloorParticipant:
    """Asks a floor control server. `told` gets what the server says of itself."""

    def __init__(self, conference: int, user: int, write: Reply, version: int = RELIABLE) -> None:
        self._conference = conference
        self._user = user
        self._write = write
        self._version = version
        self._transactions = 0
        self._waiting: dict[int, Deferred[Message]] = {}
        self.told: DeferredQueue[Message] = DeferredQueue()

    def ask(self, primitive: int, *attributes: Attribute) -> Deferred[Message]:
        """Begin a transaction; the answer."""
        self._transactions += 1
        answer: Deferred[Message] = Deferred()
        self._waiting[self._transactions] = answer
        self._write(
            Message(primitive, self._conference, self._transactions, self._user, attributes, version=self._version)
        )
        return answer

    def request(self, floor: int) -> Deferred[Any]:
        """FloorRequest: the `Standing`."""
        return self.ask(Primitive.FLOOR_REQUEST, identifier(AttributeType.FLOOR_ID, floor)).addCallback(standing)

    def release(self, request: int) -> Deferred[Any]:
        """FloorRelease: the `Standing`."""
        number = identifier(AttributeType.FLOOR_REQUEST_ID, request)
        return self.ask(Primitive.FLOOR_RELEASE, number).addCallback(standing)

    def received(self, message: Message) -> None:
        """A message from the server."""
        assert (message.version, message.conference, message.user) == (self._version, self._conference, self._user)
        if message.is_response or (self._version == RELIABLE and message.transaction):
            self._waiting.pop(message.transaction).callback(message)
            return
        if self._version == UNRELIABLE:
            acknowledged = Primitive.FLOOR_REQUEST_STATUS_ACK
            self._write(replace(message, primitive=acknowledged, attributes=(), is_response=True))
        self.told.put(message)
