"""The demo page and relayd.js in Chromium, driven as a user would, through nginx with TLS to a relay behind it."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Browser
from tests.support.certificate import Certificate
from tests.support.ports import free_ports
from tests.support.reverse_proxies import ReverseProxy, Upstream, start_nginx
from tests.support.servers import PASSWORD, USER, TurnServer, assert_clean_end, start_relayd

CREDENTIALS = f"#username={USER}&credential={PASSWORD}"
DOTS = "document.querySelector('#plot .dots')?.getAttribute('d')"
LOST = "document.querySelector('#plot .gone')?.getAttribute('d')"


@dataclass
class Site:
    """A relay behind nginx."""

    server: TurnServer
    port: int  # of the relay's own listener, without TLS
    mixed: int  # of the one that takes every protocol, with TLS
    proxy: ReverseProxy

    @property
    def url(self) -> str:
        return f"https://localhost:{self.proxy.port}"

    def allocations(self) -> dict[str, int]:
        """How many there are, by app_connection, as the status page has it; those that there are none of left out."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status.json", timeout=10.0) as answer:
            found: dict[str, int] = json.load(answer)["allocations"]
        return {kind: count for kind, count in found.items() if count}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Site]:
    directory, port, mixed = tmp_path_factory.mktemp("demo"), free_ports(), free_ports()
    keys = f"privateKey={certificate.key}:certKey={certificate.certificate}"
    ways = [f"web=tcp:{port}:interface=127.0.0.1", f"any=ssl:{mixed}:interface=127.0.0.1:{keys}"]
    server = start_relayd(directory, certificate, *(f"--listen={way}" for way in ways), "--trust-proxy=127.0.0.1")
    proxy = start_nginx(tmp_path_factory.mktemp("nginx"), Upstream(port, port, certificate))
    yield Site(server, port, mixed, proxy)
    proxy.process.kill()
    assert_clean_end(server)


class Visitor:
    """Somebody in front of Chromium."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    def click(self, identifier: str) -> None:
        """With the mouse, in the middle of it."""
        place = f"document.getElementById('{identifier}').getBoundingClientRect()"
        self.browser.evaluate(f"document.getElementById('{identifier}').scrollIntoView({{block: 'center'}})")
        left, top, width, height = self.browser.evaluate(
            f"(({{x, y, width, height}}) => [x, y, width, height])({place})"
        )
        spot = {"x": left + width / 2, "y": top + height / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.browser.command("Input.dispatchMouseEvent", type=kind, **spot)

    def type(self, identifier: str, text: str) -> None:
        """Click into a field, and write over what it has."""
        self.click(identifier)
        self.browser.evaluate("document.activeElement.select()")
        self.browser.command("Input.insertText", text=text)

    def reads(self, identifier: str) -> str:
        return str(self.browser.evaluate(f"document.getElementById('{identifier}').textContent"))

    def waits_to_read(self, identifier: str, text: str) -> None:
        self.browser.until(f"document.getElementById('{identifier}').textContent.includes({json.dumps(text)})")

    def waits_for_datagrams(self, count: int) -> None:
        """Until so many are back."""
        self.browser.until(f"Number(document.getElementById('received').textContent) >= {count}")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Browser]:
    flag = f"--ignore-certificate-errors-spki-list={certificate.spki_sha256}"
    made = Browser(tmp_path_factory.mktemp("chromium"), flag)
    yield made
    made.close()


@pytest.fixture
def visitor(chromium: Browser) -> Iterator[Visitor]:
    """With an empty page; what was wrong before is forgotten."""
    chromium.events.clear()
    yield Visitor(chromium)
    chromium.open("about:blank")


@pytest.fixture
def echo() -> Iterator[str]:
    """A UDP echo: its address, as it is typed."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind(("127.0.0.1", 0))
    address: tuple[str, int] = opened.getsockname()

    def answer() -> None:
        while True:
            data, peer = opened.recvfrom(65_536)
            if peer == address:
                return
            opened.sendto(data, peer)

    thread = threading.Thread(target=answer)
    thread.start()
    yield f"{address[0]}:{address[1]}"
    opened.sendto(b"", address)
    thread.join()
    opened.close()


