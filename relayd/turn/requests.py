"""Requests: who is it, may they, and the answer (RFC 8489 section 9.2.4, RFC 8656 sections 5 to 12).

Only Allocate and a Refresh that prolongs ask the shell who somebody is: CreatePermission and ChannelBind are checked
with the key that the allocation holds, so that they are done when ChannelData follows right behind. Nothing is
remembered of a client before its proof held, except that it waits for its answer; how many may wait is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from relayd.address import Family, Path
from relayd.core import Entropy
from relayd.errors import DecodeError, RemoteError
from relayd.stun import attributes as a
from relayd.stun.attributes import AddressError, Attribute
from relayd.stun.message import Message, Method
from relayd.turn import outputs as out
from relayd.turn.allocate import AllocateRequest, read_allocate
from relayd.turn.allocation import Allocation
from relayd.turn.allocations import Allocations
from relayd.turn.answers import Answers
from relayd.turn.authentication import Authentication, Claim, Credentials
from relayd.turn.discovery import answer_binding
from relayd.turn.outputs import EndReason
from relayd.turn.peer_connections import PeerConnection
from relayd.turn.pending import PENDING_LIFETIME, PendingTransactions
from relayd.turn.relaying import Guard, bind_channel, check_peer, create_permission
from relayd.turn.reservations import Reservation
from relayd.turn.settings import TCP, TurnSettings
from relayd.turn.transaction import REASONS, Transaction

_SESSION_ID_SIZE = 6  # bytes, twelve hexadecimal digits


@dataclass(slots=True)
class _WaitsForKey:
    """A request whose sender the shell is asked about."""

    for_peer: ClassVar[bool] = False
    transaction: Transaction
    expires: float
    claim: Claim


@dataclass(slots=True)
class _WaitsForRelay:
    """An Allocate that is granted as soon as its relays are open. It holds a place in the quota."""

    for_peer: ClassVar[bool] = False
    transaction: Transaction
    expires: float
    credentials: Credentials
    wanted: AllocateRequest
    reservation: Reservation | None


@dataclass(slots=True)
class _WaitsForPeer:
    """A Connect that is granted as soon as the peer is there."""

    for_peer: ClassVar[bool] = True
    transaction: Transaction
    expires: float
    connection: PeerConnection
    identity: str | None


class Requests:
    """Serves requests on the allocations it is given, and keeps those that wait for the shell."""

    def __init__(
        self, settings: TurnSettings, entropy: Entropy, guard: Guard, allocations: Allocations, outputs: deque[Any]
    ) -> None:
        self._settings = settings
        self._entropy = entropy
        self._guard = guard
        self._allocations = allocations
        self._outputs = outputs
        self._authentication = Authentication(settings, entropy)
        self._answers = Answers(settings, self._authentication, entropy, outputs)
        self._pending: PendingTransactions[_WaitsForKey | _WaitsForRelay | _WaitsForPeer] = PendingTransactions()

    def wait_on(self, path: Path) -> bool:
        """Whether a request from that path waits for the shell."""
        return self._pending.has_path(path)

    def next_deadline(self) -> float | None:
        """When `expire` is wanted."""
        return self._pending.next_deadline()

    def expire(self, now: float) -> None:
        """Give up what the shell took too long for."""
        for number in self._pending.overdue(now):
            self._give_up(number)

    def give_up_path(self, path: Path) -> None:
        """Nobody is there any more to be answered."""
        for number, _ in self._pending.on(path):
            self._give_up(number)

    def give_up_user(self, username: str) -> None:
        """Let a revoked user's Allocates that are under way come to nothing."""
        for number, waiting in self._pending.all():
            if isinstance(waiting, _WaitsForRelay) and waiting.credentials.username == username:
                self._give_up(number)

    def give_up_all(self) -> None:
        """Answer nobody any more."""
        for number, _ in self._pending.all():
            self._give_up(number)

    def receive(self, transaction: Transaction, now: float) -> None:
        """Answer a request, at once or when the shell has."""
        path, message = transaction.path, transaction.message
        if self._pending.is_pending(path, message.transaction_id):
            return  # a retransmission: its answer is under way
        due = self._allocations.next_deadline()
        if due is not None and due <= now:
            self._allocations.expire(now)  # so that nothing below meets what has expired
        try:
            if message.method == Method.BINDING:
                if self._answers.may_answer(transaction, now):
                    self._outputs.append(answer_binding(transaction, self._settings))
            elif message.method in self._METHODS:
                self._authenticate(transaction, now)
            else:
                self._outputs.append(out.RequestRefused(path, message.method, 0))
        except RemoteError as error:
            self._answers.refuse(transaction, error, now)
        except DecodeError:
            self._answers.refuse(transaction, RemoteError(400), now)

    def answer(self, number: int, result: Any, now: float) -> None:
        """What the shell says to AuthenticateUser, OpenRelay or ConnectToPeer."""
        waiting = self._pending.remove(number)
        if isinstance(waiting, _WaitsForKey):
            self._answer_key(waiting, result, now)
        elif isinstance(waiting, _WaitsForRelay):
            self._answer_relay(waiting, result, now)
        elif isinstance(waiting, _WaitsForPeer):
            self._answer_peer(waiting, result, now)
        elif isinstance(result, out.PeerConnected):
            self._outputs.append(out.ClosePeerConnection(result.connection))
        elif isinstance(result, out.RelayOpened):
            # Its client has gone meanwhile.
            for relay, _ in result.relays:
                self._outputs.append(out.CloseRelay(relay))
            if result.reserved is not None:
                self._outputs.append(out.CloseRelay(result.reserved))

    # --- who is it ------------------------------------------------------------------------------------------------

    def _authenticate(self, transaction: Transaction, now: float) -> None:
        path, message = transaction.path, transaction.message
        claim = self._authentication.read(path, message, now, self._control_path(message))
        allocation = self._allocations.on(path)
        realm = self._settings.realm
        if allocation is not None and not _renews(message) and allocation.credentials.may_be(claim, realm):
            if not claim.proof.matches(allocation.credentials.key):
                raise RemoteError(401)
            self._serve(transaction, allocation.credentials, claim, now)
            return
        self._pending.check_room(path)
        number = self._pending.add(_WaitsForKey(transaction, now + PENDING_LIFETIME, claim))
        self._outputs.append(
            out.AuthenticateUser(number, path, realm, claim.algorithm, claim.proof, claim.username, claim.userhash)
        )

    def _control_path(self, message: Message) -> Path | None:
        """Where the connection comes from that a ConnectionBind is about: deployed clients use the nonce of their
        control connection on the data connection, and take no challenge there.
        """
        if message.method != Method.CONNECTION_BIND:
            return None
        number = message.get(a.CONNECTION_ID)
        return None if number is None else self._allocations.connections.control_path(number)

    def _answer_key(self, waiting: _WaitsForKey, result: Any, now: float) -> None:
        transaction, claim = waiting.transaction, waiting.claim
        try:
            if not isinstance(result, out.Authenticated):
                raise RemoteError(401)
            credentials = Credentials(result.username, claim.username, claim.algorithm, result.key)
            self._serve(transaction, credentials, claim, now)
        except RemoteError as error:
            self._answers.refuse(transaction, error, now)
        except DecodeError:
            self._answers.refuse(transaction, RemoteError(400), now)

    def _serve(self, transaction: Transaction, credentials: Credentials, claim: Claim, now: float) -> None:
        """Do what an authenticated request asks for. Raises RemoteError, and DecodeError, which is a 400."""
        transaction.accept(credentials, claim)
        # RFC 8489 section 6.3.1: after the authentication, before anything else
        unknown = transaction.message.unknown_required()
        if unknown:
            raise RemoteError(420, unknown=unknown)
        self._METHODS[transaction.message.method](self, transaction, credentials, now)

    def _own_allocation(self, transaction: Transaction) -> Allocation:
        """The allocation that an authenticated request is about. Raises RemoteError (437, 441)."""
        # RFC 8656 section 5
        allocation = self._allocations.on(transaction.path)
        if allocation is None:
            raise RemoteError(437)
        if allocation.username != transaction.username:
            raise RemoteError(441)
        return allocation

    # --- Allocate, RFC 8656 section 7.2 ---------------------------------------------------------------------------

    def _allocate(self, transaction: Transaction, credentials: Credentials, now: float) -> None:
        path, message, username = transaction.path, transaction.message, credentials.username
        # step 2
        allocation = self._allocations.on(path)
        if allocation is not None:
            if allocation.transaction_id != message.transaction_id or allocation.username != username:
                raise RemoteError(437)
            self._confirm(transaction, allocation, now)
            return
        if any(isinstance(other, _WaitsForRelay) for _, other in self._pending.on(path)):
            raise RemoteError(437)
        # steps 3 to 9
        wanted = read_allocate(message, self._settings.transports)
        if wanted.tls and not self._settings.accepts_tls:
            raise RemoteError(442)
        # RFC 6062 section 5.1: a peer's bytes go to the client on connections of the same kind as this one
        if wanted.transport == TCP and path.app_connection.is_datagram:
            raise RemoteError(400)
        reservation = self._reservation_for(wanted, username)
        # step 10
        self._allocations.quota.take(username)
        if wanted.token is not None:
            self._allocations.claim_reserved(wanted.token)
        waiting = _WaitsForRelay(transaction, now + PENDING_LIFETIME, credentials, wanted, reservation)
        self._outputs.append(
            out.OpenRelay(
                self._pending.add(waiting),
                path,
                username,
                wanted.transport,
                wanted.families if reservation is None else (reservation.family,),
                tls=wanted.tls,
                even_port=wanted.even_port,
                reserve_next=wanted.reserve_next,
                reservation=None if reservation is None else reservation.relay,
            )
        )

    def _reservation_for(self, wanted: AllocateRequest, username: str) -> Reservation | None:
        if wanted.reserve_next and not self._allocations.may_reserve(username):
            raise RemoteError(508)
        if wanted.token is None:
            return None
        reservation = self._allocations.reserved(wanted.token, username, wanted.transport)
        if reservation is None:
            raise RemoteError(508)
        return reservation

    def _answer_relay(self, waiting: _WaitsForRelay, result: Any, now: float) -> None:
        transaction, wanted = waiting.transaction, waiting.wanted
        if not isinstance(result, out.RelayOpened):
            self._take_back(waiting)
            refusal = result if isinstance(result, out.RelayRefused) else out.RelayRefused(500)
            self._answers.refuse_relay(transaction, refusal, now)
            return
        lifetime = self._settings.granted_lifetime(wanted.lifetime)
        allocation = Allocation(
            self._entropy(_SESSION_ID_SIZE).hex(),
            transaction.path,
            waiting.credentials,
            wanted.transport,
            result.relays,
            transaction.message.transaction_id,
            now,
            now + lifetime,
        )
        allocation.failed = result.failed or wanted.failed
        allocation.tls = wanted.tls
        self._allocations.add(allocation)
        if result.reserved is not None:
            self._allocations.reserve(allocation, result.reserved, now)
        self._outputs.append(
            out.AllocationCreated(
                allocation.session_id,
                allocation.path,
                allocation.username,
                allocation.relays,
                allocation.transport,
                lifetime,
            )
        )
        self._confirm(transaction, allocation, now)

    def _confirm(self, transaction: Transaction, allocation: Allocation, now: float) -> None:
        """Answer an Allocate; for a retransmission anew, with the time that is left."""
        attributes: list[tuple[Attribute[Any], Any]] = [
            (a.XOR_RELAYED_ADDRESS, address) for _, address in allocation.relays
        ]
        attributes.append((a.LIFETIME, round(allocation.expires - now)))
        if allocation.token is not None and self._allocations.is_reserved(allocation.token):
            attributes.append((a.RESERVATION_TOKEN, allocation.token))
        if allocation.tls:
            attributes.append((a.PEER_TLS, ""))
        attributes.append((a.XOR_MAPPED_ADDRESS, transaction.path.client))
        if allocation.failed is not None:
            family, code = allocation.failed
            attributes.append((a.ADDRESS_ERROR_CODE, AddressError(family, code, REASONS.get(code, ""))))
        self._answers.succeed(transaction, attributes)

    # --- the other methods ----------------------------------------------------------------------------------------

    def _refresh(self, transaction: Transaction, credentials: Credentials, now: float) -> None:
        """Refresh, RFC 8656 section 8.2."""
        allocation = self._own_allocation(transaction)
        requested = transaction.message.get(a.LIFETIME)
        family = transaction.message.get(a.REQUESTED_ADDRESS_FAMILY)
        if family is not None and all(address.family != family for _, address in allocation.relays):
            raise RemoteError(443)
        if requested == 0:
            self._answers.succeed(transaction, [(a.LIFETIME, 0)])
            if family is not None and len(allocation.relays) > 1:
                self._allocations.end_half(allocation, Family(family))
            else:
                self._allocations.end(allocation, EndReason.DELETED, now)
            return
        # Deviation: both halves of a dual allocation share one lifetime, so a Refresh that names one family renews
        # both. Clients that refresh one at a time would otherwise lose the other.
        lifetime = self._settings.granted_lifetime(requested)
        allocation.expires = now + lifetime
        allocation.credentials = credentials  # the password, or the algorithm, may be another one since
        self._allocations.look_in_time(allocation, allocation.expires)
        self._outputs.append(out.AllocationRefreshed(allocation.session_id, allocation.path, lifetime))
        self._answers.succeed(transaction, [(a.LIFETIME, lifetime)])

    def _create_permission(self, transaction: Transaction, credentials: Credentials, now: float) -> None:
        allocation = self._own_allocation(transaction)
        self._outputs += create_permission(allocation, transaction.message, self._guard, self._settings, now)
        self._answers.succeed(transaction)

    def _channel_bind(self, transaction: Transaction, credentials: Credentials, now: float) -> None:
        allocation = self._own_allocation(transaction)
        self._outputs += bind_channel(allocation, transaction.message, self._guard, self._settings, now)
        self._allocations.look_in_time(allocation, now + self._settings.channel_lifetime)
        self._answers.succeed(transaction)

    # --- TCP, RFC 6062 ----------------------------------------------------------------------------------------------

    def _connect(self, transaction: Transaction, credentials: Credentials, now: float) -> None:
        """Connect, section 5.2."""
        allocation = self._own_allocation(transaction)
        # Deviation: the section is silent about allocations for UDP; 403 is what deployed servers answer.
        if allocation.transport != TCP:
            raise RemoteError(403)
        peer = transaction.message.get(a.XOR_PEER_ADDRESS)
        if peer is None or peer.port == 0:
            raise RemoteError(400)
        relay = check_peer(allocation, peer, self._guard)
        tls = _peer_tls(transaction.message)
        self._pending.check_room_for_peer()
        connection = self._allocations.connections.begin(allocation, peer)
        identity = None if tls is None else tls.server_name
        number = self._pending.add(_WaitsForPeer(transaction, now + PENDING_LIFETIME, connection, identity))
        self._outputs.append(out.ConnectToPeer(number, transaction.path, relay, peer, tls))

    def _answer_peer(self, waiting: _WaitsForPeer, result: Any, now: float) -> None:
        connections, connection = self._allocations.connections, waiting.connection
        connected = isinstance(result, out.PeerConnected)
        if not connections.is_current(connection):
            if connected:
                self._outputs.append(out.ClosePeerConnection(result.connection))
            self._answers.refuse(waiting.transaction, self._why_withdrawn(connection), now)
        elif connected:
            number = connections.connected(connection, result.connection, now, waiting.identity)
            attributes: list[tuple[Attribute[Any], Any]] = [(a.CONNECTION_ID, number)]
            if result.protocol is not None:
                attributes.append((a.PEER_ALPN, (result.protocol,)))
            self._answers.succeed(waiting.transaction, attributes)
        else:
            connections.end(connection)
            code = result.code if isinstance(result, out.PeerNotConnected) else 447
            self._answers.refuse(waiting.transaction, RemoteError(code), now)

    def _why_withdrawn(self, connection: PeerConnection) -> RemoteError:
        """What became of a Connect that was under way: its allocation ended, or one half of it, or the right to reach
        the peer.
        """
        allocation = connection.allocation
        if self._allocations.on(allocation.path) is allocation:
            try:
                check_peer(allocation, connection.peer, self._guard)
            except RemoteError as error:
                return error
        return RemoteError(437)

    def _connection_bind(self, transaction: Transaction, credentials: Credentials, now: float) -> None:
        """ConnectionBind, section 5.4."""
        path = transaction.path
        number = transaction.message.get(a.CONNECTION_ID)
        if number is None or path.app_connection.is_datagram or self._allocations.on(path) is not None:
            raise RemoteError(400)
        connection = self._allocations.connections.bind(number, credentials.username, path)
        self._answers.succeed(transaction)
        self._outputs.append(out.JoinConnections(path, connection.handle))

    _METHODS: ClassVar[dict[int, Callable[[Requests, Transaction, Credentials, float], None]]] = {
        Method.ALLOCATE: _allocate,
        Method.REFRESH: _refresh,
        Method.CREATE_PERMISSION: _create_permission,
        Method.CHANNEL_BIND: _channel_bind,
        Method.CONNECT: _connect,
        Method.CONNECTION_BIND: _connection_bind,
    }

    # --- giving up ------------------------------------------------------------------------------------------------

    def _give_up(self, number: int) -> None:
        waiting = self._pending.remove(number)
        if isinstance(waiting, _WaitsForRelay):
            self._take_back(waiting)
        elif isinstance(waiting, _WaitsForPeer) and self._allocations.connections.is_current(waiting.connection):
            self._allocations.connections.end(waiting.connection)

    def _take_back(self, waiting: _WaitsForRelay) -> None:
        """What an Allocate that comes to nothing had already got."""
        self._allocations.quota.give_back(waiting.credentials.username)
        if waiting.reservation is not None:
            self._outputs.append(out.CloseRelay(waiting.reservation.relay))


def _peer_tls(message: Message) -> out.PeerTls | None:
    """What a Connect says about TLS with the peer (docs/protocol.rst). Raises RemoteError 400, and DecodeError."""
    name, protocols = message.get(a.PEER_TLS), message.get(a.PEER_ALPN)
    if name is None and protocols is None:
        return None
    if not name:
        raise RemoteError(400)
    return out.PeerTls(name, protocols or ())


def _renews(message: Message) -> bool:
    """Whether a request prolongs an allocation, so that it is time to ask whether its user may still use the relay."""
    if message.method != Method.REFRESH:
        return False
    try:
        return message.get(a.LIFETIME) != 0
    except DecodeError:
        return True
