"""The client library can be imported by a program that has yet to choose its reactor."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.servers import ROOT


@pytest.mark.parametrize("module", ["relayd.client", "relayd.client.command"])
def test_no_reactor_is_installed(module: str) -> None:
    """Importing it installs none, in an interpreter that has imported nothing else."""
    program = f"import sys, {module}; sys.exit('twisted.internet.reactor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
