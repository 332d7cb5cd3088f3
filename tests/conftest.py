"""What all tests share: the options of the suite, and no proxies. Fixtures live beside the tests that use them."""

from __future__ import annotations

import os

import pytest


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
