"""The figures as text: on the screen, and as tables for the documentation.

python -m benchmarks.report bench-results/latest.json benchmarks/results
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, load

_BUSY = 0.5
"""The load average from which the tables say that others used the machine."""
Table = dict[str, dict[str, Figure]]


def targets(figures: Sequence[Figure]) -> str:
    """Return a table of the targets, and how many were met."""
    judged = [figure for figure in figures if figure.target is not None]
    lines = ["", "targets:", *map(str, judged)]
    met = sum(figure.target.met for figure in judged if figure.target is not None)
    return "\n".join([*lines, f"{met} of {len(judged)} targets met"])


def comparison(figures: Sequence[Figure]) -> str:
    """Return a table of the workloads that several engines were measured with."""
    table = compared(figures)
    systems = _systems(table)
    width = max(map(len, table), default=0) + 2
    lines = ["", "side by side:", " " * width + "".join(f"{system:>22}" for system in systems)]
    for name, row in table.items():
        cells = (cell(row.get(system)) for system in systems)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def compared(figures: Sequence[Figure]) -> Table:
    """Return, for each workload that several systems were measured with, their figures."""
    table: Table = {}
    for figure in figures:
        if figure.same_as:
            table.setdefault(figure.same_as, {})[figure.system] = figure
    return {name: row for name, row in table.items() if len(row) > 1}


def worse_by(row: dict[str, Figure], system: str) -> float:
    """Return how many times worse than streamline a system is: slower, or fewer per second."""
    ours, theirs = row["streamline"].value, row[system].value
    if row[system].unit.endswith("/s"):
        ours, theirs = theirs, ours
    return theirs / ours


def write(source: Path, directory: Path) -> None:
    """Write the tables of the documentation, and keep the figures beside them."""
    report, figures = load(source)
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, directory / "figures.json")
    pages = {
        "targets.md": _targets_page(figures),
        "comparison.md": _comparison_page(figures),
        "plans.md": _plans_page(report["plans"]),
        "run.md": _run_page(report),
    }
    for name, lines in pages.items():
        (directory / name).write_text("\n".join(lines) + "\n")
    print(f"wrote {', '.join(pages)} to {directory}")


def _targets_page(figures: Sequence[Figure]) -> list[str]:
    lines = ["| measured | | ratio | target | met |", "|---|---|---|---|---|"]
    for figure in figures:
        if figure.target is not None:
            ratio = "" if figure.ratio is None else f"{figure.ratio:.2f} x {figure.to}"
            met = "yes" if figure.target.met else "**no**"
            cells = (figure.name, cell(figure), ratio, figure.target.text, met)
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _comparison_page(figures: Sequence[Figure]) -> list[str]:
    table = compared(figures)
    systems = _systems(table)
    if not systems:
        return ["(No other engine was measured in this run.)"]
    lines = [f"| | {' | '.join(systems)} |", "|---|" + "---|" * len(systems)]
    for name, row in table.items():
        cells = []
        for system in systems:
            text = cell(row.get(system))
            if system != "streamline" and system in row:
                text += f" ({worse_by(row, system):.2g} x)"
            cells.append(text)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _plans_page(plans: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| command | collection | plan | times |", "|---|---|---|---|"]
    for plan in plans:
        cells = (plan["command"], plan["collection"], f"`{plan['plan']}`", str(plan["times"]))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _run_page(report: dict[str, Any]) -> list[str]:
    where = f"{report['machine']}, Python {report['python']}"
    preset = report["sizes"]["preset"]
    lines = [f"The figures below are of {report['at'][:10]}: {where}, sizes of `{preset}`."]
    load = report["load"]
    if load >= _BUSY:
        lines.append(f"Others kept the machine busy (load average {load:g}): times are longer.")
    return lines


def _systems(table: Table) -> list[str]:
    return list(dict.fromkeys(system for row in table.values() for system in row))


def cell(figure: Figure | None) -> str:
    """Return a figure as text."""
    return "-" if figure is None else f"{figure.value:,.4g} {figure.unit}"


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
