"""How soon a message reaches a waiting body."""

from __future__ import annotations

import asyncio
import time

from benchmarks.bench import Bench
from benchmarks.figures import median, percentile
from benchmarks.peers.marks import handled
from benchmarks.workflows import listener
from streamline import Streamline
from streamline.handles import RunHandle


async def measure(bench: Bench) -> None:
    """Measure from the call of `send` to the body that goes on, in one process."""
    number = bench.sizes.messages
    delays, raw = [], []
    async with bench.engine() as engine:
        handle = await engine.start_run(listener, number)
        for index in range(number):
            raw.append(await bench.raw.round_trip())
            delays.append(await send(handle, index))
        await handle.result()
    bench.figures.add(
        "send to handled",
        median(delays),
        "ms",
        ratio=median(delays) / median(raw),
        to="raw",
    )
    bench.figures.add("send to handled, p95", percentile(delays, 95), "ms")


async def send(handle: RunHandle[None], number: int) -> float:
    """Send a message to a listener; return the milliseconds until its body has it."""
    future = handled[number] = asyncio.get_running_loop().create_future()
    sent = time.perf_counter()
    await handle.send("bench", number)
    delay: float = (await future - sent) * 1000
    del handled[number]
    return delay


async def parked(engine: Streamline, handle: RunHandle[None]) -> None:
    """Wait until a run is parked."""
    while await handle.status() != "waiting":
        await asyncio.sleep(0.01)
