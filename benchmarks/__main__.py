"""`make bench`: measures the engine and the raw driver in one run; prints ratios, saves JSON."""

from __future__ import annotations

import asyncio
import logging
import signal
import tempfile
import time

import msgspec

from benchmarks import options, report
from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.options import Options
from benchmarks.parts import PARTS
from benchmarks.peers import comparison
from benchmarks.raw import RawDriver
from streamline.store.embedded import EmbeddedMongod

_CACHE_GB = 1.0


async def _measure(uri: str, chosen: Options, figures: Figures) -> None:
    raw = await RawDriver(uri).start()
    bench = Bench(uri, chosen.sizes, figures, raw)
    for part in chosen.parts:
        figures.part = part
        began = time.monotonic()
        print(f"{part}:", flush=True)
        await PARTS[part](bench)
        figures.save(chosen.out)  # so that what was measured is there if a later part fails
        print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
    if chosen.dbos:
        figures.part = options.DBOS
        print(f"{options.DBOS}:", flush=True)
        await comparison.measure(bench, chosen.postgres)
        figures.save(chosen.out)
    await raw.close()


async def _main() -> None:
    """Run the benchmarks on the given server, or on an embedded one."""
    logging.basicConfig(level=logging.ERROR)
    chosen = options.parse()
    whole = asyncio.current_task()
    assert whole is not None
    # Cancelled rather than killed, mongod and the helpers are ended too.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, whole.cancel)
    figures = Figures({"preset": chosen.preset, **msgspec.to_builtins(chosen.sizes)})
    with tempfile.TemporaryDirectory(prefix="streamline-bench-") as directory:
        if chosen.uri:
            await _measure(chosen.uri, chosen, figures)
        else:
            async with EmbeddedMongod(directory, cache_gb=_CACHE_GB) as uri:
                await _measure(uri, chosen, figures)
    if chosen.dbos:
        print(report.comparison(figures.rows))
    print(report.targets(figures.rows))
    print(f"saved to {chosen.out}")


asyncio.run(_main())
