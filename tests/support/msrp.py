"""MSRP (RFC 4975) without transports: SEND in chunks, their reassembly, responses and success reports.

Small, made for tests: no relays of RFC 4976, no nicknames, and nobody is asked who they are.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from twisted.internet.defer import Deferred, DeferredQueue

MAX_FIXED_CHUNK = 2048  # bytes: whatever is longer has to be interruptible (section 5.1)
MAX_HEAD = 4096  # bytes in a start line and headers, far above what is sent here
WHOLE, MORE, ABORTED = "$", "+", "#"  # continuation flags (section 7.1)

_START = re.compile(rb"MSRP ([A-Za-z0-9][A-Za-z0-9.+%=-]{3,31}) ([A-Z]+|[0-9]{3}(?: [^\r\n]*)?)")
_RANGE = re.compile(r"([0-9]+)-([0-9]+|\*)/([0-9]+|\*)")


class MsrpError(ValueError):
    """The bytes are no MSRP."""


@dataclass(frozen=True)
class Chunk:
    """A request or a response. `start` is the method, or the code and its comment."""

    transaction: str
    start: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None = None
    flag: str = WHOLE

    @property
    def is_response(self) -> bool:
        return self.start[0].isdigit()

    def get(self, name: str, default: str = "") -> str:
        """A header."""
        return next((value for key, value in self.headers if key == name), default)


def encode(chunk: Chunk) -> bytes:
    """Start line, headers, body, end line (section 9)."""
    lines = [f"MSRP {chunk.transaction} {chunk.start}", *(f"{name}: {value}" for name, value in chunk.headers)]
    head = "".join(f"{line}\r\n" for line in lines).encode()
    body = b"" if chunk.body is None else b"\r\n" + chunk.body + b"\r\n"
    return head + body + f"-------{chunk.transaction}{chunk.flag}\r\n".encode()


class ChunkSplitter:
    """Finds chunks in a stream, by the end line that has the transaction of the start line."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._searched = 0  # bytes in which there is no end line

    def receive(self, data: bytes) -> Iterator[Chunk]:
        """The chunks that are whole now. Raises `MsrpError`, after which there is no going on."""
        self._waiting += data
        while (chunk := self._next()) is not None:
            yield chunk

    def _next(self) -> Chunk | None:
        first = self._waiting.find(b"\r\n")
        if first < 0:
            if len(self._waiting) > MAX_HEAD:
                raise MsrpError("a start line without end")
            return None
        started = _START.fullmatch(self._waiting, 0, first)
        if started is None:
            raise MsrpError(f"no start line: {bytes(self._waiting[:80])!r}")
        transaction, start = started[1], started[2].decode()
        end_line = re.compile(rb"\r\n-------" + re.escape(transaction) + rb"([$+#])\r\n")
        end = end_line.search(self._waiting, max(first, self._searched))
        if end is None:
            self._searched = max(first, len(self._waiting) - len(transaction) - 12)  # it may have begun
            return None
        head, blank, body = bytes(self._waiting[first + 2 : end.start()]).partition(b"\r\n\r\n")
        flag = end[1].decode()
        del self._waiting[: end.end()]
        self._searched = 0
        headers = tuple(_header(line) for line in head.decode().split("\r\n"))
        return Chunk(transaction.decode(), start, headers, body if blank else None, flag)


def abort(chunk: Chunk) -> Chunk:
    """That chunk as the end of a message that is given up."""
    return replace(chunk, flag=ABORTED)


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(": ")
    if not colon:
        raise MsrpError(f"no header: {line!r}")
    return name, value


@dataclass(frozen=True)
class Content:
    """A whole message."""

    number: str
    type: str
    body: bytes


class Assembly:
    """The pieces of a message, in whatever order they come (section 7.3.1)."""

    def __init__(self) -> None:
        self._pieces: dict[int, bytes] = {}  # by the number of their first byte, which counts from 1
        self._size: int | None = None

    def add(self, chunk: Chunk) -> bytes | None:
        """The body, once there is all of it. Raises `MsrpError`."""
        body = chunk.body or b""
        found = _RANGE.fullmatch(chunk.get("Byte-Range", f"1-{len(body)}/*"))
        if found is None:
            raise MsrpError(f"Byte-Range: {chunk.get('Byte-Range')}")
        first = int(found[1])
        last = first + len(body) - 1
        if found[2] != "*" and int(found[2]) != last:
            raise MsrpError(f"{len(body)} bytes in the range {found[0]}")
        self._pieces[first] = body
        if chunk.flag == WHOLE:
            self._size = last
            if found[3] not in ("*", str(last)):
                raise MsrpError(f"the last byte is {last} of {found[3]}")
        return self._whole()

    def _whole(self) -> bytes | None:
        whole = b""
        for first in sorted(self._pieces):
            if first != len(whole) + 1:
                return None
            whole += self._pieces[first]
        return whole if len(whole) == self._size else None


