"""Installed by pip into a clean environment, `twistd relayd` is found from any directory; an editable install too."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_ports
from tests.support.process import Process
from tests.support.servers import ROOT, START_PATIENCE

PATIENCE = 300.0  # seconds for pip to fetch and unpack all dependencies
PARTS = ("relayd", "twisted", "setup.cfg", "pyproject.toml", "README.rst", "LICENSE")


class CleanEnvironment:
    """A virtual environment with nothing in it but what a test installs, beside a copy of the sources."""

    def __init__(self, directory: Path) -> None:
        self.source = directory / "source"
        self.elsewhere = directory / "elsewhere"
        self.source.mkdir()
        self.elsewhere.mkdir()
        unwanted = shutil.ignore_patterns("__pycache__", "dropin.cache")
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, self.source / part, ignore=unwanted)
            else:
                shutil.copy(ROOT / part, self.source)
        venv.create(directory / "environment", with_pip=True)
        self.bin = directory / "environment" / "bin"

    def run(self, command: str, *words: str) -> None:
        ended = subprocess.run(
            [str(self.bin / command), *words],
            cwd=self.elsewhere,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr

    def starts(self) -> bool:
        """Whether a relay comes up from another directory, with every kind of plugin and the files that it needs."""
        port = free_ports()
        ways = ["--listen=turn=udp:0:interface=127.0.0.1", f"--listen=web=tcp:{port}:interface=127.0.0.1"]
        words = [str(self.bin / "twistd"), "-n", "--pidfile=", "relayd", *ways]
        process = Process(words, self.elsewhere, {"PYTHONPATH": ""})
        try:
            ready = process.wait_until(lambda: "relayd: ready" in process.output, START_PATIENCE)
            return ready and all(
                _is_served(port, path) for path in ("/", "/status.js", "/metrics", "/demo", "/relayd.js")
            )
        finally:
            process.stop()


def _is_served(port: int, path: str) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=START_PATIENCE)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status == 200


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanEnvironment]:
    directory = tmp_path_factory.mktemp("install")
    yield CleanEnvironment(directory)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--editable"]], ids=["installed", "editable"])
def test_twistd_finds_the_relay(clean: CleanEnvironment, how: list[str]) -> None:
    """pip install, with the dependencies that setup.cfg names and no others, is all it takes; so is pip install -e. Who
    type-checks a program with the client gets its annotations, too (PEP 561).
    """
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    clean.run("python", *pip, "install", *how, str(clean.source))
    assert clean.starts()
    clean.run("relayd-user", "--help")
    clean.run("python", "-c", "import pathlib, relayd; pathlib.Path(relayd.__file__).with_name('py.typed').stat()")
    clean.run("python", *pip, "uninstall", "--yes", "relayd")
