"""`Figures`: what a run of the benchmarks measured, as a table and as JSON."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Figures:
    """Named figures, each with a unit and perhaps a ratio to a raw figure of the same run."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        ratio: float | None = None,
        to: str = "",
        target: str = "",
    ) -> None:
        """Add a figure, and print it at once."""
        row = {"name": name, "value": value, "unit": unit}
        if ratio is not None:
            row |= {"ratio": round(ratio, 3), "to": to}
        if target:
            row["target"] = target
        self.rows.append(row)
        against = "" if ratio is None else f"{ratio:8.2f} x {to}"
        wanted = f"   (target {target})" if target else ""
        print(f"  {name:<52} {value:>10.2f} {unit:<9}{against}{wanted}", flush=True)

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        report = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": sys.version.split()[0],
            "machine": platform.machine(),
            "figures": self.rows,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile of some values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


median = statistics.median
