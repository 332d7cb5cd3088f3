"""The head of an HTTP response, as a client reads it before the connection becomes something else. Does no I/O.

Both an HTTP proxy and the server of a WebSocket answer with one. What they say is a stranger's word: it is bounded,
and only printable ASCII of it gets into an error.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from relayd.client.transports.uri import bracketed
from relayd.errors import ConfigurationError, DecodeError

MAX_HEAD = 32_768  # bytes of the head: what proxies add of cookies and of challenges stays below
MAX_REASON = 80  # characters of somebody else's words that we repeat

_BEGINNING = b"HTTP/1."
_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(r"HTTP/1\.[01] ([1-9][0-9]{2})(?: (.*))?")


class Response(NamedTuple):
    """`headers` keep their order and repeats; their names are in lower case. `reason` is fit for an error."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]

    def values(self, name: str) -> list[str]:
        """What the headers of that (lower case) name say."""
        return [value for key, value in self.headers if key == name]

    def tokens(self, name: str) -> list[str]:
        """The members of a header that is a list, in lower case."""
        return [token.strip().lower() for value in self.values(name) for token in value.split(",")]

    def __str__(self) -> str:
        return f"{self.status} {self.reason}".rstrip()


class ResponseReader:
    """Gathers bytes until there is a whole head. For one response."""

    def __init__(self) -> None:
        self._data = b""

    def receive(self, data: bytes) -> tuple[Response, bytes] | None:
        """More bytes; the response and what came behind its head, once that is whole.

        Interim responses (RFC 9110 section 15.2) are passed over. Raises DecodeError for what is not HTTP.
        """
        self._data += data
        while True:
            beginning = self._data[: len(_BEGINNING)]
            if not _BEGINNING.startswith(beginning):
                raise DecodeError("not HTTP")
            end = _END.search(self._data, 0, MAX_HEAD)
            if end is None:
                if len(self._data) > MAX_HEAD:
                    raise DecodeError("a head without end")
                return None
            head, self._data = self._data[: end.start()], self._data[end.end() :]
            response = _parse(head.decode("latin-1"))
            if response.status >= 200 or response.status == 101:
                return response, self._data


def _parse(head: str) -> Response:
    first, *lines = head.split("\n")
    status = _STATUS.fullmatch(first.removesuffix("\r"))
    if status is None:
        raise DecodeError("not HTTP")
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise DecodeError("not HTTP")
        headers.append((name.strip().lower(), value.strip()))
    return Response(int(status[1]), printable(status[2] or ""), tuple(headers))


def printable(text: str) -> str:
    """A stranger's words as an error may repeat them."""
    return "".join(each for each in text if each.isascii() and each.isprintable())[:MAX_REASON].strip()


def authority(host: str, port: int) -> str:
    """Host and port as a request names them. Raises ConfigurationError for a host that no request can name."""
    if ":" in host:
        return f"{bracketed(host)}:{port}"
    try:
        name = host.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if not name or not re.fullmatch(r"[\x21-\x7e]+", name):
        raise ConfigurationError(f"{host!r} is not the name of a host")
    return f"{name}:{port}"
