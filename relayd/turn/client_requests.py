"""A client's requests: signed, sent again until they are answered, repeated when challenged; answers are checked.

Theory of operation. A request is one transaction, or several in a row where the server challenges it:

    ask -> sent, and sent again on datagrams -> 401, 438: signed anew, another transaction
                                             -> success, another error: told, once its integrity was checked
                                             -> nothing: told after 39.5 seconds
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from relayd.core import Deadlines, Entropy
from relayd.errors import DecodeError, RelaydError, RemoteError, ServerUnavailable
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute
from relayd.stun.message import TRANSACTION_ID_SIZE, Class, Message, encode
from relayd.turn.client_authentication import ClientAuthentication, Signature
from relayd.turn.client_outputs import Transmit
from relayd.turn.transaction import REASONS

# RFC 8489 section 6.2.1
RTO = 0.5  # seconds until the first retransmission, doubled for each further one
RC = 7  # transmissions of one request
RM = 16  # multiples of RTO that are waited after the last one
TI = 39.5  # seconds on a stream (section 6.2.2): as long as all of the above takes
MAX_CHALLENGES = 5  # of one request: one 401, and more stale nonces in a row than an honest server has

_CHALLENGES = frozenset((401, 438))

Succeed = Callable[[Message, float], None]
Fail = Callable[[RelaydError, float], None]


class Redirection(RemoteError):
    """A 300, and the answer that it came in."""

    def __init__(self, message: Message) -> None:
        super().__init__(300, REASONS[300])
        self.message = message


class _Request:
    """What is asked, whatever number of transactions that takes."""

    __slots__ = ("method", "attributes", "succeed", "fail", "challenges")

    def __init__(
        self, method: int, attributes: Sequence[tuple[Attribute[Any], Any]], succeed: Succeed, fail: Fail
    ) -> None:
        self.method = method
        self.attributes = attributes
        self.succeed = succeed
        self.fail = fail
        self.challenges = 0


class _Transaction:
    __slots__ = ("request", "data", "signature", "transmissions", "ignored")

    def __init__(self, request: _Request, data: bytes, signature: Signature | None) -> None:
        self.request = request
        self.data = data
        self.signature = signature
        self.transmissions = 0
        self.ignored: int | None = None  # the code of an answer that did not count, 0 for a success


class ClientRequests:
    """All requests to one server that are not answered yet."""

    def __init__(
        self, authentication: ClientAuthentication, is_datagram: bool, entropy: Entropy, outputs: deque[Any]
    ) -> None:
        self._authentication = authentication
        self._is_datagram = is_datagram
        self._entropy = entropy
        self._outputs = outputs
        self._transactions: dict[bytes, _Transaction] = {}
        self._deadlines: Deadlines[bytes] = Deadlines()

    def __len__(self) -> int:
        return len(self._transactions)

    def ask(
        self,
        method: int,
        attributes: Sequence[tuple[Attribute[Any], Any]],
        succeed: Succeed,
        fail: Fail,
        now: float,
    ) -> None:
        """Ask; exactly one of `succeed` and `fail` is called later, unless `drop_all` is.

        `fail` gets a RemoteError for what the server refuses (a `Redirection` for a 300), else ServerUnavailable.
        """
        self._begin(_Request(method, attributes, succeed, fail), now)

    def receive(self, message: Message, now: float) -> None:
        """A success or error response; ignored if nothing waits for it."""
        transaction = self._transactions.get(message.transaction_id)
        if transaction is None or message.method != transaction.request.method:
            return
        try:
            self._judge(transaction, message, now)
        except DecodeError as error:
            self._discard(transaction, message, None, f"the server's answer cannot be read: {error}", now)

    def expire(self, now: float) -> None:
        """Send again, or give up, what is due."""
        for transaction_id in self._deadlines.due(now):
            transaction = self._transactions[transaction_id]
            if self._is_datagram and transaction.transmissions < RC:
                self._transmit(transaction_id, transaction, now)
            else:
                del self._transactions[transaction_id]
                transaction.request.fail(ServerUnavailable(_silence(transaction)), now)

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    def drop_all(self) -> None:
        """Forget every request; nobody is told."""
        for transaction_id in self._transactions:
            self._deadlines.cancel(transaction_id)
        self._transactions.clear()

    # --- going out ------------------------------------------------------------------------------------------------

    def _begin(self, request: _Request, now: float) -> None:
        transaction_id = self._entropy(TRANSACTION_ID_SIZE)
        signature = self._authentication.signature
        data = encode(
            request.method,
            Class.REQUEST,
            transaction_id,
            [*request.attributes, *self._authentication.attributes()],
            key=None if signature is None else signature.key,
            sha256=signature is not None and signature.sha256,
        )
        transaction = _Transaction(request, data, signature)
        self._transactions[transaction_id] = transaction
        self._transmit(transaction_id, transaction, now)

    def _transmit(self, transaction_id: bytes, transaction: _Transaction, now: float) -> None:
        already = transaction.transmissions
        transaction.transmissions += 1
        if not self._is_datagram:
            wait = TI
        elif transaction.transmissions < RC:
            wait = RTO * 2**already
        else:
            wait = RTO * RM
        self._deadlines.set(transaction_id, now + wait)
        self._outputs.append(Transmit(transaction.data))

    # --- coming back ----------------------------------------------------------------------------------------------

    def _judge(self, transaction: _Transaction, message: Message, now: float) -> None:
        error = message.get(a.ERROR_CODE) if message.cls is Class.ERROR else None
        if message.cls is Class.ERROR and error is None:
            raise DecodeError("an error without a code")
        code = None if error is None else error.code
        request = transaction.request
        if code is not None and code in _CHALLENGES:
            self._challenged(transaction, message, code, now)
            return
        # RFC 8489 section 9.2.5: an answer has to prove the key, too
        if not _is_genuine(transaction, message):
            self._discard(transaction, message, code or 0, "the server's answer does not prove that it knows us", now)
            return
        self._finish(message)
        if message.unknown_required():
            # RFC 8489 sections 6.3.3 and 6.3.4
            request.fail(ServerUnavailable("the server's answer has attributes that have to be understood"), now)
        elif code is None:
            try:
                request.succeed(message, now)
            except DecodeError as fault:
                request.fail(ServerUnavailable(f"the server's answer cannot be read: {fault}"), now)
        else:
            request.fail(Redirection(message) if code == 300 else RemoteError(code, REASONS.get(code, "")), now)

    def _challenged(self, transaction: _Transaction, message: Message, code: int, now: float) -> None:
        request = transaction.request
        request.challenges += 1
        try:
            self._authentication.challenged(code, message, transaction.signature)
            if request.challenges > MAX_CHALLENGES:
                raise RemoteError(code, REASONS[code])
        except (RemoteError, ServerUnavailable) as error:
            self._finish(message)
            request.fail(error, now)
            return
        self._finish(message)
        self._begin(request, now)

    def _finish(self, message: Message) -> None:
        del self._transactions[message.transaction_id]
        self._deadlines.cancel(message.transaction_id)

    def _discard(
        self, transaction: _Transaction, message: Message, code: int | None, complaint: str, now: float
    ) -> None:
        """On datagrams as if it had never come: the genuine one may follow. A stream brings no other one."""
        if self._is_datagram:
            transaction.ignored = code
            return
        self._finish(message)
        transaction.request.fail(ServerUnavailable(complaint), now)


def _is_genuine(transaction: _Transaction, message: Message) -> bool:
    if transaction.signature is None:
        return True
    proof = message.proof()
    return proof is not None and proof.matches(transaction.signature.key)


def _silence(transaction: _Transaction) -> str:
    if transaction.ignored is None:
        return "the server does not answer"
    what = f"a {transaction.ignored}" if transaction.ignored else "a success"
    return f"the server does not answer in a way that proves who it is (there was {what} without valid integrity)"
