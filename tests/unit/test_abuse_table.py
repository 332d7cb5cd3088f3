"""docs/abuse.rst names tests; this holds it to them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"``([\w/]+\.py)::(\w+)``", (ROOT / "docs" / "abuse.rst").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_named_test_exists(file: str, name: str) -> None:
    """Each test that the table of abuses names is there, under that name, and says what it promises."""
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    (test,) = [node for node in found if node.name == name]
    assert ast.get_docstring(test)


def test_the_table_is_read() -> None:
    """The pattern above still finds what it is for."""
    assert len(NAMED) > 50
