"""coturn's STUN clients find their address, and find out about NATs (RFC 5780), by asking relayd."""

from __future__ import annotations

import subprocess

from tests.support.servers import TurnServer
from tests.support.tools import require

PATIENCE = 10.0  # seconds; each takes one at most


def run(program: str, *arguments: str) -> str:
    """Run one of coturn's tools to its end; what it printed."""
    command = [require(program), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE, check=False)
    printed = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{printed}"
    return printed


def test_binding_over_ipv4(server: TurnServer, still_serves: None) -> None:
    """turnutils_stunclient learns its own address: here there is no NAT, so it is the address it asked from."""
    printed = run("turnutils_stunclient", "-p", str(server.plain), "-L", "127.0.0.1", "127.0.0.1")
    assert "UDP reflexive addr: 127.0.0.1:" in printed


def test_binding_over_ipv6(server: TurnServer, still_serves: None) -> None:
    """The same over IPv6."""
    printed = run("turnutils_stunclient", "-p", str(server.plain), "-L", "::1", "::1")
    assert "UDP reflexive addr: ::1:" in printed


def test_other_address(server: TurnServer, still_serves: None) -> None:
    """A server with a second address says so in OTHER-ADDRESS, and in RESPONSE-ORIGIN where its answer is from."""
    printed = run("turnutils_stunclient", "-f", "-p", str(server.plain), "127.0.0.1")
    assert f"Response origin: : 127.0.0.1:{server.plain}" in printed
    assert f"Other addr: : 127.0.0.2:{server.alternate}" in printed


def test_answers_from_the_other_address_and_port(server: TurnServer, still_serves: None) -> None:
    """CHANGE-REQUEST for both is honoured: the last answer comes from the other address and port."""
    printed = run("turnutils_stunclient", "-f", "-p", str(server.plain), "127.0.0.1")
    third = printed.partition("RFC 5780 response 3")[2]
    assert f"Response origin: : 127.0.0.2:{server.alternate}" in third, printed


def test_mapping_behaviour(server: TurnServer, still_serves: None) -> None:
    """turnutils_natdiscovery sees the same mapping from both addresses: no NAT between."""
    printed = run("turnutils_natdiscovery", "-m", "-p", str(server.plain), "-L", "127.0.0.1", "127.0.0.1")
    assert "No NAT! (Endpoint Independent Mapping)" in printed


def test_filtering_behaviour(server: TurnServer, still_serves: None) -> None:
    """turnutils_natdiscovery hears the answer that comes from an address it never sent to."""
    printed = run("turnutils_natdiscovery", "-f", "-p", str(server.plain), "-L", "127.0.0.1", "127.0.0.1")
    assert "NAT with Endpoint Independent Filtering!" in printed
    assert f"Response origin: : 127.0.0.2:{server.alternate}" in printed


def test_lifetime_behaviour(server: TurnServer, still_serves: None) -> None:
    """RESPONSE-PORT is honoured: the answer to a request from a second port comes to the first."""
    printed = run("turnutils_natdiscovery", "-t", "-T", "1", "-p", str(server.plain), "-L", "127.0.0.1", "127.0.0.1")
    assert "RFC 5780 response 2" in printed
    assert printed.count("UDP reflexive addr: 127.0.0.1:") == 2, printed


def test_padded_discovery(server: TurnServer, still_serves: None) -> None:
    """PADDING of 1,500 bytes in the request does not stop discovery (RFC 5780 section 7.6)."""
    printed = run("turnutils_natdiscovery", "-m", "-P", "-p", str(server.plain), "-L", "127.0.0.1", "127.0.0.1")
    assert "No NAT! (Endpoint Independent Mapping)" in printed
