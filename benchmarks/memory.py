"""What a parked run takes in memory: as a part, and as the process that is measured.

    python -m benchmarks.memory URI NUMBER

It says `ready`, and then its resident bytes with none and with that many parked runs.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from pathlib import Path

from benchmarks.bench import CONCURRENCY, Bench, warm_up
from benchmarks.figures import at_most
from benchmarks.helper import Helper
from benchmarks.workflows import parker
from streamline import Streamline

_STARTS = 20


async def measure(bench: Bench) -> None:
    """Measure a fresh process before and after it has parked many runs."""
    number = bench.sizes.parked
    async with (
        bench.place() as place,
        Helper("memory", place.address, str(number)) as process,
    ):
        none, many = map(int, (await process.line()).split())
    if not none:
        print("  (this system doesn't tell a process's memory)")
        return
    each = (many - none) / number / 1024
    bench.figures.add("process without parked runs", none / 2**20, "MB")
    bench.figures.add(
        f"each of {number:,} parked runs", each, "KB", target=at_most(each, 20, "20 KB")
    )


async def _main(address: str, number: int) -> None:
    async with Streamline(address, concurrency=CONCURRENCY, cache_size=number) as engine:
        print("ready", flush=True)
        await warm_up(engine)
        none = _resident_bytes()
        slots = asyncio.Semaphore(_STARTS)

        async def one() -> None:
            async with slots:
                await engine.start_run(parker)

        await asyncio.gather(*(one() for _ in range(number)))
        while engine.health().cached < number:
            await asyncio.sleep(0.05)
        print(none, _resident_bytes(), flush=True)


def _resident_bytes() -> int:
    gc.collect()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
