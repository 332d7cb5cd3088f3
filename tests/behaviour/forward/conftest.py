"""The relay that `relayd-client forward` uses; one for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.certificate import Certificate, make_certificate
from tests.support.ports import free_ports
from tests.support.servers import TurnServer, assert_clean_end, start_relayd


@pytest.fixture(scope="package")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A self-signed certificate for loopback."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="package")
def web_ports() -> tuple[int, int]:
    """Where the relay is to listen for WebSockets, without TLS and with it."""
    return free_ports(), free_ports()


@pytest.fixture(scope="package")
def server(
    tmp_path_factory: pytest.TempPathFactory, certificate: Certificate, web_ports: tuple[int, int]
) -> Iterator[TurnServer]:
    """With every way in, and TLS with peers in both directions; in the end it has to stop with nothing left."""
    keys = f"privateKey={certificate.key}:certKey={certificate.certificate}"
    plain, secure = web_ports
    options = [f"--peer-ca={certificate.certificate}"]
    options += [f"--peer-certificate={certificate.certificate}", f"--peer-key={certificate.key}"]
    for host in ("127.0.0.1", r"\:\:1"):
        options += [
            f"--listen=web=tcp:{plain}:interface={host}",
            f"--listen=web=ssl:{secure}:interface={host}:{keys}",
        ]
    running = start_relayd(tmp_path_factory.mktemp("server"), certificate, *options)
    yield running
    assert_clean_end(running)
