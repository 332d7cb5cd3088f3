"""coturn's load client relays through relayd in every mode that it has, against coturn's echo peer, without loss."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.servers import PASSWORD, USER, TurnServer
from tests.support.tools import require

CLIENTS = 2  # without -c each has an RTCP connection beside it, made with EVEN-PORT and RESERVATION-TOKEN
MESSAGES = 10  # for each connection
PATIENCE = 60.0  # seconds; a run takes two to seven, most of it the client's own pacing

HANGS_AFTER = 4.0  # seconds after which a client that misbehaves is ended; -R never ends by itself

SENT_AND_RECEIVED = re.compile(r"start_mclient: tot_send_msgs=(\d+), tot_recv_msgs=(\d+)")
LOST = re.compile(r"Total lost packets (\d+)")

MODES = {
    "udp": ["-e", "127.0.0.1"],
    "udp-padded-channel-data": ["-D", "-e", "127.0.0.1"],
    "udp-extra-requests": ["-G", "-e", "127.0.0.1"],
    "tcp": ["-t", "-e", "127.0.0.1"],
    "tls": ["-t", "-S", "-e", "127.0.0.1"],
    "dtls": ["-S", "-e", "127.0.0.1"],
    "send-indication": ["-s", "-e", "127.0.0.1"],
    "tcp-send-indication": ["-t", "-s", "-e", "127.0.0.1"],
    "client-to-client": ["-y"],
    "dual": ["-Z", "-e", "127.0.0.1"],
    "ipv6": ["-x", "-e", "::1"],
    "dont-fragment": ["-g", "-e", "127.0.0.1"],
    "tcp-relay": ["-T"],
    "tcp-relay-tls": ["-T", "-S"],
    "large-messages": ["-l", "1200", "-e", "127.0.0.1"],
}


def uclient(server: TurnServer, *arguments: str, host: str = "127.0.0.1", messages: int = MESSAGES) -> str:
    """One run of turnutils_uclient to its end; what it printed. An exit status other than 0 fails the test."""
    port = server.secure if "-S" in arguments else server.plain
    command = [require("turnutils_uclient"), "-u", USER, "-w", PASSWORD, "-p", str(port)]
    command += ["-n", str(messages), "-m", str(CLIENTS), *arguments, host]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE, check=False)
    printed = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{printed}"
    return printed


def assert_no_loss(printed: str, messages: int = MESSAGES) -> None:
    """Every message of every client came back. The client's last summary is the one that counts."""
    totals = SENT_AND_RECEIVED.findall(printed)
    assert totals, printed
    sent, received = map(int, totals[-1])
    assert sent >= CLIENTS * messages, printed
    assert received == sent, printed
    assert LOST.findall(printed)[-1:] == ["0"], printed


@pytest.mark.parametrize("mode", MODES)
def test_mode_without_loss(server: TurnServer, peer_port: int, mode: str, still_serves: None) -> None:
    """In each mode whatever the client sends to the peer comes back to it."""
    assert_no_loss(uclient(server, "-r", str(peer_port), *MODES[mode]))


@pytest.mark.parametrize("server", [("--data-plane=portable",)], indirect=True, ids=["portable-plane"], scope="session")
@pytest.mark.parametrize("mode", ["udp", "tcp", "dtls", "send-indication"])
def test_portable_data_plane(server: TurnServer, peer_port: int, mode: str, still_serves: None) -> None:
    """The data plane that runs anywhere loses nothing either."""
    assert_no_loss(uclient(server, "-r", str(peer_port), *MODES[mode]))


@pytest.mark.parametrize("mode", ["udp", "tcp", "tls", "dtls"])
def test_ipv6_all_the_way(server: TurnServer, peer_port: int, mode: str, still_serves: None) -> None:
    """A client that comes over IPv6 and relays to an IPv6 peer loses nothing, on any transport."""
    transport = {"udp": [], "tcp": ["-t"], "tls": ["-t", "-S"], "dtls": ["-S"]}[mode]
    assert_no_loss(uclient(server, "-x", "-e", "::1", "-r", str(peer_port), *transport, host="::1"))


def test_ipv6_client_ipv4_peer(server: TurnServer, peer_port: int, still_serves: None) -> None:
    """The family of the path and the family of the relayed address are independent."""
    assert_no_loss(uclient(server, "-X", "-e", "127.0.0.1", "-r", str(peer_port), host="::1"))


def test_peers_that_connect(server: TurnServer, still_serves: None) -> None:
    """Passive TCP: peers connect to the relayed address (RFC 6062 section 5.3), and what they send arrives.

    The client does not count what its own peers receive, so that against coturn too it reports half of it as lost.
    """
    totals = SENT_AND_RECEIVED.findall(uclient(server, "-P"))
    sent, received = map(int, totals[-1])
    assert sent >= CLIENTS * MESSAGES
    assert received * 2 == sent


def test_negative_client_to_client(server: TurnServer, still_serves: None) -> None:
    """The client's negative tests between two clients end like its positive ones, as they do against coturn."""
    assert_no_loss(uclient(server, "-N", "-y"))


def test_wrong_password(server: TurnServer, peer_port: int, still_serves: None) -> None:
    """A client with a wrong password relays nothing and ends with an error."""
    command = [require("turnutils_uclient"), "-u", USER, "-w", "wrong", "-p", str(server.plain), "-n", "1"]
    command += ["-e", "127.0.0.1", "-r", str(peer_port), "127.0.0.1"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE, check=False)
    assert done.returncode != 0
    assert b"tot_recv_msgs" not in done.stdout


@pytest.mark.parametrize("arguments", [["-N"], ["-R"], ["-R", "-t"], ["-N", "-t", "-S"], ["-O"], ["-B"]])
def test_hostile_client(server: TurnServer, peer_port: int, arguments: list[str], still_serves: None) -> None:
    """Whatever becomes of the misbehaving client (against coturn too it may fail or hang), the server serves on."""
    command = [require("turnutils_uclient"), "-u", USER, "-w", PASSWORD, "-n", "3", "-m", "1", *arguments]
    command += ["-p", str(server.secure if "-S" in arguments else server.plain)]
    command += ["-e", "127.0.0.1", "-r", str(peer_port), "127.0.0.1"]
    try:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=HANGS_AFTER, check=False)
    except subprocess.TimeoutExpired:
        pass
    assert_no_loss(uclient(server, "-e", "127.0.0.1", "-r", str(peer_port), messages=3), messages=3)
