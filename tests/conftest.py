"""What all tests share: the options of the suite. Fixtures live beside the tests that use them."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--interop-server=coturn` runs the interop tests against coturn, to show that they are fair."""
    parser.addoption(
        "--interop-server",
        choices=("relayd", "coturn"),
        default="relayd",
        help="the TURN server that tests/interop runs against",
    )
