"""`/status.json`: what the relay does, for the status page and whoever else reads JSON. Never a user name, nor the
address of a client.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

from twisted.web.resource import Resource

from relayd.address import AppConnection
from relayd.interfaces import IListener, IRelayStatus
from relayd.observers.refusals import CODES, Refusal
from relayd.observers.statistics import SAMPLE_INTERVAL, SERIES, Session, Statistics
from relayd.turn.outputs import EndReason
from relayd.web.texts import answer

BUSIEST = 10  # sessions that are listed
_SECOND = re.compile(rb"[0-9]{1,12}")


class StatusDocument(Resource):
    """`?since=N` leaves out the seconds of the history before number N, which whoever polls already has."""

    def __init__(self, status: IRelayStatus) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._status = status

    def render(self, request: Any) -> bytes:
        (since, *others) = request.args.get(b"since", [b"0"])
        if others or not _SECOND.fullmatch(since):
            return answer(request, HTTPStatus.BAD_REQUEST, "since is the number of a second, as history.next was.\n")
        body = json.dumps(document(self._status, int(since)), separators=(",", ":")).encode("ascii")
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"cross-origin-resource-policy", b"same-origin")
        request.setHeader(b"content-length", b"%d" % len(body))
        return b"" if request.method == b"HEAD" else body


def document(status: IRelayStatus, since: int) -> dict[str, Any]:
    """Everything, as docs/operations.rst describes it: fields are added, and neither renamed nor removed."""
    statistics: Statistics = status.statistics
    now = status.seconds()
    history = statistics.history()
    # A number that is yet to come is that of another run.
    counted, allocations = history.since(since if since <= history.seconds else 0)
    return {
        "version": status.version,
        "data_plane": status.data_plane,
        "started": round(status.started, 3),
        "time": round(now, 3),
        "uptime": round(now - status.started, 3),
        "listeners": [_listener(each) for each in status.listeners],
        "relay_addresses": [
            {"bound": each.bound.host, "advertised": each.advertised.host} for each in status.relay_addresses
        ],
        "allocations": {kind.value: statistics.allocations[kind] for kind in AppConnection},
        "allocations_started": {kind.value: statistics.started[kind] for kind in AppConnection},
        "allocations_ended": {
            reason.value: sum(statistics.ended[kind, reason] for kind in AppConnection) for reason in EndReason
        },
        "peer_connections": {kind.value: statistics.peer_connections[kind] for kind in AppConnection},
        "traffic": dict(zip(SERIES, history.totals, strict=True)),
        "refusals": [
            {"reason": reason.value, "code": CODES.get(reason), "count": statistics.refused[reason]}
            for reason in Refusal
        ],
        "sessions": [_session(each, now) for each in statistics.busiest(BUSIEST)],
        "history": {
            "interval": SAMPLE_INTERVAL,
            "next": history.seconds,
            **dict(zip(SERIES, counted, strict=True)),
            "allocations": allocations,
        },
    }


def _listener(listener: IListener) -> dict[str, Any]:
    return {
        "kind": listener.kind,
        "app_connection": listener.app_connection,
        "addresses": [str(address) for address in listener.addresses],
        "description": listener.description,
    }


def _session(session: Session, now: float) -> dict[str, Any]:
    return {
        "session": session.session_id,
        "app_connection": session.app_connection.value,
        "age": round(now - session.started, 1),
        "sent_bytes": session.sent_bytes,
        "received_bytes": session.received_bytes,
        "sent_rate": round(session.sent_rate),
        "received_rate": round(session.received_rate),
    }
