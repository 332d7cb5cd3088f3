"""Binding requests (RFC 8489 section 6.3), with NAT behaviour discovery where a second address is configured (RFC
5780).
"""

from __future__ import annotations

from typing import Any

from relayd.address import AppConnection, TransportAddress
from relayd.errors import RemoteError
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute, ChangeRequest
from relayd.turn.outputs import Send
from relayd.turn.settings import TurnSettings
from relayd.turn.transaction import Transaction

_DISCOVERY: tuple[Attribute[Any], ...] = (a.CHANGE_REQUEST, a.RESPONSE_PORT, a.PADDING)


def answer_binding(transaction: Transaction, settings: TurnSettings) -> Send:
    """The answer to a Binding request. Raises RemoteError (400, 420), and DecodeError for a malformed attribute."""
    path, message = transaction.path, transaction.message
    server = path.five_tuple.server
    # TCP and TLS cannot answer from elsewhere, so the attributes are not understood there (RFC 5780 section 6.1).
    other = settings.alternates.get(server) if path.app_connection is AppConnection.UDP else None
    unknown = message.unknown_required()
    if other is None:
        unknown += tuple(attribute.code for attribute in _DISCOVERY if attribute in message)
    if unknown:
        raise RemoteError(420, unknown=unknown)
    attributes: list[tuple[Attribute[Any], Any]] = [(a.XOR_MAPPED_ADDRESS, path.client)]
    if other is None:
        return Send(path, transaction.success(_with_software(attributes, settings)))
    change = message.get(a.CHANGE_REQUEST) or ChangeRequest(False, False)
    response_port = message.get(a.RESPONSE_PORT)
    padding = message.get(a.PADDING)
    # RFC 5780 section 6.1: both together would let anyone aim fragments at anyone
    if response_port is not None and (padding is not None or response_port == 0):
        raise RemoteError(400)
    source = TransportAddress(
        other.ip if change.change_ip else server.ip,
        other.port if change.change_port else server.port,
        other.scope if change.change_ip else server.scope,
    )
    attributes += [(a.MAPPED_ADDRESS, path.client), (a.RESPONSE_ORIGIN, source), (a.OTHER_ADDRESS, other)]
    if padding is not None:
        # Deviation: RFC 5780 section 7.6 pads to the MTU of the interface; we give back no more than came, so that
        # padding amplifies nothing.
        attributes.append((a.PADDING, bytes(len(padding))))
    return Send(
        path,
        transaction.success(_with_software(attributes, settings)),
        source=source if source != server else None,
        destination=path.client.with_port(response_port) if response_port is not None else None,
    )


def _with_software(
    attributes: list[tuple[Attribute[Any], Any]], settings: TurnSettings
) -> list[tuple[Attribute[Any], Any]]:
    if settings.software is not None:
        attributes.append((a.SOFTWARE, settings.software))
    return attributes
