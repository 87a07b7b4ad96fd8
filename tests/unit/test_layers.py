"""Layers go one way only. The table is the one in ARCHITECTURE.md; imports are read, not run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "streamline"

LAYERS: list[set[str]] = [
    {"durations", "errors", "clock", "ids", "tasks"},
    {"codec", "model", "outbox", "events", "retry", "health"},
    {"context", "documents", "handles", "runtime"},
    {"definitions"},
    {"replay", "store"},
    {"worker", "waiters"},
    {"delivery", "launcher", "rewinder", "control", "engine"},
    {"streamline", "testing"},
]
"""Lowest first; a module or package of `streamline`, and `streamline` itself for its __init__."""

FORBIDDEN = {
    "replay": {"pymongo", "beanie", "bson", "time", "socket", "threading", "streamline.store"},
    "store": {"beanie", "streamline.replay", "streamline.definitions", "streamline.context"},
    "definitions": {"pymongo", "beanie", "bson"},
    "context": {"pymongo", "beanie", "bson"},
    "runtime": {"pymongo", "beanie", "bson"},
    "worker": {"pymongo", "beanie"},
}
"""What a layer must not import at all, whatever its place."""


def module_name(path: Path) -> str:
    """`streamline.store.mongo` for streamline/store/mongo.py, `streamline.store` for its init."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def unit_of(module: str) -> str:
    """Return the row of the table that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imports_of(module: str) -> Iterator[str]:
    """Yield what a module imports: anywhere in it, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def level_of(module: str) -> int:
    unit = unit_of(module)
    levels = [level for level, units in enumerate(LAYERS) if unit in units]
    assert levels, f"give {unit!r} a place in LAYERS and in the table of ARCHITECTURE.md"
    return levels[0]


def test_every_module_has_a_place_in_the_table() -> None:
    placed = set().union(*LAYERS)
    assert {unit_of(module) for module in MODULES} == placed


@pytest.mark.parametrize("module", MODULES)
def test_a_lower_layer_never_imports_a_higher_one(module: str) -> None:
    upward = [
        imported
        for imported in imports_of(module)
        if imported.split(".")[0] == "streamline" and level_of(imported) > level_of(module)
    ]
    assert upward == []


@pytest.mark.parametrize("unit", FORBIDDEN)
def test_what_a_layer_must_not_know_is_not_imported(unit: str) -> None:
    found = [
        f"{module} imports {imported}"
        for module in MODULES
        if unit_of(module) == unit
        for imported in imports_of(module)
        for forbidden in FORBIDDEN[unit]
        if imported == forbidden or imported.startswith(f"{forbidden}.")
    ]
    assert found == []


def test_modules_import_each_other_without_a_cycle() -> None:
    # Imports under TYPE_CHECKING count like all others: they would hide a cycle, not resolve it.
    graph = {
        module: {name for name in imports_of(module) if name in MODULES and name != module}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' -> '.join(error.args[1])}")


def test_replay_reads_no_clock() -> None:
    calls = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        if unit_of(module) == "replay"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("now", "utcnow", "today")
        and isinstance(node.value, ast.Name)
        and node.value.id in ("datetime", "date")
    ]
    assert calls == []


def test_the_table_is_the_one_of_the_architecture_document() -> None:
    rows: list[set[str]] = []
    for line in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0].isdigit():
            names = cells[1].replace("`", "").replace("__init__.py", "streamline").split()
            rows.append({name.removesuffix("/").removesuffix(".py") for name in names})
    assert rows == LAYERS
