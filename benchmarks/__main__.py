"""`make bench`: measures the engine and the raw driver in one run; prints ratios, saves JSON."""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
from pathlib import Path

from benchmarks.engine import EngineBench
from benchmarks.measure import Figures
from benchmarks.raw import RawDriver
from streamline.store.embedded import EmbeddedMongod


def arguments() -> argparse.Namespace:
    """Read the sizes from the command line."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--uri", help="another mongod than an embedded one")
    parser.add_argument("--latency-runs", type=int, default=100, help="10-step runs, one by one")
    parser.add_argument("--runs", type=int, default=1000, help="5-step runs, side by side")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--sleepers", type=int, default=200)
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--long", type=int, default=5000, help="steps of the long run")
    parser.add_argument("--out", type=Path, default=Path("bench-results/latest.json"))
    return parser.parse_args()


async def measure(uri: str, sizes: argparse.Namespace) -> Figures:
    """Measure everything on one server."""
    figures = Figures()
    raw = RawDriver(uri)
    await raw.sequence(11, 20)  # warm up
    async with EngineBench(uri, figures, raw) as bench:
        await bench.latency(sizes.latency_runs)
        for in_flight in sizes.in_flight:
            await bench.throughput(sizes.runs, in_flight)
        await bench.writes_per_step()
        await bench.sleepers(sizes.sleepers)
        await bench.messages(sizes.messages)
        await bench.long_run(sizes.long)
    await raw.close()
    return figures


async def main() -> None:
    """Run the benchmarks on the given server, or on an embedded one."""
    logging.basicConfig(level=logging.WARNING)
    sizes = arguments()
    with tempfile.TemporaryDirectory(prefix="streamline-bench-") as directory:
        if sizes.uri:
            figures = await measure(sizes.uri, sizes)
        else:
            async with EmbeddedMongod(directory, cache_gb=1) as uri:
                figures = await measure(uri, sizes)
    figures.save(sizes.out)
    print(f"saved to {sizes.out}")


asyncio.run(main())
