"""Promises of relayd.web.status, .metrics and .files: what is shown, and how."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from zope.interface.verify import verifyObject

from relayd.address import AppConnection, TransportAddress
from relayd.interfaces import IAllocationObserver, IRelayStatus
from relayd.observers.history import LENGTH
from relayd.observers.refusals import Refusal
from relayd.observers.statistics import SERIES
from relayd.turn.outputs import EndReason, PeerConnectionOpened, RequestRefused
from relayd.web.status import BUSIEST
from tests.unit.observers.test_statistics import House, path
from tests.unit.web.site import Site

MANUAL = Path(__file__).parents[3] / "docs" / "operations.rst"
NAMES = {
    "relayd_build_info",
    "relayd_start_time_seconds",
    "relayd_allocations",
    "relayd_allocations_started",
    "relayd_allocations_ended",
    "relayd_peer_connections",
    "relayd_peer_connections_opened",
    "relayd_relayed_packets",
    "relayd_relayed_bytes",
    "relayd_dropped_packets",
    "relayd_bridged_packets",
    "relayd_requests_refused",
    "relayd_connections_turned_away",
    "relayd_certificate_expiry_timestamp_seconds",
}


def busy_site() -> tuple[Site, House]:
    """One session that has moved 30 datagrams of 100 bytes each way in the last of three seconds."""
    site = Site()
    house = House(site.clock, site.statistics)
    house.seconds(2)
    (relay,) = house.begin("0123456789ab", AppConnection.WSS)
    site.statistics.observe(PeerConnectionOpened("0123456789ab", TransportAddress.parse("203.0.113.9", 80)))
    relay.move(30, 100)
    house.seconds(1)
    return site, house


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """By name and label values."""
    found = {}
    for family in parse_text(text):
        for sample in family.samples:
            found[sample.name, tuple(sample.labels.values())] = sample.value
    return found


def test_what_is_shown_is_what_was_agreed() -> None:
    """Pages and launch meet in the interfaces."""
    site = Site()
    assert verifyObject(IRelayStatus, site.status)
    assert verifyObject(IAllocationObserver, site.statistics)


def test_the_document() -> None:
    """Every field that is documented is there, from the start."""
    status = Site().ask("/status.json").json
    assert status["data_plane"] == "portable"
    assert status["listeners"] == [
        {"kind": "web", "app_connection": "ws", "addresses": ["192.0.2.1:3478"], "description": "ws 192.0.2.1:3478"}
    ]
    assert status["relay_addresses"] == [{"bound": "10.0.0.5", "advertised": "198.51.100.7"}]
    assert status["allocations"] == {kind.value: 0 for kind in AppConnection}
    assert set(status["allocations_ended"]) == {reason.value for reason in EndReason}
    assert [each["reason"] for each in status["refusals"]] == [refusal.value for refusal in Refusal]
    assert set(status["history"]) == {"interval", "next", "allocations", *SERIES}
    documented = MANUAL.read_text(encoding="utf-8")
    for name in (*status, *status["history"]):
        assert f"``{name}``" in documented, f"{name} is not documented"


def test_the_document_of_a_busy_relay() -> None:
    """Counters, the session and the last seconds agree; no user name and no client's address is in it."""
    site, house = busy_site()
    house.statistics.observe(RequestRefused(path(), 3, 486, "alice"))
    answer = site.ask("/status.json")
    status = answer.json
    assert status["uptime"] == 3
    assert status["allocations"]["wss"] == status["allocations_started"]["wss"] == 1
    assert status["peer_connections"]["wss"] == 1
    assert status["traffic"] == dict(zip(SERIES, [30, 3000, 30, 3000, 1, 0], strict=True))
    assert status["history"]["sent_bytes"] == [0, 0, 3000]
    assert status["history"]["allocations"] == [0, 0, 1]
    (session,) = status["sessions"]
    assert (session["session"], session["app_connection"]) == ("0123456789ab", "wss")
    assert session["sent_bytes"] == 3000
    assert 0 < session["sent_rate"] < 3000
    assert {"reason": "quota", "code": 486, "count": 1} in status["refusals"]
    assert b"alice" not in answer.body
    assert b"198.51.100.7:4000" not in answer.body
    assert b"203.0.113.9" not in answer.body
    house.end("0123456789ab", EndReason.EXPIRED)
    after = site.ask("/status.json").json
    assert after["sessions"] == []
    assert after["allocations_ended"]["expired"] == 1
    assert after["traffic"] == status["traffic"]


def test_only_what_is_new() -> None:
    """Whoever polls asks from where the last answer ended; a number of another run gets everything."""
    site, house = busy_site()
    assert site.ask("/status.json?since=2").json["history"]["sent_bytes"] == [3000]
    assert site.ask("/status.json?since=3").json["history"]["sent_bytes"] == []
    assert site.ask("/status.json?since=999999").json["history"]["sent_bytes"] == [0, 0, 3000]
    house.seconds(2)
    assert site.ask("/status.json?since=3").json["history"] == {
        "interval": 1.0,
        "next": 5,
        **{name: [0, 0] for name in SERIES},
        "allocations": [1, 1],
    }


@pytest.mark.parametrize("since", ["x", "-1", "1.5", "", "1&since=2", "9" * 400, "%D9%A3"])
def test_a_bad_number(since: str) -> None:
    """It is 400 and says what it ought to be."""
    answer = Site().ask(f"/status.json?since={since}")
    assert answer.status == 400
    assert b"history.next" in answer.body


