"""Short answers in plain text."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from twisted.web.resource import Resource


def answer(request: Any, status: HTTPStatus, text: str) -> bytes:
    """What a resource's `render` gives to answer with a text, in ASCII and never cached."""
    body = text.encode("ascii")
    request.setResponseCode(status, status.phrase.encode("ascii"))
    request.setHeader(b"content-type", b"text/plain; charset=us-ascii")
    request.setHeader(b"cache-control", b"no-store")
    request.setHeader(b"content-length", b"%d" % len(body))
    return b"" if request.method == b"HEAD" else body


def refuse_method(request: Any) -> bytes | None:
    """The answer to any method but GET and HEAD; None to those."""
    if request.method in (b"GET", b"HEAD"):
        return None
    request.setHeader(b"allow", b"GET, HEAD")
    return answer(request, HTTPStatus.METHOD_NOT_ALLOWED, "Pages are read with GET.\n")


class PlainText(Resource):
    """The same short text for everybody."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._status = status
        self._text = text

    def render(self, request: Any) -> bytes:
        refusal = refuse_method(request)
        return answer(request, self._status, self._text) if refusal is None else refusal

    def getChild(self, path: bytes, request: Any) -> Resource:
        return NOT_FOUND


NOT_FOUND = PlainText(HTTPStatus.NOT_FOUND, "There is nothing here.\n")
