"""The demo page, and the JavaScript client that it is made with: files for everybody, with no secret in them."""

from __future__ import annotations

import re
from typing import Any

from twisted.web.resource import Resource

from relayd.web.files import POLICY, StaticFile

SHARED = ("relayd.js", "stun.js")  # what pages of other sites may use, too
OWN = ("demo.css", "demo.js", "demo_plot.js", "round_trips.js", "svg.js", "favicon.svg")

# Of an HTTP request, as far as a policy can name it, and nothing that ends a directive. IPv6 addresses it cannot name.
_HOST = re.compile(rb"[A-Za-z0-9.-]{1,255}(:[0-9]{1,5})?")


def add_demo(root: Resource) -> None:
    """Put the page and its files under the root of a site."""
    root.putChild(b"demo", DemoPage())
    for name in (*SHARED, *OWN):
        root.putChild(name.encode("ascii"), StaticFile(name, is_shared=name in SHARED))


class DemoPage(StaticFile):
    """The page: it may open WebSockets to where it came from."""

    def __init__(self) -> None:
        super().__init__("demo.html")

    def render(self, request: Any) -> bytes:
        body = super().render(request)
        hosts = request.requestHeaders.getRawHeaders(b"host") or []
        if len(hosts) == 1 and _HOST.fullmatch(hosts[0]):
            # To some browsers 'self' means http: and https: alone.
            own = b"connect-src 'self' ws://%b wss://%b" % (hosts[0], hosts[0])
            request.setHeader(b"content-security-policy", POLICY.replace(b"connect-src 'self'", own))
        return body
