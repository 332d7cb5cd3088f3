"""Files that come with relayd and are served as they are: pages, scripts, styles, pictures. Read once, at the start."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import Any

from twisted.web.http import CACHED
from twisted.web.resource import Resource

from relayd.web.texts import NOT_FOUND, refuse_method

TYPES = {
    "css": b"text/css; charset=utf-8",
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}

POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of a page: its own files and nobody else's, and nothing written between its tags."""


class StaticFile(Resource):
    """One file of `relayd/web/static`. Browsers keep it and ask whether it has changed."""

    def __init__(self, name: str, policy: bytes = POLICY, *, is_shared: bool = False) -> None:
        """`policy` is the Content-Security-Policy, which is sent with whatever kind of file it is.

        `is_shared` is whether pages of other sites may use the file.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._body = (files("relayd.web") / "static" / name).read_bytes()
        self._type = TYPES[name.rpartition(".")[2]]
        self._tag = b'"%s"' % sha256(self._body).hexdigest()[:20].encode("ascii")
        self._policy = policy
        self._is_shared = is_shared

    def render(self, request: Any) -> bytes:
        refusal = refuse_method(request)
        if refusal is not None:
            return refusal
        headers = {
            b"content-type": self._type,
            b"content-security-policy": self._policy,
            b"referrer-policy": b"no-referrer",
            b"cross-origin-resource-policy": b"cross-origin" if self._is_shared else b"same-origin",
            b"cache-control": b"no-cache",
        }
        if self._is_shared:
            headers[b"access-control-allow-origin"] = b"*"  # modules are loaded with CORS
        for name, value in headers.items():
            request.setHeader(name, value)
        if request.setETag(self._tag) is CACHED:
            return b""
        request.setHeader(b"content-length", b"%d" % len(self._body))
        return b"" if request.method == b"HEAD" else self._body

    def getChild(self, path: bytes, request: Any) -> Resource:
        return NOT_FOUND
