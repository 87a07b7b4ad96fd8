"""The figures as a picture: python -m benchmarks.plot bench-results/latest.json FILE.svg."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from benchmarks.figures import Figure, load
from benchmarks.report import cell, compared, worse_by

_MET, _MISSED = "#00897b", "#d1495b"
_OTHERS = ("#5c6bc0", "#8d6e63", "#78909c")
_ROW = 0.3
_WIDEST = 3.0
"""How many times its target a bar shows at most."""


def draw(figures: Sequence[Figure], title: str) -> Canvas:
    """Draw what the targets allow and what was measured; beside it, other engines."""
    judged = [figure for figure in figures if figure.target is not None]
    table = compared(figures)
    height = _ROW * len(judged) + 1.2, _ROW * 2 * len(table) + 1.2
    canvas = Canvas(figsize=(9, sum(height) if table else height[0]), layout="constrained")
    canvas.suptitle(title, fontsize=9)
    if table:
        upper, lower = canvas.subplots(2, 1, height_ratios=height)
        _draw_comparison(lower, table)
    else:
        upper = canvas.subplots()
    _draw_targets(upper, judged)
    return canvas


def _draw_targets(axes: Any, figures: Sequence[Figure]) -> None:
    shares = [min(_WIDEST, _share(figure)) for figure in figures]
    colours = [_MET if share <= 1 else _MISSED for share in shares]
    axes.barh([figure.name for figure in figures], shares, color=colours, height=0.6)
    axes.axvline(1, color="black", linewidth=0.8)
    for row, (figure, share) in enumerate(zip(figures, shares, strict=True)):
        axes.text(max(share, 1) + 0.03, row, _caption(figure), va="center", fontsize=7)
    axes.set_xlim(0, max([1.5, *shares]) + 0.9)
    axes.set_title("measured, as a share of what the target allows (left of the line: met)")
    _tidy(axes)


def _draw_comparison(axes: Any, table: dict[str, dict[str, Figure]]) -> None:
    systems = [
        system
        for system in dict.fromkeys(name for row in table.values() for name in row)
        if system != "streamline"
    ]
    height = 0.8 / len(systems)
    for number, system in enumerate(systems):
        places = [row + number * height for row in range(len(table))]
        ratios = [worse_by(row, system) for row in table.values()]
        lengths = [ratio - 1 for ratio in ratios]
        axes.barh(places, lengths, left=1, height=height, color=_OTHERS[number], label=system)
        for place, ratio in zip(places, ratios, strict=True):
            axes.text(ratio * 1.05, place, f"{ratio:.3g} x", va="center", fontsize=7)
    middle = (len(systems) - 1) * height / 2
    axes.set_yticks([row + middle for row in range(len(table))], list(table))
    axes.set_xscale("log")
    axes.axvline(1, color=_MET, linewidth=1.2, label="streamline")
    axes.margins(x=0.15)
    axes.legend(fontsize=7)
    axes.set_title("times what streamline takes (right of the line: streamline is better)")
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.title.set_size(9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _share(figure: Figure) -> float:
    """Return how much of what its target allows a figure takes; at most 1 if it is met."""
    target = figure.target
    assert target is not None
    over, under = target.judged, target.limit
    if target.text.startswith(">="):
        over, under = under, over
    if not under:
        return 0.0 if not over else _WIDEST
    return over / under


def _caption(figure: Figure) -> str:
    assert figure.target is not None
    measured = cell(figure)
    if figure.ratio is not None:
        measured += f", {figure.ratio:.2f} x {figure.to}"
    return f"{measured} ({figure.target.text})"


def main(source: Path, picture: Path) -> None:
    """Draw the figures of a file."""
    report, figures = load(source)
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text: small, and searchable
    mpl.rcParams["svg.hashsalt"] = "streamline"
    mpl.rcParams["font.family"] = "sans-serif"
    title = f"{report['machine']}, Python {report['python']}, {report['at'][:10]}"
    draw(figures, title).savefig(picture, metadata={"Date": None})
    print(f"drew {picture}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
