"""`Figures`: what a run of the benchmarks measured, as lines, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

median = statistics.median


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile of some values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a figure should be. `judged` is what is compared: the figure itself, or a ratio."""

    text: str
    judged: float
    limit: float
    met: bool


def at_most(judged: float, limit: float, text: str) -> Target:
    """A target that larger values miss."""
    return Target(text=f"<= {text}", judged=judged, limit=limit, met=judged <= limit)


def at_least(judged: float, limit: float, text: str) -> Target:
    """A target that smaller values miss."""
    return Target(text=f">= {text}", judged=judged, limit=limit, met=judged >= limit)


class Figure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One figure. `ratio` is how many times the figure named by `to` it is, in the same run."""

    part: str
    name: str
    value: float
    unit: str
    ratio: float | None = None
    to: str = ""
    target: Target | None = None
    system: str = "streamline"
    """What was measured: `streamline`, `raw` (the driver alone), or another engine."""
    same_as: str = ""
    """The workload, where several systems were measured with it."""

    def __str__(self) -> str:
        against = "" if self.ratio is None else f"{self.ratio:.2f} x {self.to}"
        wanted = ""
        if self.target is not None:
            wanted = f"{self.target.text:<22} {'met' if self.target.met else 'MISSED'}"
        return (
            f"  {self.name:<62} {self.value:>10.2f} {self.unit:<10} {against:<22}{wanted}".rstrip()
        )


class Figures:
    """The figures of one run of the benchmarks, printed as they come.

    Args:
        sizes: What was measured, to be kept with the figures.
    """

    def __init__(self, sizes: dict[str, Any]) -> None:
        self.part = ""
        self.rows: list[Figure] = []
        self.plans: list[dict[str, Any]] = []
        """Which plans the server chose for the engine's commands."""
        self._sizes = sizes
        # Others' work on the machine: what it was before ours began.
        self._load = os.getloadavg()[0]

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        ratio: float | None = None,
        to: str = "",
        target: Target | None = None,
        system: str = "streamline",
        same_as: str = "",
    ) -> None:
        """Add a figure, and print it at once."""
        figure = Figure(
            part=self.part,
            name=name,
            value=value,
            unit=unit,
            ratio=ratio,
            to=to,
            target=target,
            system=system,
            same_as=same_as,
        )
        self.rows.append(figure)
        print(figure, flush=True)

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        report = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": sys.version.split()[0],
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "load": round(self._load, 2),
            "sizes": self._sizes,
            "figures": msgspec.to_builtins(self.rows),
            "plans": self.plans,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


def load(path: Path) -> tuple[dict[str, Any], list[Figure]]:
    """Read what `Figures.save` wrote: everything, and its figures."""
    report = json.loads(path.read_text())
    return report, msgspec.convert(report["figures"], list[Figure])
