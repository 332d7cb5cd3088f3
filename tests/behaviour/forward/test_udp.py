"""`relayd-client forward` as a user runs it: UDP applications that know nothing of TURN reach a peer through a relay in
another process.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.support.certificate import Certificate
from tests.support.forward import (
    PATIENCE,
    Application,
    assert_stopped,
    command,
    failed,
    local_ports,
    talk,
    until_ready,
)
from tests.support.ports import free_ports
from tests.support.servers import TurnServer, assert_clean_end, start_relayd


@pytest.mark.parametrize("way", ["turn:{}:{plain}?transport=udp", "turns:{}:{secure}", "wss://{}:{web}/turn"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_every_way(
    server: TurnServer, certificate: Certificate, web_ports: tuple[int, int], tmp_path: Path, way: str, host: str
) -> None:
    """Two applications talk to one peer, each gets its own answers, and the allocations are deleted at the end."""
    bracketed = f"[{host}]" if ":" in host else host
    uri = way.format(bracketed, plain=server.plain, secure=server.secure, web=web_ports[1])
    with Application(host) as peer, Application(host) as one, Application(host) as other:
        udp = f"{bracketed}:0={bracketed}:{peer.address[1]}"
        process = command(tmp_path, "--ca", str(certificate.certificate), uri, "--udp", udp)
        (local,) = local_ports(until_ready(process))
        seen = {talk(one, local, peer, b"one"), talk(other, local, peer, b"other"), talk(one, local, peer, b"again")}
        assert len(seen) == 2
        output = assert_stopped(process, server)
    assert "3 sent, 3 received, 0 dropped" in output


def test_several_peers(server: TurnServer, tmp_path: Path) -> None:
    """Several ports, to peers of both families, are forwarded at once; one application uses one relayed address for
    each family.
    """
    with Application() as peer, Application("::1") as peer6, Application() as application:
        udp = [f"0=127.0.0.1:{peer.address[1]}", f"0=[::1]:{peer6.address[1]}", f"0=localhost:{peer.address[1]}"]
        uri = f"turn:127.0.0.1:{server.plain}"
        process = command(tmp_path, uri, *(word for each in udp for word in ("--udp", each)))
        locals_ = local_ports(until_ready(process))
        assert [host for host, _ in locals_] == ["127.0.0.1"] * 3
        talk(application, locals_[0], peer, b"IPv4")
        talk(application, locals_[1], peer6, b"IPv6")
        assert_stopped(process, server, signal.SIGINT)


def test_the_relay_restarts(certificate: Certificate, tmp_path: Path) -> None:
    """The application does not notice that the relay was away, but for what was lost meanwhile."""
    (tmp_path / "server").mkdir()
    plain = free_ports(4)
    first = start_relayd(tmp_path / "server", certificate, plain=plain)
    with Application() as peer, Application() as application:
        uri = f"turn:127.0.0.1:{first.plain}?transport=tcp"
        process = command(tmp_path, uri, "--udp", f"0=127.0.0.1:{peer.address[1]}")
        (local,) = local_ports(until_ready(process))
        before = talk(application, local, peer, b"before")
        assert_clean_end(first)
        assert process.wait_until(lambda: "no relay:" in process.output, PATIENCE), process.output
        second = start_relayd(tmp_path / "server", certificate, plain=plain)
        assert process.wait_until(lambda: process.output.count("relayed address:") == 2, PATIENCE), process.output
        assert talk(application, local, peer, b"after") != before
        assert process.stop() == 0
        assert_clean_end(second)


def test_a_way_that_works(server: TurnServer, tmp_path: Path) -> None:
    """Where UDP does not get through, and TCP does, TCP is used, and what is wrong with UDP is told."""
    with Application() as peer, Application() as application:
        uris = [f"turn:127.0.0.1:{free_ports()}?transport=udp", f"turn:127.0.0.1:{server.plain}?transport=tcp"]
        process = command(tmp_path, *uris, "--udp", f"0=127.0.0.1:{peer.address[1]}")
        output = until_ready(process)
        assert re.search(r"that does not work: turn:.*transport=udp: nothing listens on that port", output)
        assert re.search(r"relayed address: .*, by turn:.*transport=tcp", output)
        talk(application, local_ports(output)[0], peer, b"hello")
        assert_stopped(process, server)


def test_a_network_that_swallows_udp(server: TurnServer, tmp_path: Path) -> None:
    """A way on which no answer comes does not hold up the next one until it is given up."""
    with Application() as peer, Application() as application, Application() as silent:
        uris = [f"turn:127.0.0.1:{silent.address[1]}?transport=udp", f"turn:127.0.0.1:{server.plain}?transport=tcp"]
        process = command(tmp_path, *uris, "--timeout", "600", "--udp", f"0=127.0.0.1:{peer.address[1]}")
        talk(application, local_ports(until_ready(process))[0], peer, b"hello")
        assert_stopped(process, server)


def test_stopped_while_connecting(server: TurnServer, tmp_path: Path) -> None:
    """Who has waited long enough for a relay that does not answer can leave at once."""
    with Application() as silent:
        uri = f"turn:127.0.0.1:{silent.address[1]}?transport=udp"
        process = command(tmp_path, uri, "--timeout", "600", "--udp", "0=127.0.0.1:9")
        assert process.wait_until(lambda: "connecting:" in process.output, PATIENCE), process.output
        assert_stopped(process, server, signal.SIGINT)


@pytest.mark.parametrize(
    ("arguments", "word", "status"),
    [
        (["--tcp", "80"], "says not what to forward", 2),
        (["--udp", "0=127.0.0.1"], "says not what to forward", 2),
        ([], "--udp, --tcp, --tls, --accept or --accept-tls", 2),
        (["--tcp", "192.0.2.1:0=127.0.0.1:9"], "cannot listen on 192.0.2.1, TCP port", 1),
        (["--tls", "0=nowhere.invalid:9"], "nowhere.invalid", 1),
        (["--udp", "192.0.2.1:0=127.0.0.1:9"], "cannot listen on 192.0.2.1", 1),
        (["--udp", "0=nowhere.invalid:9"], "nowhere.invalid", 1),
        (["--udp", "0=10.0.0.1:9"], "does not let us reach 10.0.0.1:9: 403", 1),
    ],
)
def test_faults(server: TurnServer, arguments: list[str], word: str, status: int) -> None:
    """What cannot be forwarded is told on stderr, and the command ends."""
    done = failed(f"turn:127.0.0.1:{server.plain}?transport=tcp", *arguments)
    assert done.returncode == status
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert "Unhandled" not in done.stderr


def test_a_wrong_password(server: TurnServer) -> None:
    """A wrong password is told at once, and nowhere repeated."""
    done = failed(f"turn:127.0.0.1:{server.plain}", "--udp", "0=127.0.0.1:9", password="sesame-open")
    assert done.returncode == 1
    assert done.stderr == "relayd-client: 401 Unauthorized: check the user name and the password\n"
    assert "sesame" not in done.stdout
