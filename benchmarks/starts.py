"""How soon a run begins in another process than the one that starts it."""

from __future__ import annotations

import asyncio
import time

from benchmarks.bench import Bench
from benchmarks.figures import at_most, median, percentile
from benchmarks.helper import Helper
from benchmarks.workflows import stamped
from streamline import Streamline

_PAUSE = 0.01


async def measure(bench: Bench) -> None:
    """Measure from the call of `start` in a client to the first step in a worker process."""
    delays, raw = [], []
    async with (
        bench.place() as place,
        Streamline(place.address, worker=False) as client,
        Helper("worker", place.address),
    ):
        for number in range(bench.sizes.starts + 10):
            raw.append(await bench.raw.round_trip())
            await asyncio.sleep(_PAUSE)  # the worker is idle, as one is that waits for runs
            began = time.monotonic()
            ran = await (await client.start_run(stamped)).result()
            if number >= 10:  # the first ones warm up
                delays.append((ran - began) * 1000)
    trip, delay = median(raw), median(delays)
    bench.figures.add("1 raw majority update", trip, "ms", system="raw")
    bench.figures.add(
        "start to first step in another process",
        delay,
        "ms",
        ratio=delay / trip,
        to="raw",
        target=at_most(delay, 3 * trip + 5, f"3 x raw + 5 ms ({3 * trip + 5:.1f})"),
    )
    bench.figures.add("start to first step in another process, p95", percentile(delays, 95), "ms")
