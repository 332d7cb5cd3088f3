"""The TURN and STUN server core: one object that decides everything, sans-IO (RFC 8489, 8656, 5780).

Theory of operation. A request goes through these stages; each may refuse it, and two of them may have to wait for the
shell:

    receive -> Binding: answered at once, within the throttle
            -> others: credentials read -> proof checked (AuthenticateUser, or the allocation's own key)
                       -> unknown attributes -> the method -> Allocate only: OpenRelay -> answered

Only Allocate and Refresh ask who somebody is: CreatePermission and ChannelBind are checked with the key that the
allocation holds, so that they are done when ChannelData follows right behind. Nothing is remembered of a client
before its proof held, except that it waits for its answer; how many may wait is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from relayd.address import AppConnection, Family, Path, TransportAddress
from relayd.core import Deadlines, Entropy
from relayd.errors import DecodeError, RemoteError
from relayd.stun import attributes as a
from relayd.stun.attributes import AddressError, Attribute, Icmp
from relayd.stun.framing import decode_channel_data
from relayd.stun.message import TRANSACTION_ID_SIZE, Class, Message, Method, decode
from relayd.turn import outputs as out
from relayd.turn.allocate import AllocateRequest, read_allocate
from relayd.turn.allocation import Allocation, ChannelBinding
from relayd.turn.allocations import Allocations
from relayd.turn.authentication import CHALLENGES, Authentication, Claim
from relayd.turn.discovery import answer_binding
from relayd.turn.outputs import EndReason, Relay
from relayd.turn.pending import PENDING_LIFETIME, PendingTransactions
from relayd.turn.relaying import (
    Guard,
    PeerRefused,
    bind_channel,
    channel_data_to_peer,
    create_permission,
    data_to_client,
    icmp_to_client,
    send_to_peer,
)
from relayd.turn.reservations import Reservation, Reservations
from relayd.turn.settings import TurnSettings
from relayd.turn.throttle import AnswerThrottle
from relayd.turn.transaction import REASONS, Attributes, Transaction

_SESSION_ID_SIZE = 6  # bytes, twelve hexadecimal digits


@dataclass(slots=True)
class _WaitsForKey:
    """A request whose sender the shell is asked about."""

    transaction: Transaction
    claim: Claim


@dataclass(slots=True)
class _WaitsForRelay:
    """An Allocate that may be granted as soon as its relays are open. Holds a place in the quotas."""

    transaction: Transaction
    wanted: AllocateRequest
    reservation: Reservation | None


class TurnServer:
    """The core. Feed it with the verbs below, then drain `next_output`, then arm a timer for `next_timer`."""

    def __init__(self, settings: TurnSettings, entropy: Entropy, peer_rules: Guard) -> None:
        self._settings = settings
        self._entropy = entropy
        self._guard = peer_rules
        self._authentication = Authentication(settings, entropy)
        self._throttle = AnswerThrottle(settings.unauthenticated_rate, settings.unauthenticated_burst, entropy)
        self._allocations = Allocations(settings.user_quota, settings.total_quota)
        self._reservations = Reservations(entropy)
        self._pending: PendingTransactions[_WaitsForKey | _WaitsForRelay] = PendingTransactions()
        # An allocation, or a pending id, or a reservation token. An allocation's deadline may be earlier than what is
        # due next on it, never later: refreshing one then costs nothing here.
        self._deadlines: Deadlines[Allocation | int | bytes] = Deadlines()
        self._outputs: deque[Any] = deque()
        self._is_shut_down = False

    # --- what the shell asks --------------------------------------------------------------------------------------

    def next_output(self) -> Any | None:
        """The next thing for the shell to do, one of the classes of `relayd.turn.outputs`."""
        return self._outputs.popleft() if self._outputs else None

    def next_timer(self) -> float | None:
        """When `handle_timer` is wanted next."""
        return self._deadlines.next()

    def holds(self, path: Path) -> bool:
        """Whether the core may have something to send on that path of its own accord."""
        return self._allocations.on(path) is not None or self._pending.has_path(path)

    def allocation_of(self, path: Path) -> Allocation | None:
        """The allocation of a path, to be read and not changed."""
        return self._allocations.on(path)

    def sessions(self) -> Iterator[Allocation]:
        """All allocations, to be read and not changed."""
        return iter(self._allocations)

    def count(self, app_connection: AppConnection) -> int:
        """How many allocations there are over one kind of way in."""
        return self._allocations.by_app_connection[app_connection]

    # --- verbs ----------------------------------------------------------------------------------------------------

    def receive(self, path: Path, data: bytes, now: float) -> None:
        """A whole STUN message, or ChannelData that no flow took, from a client."""
        if self._is_shut_down:
            return
        if data and 0x40 <= data[0] <= 0x4F:
            self._receive_channel_data(path, data, now)
            return
        try:
            message = decode(data)
        except DecodeError:
            self._outputs.append(out.RequestRefused(path, 0, 0))
            return
        if message.cls is Class.REQUEST:
            self._receive_request(Transaction(path, message, data), now)
        elif message.cls is Class.INDICATION and message.method == Method.SEND:
            self._receive_send(path, message, now)
        # Anything else is a keep-alive or not for a server: silently discarded (RFC 8489 section 6.3).

    def receive_from_peer(self, relay: Relay, peer: TransportAddress, data: bytes, now: float) -> None:
        """A datagram, perhaps empty, that came to a relayed address and that no flow took."""
        allocation = self._allocations.of(relay)
        if allocation is not None and allocation.expires > now:
            transaction_id = self._entropy(TRANSACTION_ID_SIZE)
            self._put(data_to_client(allocation, relay, peer, data, transaction_id, now))

    def peer_error(
        self, relay: Relay, peer: TransportAddress, icmp_type: int, icmp_code: int, data: int, now: float
    ) -> None:
        """An ICMP error about a datagram that went from a relayed address to a peer; `data` is its 32-bit field."""
        allocation = self._allocations.of(relay)
        if allocation is not None and allocation.expires > now:
            transaction_id = self._entropy(TRANSACTION_ID_SIZE)
            self._put(icmp_to_client(allocation, peer, Icmp(icmp_type, icmp_code, data), transaction_id, now))

    def path_closed(self, path: Path, now: float) -> None:
        """The connection behind a path is gone: so is its allocation, and nothing more is to be sent."""
        for waits_for, _ in self._pending.on(path):
            self._give_up(waits_for)
        allocation = self._allocations.on(path)
        if allocation is not None:
            self._end(allocation, EndReason.CONNECTION_CLOSED, now)

    def relay_failed(self, relay: Relay, now: float) -> None:
        """A relayed address broke. Its whole allocation ends: half of a dual one would be a surprise to its client."""
        allocation = self._allocations.of(relay)
        if allocation is not None:
            self._end(allocation, EndReason.RELAY_FAILED, now)
            return
        token = self._reservations.token_of(relay)
        if token is not None:
            self._drop_reservation(token)

    def end_user(self, username: str, reason: EndReason, now: float) -> None:
        """End every allocation of a user (the prepared name)."""
        for waits_for, waiting in self._pending.all():
            if isinstance(waiting, _WaitsForRelay) and waiting.transaction.username == username:
                self._give_up(waits_for)
        for allocation in self._allocations.of_user(username):
            self._end(allocation, reason, now)

    def end_session(self, session_id: str, reason: EndReason, now: float) -> None:
        """End one allocation."""
        for allocation in self._allocations:
            if allocation.session_id == session_id:
                self._end(allocation, reason, now)

    def peer_rules_changed(self, now: float) -> None:
        """The guard may answer differently now: ask it again about every permission and channel, and drop what it
        refuses.
        """
        for allocation in self._allocations:
            username = allocation.username
            for binding in list(allocation.channels.values()):
                if not self._guard.may_reach(username, binding.peer):
                    self._unbind(allocation, binding)
            for ip in list(allocation.permissions):
                if not self._guard.may_reach(username, TransportAddress(ip, 0)):
                    del allocation.permissions[ip]

    def shutdown(self, now: float) -> None:
        """End everything; whatever is received afterwards is ignored."""
        self._is_shut_down = True
        for waits_for, _ in self._pending.all():
            self._give_up(waits_for)
        for allocation in self._allocations:
            self._end(allocation, EndReason.SHUTDOWN, now)
        for token in self._reservations.tokens():
            self._drop_reservation(token)

    def answer(self, id: int, result: Any, now: float) -> None:
        """The result of AuthenticateUser or OpenRelay. For an id that is no longer awaited, its relays are closed
        again.
        """
        waiting = self._pending.remove(id)
        self._deadlines.cancel(id)
        if isinstance(waiting, _WaitsForKey):
            self._answer_key(waiting, result, now)
        elif isinstance(waiting, _WaitsForRelay):
            self._answer_relay(waiting, result, now)
        elif isinstance(result, out.RelayOpened):
            for relay, _ in result.relays:
                self._outputs.append(out.CloseRelay(relay))
            if result.reserved is not None:
                self._outputs.append(out.CloseRelay(result.reserved))

    def handle_timer(self, now: float) -> None:
        """End and forget what is due."""
        for key in self._deadlines.due(now):
            if isinstance(key, Allocation):
                self._expire(key, now)
            elif isinstance(key, int):
                self._give_up(key)
            else:
                self._drop_reservation(key)

    # --- from the client ------------------------------------------------------------------------------------------

    def _receive_channel_data(self, path: Path, data: bytes, now: float) -> None:
        allocation = self._allocations.on(path)
        if allocation is None or allocation.expires <= now:
            return
        try:
            number, payload = decode_channel_data(data)
        except DecodeError:
            self._outputs.append(out.RequestRefused(path, 0, 0))
            return
        self._put(channel_data_to_peer(allocation, number, payload, now))

    def _receive_send(self, path: Path, message: Message, now: float) -> None:
        allocation = self._allocations.on(path)
        if allocation is None or allocation.expires <= now:
            return
        try:
            self._put(send_to_peer(allocation, message, self._guard, now))
        except DecodeError:
            self._outputs.append(out.RequestRefused(path, Method.SEND, 0))

    def _receive_request(self, transaction: Transaction, now: float) -> None:
        path, message = transaction.path, transaction.message
        if self._pending.is_pending(path, message.transaction_id):
            return  # a retransmission: its answer is under way
        due = self._deadlines.next()
        if due is not None and due <= now:
            self.handle_timer(now)  # so that nothing below meets what has expired
        try:
            if message.method == Method.BINDING:
                if self._may_answer(transaction, now):
                    self._outputs.append(answer_binding(transaction, self._settings))
            elif message.method in self._METHODS:
                self._authenticate(transaction, now)
            else:
                self._outputs.append(out.RequestRefused(path, message.method, 0))
        except RemoteError as error:
            self._refuse(transaction, error, now)
        except DecodeError:
            self._refuse(transaction, RemoteError(400), now)

    # --- who is it ------------------------------------------------------------------------------------------------

    def _authenticate(self, transaction: Transaction, now: float) -> None:
        path, message = transaction.path, transaction.message
        claim = self._authentication.read(path, message, now)
        allocation = self._allocations.on(path)
        if allocation is not None and not _renews(message) and allocation.is_claimed_by(claim, self._settings.realm):
            if not claim.proof.matches(allocation.key):
                raise RemoteError(401)
            transaction.accept(allocation.username, claim, allocation.key)
            self._METHODS[message.method](self, transaction, now)
            return
        self._pending.check_room(path)
        waits_for = self._wait(_WaitsForKey(transaction, claim), now)
        self._outputs.append(
            out.AuthenticateUser(
                waits_for, path, self._settings.realm, claim.algorithm, claim.proof, claim.username, claim.userhash
            )
        )

    def _answer_key(self, waiting: _WaitsForKey, result: Any, now: float) -> None:
        transaction = waiting.transaction
        try:
            if not isinstance(result, out.Authenticated):
                raise RemoteError(401)
            transaction.accept(result.username, waiting.claim, result.key)
            self._METHODS[transaction.message.method](self, transaction, now)
        except RemoteError as error:
            self._refuse(transaction, error, now)
        except DecodeError:
            self._refuse(transaction, RemoteError(400), now)

    def _own_allocation(self, transaction: Transaction) -> Allocation:
        """The allocation that an authenticated request is about. Raises RemoteError (420, 437, 441)."""
        self._check_attributes(transaction.message)
        allocation = self._allocations.on(transaction.path)
        # RFC 8656 section 5
        if allocation is None:
            raise RemoteError(437)
        if allocation.username != transaction.username:
            raise RemoteError(441)
        return allocation

    @staticmethod
    def _check_attributes(message: Message) -> None:
        # RFC 8489 section 6.3.1: after the authentication, before anything else
        unknown = message.unknown_required()
        if unknown:
            raise RemoteError(420, unknown=unknown)

    # --- Allocate, RFC 8656 section 7.2 ---------------------------------------------------------------------------

    def _allocate(self, transaction: Transaction, now: float) -> None:
        path, message = transaction.path, transaction.message
        self._check_attributes(message)
        # step 2
        allocation = self._allocations.on(path)
        if allocation is not None:
            if allocation.transaction_id != message.transaction_id or allocation.username != transaction.username:
                raise RemoteError(437)
            self._confirm(transaction, allocation, now)
            return
        if any(isinstance(other, _WaitsForRelay) for _, other in self._pending.on(path)):
            raise RemoteError(437)
        # steps 3 to 8
        wanted = read_allocate(message, self._settings.transports)
        families, reservation = wanted.families, None
        if wanted.token is not None:
            reservation = self._reservations.find(wanted.token, transaction.username, wanted.transport)
            if reservation is None:
                raise RemoteError(508)
            families = (reservation.family,)
        if wanted.reserve_next and not self._reservations.has_room(transaction.username):
            raise RemoteError(508)
        # step 9
        self._allocations.take_place(transaction.username)
        if wanted.token is not None:
            self._reservations.remove(wanted.token)
            self._deadlines.cancel(wanted.token)
        waits_for = self._wait(_WaitsForRelay(transaction, wanted, reservation), now)
        self._outputs.append(
            out.OpenRelay(
                waits_for,
                path,
                transaction.username,
                wanted.transport,
                families,
                even_port=wanted.even_port,
                reserve_next=wanted.reserve_next,
                reservation=reservation.relay if reservation is not None else None,
            )
        )

    def _answer_relay(self, waiting: _WaitsForRelay, result: Any, now: float) -> None:
        transaction, wanted = waiting.transaction, waiting.wanted
        if not isinstance(result, out.RelayOpened):
            self._allocations.give_place_back(transaction.username)
            if waiting.reservation is not None:
                self._outputs.append(out.CloseRelay(waiting.reservation.relay))
            self._refuse_redirected(transaction, result, now)
            return
        claim, key = transaction.claim, transaction.key
        assert claim is not None  # only an authenticated Allocate waits for a relay
        assert key is not None
        lifetime = self._settings.granted_lifetime(wanted.lifetime)
        allocation = Allocation(
            self._entropy(_SESSION_ID_SIZE).hex(),
            transaction.path,
            transaction.username,
            claim,
            key,
            wanted.transport,
            result.relays,
            transaction.message.transaction_id,
            now,
            now + lifetime,
        )
        allocation.failed = result.failed or wanted.failed
        self._allocations.add(allocation)
        self._deadlines.set(allocation, allocation.expires)
        if result.reserved is not None:
            self._reserve(allocation, result.reserved, now)
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

    def _reserve(self, allocation: Allocation, relay: Relay, now: float) -> None:
        family = allocation.relays[0][1].family
        reservation = Reservation(relay, family, allocation.transport, allocation.username)
        allocation.token = self._reservations.add(reservation)
        self._deadlines.set(allocation.token, now + self._settings.reservation_lifetime)

    def _confirm(self, transaction: Transaction, allocation: Allocation, now: float) -> None:
        # Section 7.2, last part. Written anew for a retransmission, with the time that is left.
        attributes: list[tuple[Attribute[Any], Any]] = [
            (a.XOR_RELAYED_ADDRESS, address) for _, address in allocation.relays
        ]
        attributes.append((a.LIFETIME, max(0, round(allocation.expires - now))))
        if allocation.token is not None and allocation.token in self._reservations:
            attributes.append((a.RESERVATION_TOKEN, allocation.token))
        attributes.append((a.XOR_MAPPED_ADDRESS, transaction.path.client))
        if allocation.failed is not None:
            family, code = allocation.failed
            attributes.append((a.ADDRESS_ERROR_CODE, AddressError(family, code, REASONS.get(code, ""))))
        self._succeed(transaction, attributes)

    # --- Refresh, RFC 8656 section 8.2 ----------------------------------------------------------------------------

    def _refresh(self, transaction: Transaction, now: float) -> None:
        allocation = self._own_allocation(transaction)
        requested = transaction.message.get(a.LIFETIME)
        family = transaction.message.get(a.REQUESTED_ADDRESS_FAMILY)
        if family is not None and all(address.family != family for _, address in allocation.relays):
            raise RemoteError(443)
        if requested == 0:
            self._succeed(transaction, [(a.LIFETIME, 0)])
            if family is not None and len(allocation.relays) > 1:
                self._delete_half(allocation, Family(family))
            else:
                self._end(allocation, EndReason.DELETED, now)
            return
        # Deviation: both halves of a dual allocation share one lifetime, so a Refresh that names one family renews
        # both. Clients that refresh one at a time would otherwise lose the other.
        lifetime = self._settings.granted_lifetime(requested)
        allocation.expires = now + lifetime
        self._look_in_time(allocation)
        claim, key = transaction.claim, transaction.key
        if claim is not None and key is not None:
            # The password, or the algorithm, may be another one since.
            allocation.key, allocation.algorithm = key, claim.algorithm
        self._outputs.append(out.AllocationRefreshed(allocation.session_id, allocation.path, lifetime))
        self._succeed(transaction, [(a.LIFETIME, lifetime)])

    def _delete_half(self, allocation: Allocation, family: Family) -> None:
        for relayed in allocation.relays:
            relay, address = relayed
            if address.family != family:
                continue
            for binding in [each for each in allocation.channels.values() if each.relay == relay]:
                self._unbind(allocation, binding)
            size = len(address.ip)
            for ip in [ip for ip in allocation.permissions if len(ip) == size]:
                del allocation.permissions[ip]
            allocation.close_half(relayed)
            self._allocations.drop_relay(relay)
            self._outputs.append(out.CloseRelay(relay))

    # --- CreatePermission and ChannelBind -------------------------------------------------------------------------

    def _create_permission(self, transaction: Transaction, now: float) -> None:
        allocation = self._own_allocation(transaction)
        self._outputs += create_permission(allocation, transaction.message, self._guard, self._settings, now)
        self._succeed(transaction, ())

    def _channel_bind(self, transaction: Transaction, now: float) -> None:
        allocation = self._own_allocation(transaction)
        self._outputs += bind_channel(allocation, transaction.message, self._guard, self._settings, now)
        self._look_in_time(allocation)
        self._succeed(transaction, ())

    # --- ends -----------------------------------------------------------------------------------------------------

    def _end(self, allocation: Allocation, reason: EndReason, now: float) -> None:
        self._allocations.remove(allocation)
        self._deadlines.cancel(allocation)
        for binding in list(allocation.channels.values()):
            self._unbind(allocation, binding)
        self._outputs.append(
            out.AllocationEnded(
                allocation.session_id,
                allocation.path,
                allocation.username,
                allocation.relays + allocation.closed_relays,
                reason,
                now - allocation.created,
            )
        )
        for relay, _ in allocation.relays:
            self._outputs.append(out.CloseRelay(relay))

    def _expire(self, allocation: Allocation, now: float) -> None:
        if allocation.expires <= now:
            self._end(allocation, EndReason.EXPIRED, now)
            return
        for binding in allocation.expired_channels(now):
            self._unbind(allocation, binding)
        self._deadlines.set(allocation, allocation.next_deadline())

    def _look_in_time(self, allocation: Allocation) -> None:
        """See to it that the allocation is looked at in time; if that is too early, `_expire` finds the right time."""
        due = self._deadlines.get(allocation)
        earliest = allocation.expires
        if allocation.channels:
            earliest = min(earliest, allocation.next_deadline())
        if due is None or earliest < due:
            self._deadlines.set(allocation, earliest)

    def _unbind(self, allocation: Allocation, binding: ChannelBinding) -> None:
        allocation.unbind(binding)
        self._outputs.append(out.RemoveFlow(allocation.path, binding.number, binding.relay, binding.peer))

    def _drop_reservation(self, token: bytes) -> None:
        reservation = self._reservations.remove(token)
        self._deadlines.cancel(token)
        if reservation is not None:
            self._outputs.append(out.CloseRelay(reservation.relay))

    # --- waiting for the shell ------------------------------------------------------------------------------------

    def _wait(self, waiting: _WaitsForKey | _WaitsForRelay, now: float) -> int:
        waits_for = self._pending.add(waiting)
        self._deadlines.set(waits_for, now + PENDING_LIFETIME)
        return waits_for

    def _give_up(self, id: int) -> None:
        waiting = self._pending.remove(id)
        self._deadlines.cancel(id)
        if isinstance(waiting, _WaitsForRelay):
            self._allocations.give_place_back(waiting.transaction.username)
            if waiting.reservation is not None:
                self._outputs.append(out.CloseRelay(waiting.reservation.relay))

    # --- answering ------------------------------------------------------------------------------------------------

    def _put(self, output: Any | None) -> None:
        if output is not None:
            self._outputs.append(output)

    def _succeed(self, transaction: Transaction, attributes: Attributes) -> None:
        self._outputs.append(out.Send(transaction.path, transaction.success(self._with_software(attributes))))

    def _may_answer(self, transaction: Transaction, now: float) -> bool:
        if self._throttle.allows(transaction.path, now):
            return True
        self._outputs.append(out.RequestRefused(transaction.path, transaction.message.method, 0))
        return False

    def _refuse_redirected(self, transaction: Transaction, refusal: Any, now: float) -> None:
        if not isinstance(refusal, out.RelayRefused):
            self._refuse(transaction, RemoteError(500), now)
            return
        attributes: list[tuple[Attribute[Any], Any]] = []
        if refusal.alternate is not None:
            attributes.append((a.ALTERNATE_SERVER, refusal.alternate))
        if refusal.domain is not None:
            attributes.append((a.ALTERNATE_DOMAIN, refusal.domain))
        self._refuse(transaction, RemoteError(refusal.code), now, attributes)

    def _refuse(self, transaction: Transaction, error: RemoteError, now: float, attributes: Attributes = ()) -> None:
        code = error.code
        extra = list(attributes)
        if transaction.key is None and transaction.message.method != Method.BINDING:
            if not self._may_answer(transaction, now):
                return
            if code in CHALLENGES:
                extra += self._authentication.challenge(transaction.path, now)
        if code == 420:
            extra.append((a.UNKNOWN_ATTRIBUTES, error.unknown))
        peer = error.peer if isinstance(error, PeerRefused) else None
        path, method = transaction.path, transaction.message.method
        self._outputs.append(out.Send(path, transaction.error(code, self._with_software(extra))))
        self._outputs.append(out.RequestRefused(path, method, code, transaction.username or None, peer))

    def _with_software(self, attributes: Attributes) -> Attributes:
        software = self._settings.software
        return attributes if software is None else [*attributes, (a.SOFTWARE, software)]

    _METHODS: ClassVar[dict[int, Callable[[TurnServer, Transaction, float], None]]] = {
        Method.ALLOCATE: _allocate,
        Method.REFRESH: _refresh,
        Method.CREATE_PERMISSION: _create_permission,
        Method.CHANNEL_BIND: _channel_bind,
    }


def _renews(message: Message) -> bool:
    """Whether a request prolongs an allocation, so that it is time to ask whether its user may still use the relay."""
    if message.method != Method.REFRESH:
        return False
    try:
        return message.get(a.LIFETIME) != 0
    except DecodeError:
        return True
