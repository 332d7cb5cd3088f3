"""A TURN client and a UDP peer on the reactor that the relay runs on too.

The client writes and reads with relayd's own wire format; what a stranger would write is in `tests.support.wire`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import deferLater

from relayd.address import TransportAddress
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute
from relayd.stun.framing import decode_channel_data, encode_channel_data
from relayd.stun.integrity import PasswordAlgorithm, long_term_key
from relayd.stun.message import Class, Message, Method, decode, encode
from tests.support.wires import patiently, reactor

UDP_ATTRIBUTE = (a.REQUESTED_TRANSPORT, 17)
Pairs = Iterable[tuple[Attribute[Any], Any]]
Received = tuple[int | TransportAddress, bytes]


class Peer(DatagramProtocol):
    """A UDP socket that knows nothing of TURN, and what it received."""

    def __init__(self, host: str) -> None:
        self.received: DeferredQueue[tuple[bytes, TransportAddress]] = DeferredQueue()
        self._port: Any = reactor.listenUDP(0, self, interface=host, maxPacketSize=65_535)
        self._port.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self.address = TransportAddress.parse(host, self._port.getHost().port)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.received.put((datagram, TransportAddress.parse(addr[0], addr[1])))

    def write(self, data: bytes, to: TransportAddress) -> None:
        self._port.write(data, (to.host, to.port))

    def next(self) -> Deferred[tuple[bytes, TransportAddress]]:
        return patiently(self.received.get())

    def close(self) -> Any:
        return self._port.stopListening()


class TurnClient:
    """One client on one wire. `data` gets what peers sent: (channel number or peer, payload)."""

    def __init__(self, wire: Any, app_connection: Any, username: str, password: str) -> None:
        self.wire = wire
        self.username = username
        self.password = password
        self.realm = ""
        self.nonce: bytes | None = None
        self.data: DeferredQueue[Received] = DeferredQueue()
        self.answers = 0
        self._is_stream = app_connection.is_stream
        self._waiting: dict[bytes, Deferred[Message]] = {}
        wire.received = self._received

    # --- messages -------------------------------------------------------------------------------------------------

    @property
    def key(self) -> bytes:
        return long_term_key(PasswordAlgorithm.MD5, self.username, self.realm, self.password)

    def request(self, method: int, attributes: Pairs = (), transaction_id: bytes | None = None) -> bytes:
        """A request, signed once there is a nonce."""
        pairs = list(attributes)
        if self.nonce is not None:
            pairs += [(a.USERNAME, self.username), (a.REALM, self.realm), (a.NONCE, self.nonce)]
        key = self.key if self.nonce is not None else None
        return encode(method, Class.REQUEST, transaction_id or os.urandom(12), pairs, key=key)

    def send(self, request: bytes) -> Deferred[Message]:
        """Send a request as it is; its answer."""
        answer: Deferred[Message] = Deferred()
        self._waiting[request[8:20]] = answer
        self.wire.write(request)
        return patiently(answer)

    def ask(self, method: int, attributes: Pairs = ()) -> Deferred[Message]:
        return self.send(self.request(method, attributes))

    def indicate(self, peer: TransportAddress, payload: bytes) -> None:
        """A Send indication."""
        pairs: Pairs = [(a.XOR_PEER_ADDRESS, peer), (a.DATA, payload)]
        self.wire.write(encode(Method.SEND, Class.INDICATION, os.urandom(12), pairs))

    def channel_data(self, number: int, payload: bytes) -> None:
        self.wire.write(encode_channel_data(number, payload, padded=self._is_stream))

    def next_data(self) -> Deferred[Received]:
        return patiently(self.data.get())

    def _received(self, data: bytes) -> None:
        if data[0] >= 0x40:
            self.data.put(decode_channel_data(data))
            return
        message = decode(data)
        if message.cls is Class.INDICATION:
            peer, payload = message.get(a.XOR_PEER_ADDRESS), message.get(a.DATA)
            if peer is not None and payload is not None:  # else an ICMP error
                self.data.put((peer, payload))
            return
        self.answers += 1
        answer = self._waiting.pop(message.transaction_id, None)
        if answer is not None:
            answer.callback(message)

    # --- what clients do ------------------------------------------------------------------------------------------

    async def greet(self) -> Message:
        """Ask without credentials, and learn realm and nonce from the 401."""
        self.nonce = None
        challenge = await self.ask(Method.ALLOCATE, [UDP_ATTRIBUTE])
        self.realm = challenge.get(a.REALM) or ""
        self.nonce = challenge.get(a.NONCE)
        return challenge

    async def allocate(self, *attributes: tuple[Attribute[Any], Any]) -> Message:
        """Allocate, after greeting if need be."""
        if self.nonce is None:
            await self.greet()
        return await self.ask(Method.ALLOCATE, [UDP_ATTRIBUTE, *attributes])

    async def relayed(self, *attributes: tuple[Attribute[Any], Any]) -> TransportAddress:
        """Allocate, which has to succeed; the relayed address."""
        answer = await self.allocate(*attributes)
        assert code_of(answer) == 0, code_of(answer)
        address = answer.get(a.XOR_RELAYED_ADDRESS)
        assert address is not None
        return address

    def permit(self, *peers: TransportAddress) -> Deferred[Message]:
        return self.ask(Method.CREATE_PERMISSION, [(a.XOR_PEER_ADDRESS, peer) for peer in peers])

    def bind(self, number: int, peer: TransportAddress) -> Deferred[Message]:
        return self.ask(Method.CHANNEL_BIND, [(a.CHANNEL_NUMBER, number), (a.XOR_PEER_ADDRESS, peer)])

    def refresh(self, lifetime: int) -> Deferred[Message]:
        return self.ask(Method.REFRESH, [(a.LIFETIME, lifetime)])

    def close(self) -> Any:
        return self.wire.close()


def code_of(message: Message) -> int:
    """The error code of an answer, 0 for a success."""
    if message.cls is Class.SUCCESS:
        return 0
    error = message.get(a.ERROR_CODE)
    assert error is not None
    return error.code


def pause(seconds: float = 0.0) -> Deferred[None]:
    """Let the reactor run for so long: by default, one turn."""
    return deferLater(reactor, seconds, lambda: None)


async def eventually(holds: Any, turns: int = 400) -> None:
    """Wait until `holds()`; fails after that many turns of 10 ms."""
    for _ in range(turns):
        if holds():
            return
        await pause(0.01)
    raise AssertionError("it never came to pass")
