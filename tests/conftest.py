"""What all tests share: the options of the suite, no proxies and no deadlines. Fixtures live beside the tests."""

from __future__ import annotations

import os

import hypothesis
import pytest

# How long an example takes is the affair of whatever else runs on the machine.
hypothesis.settings.register_profile("relayd", deadline=None)
hypothesis.settings.load_profile("relayd")


def pytest_configure() -> None:
    """Tests and the programs they start talk over loopback, whatever proxy this machine needs for the rest."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--interop-server=coturn` runs the interop tests against coturn, to show that they are fair."""
    parser.addoption(
        "--interop-server",
        choices=("relayd", "coturn"),
        default="relayd",
        help="the TURN server that tests/interop runs against",
    )
