"""Finds the strangers' programs that interop tests drive; says clearly when one is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

DEBIAN_PACKAGES = {
    "turnserver": "coturn",
    "turnutils_peer": "coturn",
    "turnutils_uclient": "coturn",
    "turnutils_stunclient": "coturn",
    "turnutils_natdiscovery": "coturn",
    "chromium": "chromium",
    "nginx": "nginx",
    "haproxy": "haproxy",
    "caddy": "caddy",
    "apache2": "apache2-bin",
    "squid": "squid",
    "node": "nodejs",
    "tsc": "node-typescript",
}


def missing(what: str) -> NoReturn:
    """Skip the running test with a clear word; with CI=true fail it, so that nothing goes untested unnoticed."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing: {what} (CI=true: a missing tool is a failure)", pytrace=False)
    pytest.skip(f"missing: {what}")


def require(program: str) -> str:
    """The path of `program`; where it is not installed, `missing` names the package that brings it."""
    # Debian keeps servers where the PATH of an ordinary user does not lead.
    path = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    if path is None:
        missing(f"{program}, of the Debian package {DEBIAN_PACKAGES.get(program, program)}")
    return path


def require_file(path: str, package: str) -> Path:
    """The same for a part of a program that is a file of its own, of that package."""
    if not Path(path).exists():
        missing(f"{path}, of the Debian package {package}")
    return Path(path)
