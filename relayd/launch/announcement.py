"""What is printed at the start: what is listened on, how to use it, what moves the packets. Texts only."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import urlencode

from relayd import __version__
from relayd.address import AppConnection, Family, TransportAddress
from relayd.config import LOOPBACK, RelayAddress
from relayd.interfaces import IListener
from relayd.launch.defaults import OneUser
from relayd.turn.peer_rules import Network, is_in

# URI scheme and transport by app_connection (RFC 7065). DTLS is TLS over UDP there.
_URIS = {
    AppConnection.UDP: ("turn", "udp"),
    AppConnection.TCP: ("turn", "tcp"),
    AppConnection.TLS: ("turns", "tcp"),
    AppConnection.DTLS: ("turns", "udp"),
}

_SITES = ("web", "any")  # kinds of listeners with pages
_SECURE = (AppConnection.TLS, AppConnection.WSS)
_LOOPBACK = {Family.IPV4: b"\x7f\0\0\x01", Family.IPV6: bytes(15) + b"\x01"}

READY = "relayd: ready"


def announcement(
    listeners: Sequence[IListener],
    relays: Sequence[RelayAddress],
    data_plane_name: str,
    on_loopback: bool,
    one_user: OneUser | None,
    status_from: Sequence[Network] = (),
) -> list[str]:
    """The lines to print; the last one is always `READY`."""
    lines = [f"relayd {__version__}, data plane {data_plane_name}"]
    lines += [f"relayd: listening on {listener.description}{_for_whom(listener)}" for listener in listeners]
    lines += [f"relayd: relaying from {_relaying(relay)}" for relay in relays]
    lines += [f"relayd: {hint}" for hint in hints_about_nat(relays)]
    if on_loopback:
        lines.append(
            "relayd: all is on loopback, so peers on loopback may be reached; --allow-peer or --deny-peer end that"
        )
    # Clients find the others where their proxy is, of which nothing is known here.
    listeners = [listener for listener in listeners if not listener.behind_proxy]
    pages = status_urls(listeners, relays, status_from)
    if pages:
        lines.append(f"relayd: status page at {' '.join(pages)}")
    web_urls = websocket_urls(listeners, relays)
    if web_urls:
        lines.append(f"relayd: WebSocket clients reach it at {' '.join(web_urls)}")
    uris = turn_uris(listeners, relays)
    if one_user is not None:
        lines += _introduction(one_user, uris)
        lines += [f"relayd: see it relay at {url}" for url in demo_urls(listeners, relays, one_user)[:1]]
    elif uris:
        lines.append(f"relayd: clients reach it at {' '.join(uris)}")
    return [*lines, READY]


def _for_whom(listener: IListener) -> str:
    return ", for proxies that speak the PROXY protocol" if listener.behind_proxy else ""


def _relaying(relay: RelayAddress) -> str:
    public = relay.advertised.host
    return relay.bound.host if relay.bound == relay.advertised else f"{relay.bound.host}, known to clients as {public}"


def _introduction(user: OneUser, uris: Sequence[str]) -> list[str]:
    alone = "relayd: no --auth was given, so there is one user, for this run"
    if not uris:  # browsers take no entry without one
        return [f"{alone}: {user.username}, with the password {user.credential}"]
    return [f"{alone}; as an entry of iceServers:", ice_server(uris, user.username, user.credential)]


def turn_uris(listeners: Iterable[IListener], relays: Sequence[RelayAddress]) -> list[str]:
    """What clients write to reach these listeners, one each: where it can be, with the address that we relay from."""
    uris = []
    for listener in listeners:
        scheme, transport = _URIS.get(AppConnection(listener.app_connection), (None, None))
        address = _reachable(listener.addresses, relays) if scheme else None
        if address is not None:
            uris.append(f"{scheme}:{address}?transport={transport}")
    return uris


def websocket_urls(listeners: Iterable[IListener], relays: Sequence[RelayAddress]) -> list[str]:
    """The same for WebSocket. Browsers take these in `new WebSocket(…)`, and not in iceServers."""
    return [
        f"{'wss' if listener.app_connection in _SECURE else 'ws'}://{address}/turn"
        for listener in listeners
        if listener.kind in _SITES and (address := _reachable(listener.addresses, relays)) is not None
    ]


def status_urls(
    listeners: Iterable[IListener], relays: Sequence[RelayAddress], status_from: Sequence[Network]
) -> list[str]:
    """Where those that `status_from` lets in read the status page: on this host, if it is one of them."""
    return [f"{scheme}://{address}/" for scheme, address in _sites(listeners, relays, status_from) if status_from]


def demo_urls(listeners: Iterable[IListener], relays: Sequence[RelayAddress], user: OneUser) -> list[str]:
    """The demo page, with the user's credentials behind the #, which browsers send to nobody."""
    fragment = urlencode({"username": user.username, "credential": user.credential})
    return [
        f"{scheme}://{address}/demo#{fragment}"
        for scheme, address in _sites(listeners, relays, LOOPBACK)
        # Its keys need WebCrypto, which browsers give to no other page without TLS.
        if scheme == "https" or address.is_loopback
    ]


def _sites(
    listeners: Iterable[IListener], relays: Sequence[RelayAddress], preferred: Sequence[Network]
) -> Iterator[tuple[str, TransportAddress]]:
    """Scheme and address of each site: as it is on this host if that is in `preferred`, else as clients know it."""
    for listener in listeners:
        if listener.kind not in _SITES:
            continue
        scheme = "https" if AppConnection(listener.app_connection) in _SECURE else "http"
        here = [_from_here(address) for address in listener.addresses]
        address = next((each for each in here if is_in(each, preferred)), _reachable(listener.addresses, relays))
        if address is not None:
            yield scheme, address


def ice_server(uris: Sequence[str], username: str, credential: str) -> str:
    """An entry of `iceServers`, as browsers take it, on one line of JSON."""
    return json.dumps({"urls": list(uris), "username": username, "credential": credential})


def hints_about_nat(relays: Iterable[RelayAddress]) -> list[str]:
    """A line for each private address that clients will be told: behind a one-to-one NAT it leads nowhere."""
    return [
        f"{relay.advertised.host} is a private address: if this host is behind a NAT, "
        f"give --relay-address {relay.bound.host}=PUBLIC-ADDRESS"
        for relay in relays
        if _is_private(relay.advertised)
    ]


def _is_private(address: TransportAddress) -> bool:
    ip = ipaddress.ip_address(address.ip)
    return ip.is_private and not ip.is_loopback and not ip.is_unspecified


def _from_here(address: TransportAddress) -> TransportAddress:
    """What is written on this host to get there; it is also what the connection then comes from."""
    return TransportAddress(_LOOPBACK[address.family], address.port) if address.is_wildcard else address


def _reachable(addresses: Sequence[TransportAddress], relays: Sequence[RelayAddress]) -> TransportAddress | None:
    """One of them, as clients know it: peers will be sent to the addresses that we relay from, so these lead here."""
    for address in addresses:
        for relay in relays:
            same = relay.family is address.family if address.is_wildcard else relay.bound.ip == address.ip
            if same:
                return relay.advertised.with_port(address.port)
    return addresses[0] if addresses and not addresses[0].is_wildcard else None