def test_a_newcomer(site: Site, visitor: Visitor) -> None:
    """The link that the start prints has it all: one click, and datagrams go out, come back, and move the plot.

    The relay sees `wss`, though TLS ends at nginx; the credentials leave the address bar; the page asks nobody else for
    anything, and breaks its policy nowhere. Stop ends the allocations at once.
    """
    browser = visitor.browser
    browser.open(f"{site.url}/demo{CREDENTIALS}")
    assert browser.evaluate("[location.href, username.value, credential.value]") == [f"{site.url}/demo", USER, PASSWORD]
    visitor.click("button")
    visitor.waits_to_read("state", "running over wss")
    visitor.waits_for_datagrams(15)
    before = browser.until(DOTS)
    visitor.waits_for_datagrams(30)
    browser.until(f"{DOTS} !== {json.dumps(before)}")
    assert browser.evaluate(f"{DOTS}.split('M').length") > 15
    assert visitor.reads("lost") == "0"
    assert float(visitor.reads("median")) > 0
    assert visitor.reads("url") == f"wss://localhost:{site.proxy.port}/turn"
    browser.wait_for(lambda: site.allocations() == {"wss": 2}, "one allocation to send from, and one to echo")
    visitor.click("button")
    visitor.waits_to_read("state", "stopped")
    browser.wait_for(lambda: site.allocations() == {}, "the allocations are gone")
    assert browser.complaints() == []
    asked = [each["request"]["url"] for each in browser.of("Network.requestWillBeSent")]
    assert f"{site.url}/relayd.js" in asked
    assert all(each.startswith(f"{site.url}/") and PASSWORD not in each for each in asked), asked
    opened = {each["url"] for each in browser.of("Network.webSocketCreated")}
    assert opened == {f"wss://localhost:{site.proxy.port}/turn"}


def test_one_port_for_all(site: Site, visitor: Visitor) -> None:
    """Without a proxy, on the port where TURN is spoken too: the browser gets its pages and its WebSockets there."""
    visitor.browser.open(f"https://localhost:{site.mixed}/demo{CREDENTIALS}")
    visitor.click("button")
    visitor.waits_for_datagrams(10)
    assert visitor.reads("lost") == "0"
    assert visitor.reads("state") == "running over wss"
    visitor.browser.wait_for(lambda: site.allocations() == {"wss": 2}, "two allocations")
    visitor.click("button")
    visitor.browser.wait_for(lambda: site.allocations() == {}, "the allocations are gone")
    assert visitor.browser.complaints() == []


def test_an_echo_of_ones_own_choice(site: Site, visitor: Visitor, echo: str) -> None:
    """With credentials and the address of a UDP echo typed in, one connection is enough."""
    visitor.browser.open(f"{site.url}/demo")
    for field, text in (("username", USER), ("credential", PASSWORD), ("peer", echo)):
        visitor.type(field, text)
    visitor.browser.command("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r")
    visitor.waits_for_datagrams(10)
    visitor.browser.wait_for(lambda: site.allocations() == {"wss": 1}, "one allocation")
    assert visitor.reads("echo") == echo
    visitor.click("button")
    visitor.waits_to_read("state", "stopped")
    visitor.browser.wait_for(lambda: site.allocations() == {}, "the allocation is gone")


@pytest.mark.parametrize(
    ("peer", "credential", "said"),
    [
        ("", "wrong", "The relay does not know this user, or the password is wrong."),
        ("10.0.0.1:7", PASSWORD, "The relay refuses to send to 10.0.0.1:7."),
        ("echo.example.org", PASSWORD, "write 192.0.2.1:4000 or [2001:db8::1]:4000"),
    ],
    ids=["password", "peer", "name"],
)
def test_what_went_wrong_is_told(site: Site, visitor: Visitor, peer: str, credential: str, said: str) -> None:
    """In words, with what to do; and nothing is left at the relay."""
    visitor.browser.open(f"{site.url}/demo{CREDENTIALS}")
    visitor.type("peer", peer)
    visitor.type("credential", credential)
    visitor.click("button")
    visitor.waits_to_read("notice", said)
    assert visitor.reads("button") == "Start"
    visitor.browser.wait_for(lambda: site.allocations() == {}, "nothing is left")


