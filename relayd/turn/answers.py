"""How the server answers: success, refusal, challenge, and silence where an answer could hit someone else."""

from __future__ import annotations

from collections import deque
from typing import Any

from relayd.core import Entropy
from relayd.errors import RemoteError
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute
from relayd.stun.message import Method
from relayd.turn.authentication import CHALLENGES, Authentication
from relayd.turn.outputs import RelayRefused, RequestRefused, Send
from relayd.turn.relaying import PeerRefused
from relayd.turn.settings import TurnSettings
from relayd.turn.throttle import AnswerThrottle
from relayd.turn.transaction import Attributes, Transaction


class Answers:
    """Writes answers into the server's outputs, each with the event that tells of a refusal."""

    def __init__(
        self, settings: TurnSettings, authentication: Authentication, entropy: Entropy, outputs: deque[Any]
    ) -> None:
        self._software = settings.software
        self._authentication = authentication
        self._throttle = AnswerThrottle(settings.unauthenticated_rate, settings.unauthenticated_burst, entropy)
        self._outputs = outputs

    def may_answer(self, transaction: Transaction, now: float) -> bool:
        """Whether a request that proved nothing may be answered now. Tells of it if not."""
        if self._throttle.allows(transaction.path, now):
            return True
        self._outputs.append(RequestRefused(transaction.path, transaction.message.method, 0))
        return False

    def succeed(self, transaction: Transaction, attributes: Attributes = ()) -> None:
        """A success response."""
        self._outputs.append(Send(transaction.path, transaction.success(self._with_software(attributes))))

    def refuse(self, transaction: Transaction, error: RemoteError, now: float, attributes: Attributes = ()) -> None:
        """An error response, with all that its code calls for."""
        path, method, code = transaction.path, transaction.message.method, error.code
        extra: list[tuple[Attribute[Any], Any]] = list(attributes)
        # A Binding request was let through the throttle already.
        if not transaction.is_authenticated and method != Method.BINDING:
            if not self.may_answer(transaction, now):
                return
            if code in CHALLENGES:
                extra += self._authentication.challenge(path, now)
        if code == 420:
            extra.append((a.UNKNOWN_ATTRIBUTES, error.unknown))
        peer = error.peer if isinstance(error, PeerRefused) else None
        self._outputs.append(Send(path, transaction.error(code, self._with_software(extra))))
        self._outputs.append(RequestRefused(path, method, code, transaction.username or None, peer))

    def refuse_relay(self, transaction: Transaction, refusal: RelayRefused, now: float) -> None:
        """An Allocate that the shell refused, perhaps with the way to another server (RFC 8489 section 10)."""
        attributes: list[tuple[Attribute[Any], Any]] = []
        if refusal.alternate is not None:
            attributes.append((a.ALTERNATE_SERVER, refusal.alternate))
        if refusal.domain is not None:
            attributes.append((a.ALTERNATE_DOMAIN, refusal.domain))
        self.refuse(transaction, RemoteError(refusal.code), now, attributes)

    def _with_software(self, attributes: Attributes) -> Attributes:
        return attributes if self._software is None else [*attributes, (a.SOFTWARE, self._software)]
