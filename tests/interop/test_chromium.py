"""A page in Chromium, whose two peer connections may only use relayed candidates, moves data through relayd.

The page reports by itself to a small web server of the test, so no driver and no debugging port is needed.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import FLAGS
from tests.support.process import Process
from tests.support.servers import PASSWORD, USER, TurnServer
from tests.support.tools import require

PAGE = Path(__file__).with_name("relayed_peers.html")
PATIENCE = 60.0  # seconds from starting the browser to the page's report; it takes three to six


class _Request(BaseHTTPRequestHandler):
    """Serves the page, and takes its report."""

    def __init__(self, outcomes: queue.SimpleQueue[dict[str, Any]], *arguments: Any) -> None:
        self._outcomes = outcomes
        super().__init__(*arguments)

    def do_GET(self) -> None:
        found = urllib.parse.urlsplit(self.path).path == "/"
        self._reply(200 if found else 404, PAGE.read_bytes() if found else b"")

    def do_POST(self) -> None:
        report = self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(204, b"")
        self._outcomes.put(json.loads(report))

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def reports() -> Iterator[tuple[int, queue.SimpleQueue[dict[str, Any]]]]:
    """A web server on loopback: its port, and where the page's reports arrive."""
    outcomes: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    site = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Request, outcomes))
    thread = threading.Thread(target=site.serve_forever, daemon=True)
    thread.start()
    yield site.server_port, outcomes
    site.shutdown()
    site.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("scheme", "transport"), [("turn", "udp"), ("turn", "tcp"), ("turns", "tcp")], ids=["udp", "tcp", "tls"]
)
def test_data_channel_over_the_relay(
    server: TurnServer,
    reports: tuple[int, queue.SimpleQueue[dict[str, Any]]],
    tmp_path: Path,
    scheme: str,
    transport: str,
    still_serves: None,
) -> None:
    """Every message of a data channel comes back whole, and both ends of the selected pair are relayed candidates."""
    chromium = require("chromium")
    port, outcomes = reports
    turn_port = server.secure if scheme == "turns" else server.plain
    ice = {"urls": f"{scheme}:127.0.0.1:{turn_port}?transport={transport}", "username": USER, "credential": PASSWORD}
    flags = [f"--user-data-dir={tmp_path / 'profile'}"]
    flags += [f"--ignore-certificate-errors-spki-list={server.certificate.spki_sha256}"]
    page = f"http://127.0.0.1:{port}/?" + urllib.parse.urlencode({"servers": json.dumps([ice])})
    home = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "DBUS_SESSION_BUS_ADDRESS": os.devnull}
    browser = Process([chromium, *FLAGS, *flags, page], tmp_path, home)
    try:
        outcome = outcomes.get(timeout=PATIENCE)
    except queue.Empty:
        pytest.fail(f"no report from the page; Chromium printed:\n{browser.output}")
    finally:
        browser.kill()
    assert "error" not in outcome, outcome
    assert outcome["intact"], outcome
    assert outcome["count"] == 50, outcome
    relayed = {"local": "relay", "remote": "relay", "relayProtocol": "tls" if scheme == "turns" else transport}
    assert outcome["pairs"] == [relayed, relayed]