def test_an_echo_that_is_silent(site: Site, visitor: Visitor) -> None:
    """Losses are counted and drawn, and after a while the page asks whether there is an echo."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        visitor.browser.open(f"{site.url}/demo{CREDENTIALS}&peer=127.0.0.1:{silent.getsockname()[1]}")
        visitor.click("button")
        visitor.waits_to_read("notice", "Nothing has come back so far.")
        assert int(visitor.reads("lost")) > 0
        assert visitor.browser.evaluate(LOST)
        assert visitor.reads("received") == "0"


def test_the_way_breaks(site: Site, visitor: Visitor, certificate: Certificate, tmp_path: Path) -> None:
    """A page whose web proxy goes away says so, and can be started again."""
    proxy = start_nginx(tmp_path, Upstream(site.port, site.port, certificate))
    visitor.browser.open(f"https://localhost:{proxy.port}/demo{CREDENTIALS}")
    visitor.click("button")
    visitor.waits_for_datagrams(3)
    proxy.process.kill()
    visitor.waits_to_read("state", "failed")
    visitor.waits_to_read("notice", "No connection to wss://localhost:")
    assert visitor.reads("button") == "Start"
    visitor.browser.wait_for(lambda: site.allocations() == {}, "the allocations are gone")


@pytest.mark.parametrize("width", [320, 390, 800])
def test_the_page_fits_a_phone(site: Site, visitor: Visitor, width: int) -> None:
    """Nothing is wider than the screen."""
    visitor.browser.open(f"{site.url}/demo", width, 800, phone=True, dark=width == 390)
    assert visitor.browser.evaluate("document.documentElement.scrollWidth") == width


CONVERSATION = """
(async () => {
  const {MAX_BUFFERED, UnavailableError, connect} = await import("%(elsewhere)s/relayd.js");
  const credentials = {username: "%(user)s", credential: "%(password)s"};
  const outcome = {};
  outcome.refused = await connect("%(elsewhere)s/turn".replace("https", "wss"), credentials).catch(
    (error) => error instanceof UnavailableError);
  const client = await connect("%(here)s/turn".replace("https", "wss"), credentials);
  const socket = await client.allocate();
  await socket.bind("%(echo)s");
  outcome.sizes = [];
  for (const size of [0, 1200, 8000]) {
    const back = new Promise((resolve) => socket.addEventListener("message", resolve, {once: true}));
    socket.send(new Uint8Array(size), "%(echo)s");
    const {data, peer} = await back;
    outcome.sizes.push([data.byteLength, `${peer.address}:${peer.port}`]);
  }
  const low = new Promise((resolve) => socket.addEventListener("bufferedamountlow", resolve));
  const data = new Uint8Array(1000);
  let most = 0;
  while (socket.send(data, "%(echo)s")) most = Math.max(most, socket.bufferedAmount);
  outcome.bounded = most > 0 && most <= MAX_BUFFERED + 1000;
  outcome.dropped = socket.dropped;
  await low;
  outcome.drained = socket.bufferedAmount;
  const closed = new Promise((resolve) => socket.addEventListener("close", resolve));
  socket.close();
  outcome.error = (await closed).error;
  return outcome;
})()
"""


def test_the_module_in_pages_of_others(site: Site, visitor: Visitor, echo: str) -> None:
    """Any page may load relayd.js; whose pages may use the relay is another question, asked when a WebSocket opens.

    In the browser's own WebSocket too, what waits is bounded, and its end is told.
    """
    here = f"https://127.0.0.1:{site.proxy.port}"
    visitor.browser.open(f"{here}/healthz")  # a document without a policy, of another origin than the module
    words = {"elsewhere": site.url, "here": here, "user": USER, "password": PASSWORD, "echo": echo}
    outcome: dict[str, Any] = visitor.browser.evaluate(CONVERSATION % words)
    assert outcome == {
        "refused": True,
        "sizes": [[size, echo] for size in (0, 1200, 8000)],
        "bounded": True,
        "dropped": 1,
        "drained": 0,
        "error": None,
    }
