"""The import order (docs/architecture.rst, section 3): a module imports rooms strictly below its own, and its own.

Reads the sources; imports nothing of relayd.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the top down. A line is a floor; rooms on one floor do not import one another. A room is a tuple of modules and
# packages of relayd.
FLOORS: list[list[tuple[str, ...]]] = [
    [("tap", "launch")],
    [("listeners",), ("peers",), ("client",), ("web",)],
    [("service",)],
    [("dataplane",)],
    [("auth",), ("policies",), ("observers",)],
    [
        (
            "config",
            "configfile",
            "accept_log",
            "end_signals",
            "local_addresses",
            "pump",
            "twisted_address",
            "websocket_frames",
        )
    ],
    [("tls",), ("pipe",)],
    [("interfaces",)],
    # From here on: no Twisted, no zope, no sockets, no clock, no source of entropy.
    [("datachannel",)],
    [("sctp",), ("ice",), ("dtls", "dtls_client"), ("mux",), ("turn",)],
    [("stun",)],
    [("errors", "address", "core", "identity", "rate")],
]
FIRST_PURE_FLOOR = 8

# These stand above the service and still never import it: they meet in the interfaces.
NEVER = {(room, "service") for room in ("listeners", "peers", "client", "web")}

IMPURE = {
    "twisted",
    "zope",
    "autobahn",
    "socket",
    "select",
    "selectors",
    "asyncio",
    "threading",
    "time",
    "datetime",
    "random",
    "secrets",
    "os",
    "subprocess",
}


MODULES = sorted((ROOT / "relayd").rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(module: str) -> tuple[int, tuple[str, ...]] | None:
    """The floor and the room of a module; None for the package itself."""
    top = module.split(".")[1] if "." in module else None
    if top is None:
        return None
    for number, floor in enumerate(FLOORS):
        for room in floor:
            if top in room:
                return number, room
    raise AssertionError(f"{module} has no room: give it one in FLOORS, and in docs/architecture.rst")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> Iterator[str]:
    """The modules that are imported anywhere in a file, those for annotations only left out."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports absolutely, so that the room can be read off"
            yield from _imported_from(node)
        elif is_type_checking(node):
            waiting.extend(node.orelse)  # type: ignore[attr-defined]
        else:
            waiting.extend(ast.iter_child_nodes(node))


def _imported_from(node: ast.ImportFrom) -> Iterator[str]:
    if node.module != "relayd":
        yield str(node.module)
        return
    known = {name for floor in FLOORS for room in floor for name in room}
    yield from (f"relayd.{alias.name}" if alias.name in known else "relayd" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_what_is_below(path: Path) -> None:
    """No module knows one above it, or one beside it in another room."""
    own = place(name_of(path))
    for target in imports(path):
        there = place(target) if target.split(".")[0] == "relayd" else None
        if own is None or there is None or own == there:
            continue
        assert there[0] > own[0], f"{name_of(path)} imports {target}, which is not below it"
        assert (own[1][0], there[1][0]) not in NEVER, f"{name_of(path)} imports {target}: they meet in the interfaces"


@pytest.mark.parametrize("path", sorted((ROOT / "relayd" / "client").rglob("*.py")), ids=name_of)
def test_rooms_within_the_client(path: Path) -> None:
    """What reaches a server knows nothing of allocations, and they know nothing of what forwards by them."""
    client = {target for target in imports(path) if target.startswith("relayd.client.")}
    if path.parent.name == "transports":
        assert all(target.startswith("relayd.client.transports.") for target in client)
    elif path.parent.name == "client" and path.name != "command.py":
        assert not any(target.startswith("relayd.client.forward.") for target in client)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_cores_are_pure(path: Path) -> None:
    """Nothing below the line knows Twisted, a socket, a clock or a source of entropy."""
    own = place(name_of(path))
    if own is None or own[0] < FIRST_PURE_FLOOR:
        return
    impure = {target for target in imports(path) if target.split(".")[0] in IMPURE}
    assert not impure, f"{name_of(path)} imports {', '.join(sorted(impure))}"


def test_plugin_files_only_declare() -> None:
    """Files in twisted/plugins hold imports and calls, no logic; an __init__.py would hide Twisted's own package."""
    directory = ROOT / "twisted" / "plugins"
    assert not (directory / "__init__.py").exists()
    assert not (ROOT / "twisted" / "__init__.py").exists()
    for path in directory.glob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr)
        assert all(isinstance(node, allowed) for node in body), f"{path.name} does more than declare"


def test_every_package_is_installed() -> None:
    """setup.cfg lists packages by hand: each directory of modules is in the list, and the plugins are."""
    listed = (
        (ROOT / "setup.cfg")
        .read_text(encoding="utf-8")
        .split("packages =")[1]
        .split("\n\n")[0]
        .split("\n# ")[0]
        .split()
    )
    packages = {name_of(path) for path in (ROOT / "relayd").rglob("__init__.py")}
    assert {*packages, "twisted.plugins"} == set(listed)
