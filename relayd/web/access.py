"""Who may read the pages for the operator: where a request comes from, and under which name it asked.

Somebody on this host is let in unless configured otherwise. Two things could pass for that. A proxy on this host has
its own address on every request that it passes on: such requests count as their client's if the listener could find
out, and as nobody's if not. And a page of the web can point its own host name at 127.0.0.1 (DNS rebinding), so that
the browser on this host reads ours for it: then the Host header has that name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from twisted.web.resource import Resource

from relayd.turn.peer_rules import Network, is_in
from relayd.web.texts import NOT_FOUND, answer, refuse_method

_LOCAL_NAMES = re.compile(r"(localhost|[a-z0-9-]+\.localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.ASCII)

_UNKNOWN = (
    "This page is for the operator of the relay.\n"
    "The request came through a proxy that does not say who asks, or that is not trusted to say so.\n"
)
_STRANGER = (
    "This page is for the operator of the relay.\n"
    "{host} is not let in. If it should be, start the relay with --status-from {host}\n"
)
_OTHER_NAME = (
    "This page is for the operator of the relay.\n"
    "From this host it is read under the name localhost, 127.0.0.1 or [::1] only.\n"
)


class ForOperator(Resource):
    """A page that is shown to clients in `networks`; others are told why they are not let in."""

    def __init__(self, networks: Sequence[Network], page: Resource) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._networks = networks
        self._page = page

    def render(self, request: Any) -> Any:
        refusal = refuse_method(request)
        if refusal is not None:
            return refusal
        why = self._why_not(request)
        return self._page.render(request) if why is None else answer(request, HTTPStatus.FORBIDDEN, why)

    def getChild(self, path: bytes, request: Any) -> Resource:
        return NOT_FOUND

    def _why_not(self, request: Any) -> str | None:
        """The text of a refusal. `request` is a `relayd.listeners.http.WebRequest`."""
        client = request.client_address
        if client is None:
            return _UNKNOWN
        if not is_in(client, self._networks):
            return _STRANGER.format(host=client.host)
        hosts = request.requestHeaders.getRawHeaders("host") or [""]
        if client.is_loopback and not (len(hosts) == 1 and _LOCAL_NAMES.fullmatch(hosts[0].strip().lower())):
            return _OTHER_NAME
        return None
