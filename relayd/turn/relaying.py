"""What an allocation lets through, and in which form: permissions, channels, indications, ChannelData (RFC 8656
sections 9 to 12).

Each function takes an allocation and gives the outputs that follow, or None where the RFC says "silently discarded".
All ask one guard whether a peer may be reached, so that no method is a way around it.
"""

from __future__ import annotations

from typing import Any, Protocol

from relayd.address import TransportAddress
from relayd.errors import RemoteError
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute, Icmp
from relayd.stun.framing import MAX_CHANNEL, MIN_CHANNEL, encode_channel_data
from relayd.stun.message import Class, Message, Method, encode
from relayd.turn.allocation import MAX_PERMISSIONS, Allocation
from relayd.turn.outputs import ChannelBound, Deliver, InstallFlow, PermissionInstalled, Relay, Send, SendToPeer
from relayd.turn.settings import UDP, TurnSettings

# RFC 8656 section 11.5: destination unreachable and time exceeded; for IPv6 packet too big as well
_ICMP4_TYPES = frozenset((3, 11))
_ICMP6_TYPES = frozenset((1, 2, 3))
_ICMP4_FRAGMENTATION_NEEDED = (3, 4)
_ICMP6_PACKET_TOO_BIG = 2


class Guard(Protocol):
    """Whether a user's allocation may exchange packets with a peer; the service joins rules and policies into one."""

    def may_reach(self, username: str, peer: TransportAddress) -> bool:
        """Asked for every permission, channel, Send indication, Connect, and connection of a peer that calls; port 0
        asks about the address alone.
        """


class PeerRefused(RemoteError):
    """A 403, and which peer it was about."""

    def __init__(self, peer: TransportAddress) -> None:
        super().__init__(403)
        self.peer = peer


def create_permission(
    allocation: Allocation, message: Message, guard: Guard, settings: TurnSettings, now: float
) -> list[PermissionInstalled]:
    """CreatePermission, RFC 8656 section 10.2: all peers or none. Raises RemoteError (400, 403, 443, 508)."""
    # Before any is read and judged: one message has room for thousands, for which all other clients would wait.
    if sum(code == a.XOR_PEER_ADDRESS.code for code, _ in message.attributes) > MAX_PERMISSIONS:
        raise RemoteError(508)
    peers = message.get_all(a.XOR_PEER_ADDRESS)
    if not peers:
        raise RemoteError(400)
    for peer in peers:
        check_peer(allocation, peer, guard)
    return _permit(allocation, peers, now, now + settings.permission_lifetime)


def bind_channel(
    allocation: Allocation, message: Message, guard: Guard, settings: TurnSettings, now: float
) -> list[PermissionInstalled | ChannelBound | InstallFlow]:
    """ChannelBind, RFC 8656 section 12.2. Raises RemoteError (400, 403, 443, 508)."""
    number = message.get(a.CHANNEL_NUMBER)
    peer = message.get(a.XOR_PEER_ADDRESS)
    # Deviation: RFC 6062 does not say how to refuse a channel on a TCP allocation; 403 is what deployed servers answer.
    if allocation.transport != UDP:
        raise RemoteError(403)
    if number is None or peer is None or not MIN_CHANNEL <= number <= MAX_CHANNEL or peer.port == 0:
        raise RemoteError(400)
    allocation.check_binding(number, peer)
    relay = check_peer(allocation, peer, guard)
    until = now + settings.channel_lifetime
    # Deviation: the permission lasts as long as the channel, not its own 300 s. Clients that only ever refresh the
    # channel, every 500 s or so, would otherwise hear nothing in between.
    outputs: list[PermissionInstalled | ChannelBound | InstallFlow] = []
    outputs += _permit(allocation, [peer], now, max(until, now + settings.permission_lifetime))
    binding = allocation.bind(number, peer, relay, until)
    if binding is not None:
        outputs.append(InstallFlow(allocation.path, number, relay, peer))
        outputs.append(ChannelBound(allocation.session_id, number, peer))
    return outputs


