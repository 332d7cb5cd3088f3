"""The server and the peer that the strangers talk to; one of each for the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificate import Certificate, make_certificate
from tests.support.ports import free_ports, is_free
from tests.support.process import Process
from tests.support.servers import TurnServer, assert_clean_end, start_coturn, start_relayd
from tests.support.tools import require


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A self-signed certificate for loopback."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificate: Certificate
) -> Iterator[TurnServer]:
    """The server under test; a parameter is more options for relayd, which in the end has to stop with nothing left."""
    directory: Path = tmp_path_factory.mktemp("server")
    if request.config.getoption("--interop-server") == "coturn":
        coturn = start_coturn(directory, certificate)
        yield coturn
        coturn.process.kill()
        return
    running = start_relayd(directory, certificate, *getattr(request, "param", ()))
    yield running
    assert_clean_end(running)


@pytest.fixture
def still_serves(server: TurnServer) -> Iterator[None]:
    """Holds after any test that uses it: the server runs, has met no bug of its own, and answers on every port."""
    before = len(server.process.output)
    yield
    log = server.process.output[before:]
    assert server.process.running(), log
    assert server.answers(), log
    assert "Traceback" not in log, log


@pytest.fixture(scope="session")
def peer_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """turnutils_peer, which sends back what it gets, on 127.0.0.1 and ::1, on this port and (for RTCP) the next."""
    program = require("turnutils_peer")
    port = free_ports(2)
    arguments = [program, "-p", str(port), "-L", "127.0.0.1", "-L", "::1"]
    peer = Process(arguments, tmp_path_factory.mktemp("peer"))
    assert peer.wait_until(lambda: not is_free(port, ["::1"]) and not is_free(port + 1, ["::1"]), 10.0), peer.output
    yield port
    peer.kill()
