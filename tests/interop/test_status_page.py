"""The status page in Chromium, on a relay that has something to do: it is alive, and keeps to its own policy."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import wire
from tests.support.browser import Browser
from tests.support.certificate import Certificate
from tests.support.ports import free_ports
from tests.support.servers import PASSWORD, USER, TurnServer, assert_clean_end, start_relayd

CURVE = "document.querySelector('#traffic .sent .curve')?.getAttribute('points')"
NUMBER = 0x4000
PIECE = 1000  # bytes
PAUSE = 0.005  # seconds between two of them


@pytest.fixture
def site(tmp_path: Path, certificate: Certificate) -> Iterator[tuple[TurnServer, str]]:
    """A relay with a web site, and the address of that."""
    port = free_ports()
    server = start_relayd(tmp_path, certificate, f"--listen=web=tcp:{port}:interface=127.0.0.1")
    yield server, f"http://127.0.0.1:{port}/"
    assert_clean_end(server)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    made = Browser(tmp_path)
    yield made
    made.close()


class Traffic:
    """A client that sends all the time, from a thread of its own."""

    def __init__(self, port: int, peer: socket.socket) -> None:
        self._client = wire.StrangeClient(("127.0.0.1", port), USER, PASSWORD)
        self._client.allocate()
        assert self._client.bind_channel(NUMBER, peer.getsockname()).kind == wire.SUCCESS
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        while not self._ending.wait(PAUSE):
            self._client.send(wire.channel_data(NUMBER, bytes(PIECE)))

    def end(self) -> None:
        """Stop sending, and delete the allocation."""
        self._ending.set()
        self._thread.join()
        with self._client:
            assert self._client.refresh(0).kind == wire.SUCCESS


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """Somebody to send to, who does not read."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        yield opened


def text(browser: Browser, identifier: str) -> str:
    return str(browser.evaluate(f"document.getElementById('{identifier}').textContent"))


def test_the_page_is_live(site: tuple[TurnServer, str], browser: Browser, peer: socket.socket) -> None:
    """Without a reload it shows an allocation come, its traffic move the plot, and its end.

    It asks nobody but the relay, and breaks its own policy nowhere.
    """
    server, url = site
    browser.open(url)
    browser.until("document.getElementById('state').textContent === 'live'")
    assert text(browser, "now-allocations") == "0"
    traffic = Traffic(server.plain, peer)
    try:
        browser.until("document.getElementById('now-allocations').textContent === '1'")
        assert "udp" in browser.until("document.querySelector('#sessions tbody tr')?.textContent")
        browser.until("document.getElementById('unit-sent').textContent === 'Mbit/s'")
        before = browser.until(CURVE)
        after = browser.until(f"{CURVE} !== {json.dumps(before)} && {CURVE}")
        heights = [float(point.split(",")[1]) for point in after.split()]
        assert max(heights) - min(heights) > 50, "the plot is flat"
    finally:
        traffic.end()
    browser.until("document.getElementById('now-allocations').textContent === '0'")
    assert browser.evaluate("document.getElementById('no-sessions').hidden") is False
    assert browser.complaints() == []
    asked = {each["request"]["url"] for each in browser.of("Network.requestWillBeSent")}
    assert f"{url}status.js" in asked
    assert all(each.startswith(url) for each in asked), asked


def test_the_page_outlives_the_relay(
    site: tuple[TurnServer, str], browser: Browser, certificate: Certificate, tmp_path: Path
) -> None:
    """It says that the relay is gone, and when another one is there it goes on by itself, with that one's numbers."""
    server, url = site
    browser.open(url)
    browser.until("document.getElementById('state').textContent === 'live'")
    browser.until(f"{CURVE}?.split(' ').length > 6")
    assert_clean_end(server)
    browser.until("document.getElementById('state').className === 'state lost'")
    port = url.rstrip("/").rpartition(":")[2]
    successor = start_relayd(tmp_path, certificate, f"--listen=web=tcp:{port}:interface=127.0.0.1")
    browser.until("document.getElementById('state').textContent === 'live'")
    started = browser.evaluate("fetch('status.json').then(answer => answer.json()).then(status => status.history.next)")
    shown = browser.evaluate(f"({CURVE} ?? '').split(' ').length")
    assert abs(shown - started) <= 3, "the plot shows seconds of the relay before"
    assert_clean_end(successor)


def test_one_question_at_a_time(site: tuple[TurnServer, str], browser: Browser) -> None:
    """However often somebody comes back to the page while an answer is under way, no second of it is counted twice."""
    browser.open(site[1])
    browser.until("document.getElementById('state').textContent === 'live'")
    asked = browser.evaluate(
        "(() => { let asked = 0; const real = fetch;"
        " window.fetch = (...words) => { asked += 1; return real(...words); };"
        " for (let at = 0; at < 20; at++) document.dispatchEvent(new Event('visibilitychange'));"
        " return asked; })()"
    )
    assert asked <= 1
    browser.until(f"{CURVE}?.split(' ').length > 6")


def test_the_policy_is_in_force(site: tuple[TurnServer, str], browser: Browser) -> None:
    """What somebody might smuggle into the page (a script, a style, a picture from elsewhere) the browser refuses."""
    browser.open(site[1])
    browser.until("document.getElementById('state').textContent === 'live'")
    smuggled = {
        "script": "textContent: 'window.smuggled = 1'",
        "style": "textContent: 'body { display: none }'",
        "img": "src: 'http://127.0.0.1:1/x.png'",
    }
    for tag, field in smuggled.items():
        browser.evaluate(f"void document.body.append(Object.assign(document.createElement('{tag}'), {{{field}}}))")
    browser.wait_for(lambda: len(browser.complaints()) >= len(smuggled), "a complaint about each")
    assert all("Content Security Policy" in each for each in browser.complaints())
    assert browser.evaluate("window.smuggled") is None


def test_numbers_are_for_people(site: tuple[TurnServer, str], browser: Browser) -> None:
    """Three digits and a unit, from nothing to terabits; the axis of a plot ends at a round number above the curve."""
    browser.open(site[1])
    values = [0, 0.5, 10, 99.97, 999.4, 999.6, 1000, 12_345, 999_960, 1e6, 2.5e9, 1e13]
    module = "import('./plot.js').then(plot => {}.map(value => plot.{}))"
    assert browser.evaluate(module.format(values, "bits(value).join(' ')")) == [
        *("0 bit/s", "1 bit/s", "10 bit/s", "100 bit/s", "999 bit/s", "1.00 kbit/s", "1.00 kbit/s", "12.3 kbit/s"),
        *("1.00 Mbit/s", "1.00 Mbit/s", "2.50 Gbit/s", "10.0 Tbit/s"),
    ]
    tops = browser.evaluate(module.format(values, "ceiling(value)"))
    assert all(quarter == int(quarter) for top in tops for quarter in (top / 4, top / 2))
    assert tops == [4, 4, 12, 100, 1000, 1000, 1000, 16_000, 1_000_000, 1_000_000, 3_200_000_000, 10**13]


@pytest.mark.parametrize("width", [320, 390, 800])
def test_the_page_fits_a_phone(site: tuple[TurnServer, str], browser: Browser, width: int) -> None:
    """Nothing is wider than the screen, in either colour scheme."""
    for dark in (False, True):
        browser.open(site[1], width, 800, phone=True, dark=dark)
        browser.until("document.getElementById('state').textContent === 'live'")
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate("getComputedStyle(document.documentElement).backgroundColor") == (
            "rgb(14, 19, 27)" if dark else "rgb(244, 246, 249)"
        )
