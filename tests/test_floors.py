"""The tree stays a tree: imports look down, never up, never sideways between two folders of one floor."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "qraf"
FLOORS = {
    "errors": 0, "clock": 0, "records": 0, "frames": 0, "settings": 0, "filters": 0, "times": 0,
    "state_orders": 0, "code_orders": 0, "decode_frames": 0, "state_frames": 0, "service_orders": 0, "base_orders": 0,
    "tenants": 0, "logs": 0,
    "states": 1, "codes": 1, "text": 1, "storage": 1,
    "memory": 2, "network": 2, "operations": 2,
    "actors": 3,
    "sessions": 4,
    "gateway": 5,
    "client": 6, "cli": 6, "demo": 6,
}  # fmt: skip
# the light client installs without the server; the command line and the demo are the server's users
LIGHT = {"client"}
MAY_IMPORT_RAY = {f"actors/ray_{name}.py" for name in ("actors", "runtime", "services", "supervisor")}
# a process that only serves frames must not pay for torch
MAY_IMPORT_TORCH = (
    "states/",
    "codes/pauli.py",
    "memory/",
    "operations/",
    "text/encoder.py",
    "actors/processes.py",
    "actors/replica.py",
)
IMPORT = re.compile(r"^ *((?:import [\w.]+|from [\w.]+ import (?:\([^)]*\)|[\w, ]+))[^\n]*)$", re.MULTILINE)


def place(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0].removesuffix(".py")


@cache
def imports(path: Path) -> set[str]:
    found: set[str] = set()
    # parsed one by one: walking through every expression of every file takes a second
    for statement in IMPORT.findall(path.read_text()):
        [node] = ast.parse(statement).body
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "qraf":
                found |= {f"qraf.{alias.name}" for alias in node.names if alias.name in FLOORS}
            elif node.module:
                found.add(node.module)
    return found


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py" and "migrations" not in path.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_look_down(path: Path) -> None:
    here = place(path)
    assert here in FLOORS, f"{here} has no floor"
    for name in imports(path):
        if not name.startswith("qraf."):
            continue
        there = name.split(".")[1]
        if there == here:
            continue
        assert there in FLOORS, f"{path}: {name} has no floor"
        if FLOORS[here] == 6 and here not in LIGHT:
            continue
        assert FLOORS[there] < FLOORS[here] or FLOORS[there] == 0, f"{path} looks up or sideways at {name}"
        if here in LIGHT:
            assert FLOORS[there] == 0, f"{path}: the light client may import the ground floor only, not {name}"


def test_only_the_ray_runtime_imports_ray() -> None:
    for path in FILES:
        if str(path.relative_to(ROOT)) not in MAY_IMPORT_RAY:
            assert not any(name.split(".")[0] == "ray" for name in imports(path)), path


def test_torch_stays_with_the_states() -> None:
    for path in FILES:
        if not str(path.relative_to(ROOT)).startswith(MAY_IMPORT_TORCH):
            assert not any(name.split(".")[0] in ("torch", "transformers") for name in imports(path)), path


def test_the_floors_are_all_there() -> None:
    found = {place(path) for path in FILES}
    assert found == set(FLOORS), found ^ set(FLOORS)
