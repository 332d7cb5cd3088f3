"""Which parts are chosen, and what is refused, when the daemon is put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from twisted.internet.task import Clock

from relayd.address import Family, TransportAddress
from relayd.config import RelayAddress, RelaySettings, Settings
from relayd.errors import ConfigurationError
from relayd.launch import wiring
from relayd.observers.log import HumanLog, JsonLines
from relayd.policies.guard import AllOf
from relayd.policies.peers import PeerGuard
from relayd.turn.peer_rules import parse_cidr


@dataclass
class Plane:
    name: str
    preference: int
    reason: str | None = None

    def unavailable(self) -> str | None:
        return self.reason


@dataclass
class WayOut:
    kind: str
    transport: int = 17

    def make(self, reactor: Any, data_plane: Any, settings: Any) -> str:
        return self.kind


@dataclass
class FakeListener:
    app_connection: str
    addresses: list[TransportAddress]
    behind_proxy: bool = False


def install(monkeypatch: pytest.MonkeyPatch, *plugins: Any) -> None:
    """Make these the only plugins there are, of whatever interface."""
    monkeypatch.setattr(wiring, "all_plugins", lambda interface: list(plugins))
    monkeypatch.setattr("relayd.launch.plugins.all_plugins", lambda interface: list(plugins))


def test_best_data_plane_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most preferred one is taken; one that does not work here is passed over."""
    slow, fast = Plane("slow", 1), Plane("fast", 2)
    install(monkeypatch, slow, fast)
    assert wiring.choose_data_plane(None) is fast
    assert wiring.choose_data_plane("slow") is slow
    fast.reason = "needs Linux"
    assert wiring.choose_data_plane(None) is slow


def test_data_plane_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was asked for by name is not silently replaced; without any there is no relay."""
    install(monkeypatch, Plane("fast", 2, "needs Linux"))
    with pytest.raises(ConfigurationError, match="--data-plane fast: needs Linux"):
        wiring.choose_data_plane("fast")
    with pytest.raises(ConfigurationError, match="--help-data-plane"):
        wiring.choose_data_plane(None)


def test_rival_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plugins for one transport are an error, not a matter of luck."""
    data_plane: Any = None
    install(monkeypatch, WayOut("udp"), WayOut("tcp", 6))
    made: list[Any] = [*wiring.make_peer_transports(Clock(), data_plane, RelaySettings(()))]
    assert made == ["udp", "tcp"]
    install(monkeypatch, WayOut("udp"), WayOut("other"))
    with pytest.raises(ConfigurationError, match="udp and other"):
        wiring.make_peer_transports(Clock(), data_plane, RelaySettings(()))


def test_allocation_log_is_first_and_in_the_wanted_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is always there: for people, or as JSON lines. Without standard output, as in a daemon, JSON lines there
    are refused.
    """
    (human,) = wiring.make_observers(Settings(), Clock(), is_daemon=True)
    assert isinstance(human, HumanLog)
    (lines,) = wiring.make_observers(Settings(log_format="json"), Clock(), is_daemon=False)
    assert isinstance(lines, JsonLines)
    on_stdout = Settings(log_format="json"), Settings(observe=(("json", "-"),))
    for settings in on_stdout:
        with pytest.raises(ConfigurationError, match="json:PATH"):
            wiring.make_observers(settings, Clock(), is_daemon=True)
    monkeypatch.setattr("sys.__stdout__", None)
    for settings in on_stdout:
        with pytest.raises(ConfigurationError, match="json:PATH"):
            wiring.make_observers(settings, Clock(), is_daemon=False)


def test_alternates_differ_in_host_and_port() -> None:
    """NAT behaviour discovery: each of four addresses has the opposite one; a listener with one address has none."""
    one, two, three, four = (
        TransportAddress.parse(host, port) for host in ("127.0.0.1", "127.0.0.2") for port in (3478, 3479)
    )
    listener: Any = FakeListener("udp", [one, two, three, four])
    assert wiring.alternates_of(listener) == {one: four, two: three, three: two, four: one}
    listener.addresses = [one]
    assert wiring.alternates_of(listener) == {}


def test_own_endpoints_are_refused_once_known() -> None:
    """Whatever is allowed, the relay's own listeners are no peers."""
    guard = PeerGuard([parse_cidr("127.0.0.0/8")], [])
    everyone = AllOf([guard])
    own = TransportAddress.parse("127.0.0.1", 3478)
    assert everyone.may_reach("alice", own)
    guard.listening_on([own])
    assert not everyone.may_reach("alice", own)
    assert everyone.may_reach("alice", own.with_port(3479))


def test_own_endpoints_behind_a_nat() -> None:
    """A peer cannot be the relay itself by way of its public address, which a cloud's NAT leads back to us."""
    inside, public = TransportAddress.parse("10.0.0.5", 0), TransportAddress.parse("198.51.7.9", 0)
    own = {inside.with_port(3478), TransportAddress.parse("127.0.0.1", 5349)}
    seen = wiring.seen_from_outside(own, [RelayAddress(inside, public), RelayAddress(inside, inside)])
    assert seen == {public.with_port(3478), public.with_port(5349)}


def test_default_family_comes_first() -> None:
    """An Allocate that names no family gets the transport's default one."""

    class Transport:
        families = frozenset(Family)
        default_family = Family.IPV6

    transport: Any = Transport()
    assert wiring._families(transport) == (Family.IPV6, Family.IPV4)
