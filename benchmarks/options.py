"""The command line of `make bench`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.parts import PARTS
from benchmarks.sizes import PRESETS, Sizes

DBOS = "dbos"
_SIZES = "sizes (defaults of the chosen preset)"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure, and where."""

    uri: str | None
    parts: list[str]
    preset: str
    sizes: Sizes
    out: Path
    dbos: bool
    postgres: str | None


def parse(words: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...",
        description="Measures the engine and the raw driver in one run; saves JSON.",
    )
    parser.add_argument("--uri", help="another mongod than an embedded one")
    parser.add_argument("--only", help=f"parts, with commas between: {', '.join(PARTS)}, {DBOS}")
    parser.add_argument("--full", action="store_true", help="the sizes of the targets")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("bench-results/latest.json"))
    parser.add_argument("--dbos", action="store_true", help="measure DBOS too, on SQLite")
    parser.add_argument("--postgres", metavar="URL", help="and DBOS on this PostgreSQL")
    group = parser.add_argument_group(_SIZES)
    for name in Sizes.__struct_fields__:
        group.add_argument(f"--{name.replace('_', '-')}", **_kind(name))
    given = parser.parse_args(words)
    preset = "full" if given.full else "quick" if given.quick else "default"
    changes = {
        name: tuple(value) if isinstance(value, list) else value
        for name in Sizes.__struct_fields__
        if (value := getattr(given, name)) is not None
    }
    parts = given.only.split(",") if given.only is not None else list(PARTS)
    if unknown := [part for part in parts if part not in (*PARTS, DBOS)]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}, {DBOS}")
    return Options(
        uri=given.uri,
        parts=[part for part in parts if part != DBOS],
        preset=preset,
        sizes=msgspec.structs.replace(PRESETS[preset], **changes),
        out=given.out,
        dbos=given.dbos or given.postgres is not None or DBOS in parts,
        postgres=given.postgres,
    )


def _kind(name: str) -> dict[str, Any]:
    default = getattr(PRESETS["default"], name)
    if isinstance(default, tuple):
        return {"type": int, "nargs": "+"}
    return {"type": type(default)}
