"""The pages of the site, which are `/healthz` so far. Where TURN is spoken is not decided here but by the listener."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from twisted.web.resource import Resource


class PlainText(Resource):
    """The same short text for everybody, in ASCII and never cached."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._status = status
        self._body = text.encode("ascii")

    def render(self, request: Any) -> bytes:
        status, body = self._status, self._body
        if request.method not in (b"GET", b"HEAD"):
            status, body = HTTPStatus.METHOD_NOT_ALLOWED, b"Pages are read with GET.\n"
            request.setHeader(b"allow", b"GET, HEAD")
        request.setResponseCode(status, status.phrase.encode("ascii"))
        request.setHeader(b"content-type", b"text/plain; charset=us-ascii")
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"content-length", b"%d" % len(body))
        return b"" if request.method == b"HEAD" else body

    def getChild(self, path: bytes, request: Any) -> Resource:
        return NOT_FOUND


NOT_FOUND = PlainText(HTTPStatus.NOT_FOUND, "There is nothing here.\n")


def make_pages() -> Resource:
    """The root of the site; the listener adds where it speaks TURN."""
    root = PlainText(HTTPStatus.NOT_FOUND, "There is nothing here.\n")
    root.putChild(b"healthz", PlainText(HTTPStatus.OK, "ok\n"))
    return root
