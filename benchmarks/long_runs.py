"""What a step costs late in a long run, and what the replay of one takes."""

from __future__ import annotations

import time

import msgspec

from benchmarks.bench import Bench
from benchmarks.figures import at_most, median
from benchmarks.workflows import steps
from streamline import Streamline
from streamline.testing.history import replay

_SHARE = 500
_REPLAYS = 3


async def measure(bench: Bench) -> None:
    """Measure one long run, and read and replay its journal."""
    async with bench.engine() as engine:
        run_id = await _run(bench, engine)
        await _replay(bench, engine, run_id)


async def _run(bench: Bench, engine: Streamline) -> str:
    length = bench.sizes.long
    share = min(_SHARE, length // 4)
    marks: list[float] = []
    off = engine.events.on("step:completed", lambda _: marks.append(time.perf_counter()))
    handle = await engine.start_run(steps, length)
    await handle.result()
    off()
    first = (marks[share] - marks[0]) / share * 1000
    last = (marks[-1] - marks[-share - 1]) / share * 1000
    whole = (marks[-1] - marks[0]) / (length - 1) * 1000
    bench.figures.add(f"{length:,} steps: each", whole, "ms")
    bench.figures.add(f"{length:,} steps: each of the first {share}", first, "ms")
    bench.figures.add(
        f"{length:,} steps: each of the last {share}",
        last,
        "ms",
        ratio=last / first,
        to="first",
        target=at_most(last / first, 1.2, "1.2 x first"),
    )
    return handle.id


async def _replay(bench: Bench, engine: Streamline, run_id: str) -> None:
    """Read and replay a finished journal the way a worker does that takes the run over."""
    length, reads, replays = bench.sizes.long, [], []
    for _ in range(_REPLAYS):
        began = time.perf_counter()
        run = await engine.store.load_run(run_id)
        assert run is not None
        entries = [*await engine.store.load_archive(run_id, run.journal_base), *run.journal]
        read = time.perf_counter()
        assert len(entries) == length
        whole = msgspec.structs.replace(run, journal=entries, journal_base=0)
        cpu = time.process_time()  # it does nothing but compute: others' load shall not count
        replay(steps, whole)
        reads.append((read - began) * 1000)
        replays.append((time.process_time() - cpu) * 1000)
    each = median(replays) / length * 1000
    bench.figures.add(f"read of a journal of {length:,}", median(reads), "ms")
    bench.figures.add("replay of an entry", each, "us", target=at_most(each, 30, "30 us"))
    bench.figures.add(
        f"read and replay of {length:,} steps",
        median(reads) + median(replays),
        "ms",
    )
