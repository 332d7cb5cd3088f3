"""The client's permissions and channels: asked for, renewed before they end, and which of them data goes through (RFC
8656 sections 10 to 12).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from relayd.address import TransportAddress
from relayd.core import Deadlines, Entropy
from relayd.errors import RelaydError, RemoteError, ServerUnavailable
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute
from relayd.stun.framing import decode_channel_data, encode_channel_data
from relayd.stun.message import MAX_ATTRIBUTES, TRANSACTION_ID_SIZE, Class, Message, Method, encode
from relayd.turn.client_outputs import (
    Answered,
    ChannelLost,
    DataReceived,
    IcmpReceived,
    PermissionLost,
    TransmitData,
)
from relayd.turn.client_requests import ClientRequests, Fail

# A permission lasts 300 s, a channel 600 s (RFC 8656 sections 9 and 12). A renewal may need all 39.5 s of its request.
PERMISSION_RENEWAL = 240.0  # seconds
CHANNEL_RENEWAL = 540.0  # seconds
RETRY = 5.0  # seconds after a renewal that got no answer: whether the server is gone, the Refresh will tell
FIRST_CHANNEL = 0x4000
LAST_CHANNEL = 0x4FFF  # RFC 8656 section 12; numbers are not used again, so an allocation has 4,096 channels in all
MAX_WAITING = 64  # datagrams to one address that wait for its permission: the first round trip of a brisk sender
_GONE = frozenset((437, 441))  # where we are, the server has no allocation, or another user's: it restarted
MAX_DATA = MAX_ATTRIBUTES - 24 - 4  # bytes of one datagram: beside an IPv6 peer, what a Send indication carries


class _Permission:
    __slots__ = ("peer", "is_granted", "ids", "waiting")

    def __init__(self, peer: TransportAddress) -> None:
        self.peer = peer
        self.is_granted = False
        self.ids: list[int] = []
        self.waiting: deque[tuple[TransportAddress, bytes]] = deque(maxlen=MAX_WAITING)


class _Channel:
    __slots__ = ("number", "peer", "is_bound", "ids")

    def __init__(self, number: int, peer: TransportAddress) -> None:
        self.number = number
        self.peer = peer
        self.is_bound = False
        self.ids: list[int] = []


class ClientPeers:
    """Whom an allocation reaches, and how."""

    def __init__(self, requests: ClientRequests, pads: bool, entropy: Entropy, outputs: deque[Any], gone: Fail) -> None:
        """`pads` is whether ChannelData is padded to four bytes, as on streams. `gone` is called where an answer says
        that the allocation is no more.
        """
        self._requests = requests
        self._pads = pads
        self._entropy = entropy
        self._outputs = outputs
        self._gone = gone
        self._permissions: dict[bytes, _Permission] = {}
        self._by_peer: dict[TransportAddress, _Channel] = {}
        self._by_number: dict[int, _Channel] = {}
        self._next_number = FIRST_CHANNEL
        self._renewals: Deadlines[bytes | int] = Deadlines()  # of permissions by address, of channels by number

    # --- permissions ----------------------------------------------------------------------------------------------

    def permit(self, peer: TransportAddress, id: int | None, now: float) -> None:
        """Have the server let through what comes from the address of `peer`, whatever its port, until the end."""
        permission = self._permissions.get(peer.ip)
        if permission is not None and permission.is_granted:
            self._answer([] if id is None else [id], None)
            return
        if permission is None:
            permission = self._permissions[peer.ip] = _Permission(peer)
            self._ask_permission(permission, now)
        if id is not None:
            permission.ids.append(id)

    def _ask_permission(self, permission: _Permission, now: float) -> None:
        self._requests.ask(
            Method.CREATE_PERMISSION,
            [(a.XOR_PEER_ADDRESS, permission.peer)],
            lambda _, when: self._permitted(permission, when),
            lambda error, when: self._not_permitted(permission, error, when),
            now,
        )

    def _permitted(self, permission: _Permission, now: float) -> None:
        permission.is_granted = True
        self._renewals.set(permission.peer.ip, now + PERMISSION_RENEWAL)
        ids, permission.ids = permission.ids, []
        self._answer(ids, None)
        while permission.waiting:
            self._transmit(*permission.waiting.popleft())

    def _not_permitted(self, permission: _Permission, error: RelaydError, now: float) -> None:
        ip = permission.peer.ip
        if permission.is_granted and isinstance(error, ServerUnavailable):
            self._renewals.set(ip, now + RETRY)
            return
        del self._permissions[ip]
        self._renewals.cancel(ip)
        self._answer(permission.ids, error)
        self._outputs.append(PermissionLost(ip, error))
        self._end_if_gone(error, now)

    # --- channels -------------------------------------------------------------------------------------------------

    def bind(self, peer: TransportAddress, id: int, now: float) -> None:
        """Bind a channel, which makes data to and from exactly this peer 32 bytes or so shorter."""
        channel = self._by_peer.get(peer)
        if channel is not None and channel.is_bound:
            self._answer([id], None)
            return
        if channel is None:
            if self._next_number > LAST_CHANNEL:
                self._answer([id], ServerUnavailable("this allocation has used up its 4,096 channel numbers"))
                return
            channel = _Channel(self._next_number, peer)
            self._next_number += 1
            self._by_peer[peer] = self._by_number[channel.number] = channel
            self._ask_channel(channel, now)
        channel.ids.append(id)

    def _ask_channel(self, channel: _Channel, now: float) -> None:
        self._requests.ask(
            Method.CHANNEL_BIND,
            [(a.CHANNEL_NUMBER, channel.number), (a.XOR_PEER_ADDRESS, channel.peer)],
            lambda _, when: self._bound(channel, when),
            lambda error, when: self._not_bound(channel, error, when),
            now,
        )

    def _bound(self, channel: _Channel, now: float) -> None:
        channel.is_bound = True
        self._renewals.set(channel.number, now + CHANNEL_RENEWAL)
        # RFC 8656 section 12.2: it installs, or renews, the permission as well
        permission = self._permissions.setdefault(channel.peer.ip, _Permission(channel.peer))
        self._permitted(permission, now)
        ids, channel.ids = channel.ids, []
        self._answer(ids, None)

    def _not_bound(self, channel: _Channel, error: RelaydError, now: float) -> None:
        if channel.is_bound and isinstance(error, ServerUnavailable):
            self._renewals.set(channel.number, now + RETRY)
            return
        del self._by_peer[channel.peer], self._by_number[channel.number]
        self._renewals.cancel(channel.number)
        self._answer(channel.ids, error)
        if channel.is_bound:
            self._outputs.append(ChannelLost(channel.peer, error))
        self._end_if_gone(error, now)

    def _end_if_gone(self, error: RelaydError, now: float) -> None:
        if isinstance(error, RemoteError) and error.code in _GONE:
            self._gone(error, now)

    # --- data -----------------------------------------------------------------------------------------------------

    def send(self, peer: TransportAddress, data: bytes, now: float) -> None:
        """Send one datagram. Without a permission it waits for one, which is asked for; `MAX_WAITING` can wait.

        Raises ValueError where it is too long for any message.
        """
        if len(data) > MAX_DATA:
            raise ValueError(f"a datagram through a relay has at most {MAX_DATA} bytes")
        channel = self._by_peer.get(peer)
        permission = self._permissions.get(peer.ip)
        if (channel is not None and channel.is_bound) or (permission is not None and permission.is_granted):
            self._transmit(peer, data)
            return
        self.permit(peer, None, now)
        self._permissions[peer.ip].waiting.append((peer, data))

    def _transmit(self, peer: TransportAddress, data: bytes) -> None:
        channel = self._by_peer.get(peer)
        if channel is not None and channel.is_bound:
            self._outputs.append(TransmitData(encode_channel_data(channel.number, data, padded=self._pads)))
            return
        attributes: list[tuple[Attribute[Any], Any]] = [(a.XOR_PEER_ADDRESS, peer), (a.DATA, data)]
        transaction_id = self._entropy(TRANSACTION_ID_SIZE)
        self._outputs.append(TransmitData(encode(Method.SEND, Class.INDICATION, transaction_id, attributes)))

    def receive_channel_data(self, data: bytes) -> None:
        """ChannelData from the server (RFC 8656 section 12.7). Raises DecodeError."""
        number, payload = decode_channel_data(data)
        # The data may overtake the answer to ChannelBind.
        channel = self._by_number.get(number)
        if channel is not None:
            self._outputs.append(DataReceived(channel.peer, payload))

    def receive_data(self, message: Message) -> None:
        """A Data indication (RFC 8656 sections 11.4 and 11.6). Raises DecodeError."""
        peer, data, icmp = message.get(a.XOR_PEER_ADDRESS), message.get(a.DATA), message.get(a.ICMP)
        if peer is None or peer.ip not in self._permissions or message.unknown_required():
            return
        if icmp is not None:
            self._outputs.append(IcmpReceived(peer, icmp))
        elif data is not None:
            self._outputs.append(DataReceived(peer, data))

    # --- time -----------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        return self._renewals.next()

    def renew(self, now: float) -> None:
        """Renew what is due."""
        for key in self._renewals.due(now):
            if isinstance(key, int):
                self._ask_channel(self._by_number[key], now)
            else:
                self._ask_permission(self._permissions[key], now)

    def end(self, error: RelaydError) -> None:
        """The allocation is gone: whoever waits is told, and nothing is renewed."""
        for ip, permission in self._permissions.items():
            self._renewals.cancel(ip)
            self._answer(permission.ids, error)
        for number, channel in self._by_number.items():
            self._renewals.cancel(number)
            self._answer(channel.ids, error)
        self._permissions.clear()
        self._by_peer.clear()
        self._by_number.clear()

    def _answer(self, ids: list[int], error: RelaydError | None) -> None:
        self._outputs += [Answered(number, error) for number in ids]