class Session:
    """One end of a session over a connection. `contents` gets whole messages, `reports` Message-IDs that arrived."""

    def __init__(self, own: str, theirs: str, write: Callable[[bytes], None]) -> None:
        """`own` and `theirs` are the MSRP URIs of the two ends."""
        self._own = own
        self._theirs = theirs
        self._write = write
        self._splitter = ChunkSplitter()
        self._assemblies: dict[str, Assembly] = {}
        self._waiting: dict[str, Deferred[int]] = {}
        self.contents: DeferredQueue[Content] = DeferredQueue()
        self.reports: DeferredQueue[tuple[str, str]] = DeferredQueue()
        self.aborted: list[str] = []
        self.chunks = 0  # that came with content

    # --- sending ---

    def chunks_of(
        self, content: Content, size: int = MAX_FIXED_CHUNK, *, reported: bool = False, answered: bool = True
    ) -> Iterator[Chunk]:
        """SEND requests with `size` bytes each, the last of them with what is left; one where there is nothing.

        A success report is asked for with `reported`; without `answered` there are no responses.
        """
        total = len(content.body)
        for at in range(0, max(total, 1), size):
            body = content.body[at : at + size]
            last = str(at + len(body)) if len(body) <= MAX_FIXED_CHUNK else "*"
            headers = [("Message-ID", content.number)]
            if reported:
                headers.append(("Success-Report", "yes"))
            if not answered:
                headers.append(("Failure-Report", "no"))
            headers += [("Byte-Range", f"{at + 1}-{last}/{total}"), ("Content-Type", content.type)]
            yield self._request("SEND", headers, body, WHOLE if at + len(body) == total else MORE)

    def transmit(self, chunk: Chunk) -> Deferred[int]:
        """Send it; the code of the response."""
        answer: Deferred[int] = Deferred()
        self._waiting[chunk.transaction] = answer
        self._write(encode(chunk))
        return answer

    def _request(self, method: str, headers: list[tuple[str, str]], body: bytes | None, flag: str = WHOLE) -> Chunk:
        while True:
            transaction = secrets.token_hex(8)  # 64 random bits, and not in the body (section 7.1)
            if body is None or transaction.encode() not in body:
                break
        paths = [("To-Path", self._theirs), ("From-Path", self._own)]
        return Chunk(transaction, method, (*paths, *headers), body, flag)

    # --- receiving ---

    def received(self, data: bytes) -> None:
        """Bytes from the connection. Raises `MsrpError`."""
        for chunk in self._splitter.receive(data):
            if chunk.is_response:
                self._waiting.pop(chunk.transaction).callback(int(chunk.start[:3]))
            elif (chunk.get("To-Path"), chunk.get("From-Path")) != (self._own, self._theirs):
                self._respond(chunk, "481 No Such Session")
            elif chunk.start == "REPORT":  # nobody answers that
                self.reports.put((chunk.get("Message-ID"), chunk.get("Status")))
            elif chunk.start == "SEND":
                if chunk.get("Failure-Report", "yes") == "yes":
                    self._respond(chunk, "200 OK")
                self._take(chunk)
            else:
                self._respond(chunk, "501 Unknown Method")

    def _respond(self, chunk: Chunk, status: str) -> None:
        paths = (("To-Path", chunk.get("From-Path")), ("From-Path", self._own))
        self._write(encode(Chunk(chunk.transaction, status, paths)))

    def _take(self, chunk: Chunk) -> None:
        if chunk.body is None:  # only shows who is there (section 5.4)
            return
        self.chunks += 1
        number = chunk.get("Message-ID")
        if chunk.flag == ABORTED:
            self._assemblies.pop(number, None)
            self.aborted.append(number)
            return
        body = self._assemblies.setdefault(number, Assembly()).add(chunk)
        if body is None:
            return
        del self._assemblies[number]
        if chunk.get("Success-Report") == "yes":
            self._report(number, len(body))
        self.contents.put(Content(number, chunk.get("Content-Type"), body))

    def _report(self, number: str, size: int) -> None:
        headers = [("Message-ID", number), ("Byte-Range", f"1-{size}/{size}"), ("Status", "000 200 OK")]
        self._write(encode(self._request("REPORT", headers, None)))