def send_to_peer(allocation: Allocation, message: Message, guard: Guard, now: float) -> SendToPeer | None:
    """A Send indication, RFC 8656 section 11.2. Raises DecodeError for a malformed attribute."""
    peer = message.get(a.XOR_PEER_ADDRESS)
    data = message.get(a.DATA)
    if peer is None or data is None or peer.port == 0 or message.unknown_required() or allocation.transport != UDP:
        return None
    relay = allocation.relay_for(peer)
    if relay is None or not allocation.permits(peer.ip, now) or not guard.may_reach(allocation.username, peer):
        return None
    return SendToPeer(relay, peer, data, dont_fragment=message.get(a.DONT_FRAGMENT) is not None)


def channel_data_to_peer(allocation: Allocation, number: int, payload: bytes, now: float) -> SendToPeer | None:
    """ChannelData from the client, RFC 8656 section 12.6."""
    binding = allocation.channel(number, now)
    return SendToPeer(binding.relay, binding.peer, payload) if binding is not None else None


def data_to_client(
    allocation: Allocation, relay: Relay, peer: TransportAddress, data: bytes, transaction_id: bytes, now: float
) -> Deliver | None:
    """A datagram from a peer, RFC 8656 sections 11.3 and 12.7: ChannelData where a channel is bound, else a Data
    indication.
    """
    if not allocation.permits(peer.ip, now):
        return None
    path = allocation.path
    binding = allocation.channel_to(peer, now)
    if binding is not None:
        framed = encode_channel_data(binding.number, data, padded=path.app_connection.is_stream)
        return Deliver(path, relay, framed, len(data))
    attributes: list[tuple[Attribute[Any], Any]] = [(a.XOR_PEER_ADDRESS, peer), (a.DATA, data)]
    try:
        indication = encode(Method.DATA, Class.INDICATION, transaction_id, attributes)
    except ValueError:
        return None  # so long that no Data indication can carry it
    return Deliver(path, relay, indication, len(data))


def icmp_to_client(
    allocation: Allocation, peer: TransportAddress, icmp: Icmp, transaction_id: bytes, now: float
) -> Send | None:
    """An ICMP error about a datagram to a peer, RFC 8656 section 11.5."""
    if not allocation.permits(peer.ip, now):
        return None
    if len(peer.ip) == 4:
        passed, has_mtu = icmp.type in _ICMP4_TYPES, icmp[:2] == _ICMP4_FRAGMENTATION_NEEDED
    else:
        passed, has_mtu = icmp.type in _ICMP6_TYPES, icmp.type == _ICMP6_PACKET_TOO_BIG
    if not passed:
        return None
    attributes: list[tuple[Attribute[Any], Any]] = [
        (a.XOR_PEER_ADDRESS, peer),
        (a.ICMP, icmp if has_mtu else icmp._replace(data=0)),
    ]
    return Send(allocation.path, encode(Method.DATA, Class.INDICATION, transaction_id, attributes))


def connection_attempt(allocation: Allocation, peer: TransportAddress, number: int, transaction_id: bytes) -> Send:
    """A peer opened a TCP connection, RFC 6062 section 5.3."""
    attributes: list[tuple[Attribute[Any], Any]] = [(a.XOR_PEER_ADDRESS, peer), (a.CONNECTION_ID, number)]
    return Send(allocation.path, encode(Method.CONNECTION_ATTEMPT, Class.INDICATION, transaction_id, attributes))


def check_peer(allocation: Allocation, peer: TransportAddress, guard: Guard) -> Relay:
    """The relay from which an allocation may reach that peer. Raises RemoteError (403, 443)."""
    relay = allocation.relay_for(peer)
    if relay is None:
        raise RemoteError(443)
    if not guard.may_reach(allocation.username, peer):
        raise PeerRefused(peer)
    return relay


def _permit(
    allocation: Allocation, peers: list[TransportAddress], now: float, until: float
) -> list[PermissionInstalled]:
    by_ip = {peer.ip: peer for peer in peers}
    fresh = allocation.permit(list(by_ip), now, until)
    return [PermissionInstalled(allocation.session_id, by_ip[ip]) for ip in fresh]
