"""The figures as text: which targets were met, and tables for the documentation.

python -m benchmarks.report bench-results/latest.json benchmarks/results/figures.md
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.figures import Figure


def comparison(figures: Sequence[Figure]) -> str:
    """Return a table of the workloads that other engines were measured with too."""
    table = compared(figures)
    systems = list(dict.fromkeys(system for row in table.values() for system in row))
    width = max(map(len, table), default=0) + 2
    lines = ["", "side by side:", " " * width + "".join(f"{system:>22}" for system in systems)]
    for name, row in table.items():
        cells = (_cell(row.get(system)) for system in systems)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def compared(figures: Sequence[Figure]) -> dict[str, dict[str, Figure]]:
    """Return, for each workload that several systems were measured with, their figures."""
    table: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        if figure.same_as:
            table.setdefault(figure.same_as, {})[figure.system] = figure
    return {name: row for name, row in table.items() if len(row) > 1}


def _cell(figure: Figure | None) -> str:
    return "-" if figure is None else f"{figure.value:,.4g} {figure.unit}"


def targets(figures: Sequence[Figure]) -> str:
    """Return a table of the targets, and how many were met."""
    judged = [figure for figure in figures if figure.target is not None]
    lines = ["", "targets:", *map(str, judged)]
    met = sum(figure.target.met for figure in judged if figure.target is not None)
    return "\n".join([*lines, f"{met} of {len(judged)} targets met"])
