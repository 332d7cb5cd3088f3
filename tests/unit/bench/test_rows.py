"""The rows of the comparison and the order in which packets are sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.command import chosen, lines, notes
from bench.fleet import CHUNK, bursts, interleaved, runs
from bench.rows import ROWS, Row, Sample
from bench.servers import Server
from bench.traffic import Flowed
from relayd.pipe.stream_end import MAX_BUFFERED


def test_the_goals_are_those_that_were_set() -> None:
    """No goal moves unnoticed."""
    assert {row.name: row.goals for row in ROWS if row.goals} == {
        "udp-up-200": {"cpu": 0.9},
        "udp-down-200": {"cpu": 0.9},
        "udp-up-200-200": {"cpu": 1.5},
        "udp-down-200-200": {"cpu": 1.5},
        "paced-up": {"cpu": 1.5},
        "paced-down": {"cpu": 1.5},
        "tcp-up-200": {"cpu": 1.5},
        "tcp-down-200": {"cpu": 1.5},
        **{f"{transport}-{way}-200": {"cpu": 2.0} for transport in ("tls", "ws", "wss") for way in ("up", "down")},
        "ws-up-200-autobahn": {"cpu": 0.35},
        "ws-down-200-autobahn": {"cpu": 0.35},
        "udp-across-200": {"cpu": 0.6},
        "ws-across-200": {"cpu": 0.6},
        **{f"relay-tcp-{way}-{count}": {"cpu": 1.25} for way in ("up", "down") for count in (1, 50)},
        **{f"relay-ws-{way}-{count}": {"cpu": 2.0} for way in ("up", "down") for count in (1, 50)},
        "cycles": {"cpu": 4.0},
        "memory": {"memory": 0.5},
        "latency": {"p50": 1.5},
        "latency-loaded": {"p50": 1.5},
    }
    assert {row.name: row.most for row in ROWS if row.most} == {
        "memory-ws": {"memory": 60.0},
        "memory-stalled": {"memory": MAX_BUFFERED / 1024},
    }


def test_names_are_unique_and_can_be_chosen_by_pattern() -> None:
    """--only takes shell patterns; without it there are all rows."""
    assert len({row.name for row in ROWS}) == len(ROWS) == len(chosen(None))
    assert [row.name for row in chosen(["tls-*", "memory"])] == ["tls-up-200", "tls-down-200", "memory"]
    assert chosen(["nothing"]) == []


@pytest.mark.parametrize("clients", [2, 7, 200])
def test_interleaved_never_repeats_a_client(clients: int) -> None:
    """No two packets of one flow in a row, also where the order begins again; all flows have the same share."""
    order = interleaved(clients)
    assert all(one != other for one, other in zip(order, order[1:] + order[:1], strict=True))
    assert {order.count(client) for client in range(clients)} == {CHUNK}


def test_bursts_are_whole() -> None:
    """Each burst is one run of one client, and one system call."""
    assert [(run[0], len(run)) for run in runs(bursts(3), CHUNK)] == [(0, CHUNK), (1, CHUNK), (2, CHUNK)]


def test_runs_end_where_the_client_or_the_size_does() -> None:
    """A socket of its own per client: packets of two clients cannot leave in one call."""
    assert [list(run) for run in runs([0, 0, 0, 1, 0], 2)] == [[0, 0], [0], [1], [0]]


def test_loss_is_the_share_that_did_not_pass() -> None:
    """Of the expected passages, not of the packets: an echo passes twice."""
    assert Flowed(sent=100, relayed=150, expected=200, seconds=1.0).loss == pytest.approx(0.25)
    assert Flowed(sent=0, relayed=0, expected=0, seconds=1.0).loss == 0.0


def _row(**goals: float) -> Row:
    return Row("name", "title", "us", lambda server, seconds: Sample({}), goals)


def test_a_line_compares_the_medians() -> None:
    """Both figures, the ratio, the goal, and whether it is met."""
    samples = {"coturn": [Sample({"cpu": 2.0})], "relayd": [Sample({"cpu": 1.0})]}
    assert lines(_row(cpu=0.9), samples) == [
        ["title", "us", "2.00 (2.00-2.00)", "1.00 (1.00-1.00)", "0.50", "0.9", "met"]
    ]


def test_a_figure_may_have_a_goal_of_its_own() -> None:
    """What relayd may need at most is judged by relayd's figure alone, whatever the ratio."""
    samples = {"coturn": [Sample({"memory": 20.0})], "relayd": [Sample({"memory": 40.0})]}
    row = replace(_row(), unit="KB", most={"memory": 60.0})
    assert lines(row, samples)[0][4:] == ["2.00", "60 KB", "met"]
    assert lines(replace(row, most={"memory": 30.0}), samples)[0][4:] == ["2.00", "30 KB", "missed"]
    assert lines(row, {"coturn": [], "relayd": [Sample({}, invalid="why")]})[0][4:] == ["", "", ""]


def test_a_row_may_compare_with_another_server() -> None:
    """The first figure is that of the row's own baseline."""
    samples = {"autobahn": [Sample({"cpu": 8.0})], "relayd": [Sample({"cpu": 2.0})]}
    row = replace(_row(cpu=0.35), baseline="autobahn")
    assert lines(row, samples)[0][2:] == ["8.00 (8.00-8.00)", "2.00 (2.00-2.00)", "0.25", "0.35", "met"]


def test_a_server_without_websocket_is_measured_over_the_stream_below() -> None:
    """What it speaks is taken as it is."""
    server = Server("some", "1", ("127.0.0.1", 1), tcp=2, tls=3, wss=4)
    assert [server.nearest(transport) for transport in ("udp", "tls", "ws", "wss")] == ["udp", "tls", "tcp", "wss"]
    assert [server.port(transport) for transport in ("udp", "tcp", "tls", "ws", "wss")] == [1, 2, 3, 0, 4]


def test_an_invalid_round_makes_no_ratio() -> None:
    """The figure of a run that was invalid is not even shown; the reason is told below the table."""
    samples = {"coturn": [Sample({"cpu": 2.0})], "relayd": [Sample({"cpu": 1.0}, {"loss": 0.02}, "generator too slow")]}
    assert lines(_row(cpu=0.9), samples) == [["title", "us", "2.00 (2.00-2.00)", "invalid", "", "0.9", ""]]
    assert notes(_row(cpu=0.9), samples)[1] == "* name, relayd: loss 2.0%; generator too slow"


def test_a_row_with_several_figures_has_a_line_for_each() -> None:
    """Percentiles are told apart in the title; only the one with a goal is judged."""
    samples = {name: [Sample({"p50": 60.0, "p99": 90.0})] for name in ("coturn", "relayd")}
    assert [(line[0], line[5], line[6]) for line in lines(_row(p50=1.5), samples)] == [
        ("title, p50", "1.5", "met"),
        ("title, p99", "", ""),
    ]


def test_what_was_not_measured_is_not_called_invalid() -> None:
    """Without the process of the server there is no CPU time, and nothing went wrong."""
    samples = {"relayd": [Sample({}, {"packets/s": 5.0})]}
    assert lines(_row(cpu=0.9), samples)[0][2:5] == ["not measured", "not measured", ""]
