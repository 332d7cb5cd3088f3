"""What an Allocate request asks for, and whether it may be asked for in this combination (RFC 8656 section 7.2, steps
3 to 9).

Pure reading: quotas, reservations and the opening of relays are the server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from relayd.address import Family
from relayd.errors import RemoteError
from relayd.stun import attributes as a
from relayd.stun.message import Message
from relayd.turn.settings import TCP


class AllocateRequest(NamedTuple):
    """An Allocate that makes sense. `families` are to be opened (none where a `token` names what is open already),
    `failed` is what the answer says about a family that is not.
    """

    transport: int
    families: tuple[Family, ...]
    failed: tuple[Family, int] | None
    even_port: bool
    reserve_next: bool
    token: bytes | None
    lifetime: int | None
    tls: bool


def read_allocate(message: Message, transports: Mapping[int, tuple[Family, ...]]) -> AllocateRequest:
    """Read the attributes of an Allocate. `transports` is as in `TurnSettings`.

    Raises RemoteError (400, 440, 442), and DecodeError for a malformed attribute, which is a 400 as well.
    """
    # RFC 8656 section 7.2, step 3
    transport = message.get(a.REQUESTED_TRANSPORT)
    if transport is None:
        raise RemoteError(400)
    available = transports.get(transport)
    if not available:
        raise RemoteError(442)
    # step 4
    dont_fragment = message.get(a.DONT_FRAGMENT)
    # steps 5 and 6
    requested = message.get(a.REQUESTED_ADDRESS_FAMILY)
    additional = message.get(a.ADDITIONAL_ADDRESS_FAMILY)
    if additional is None:
        additional = message.get(a.ADDITIONAL_ADDRESS_FAMILY_DRAFT)
    reserve_next = message.get(a.EVEN_PORT)
    token = message.get(a.RESERVATION_TOKEN)
    _check_combination(requested, additional, reserve_next, token)
    peer_tls = message.get(a.PEER_TLS)
    if peer_tls is not None and (peer_tls or transport != TCP):
        raise RemoteError(400)
    # RFC 6062 section 5.1
    if transport == TCP and (dont_fragment is not None or reserve_next is not None or token is not None):
        raise RemoteError(400)
    # steps 7 and 8; a reserved port has its family already, and a relay without IPv4 reserves none of that
    families, failed = ((), None) if token is not None else _choose_families(requested, additional, available)
    return AllocateRequest(
        transport,
        families,
        failed,
        even_port=reserve_next is not None,
        reserve_next=bool(reserve_next),
        token=token,
        lifetime=message.get(a.LIFETIME),
        tls=peer_tls is not None,
    )


def _check_combination(
    requested: int | None, additional: int | None, reserve_next: bool | None, token: bytes | None
) -> None:
    if token is not None and (reserve_next is not None or requested is not None or additional is not None):
        raise RemoteError(400)
    if additional is not None and (requested is not None or additional != Family.IPV6 or reserve_next):
        raise RemoteError(400)


def _choose_families(
    requested: int | None, additional: int | None, available: tuple[Family, ...]
) -> tuple[tuple[Family, ...], tuple[Family, int] | None]:
    if additional is not None:
        both = (Family.IPV4, Family.IPV6)
        missing = [family for family in both if family not in available]
        chosen = tuple(family for family in both if family in available)
        return chosen, (missing[0], 440) if missing else None
    wanted = Family.IPV4 if requested is None else requested
    if wanted not in available:
        raise RemoteError(440)
    return (Family(wanted),), None
