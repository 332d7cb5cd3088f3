"""What is printed at the start."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from relayd.address import TransportAddress
from relayd.config import RelayAddress
from relayd.launch.announcement import READY, announcement, status_urls, turn_uris, websocket_urls
from relayd.launch.defaults import OneUser
from relayd.turn.peer_rules import parse_cidr


@dataclass
class FakeListener:
    app_connection: str
    addresses: list[TransportAddress]
    kind: str = "turn"
    description: str = field(default="a way in")
    behind_proxy: bool = False


def listener(app_connection: str, *hosts: str) -> Any:
    addresses = [TransportAddress.parse(host, 3478) for host in hosts]
    return FakeListener(app_connection, addresses, "web" if app_connection.startswith("w") else "turn")


def relay(bound: str, advertised: str) -> RelayAddress:
    return RelayAddress(TransportAddress.parse(bound, 0), TransportAddress.parse(advertised, 0))


@pytest.mark.parametrize(
    ("app_connection", "hosts", "uris"),
    [
        ("udp", ["127.0.0.1"], ["turn:127.0.0.1:3478?transport=udp"]),
        ("tcp", ["::1"], ["turn:[::1]:3478?transport=tcp"]),
        ("tls", ["127.0.0.1"], ["turns:127.0.0.1:3478?transport=tcp"]),
        ("dtls", ["127.0.0.1"], ["turns:127.0.0.1:3478?transport=udp"]),
        ("udp", ["0.0.0.0"], ["turn:198.51.100.7:3478?transport=udp"]),
        ("udp", ["::"], []),
        ("udp", ["127.0.0.1", "127.0.0.2"], ["turn:127.0.0.1:3478?transport=udp"]),
        ("udp", ["192.0.2.1", "10.0.0.5", "127.0.0.1"], ["turn:198.51.100.7:3478?transport=udp"]),
        ("tcp", [], []),
        ("ws", ["127.0.0.1"], []),
    ],
)
def test_uris_are_what_clients_write(app_connection: str, hosts: list[str], uris: list[str]) -> None:
    """RFC 7065 URIs with an address that a client can reach: if there are several, the one that it will be told."""
    assert turn_uris([listener(app_connection, *hosts)], [relay("10.0.0.5", "198.51.100.7")]) == uris


@pytest.mark.parametrize(
    ("app_connection", "hosts", "urls"),
    [
        ("ws", ["127.0.0.1"], ["ws://127.0.0.1:3478/turn"]),
        ("wss", ["::1"], ["wss://[::1]:3478/turn"]),
        ("wss", ["0.0.0.0"], ["wss://198.51.100.7:3478/turn"]),
        ("tcp", ["127.0.0.1"], []),
        ("ws", [], []),
    ],
)
def test_websocket_urls_are_apart(app_connection: str, hosts: list[str], urls: list[str]) -> None:
    """WebSocket URLs are printed for those who open one, and not among the `iceServers`, which refuse them."""
    listeners, relays = [listener(app_connection, *hosts)], [relay("10.0.0.5", "198.51.100.7")]
    assert websocket_urls(listeners, relays) == urls
    lines = announcement(listeners, relays, "portable", False, OneUser())
    assert [line for line in lines if urls and urls[0] in line] == [
        f"relayd: WebSocket clients reach it at {url}" for url in urls
    ]


@pytest.mark.parametrize(("app_connection", "scheme", "web"), [("tcp", "turn", "ws"), ("tls", "turns", "wss")])
def test_one_port_for_all(app_connection: str, scheme: str, web: str) -> None:
    """A port that takes several protocols is announced for each kind of client."""
    listeners, relays = [listener(app_connection, "127.0.0.1")], [relay("127.0.0.1", "127.0.0.1")]
    listeners[0].kind = "any"
    assert turn_uris(listeners, relays) == [f"{scheme}:127.0.0.1:3478?transport=tcp"]
    assert websocket_urls(listeners, relays) == [f"{web}://127.0.0.1:3478/turn"]


@pytest.mark.parametrize(
    ("app_connection", "hosts", "status_from", "urls"),
    [
        ("ws", ["127.0.0.1"], ["127.0.0.0/8"], ["http://127.0.0.1:3478/"]),
        ("wss", ["::"], ["127.0.0.0/8", "::1"], ["https://[::1]:3478/"]),
        ("ws", ["0.0.0.0"], ["127.0.0.0/8"], ["http://127.0.0.1:3478/"]),
        ("ws", ["0.0.0.0"], ["192.0.2.0/24"], ["http://198.51.100.7:3478/"]),
        ("ws", ["10.0.0.5"], ["192.0.2.0/24"], ["http://198.51.100.7:3478/"]),
        ("ws", ["127.0.0.1"], [], []),
        ("ws", [], ["127.0.0.0/8"], []),
    ],
)
def test_status_page_is_printed(app_connection: str, hosts: list[str], status_from: list[str], urls: list[str]) -> None:
    """With the address under which somebody who is let in reaches it: from this host, if that is allowed."""
    site = FakeListener(app_connection, [TransportAddress.parse(host, 3478) for host in hosts], "web")
    listeners: Any = [listener("udp", "127.0.0.1"), site]
    relays, networks = [relay("10.0.0.5", "198.51.100.7")], [parse_cidr(each) for each in status_from]
    assert status_urls(listeners, relays, networks) == urls
    lines = announcement(listeners, relays, "portable", False, None, networks)
    assert [line for line in lines if "status page" in line] == [f"relayd: status page at {url}" for url in urls]


@pytest.mark.parametrize(
    ("app_connection", "hosts", "site"),
    [
        ("ws", ["127.0.0.1"], "http://127.0.0.1:3478"),
        ("ws", ["0.0.0.0"], "http://127.0.0.1:3478"),
        ("wss", ["10.0.0.5"], "https://198.51.100.7:3478"),
        ("ws", ["10.0.0.5"], None),  # browsers give its keys to no page without TLS
        ("ws", [], None),
    ],
)
def test_the_demo_is_printed_for_the_one_user(app_connection: str, hosts: list[str], site: str | None) -> None:
    """Beside the user for this run there is a link that has it all; users of a database have none printed."""
    addresses = [TransportAddress.parse(host, 3478) for host in hosts]
    listeners: Any = [listener("udp", "127.0.0.1"), FakeListener(app_connection, addresses, "web")]
    relays, user = [relay("10.0.0.5", "198.51.100.7")], OneUser()
    lines = announcement(listeners, relays, "portable", False, user)
    link = f"{site}/demo#username={user.username}&credential={user.credential}"
    assert [line for line in lines if "/demo" in line] == ([f"relayd: see it relay at {link}"] if site else [])
    assert not [line for line in announcement(listeners, relays, "portable", False, None) if "/demo" in line]


def test_one_user_is_printed_as_ice_servers_entry() -> None:
    """One line is JSON that a browser takes as it is; the last line says that it is ready."""
    user = OneUser()
    lines = announcement([listener("udp", "127.0.0.1")], [relay("127.0.0.1", "127.0.0.1")], "portable", True, user)
    entry = json.loads(next(line for line in lines if line.startswith("{")))
    assert entry == {
        "urls": ["turn:127.0.0.1:3478?transport=udp"],
        "username": user.username,
        "credential": user.credential,
    }
    assert lines[-1] == READY
    assert any("loopback may be reached" in line for line in lines)


def test_private_relay_address_is_pointed_out() -> None:
    """Clients outside cannot use a private relayed address: the option that helps is named."""

    def hints(advertised: str) -> list[str]:
        lines = announcement([listener("udp", "10.0.0.5")], [relay("10.0.0.5", advertised)], "portable", False, None)
        return [line for line in lines if "--relay-address 10.0.0.5=" in line]

    assert len(hints("10.0.0.5")) == 1
    assert hints("8.8.8.8") == []


def test_what_only_proxies_reach() -> None:
    """No client is sent to a port that takes nobody without a PROXY header, and the operator is told which it is."""
    ways, relays = [listener("wss", "127.0.0.1"), listener("tcp", "127.0.0.1")], [relay("127.0.0.1", "127.0.0.1")]
    for way in ways:
        way.behind_proxy = True
    lines = announcement(ways, relays, "portable", False, OneUser(), [parse_cidr("127.0.0.0/8")])
    assert "relayd: listening on a way in, for proxies that speak the PROXY protocol" in lines
    assert not [line for line in lines if "3478" in line]


@pytest.mark.parametrize(("app_connection", "lines"), [("udp", 2), ("ws", 1)])
def test_one_user(app_connection: str, lines: int) -> None:
    """The user of a run is an entry of iceServers where those have something to name; browsers refuse an empty one."""
    user = OneUser()
    printed = announcement([listener(app_connection, "127.0.0.1")], [relay("127.0.0.1", "127.0.0.1")], "p", False, user)
    at = next(at for at, line in enumerate(printed) if line.startswith("relayd: no --auth was given"))
    said = printed[at : at + lines]
    assert user.username in said[-1]
    assert user.credential in said[-1]
    assert ("iceServers" in said[0]) is (lines == 2)
    assert '"urls": []' not in said[-1]
