"""How late sleeping runs wake."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial

from benchmarks.bench import Bench
from benchmarks.figures import at_most, median, percentile
from benchmarks.peers.marks import woke_late
from benchmarks.workflows import sleeper, sleeper_until
from streamline import Streamline
from streamline.handles import RunHandle

Start = Callable[[], Awaitable[RunHandle[None]]]
_DAY = 86_400.0
_PER_SECOND = 50
_STARTS = 100
"""How many runs are started side by side."""


async def measure(bench: Bench) -> None:
    """Measure many sleeps that end together, and wakes while many others sleep."""
    async with bench.engine() as engine:
        await _at_once(bench, engine)
    async with bench.engine() as engine:
        await _among_sleepers(bench, engine)


async def _at_once(bench: Bench, engine: Streamline) -> None:
    number = bench.sizes.at_once
    woke_late.clear()
    handles = await asyncio.gather(*(engine.start_run(sleeper, 1.0) for _ in range(number)))
    await asyncio.gather(*(handle.result() for handle in handles))
    late = _milliseconds()
    p95 = percentile(late, 95)
    await bench.raw.burst(number)  # connections first
    raw = percentile(await bench.raw.burst(number), 95)
    bench.figures.add(f"{number} raw updates at once, p95", raw, "ms", system="raw")
    bench.figures.add(f"{number} sleeps of 1 s at once: late, median", median(late), "ms")
    bench.figures.add(
        f"{number} sleeps of 1 s at once: late, p95",
        p95,
        "ms",
        ratio=p95 / raw,
        to="raw",
        target=at_most(p95, 50, "50 ms"),
    )


async def _among_sleepers(bench: Bench, engine: Streamline) -> None:
    sizes = bench.sizes
    await _crowd([partial(engine.start_run, sleeper, _DAY)] * sizes.sleeping)
    woke_late.clear()
    seconds = sizes.wakes / _PER_SECOND
    # Long enough ahead for all to be asleep before the first one wakes.
    first = engine.store.clock.now() + timedelta(seconds=2 + sizes.wakes / 200)
    dues = [first + timedelta(seconds=random.uniform(0, seconds)) for _ in range(sizes.wakes)]
    handles = await _crowd([partial(engine.start_run, sleeper_until, due) for due in dues])
    await asyncio.gather(*(handle.result() for handle in handles))
    late = _milliseconds()
    middle, p99 = median(late), percentile(late, 99)
    name = f"wakes while {sizes.sleeping:,} sleep: late"
    bench.figures.add(f"{name}, median", middle, "ms", target=at_most(middle, 10, "10 ms"))
    bench.figures.add(f"{name}, p99", p99, "ms", target=at_most(p99, 100, "100 ms"))


async def _crowd(starts: Sequence[Start]) -> list[RunHandle[None]]:
    slots = asyncio.Semaphore(_STARTS)

    async def one(start: Start) -> RunHandle[None]:
        async with slots:
            return await start()

    return await asyncio.gather(*map(one, starts))


def _milliseconds() -> list[float]:
    return [max(0.0, seconds) * 1000 for seconds in woke_late.values()]
