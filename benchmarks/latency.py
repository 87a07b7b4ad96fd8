"""How long runs of sequential steps take, and how many writes they are."""

from __future__ import annotations

import itertools
import time
from typing import Any

from benchmarks.bench import Bench, database_of
from benchmarks.figures import at_most, median, percentile
from benchmarks.workflows import steps
from streamline import Streamline


async def measure(bench: Bench) -> None:
    """Measure 10-step runs next to 11 raw majority updates; count the writes of longer ones."""
    async with bench.engine() as engine:
        await _latency(bench, engine)
        await _writes(bench, engine)


async def _latency(bench: Bench, engine: Streamline) -> None:
    ours, theirs = [], []
    for _ in range(bench.sizes.latency_runs):  # in turns, so that noise hits both
        began = time.perf_counter()
        await (await engine.start_run(steps, 10)).result()
        ours.append((time.perf_counter() - began) * 1000)
        theirs.append(await bench.raw.sequence())
    ratio = median([mine / raw for mine, raw in zip(ours, theirs, strict=True)])
    bench.figures.add("11 raw majority updates", median(theirs), "ms", system="raw")
    bench.figures.add(
        "10-step run",
        median(ours),
        "ms",
        ratio=ratio,
        to="raw",
        target=at_most(ratio, 1.3, "1.3 x raw"),
    )
    bench.figures.add("10-step run, p95", percentile(ours, 95), "ms")


async def _writes(bench: Bench, engine: Streamline, runs: int = 20, length: int = 50) -> None:
    counts = [await _written(engine)]
    for _ in range(runs):
        await (await engine.start_run(steps, length)).result()
        counts.append(await _written(engine))
    # Of each run by itself: now and then a lease is renewed meanwhile.
    writes = median([after - before for before, after in itertools.pairwise(counts)])
    bench.figures.add(
        f"writes of a run of {length} steps, by serverStatus",
        writes,
        "writes",
        target=at_most(writes, length + 1, f"{length + 1}"),
    )


async def _written(engine: Streamline) -> int:
    status: dict[str, Any] = await database_of(engine).client.admin.command("serverStatus")
    counters = status["opcounters"]
    return int(counters["insert"] + counters["update"] + counters["delete"])
