"""relayd.js in Node: its own tests, then against a relay that runs; its types; and what npm would publish.

In a browser it is tested with the demo page (test_demo.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from relayd import __version__
from tests.support.certificate import Certificate
from tests.support.ports import free_ports
from tests.support.servers import PASSWORD, ROOT, USER, assert_clean_end, start_relayd
from tests.support.tools import missing, require

TESTS = ROOT / "tests" / "javascript"
PACKAGE = ROOT / "relayd" / "web" / "static"
OLDEST_NODE = (18, 19)  # the first with all of node:test that is used here; the library itself promises 20
PATIENCE = 120.0  # seconds; on a loaded machine they take ten


def run(words: list[str], directory: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a program to its end, which has to be a good one; what it printed."""
    with subprocess.Popen(
        words,
        cwd=directory,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            printed, _ = child.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # Node's runner starts a process for each file
            printed, _ = child.communicate()
            pytest.fail(f"{words[0]} did not end within {PATIENCE} seconds; it printed:\n{printed}")
    assert child.returncode == 0, printed
    return printed


def require_node() -> str:
    """The path of a Node that is new enough."""
    node = require("node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_NODE:
        missing(f"node {'.'.join(map(str, OLDEST_NODE))} or newer (this one is {version})")
    return node


def passed(report: str) -> int:
    """How many tests the report of Node's runner says have passed; none failed or was skipped."""
    counts = {name: int(count) for name, count in re.findall(r"^(?:#|ℹ) (\w+) (\d+)$", report, re.MULTILINE)}
    assert (counts["fail"], counts["cancelled"], counts["skipped"]) == (0, 0, 0), report
    return counts["pass"]


@pytest.mark.parametrize("name", ["stun", "relayd", "round_trips"])
def test_alone(name: str, tmp_path: Path) -> None:
    """The tests that need no relay: published vectors, hostile input, a relay in memory and a stepped clock."""
    assert passed(run([require_node(), "--test", str(TESTS / f"{name}.test.mjs")], tmp_path)) >= 6


@pytest.fixture
def relay_url(certificate: Certificate, tmp_path: Path) -> Iterator[str]:
    """A relay with a web site, which has to stop with nothing left."""
    port = free_ports()
    server = start_relayd(tmp_path, certificate, f"--listen=web=tcp:{port}:interface=127.0.0.1")
    yield f"ws://127.0.0.1:{port}/turn"
    assert_clean_end(server)


def test_against_a_relay(relay_url: str, tmp_path: Path) -> None:
    """Datagrams of every size and both families go through a relay that runs, and what it refuses is told."""
    environment = {"RELAY_URL": relay_url, "RELAY_USERNAME": USER, "RELAY_CREDENTIAL": PASSWORD}
    assert passed(run([require_node(), "--test", str(TESTS / "live.test.mjs")], tmp_path, environment)) >= 6


def test_types(tmp_path: Path) -> None:
    """The JSDoc holds under TypeScript's strict checks, and a program in TypeScript that uses the package compiles."""
    tsc = require("tsc")
    installed = tmp_path / "node_modules" / "relayd"
    run([tsc, "--project", str(PACKAGE), "--outDir", str(installed)], tmp_path)
    shutil.copy(PACKAGE / "package.json", installed)
    shutil.copy(TESTS / "typed.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "node16", "--lib", "es2022,dom,dom.iterable"]
    run([tsc, *options, "typed.ts"], tmp_path)
    run([tsc, *options, "--allowJs", "--checkJs", str(PACKAGE / "demo.js")], tmp_path)


def test_package() -> None:
    """package.json names files that are there, the licence and the version of relayd, and asks for no other package."""
    package = json.loads((PACKAGE / "package.json").read_text())
    assert package["version"] == __version__
    assert package["license"] == "MIT"
    assert package["type"] == "module"
    assert not {"dependencies", "peerDependencies", "optionalDependencies"} & set(package)
    written = [name for name in package["files"] if not name.endswith(".d.ts")]  # those are made for publication
    assert all((PACKAGE / name).is_file() for name in written)
    assert package["exports"]["."] == {"types": "./relayd.d.ts", "default": "./relayd.js"}
    sources = [(PACKAGE / name).read_text() for name in written if name.endswith(".js")]
    imports = [re.findall(r'^(?:import|export|\}).*from "(.+?)"', source, re.MULTILINE) for source in sources]
    assert imports == [["./stun.js"], []]