def test_the_document_is_bounded() -> None:
    """A thousand sessions and an hour later it is as long as with a dozen."""
    site, house = busy_site()
    for number in range(1000):
        house.begin(f"{number:012x}")
    house.seconds(3 * LENGTH // 2)
    status = site.ask("/status.json").json
    assert len(status["sessions"]) == BUSIEST
    assert len(status["history"]["dropped"]) == LENGTH
    assert status["allocations"]["udp"] == 1000


def test_metrics_are_read_by_prometheus() -> None:
    """Its parser finds each metric with a unit, counters as counters, and labels from closed lists."""
    site, _ = busy_site()
    answer = site.ask("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families: dict[str, Any] = {family.name: family for family in parse_text(answer.body.decode())}
    assert {name for name in families if name.startswith("relayd_")} == NAMES
    for name, family in families.items():
        assert family.documentation, name
        assert family.type in ("counter", "gauge"), name
        for sample in family.samples:
            assert set(sample.labels) <= {
                "app_connection",
                "direction",
                "reason",
                "code",
                "version",
                "data_plane",
                "file",
            }
    found = samples(answer.body.decode())
    assert found["relayd_relayed_bytes_total", ("wss", "to_peers")] == 3000
    assert found["relayd_relayed_packets_total", ("wss", "to_clients")] == 30
    assert found["relayd_dropped_packets_total", ("wss",)] == 1
    assert found["relayd_allocations", ("wss",)] == 1
    assert found["relayd_peer_connections", ("wss",)] == 1
    assert found["relayd_peer_connections_opened_total", ("wss",)] == 1
    assert found["relayd_allocations_started_total", ("udp",)] == 0
    documented = MANUAL.read_text(encoding="utf-8")
    for name in NAMES:
        assert f"``{name}" in documented, f"{name} is not documented"


def test_openmetrics_where_it_is_preferred() -> None:
    """Prometheus asks for OpenMetrics, which is stricter about names and units."""
    site, _ = busy_site()
    answer = site.ask("/metrics", "Accept: application/openmetrics-text;version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    parse: Any = openmetrics.text_string_to_metric_families
    assert {family.name for family in parse(answer.body.decode())} >= NAMES


@pytest.mark.parametrize(
    "accept",
    ["*/*", ";;,", "text/plain;version=x", "application/openmetrics-text;version=x;q=y", "application/json", "\xff"],
)
def test_whatever_is_accepted(accept: str) -> None:
    """A header that makes no sense gets metrics too."""
    assert Site().ask("/metrics", f"Accept: {accept}").status == 200


def test_metrics_do_not_grow() -> None:
    """Whatever clients do, there are as many time series as at the start."""
    site, house = busy_site()
    before = set(samples(site.ask("/metrics").body.decode()))
    for number in range(50):
        house.begin(str(number), list(AppConnection)[number % 7])
        house.statistics.observe(RequestRefused(path(), number, 300 + number, f"user {number}"))
    assert set(samples(site.ask("/metrics").body.decode())) == before


def test_metrics_are_live() -> None:
    """What was moved a moment ago counts, and counts on when the allocation has ended."""
    site, house = busy_site()
    (relay,) = house.begin("a", AppConnection.TCP)
    relay.move(5, 10)
    for _ in range(2):
        found = samples(site.ask("/metrics").body.decode())
        assert found["relayd_relayed_bytes_total", ("tcp", "to_peers")] == 50
        if "a" in house.created:
            house.end("a")
    assert found["relayd_allocations", ("tcp",)] == 0
    assert found["relayd_allocations_ended_total", ("tcp", "deleted")] == 1


def test_the_page_has_words_for_all() -> None:
    """Every reason of a refusal is there in words, and in the manual."""
    script = Site().ask("/status.js").body.decode()
    for refusal in Refusal:
        assert f'"{refusal}": [' in script
        assert f"``{refusal}``" in MANUAL.read_text(encoding="utf-8")


def test_the_page_is_its_own() -> None:
    """It asks for nothing that is not here, and its policy forbids whatever is; all that it names exists."""
    site = Site()
    page = site.ask("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    text = page.body.decode()
    assert "//" not in text.replace("<!doctype", "")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?! type=\"module\" src=)", text)
    for name in re.findall(r'(?:href|src)="([^"]+)"', text):
        assert site.ask(f"/{name}").status == 200, name


@pytest.mark.parametrize(
    ("name", "kind"), [("", "text/html"), ("status.js", "text/javascript"), ("status.css", "text/css")]
)
def test_browsers_keep_files(name: str, kind: str) -> None:
    """A browser asks whether what it has is still good, and is told so in a few bytes."""
    site = Site()
    first = site.ask(f"/{name}")
    assert first.headers["content-type"].startswith(kind)
    assert int(first.headers["content-length"]) == len(first.body)
    again = site.ask(f"/{name}", f"If-None-Match: {first.headers['etag']}")
    assert again.status == 304
    assert again.body == b""
    assert site.ask(f"/{name}", 'If-None-Match: "other"').status == 200


def test_who_was_turned_away() -> None:
    """Connections that met a limit are counted by it."""
    site = Site(max_connections=2)
    first, *_ = [site.bench.connect() for _ in range(5)]
    first[0].close()
    site.clock.advance(0)
    site.bench.clock.advance(0)
    found = samples(site.ask("/metrics").body.decode())
    assert found["relayd_connections_turned_away_total", ("total",)] == 3
    assert found["relayd_connections_turned_away_total", ("source",)] == 0
