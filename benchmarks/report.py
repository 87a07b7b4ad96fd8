"""The figures as text: which targets were met, and tables for the documentation.

python -m benchmarks.report bench-results/latest.json benchmarks/results/figures.md
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.figures import Figure


def targets(figures: Sequence[Figure]) -> str:
    """Return a table of the targets, and how many were met."""
    judged = [figure for figure in figures if figure.target is not None]
    lines = ["", "targets:", *map(str, judged)]
    met = sum(figure.target.met for figure in judged if figure.target is not None)
    return "\n".join([*lines, f"{met} of {len(judged)} targets met"])
