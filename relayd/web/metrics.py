"""`/metrics`, for Prometheus and what reads its format: counters since the start, labels from closed lists only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from twisted.web.resource import Resource

from relayd.address import AppConnection
from relayd.interfaces import Counters, IRelayStatus, TurnedAway
from relayd.observers.refusals import CODES, Refusal
from relayd.observers.statistics import Statistics
from relayd.turn.outputs import EndReason

_OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class RelayCollector(Collector):
    """Reads the statistics whenever somebody scrapes. Every label value is there from the start, so that rates are."""

    def __init__(self, status: IRelayStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """The metrics of the relay; those of its process are prometheus-client's."""
        status, statistics = self._status, self._status.statistics
        about = GaugeMetricFamily("relayd_build_info", "Version and data plane.", labels=["version", "data_plane"])
        about.add_metric([status.version, status.data_plane], 1)
        yield about
        yield GaugeMetricFamily("relayd_start_time_seconds", "Start of the relay, since 1970.", value=status.started)
        yield from _allocations(statistics)
        yield from _peer_connections(statistics)
        yield from _traffic(statistics.traffic())
        refused = CounterMetricFamily(
            "relayd_requests_refused", "Requests answered with an error, or dropped (0).", labels=["code", "reason"]
        )
        for reason in Refusal:
            refused.add_metric([str(CODES.get(reason, reason)), reason.value], statistics.refused[reason])
        yield refused
        turned_away = CounterMetricFamily(
            "relayd_connections_turned_away", "Connections and DTLS sessions that a limit kept out.", labels=["reason"]
        )
        for why in TurnedAway:
            turned_away.add_metric([why.value], sum(listener.turned_away[why] for listener in status.listeners))
        yield turned_away
        expiries = GaugeMetricFamily(
            "relayd_certificate_expiry_timestamp_seconds",
            "When a certificate that the relay shows expires, since 1970.",
            labels=["file"],
        )
        for path, expires in status.certificates.expiries().items():
            expiries.add_metric([str(path)], expires)
        yield expiries


def _allocations(statistics: Statistics) -> Iterator[Metric]:
    lasting = GaugeMetricFamily("relayd_allocations", "Allocations that last.", labels=["app_connection"])
    started = CounterMetricFamily("relayd_allocations_started", "Allocations made.", labels=["app_connection"])
    ended = CounterMetricFamily(
        "relayd_allocations_ended", "Allocations that ended, and why.", labels=["app_connection", "reason"]
    )
    for kind in AppConnection:
        lasting.add_metric([kind.value], statistics.allocations[kind])
        started.add_metric([kind.value], statistics.started[kind])
        for reason in EndReason:
            ended.add_metric([kind.value, reason.value], statistics.ended[kind, reason])
    yield from (lasting, started, ended)


def _peer_connections(statistics: Statistics) -> Iterator[Metric]:
    labels = ["app_connection"]
    lasting = GaugeMetricFamily("relayd_peer_connections", "TCP connections with peers that last.", labels=labels)
    opened = CounterMetricFamily("relayd_peer_connections_opened", "TCP connections with peers.", labels=labels)
    for kind in AppConnection:
        lasting.add_metric([kind.value], statistics.peer_connections[kind])
        opened.add_metric([kind.value], statistics.peer_connections_opened[kind])
    yield from (lasting, opened)


def _traffic(traffic: dict[AppConnection, Counters]) -> Iterator[Metric]:
    labels = ["app_connection", "direction"]
    packets = CounterMetricFamily("relayd_relayed_packets", "Datagrams relayed.", labels=labels)
    volume = CounterMetricFamily("relayd_relayed_bytes", "Payload relayed.", labels=labels, unit="bytes")
    dropped = CounterMetricFamily(
        "relayd_dropped_packets", "Datagrams that were permitted and yet not passed on.", labels=["app_connection"]
    )
    bridged = CounterMetricFamily(
        "relayd_bridged_packets",
        "Those of the datagrams to peers that went to another allocation of this relay.",
        labels=["app_connection"],
    )
    for kind, counters in traffic.items():
        packets.add_metric([kind.value, "to_peers"], counters.sent_packets)
        packets.add_metric([kind.value, "to_clients"], counters.received_packets)
        volume.add_metric([kind.value, "to_peers"], counters.sent_bytes)
        volume.add_metric([kind.value, "to_clients"], counters.received_bytes)
        dropped.add_metric([kind.value], counters.dropped)
        bridged.add_metric([kind.value], counters.bridged)
    yield from (packets, volume, dropped, bridged)


class Metrics(Resource):
    """The metrics, in the text format, or in OpenMetrics where the Accept header has it."""

    def __init__(self, status: IRelayStatus) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(RelayCollector(status))
        ProcessCollector(registry=self._registry)

    def render(self, request: Any) -> bytes:
        # Its own reading of that header stumbles over versions that are no numbers.
        accepted = (each.partition(";")[0].strip().lower() for each in (request.getHeader("accept") or "").split(","))
        encode, content_type = choose_encoder(_OPENMETRICS if _OPENMETRICS.partition(";")[0] in accepted else "")
        body = encode(self._registry)
        request.setHeader(b"content-type", content_type.encode("ascii"))
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"cross-origin-resource-policy", b"same-origin")
        request.setHeader(b"content-length", b"%d" % len(body))
        return b"" if request.method == b"HEAD" else body
