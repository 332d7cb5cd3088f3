"""Promises of the demo page and of what it is made of, as answers on the wire."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from twisted.internet.address import IPv4Address

from relayd.web.demo import OWN, SHARED
from tests.unit.web.site import Site

STRANGER = IPv4Address("TCP", "203.0.113.9", 40000)


@pytest.mark.parametrize("name", ["demo", *SHARED, *OWN])
def test_open_to_all(name: str) -> None:
    """The page and its files are for everybody, whoever may read the operator's; browsers keep them and ask anew."""
    site = Site()
    answer = site.ask(f"/{name}", client=STRANGER, host="relay.example.org")
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-cache"
    again = site.ask(f"/{name}", f"If-None-Match: {answer.headers['etag']}", client=STRANGER, host="relay.example.org")
    assert (again.status, again.body) == (304, b"")
    assert site.ask(f"/{name}/more", client=STRANGER).status == 404
    assert site.ask(f"/{name}", client=STRANGER, method="POST").status == 405


def test_there_without_a_status_page() -> None:
    """An operator who shows nothing of the relay still has the client and the demo."""
    site = Site(status_from=())
    assert [site.ask(f"/{name}").status for name in ("", "demo", "relayd.js", "favicon.svg")] == [404, 200, 200, 200]


def test_the_policy_lets_it_reach_its_own_relay() -> None:
    """WebSockets to the host that served it, in words for browsers to which 'self' is HTTP alone; nothing inline."""
    policy = Site().ask("/demo", host="relay.example.org:8443").headers["content-security-policy"]
    directives = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    assert directives["connect-src"] == "'self' ws://relay.example.org:8443 wss://relay.example.org:8443"
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["style-src"] == "'self'"
    assert "unsafe" not in policy


@pytest.mark.parametrize("host", ["evil; script-src *", "a b", "x" * 256, "a,b", "'unsafe-inline'", "[::1]:8080"])
def test_a_host_cannot_change_the_policy(host: str) -> None:
    """What is no host name is not in the policy, nor an IPv6 address, which policies cannot name."""
    policy = Site().ask("/demo", host=host).headers.get("content-security-policy", "connect-src 'self';")
    assert "connect-src 'self';" in policy
    assert host not in policy


@pytest.mark.parametrize("name", SHARED)
def test_other_sites_may_use_the_client(name: str) -> None:
    """relayd.js is loaded by pages of any site; the page itself and its files are not."""
    headers = Site().ask(f"/{name}").headers
    assert headers["access-control-allow-origin"] == "*"
    assert headers["cross-origin-resource-policy"] == "cross-origin"
    assert headers["content-type"] == "text/javascript; charset=utf-8"
    assert "access-control-allow-origin" not in Site().ask("/demo.js").headers


def test_nothing_inline_and_nothing_from_elsewhere() -> None:
    """The page has no script, style or handler of its own between its tags, and asks for files of the site only."""
    page = (files("relayd.web") / "static" / "demo.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", page)
    assert not re.search(r"<(input|select|button)[^>]*\sname=", page)  # a form without script would put them into a URL
    asked = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert set(asked) <= {*SHARED, *OWN}
