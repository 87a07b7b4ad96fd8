"""`EngineBench`: what is measured of the engine."""

from __future__ import annotations

import asyncio
import resource
import time
import uuid
from typing import Any, Self

from pymongo import AsyncMongoClient

from benchmarks.measure import Figures, median, percentile
from benchmarks.raw import RawDriver
from benchmarks.workflows import handled, listener, sleeper, steps, woke_late
from streamline import Streamline


class EngineBench:
    """One engine with a database of its own.

    Args:
        uri: The server.
        figures: Where the figures go.
        raw: The driver to compare with.
    """

    def __init__(self, uri: str, figures: Figures, raw: RawDriver) -> None:
        self._client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri, tz_aware=True)
        self._database = self._client.get_database(f"bench_{uuid.uuid4().hex[:8]}")
        self._engine = Streamline(self._database, concurrency=1000)
        self._figures = figures
        self._raw = raw

    async def __aenter__(self) -> Self:
        await self._engine.start()
        for _ in range(20):  # warm up
            await (await steps.start(10)).result()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._engine.stop()
        await self._client.drop_database(self._database)
        await self._client.close()

    async def latency(self, runs: int) -> None:
        """A 10-step run next to 11 raw majority updates, in turns so that noise hits both."""
        print(f"latency: {runs} runs of 10 steps, one by one")
        ours, theirs = [], []
        for _ in range(runs):
            began = time.perf_counter()
            await (await steps.start(10)).result()
            ours.append((time.perf_counter() - began) * 1000)
            theirs.append(await self._raw.sequence(11, 1))
        raw = median(theirs)
        self._figures.add("11 raw majority updates", raw, "ms")
        self._figures.add(
            "10-step run, median",
            median(ours),
            "ms",
            ratio=median(ours) / raw,
            to="raw",
            target="<= 2 x",
        )
        self._figures.add("10-step run, p95", percentile(ours, 95), "ms")

    async def throughput(self, runs: int, in_flight: int) -> None:
        """Recorded steps per second of 5-step runs, next to the raw driver's updates."""
        print(f"throughput: {runs} runs of 5 steps, {in_flight} in flight")
        slots = asyncio.Semaphore(in_flight)

        async def one() -> None:
            async with slots:
                await (await steps.start(5)).result()

        single = await self._raw.side_by_side(in_flight, max(2, 2000 // in_flight))
        bulk = await self._raw.bulk(in_flight, max(4, 4000 // in_flight))
        cpu = _cpu_seconds()
        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(runs)))
        seconds = time.perf_counter() - began
        cpu = _cpu_seconds() - cpu
        rate = runs * 5 / seconds
        name = f"{in_flight} in flight"
        self._figures.add(f"{name}: raw update_one side by side", single, "writes/s")
        self._figures.add(f"{name}: raw bulk_write", bulk, "writes/s")
        self._figures.add(f"{name}: runs", runs / seconds, "runs/s")
        self._figures.add(
            f"{name}: recorded steps",
            rate,
            "steps/s",
            ratio=rate / bulk,
            to="raw bulk",
            target=">= 1500 steps/s",
        )
        self._figures.add(f"{name}: client CPU per 5-step run", cpu / runs * 1000, "ms")

    async def writes_per_step(self, runs: int = 20, length: int = 50) -> None:
        """Writes that the server saw for sequential steps: n + 1 for n is the budget."""
        print(f"writes: {runs} runs of {length} steps")
        before = await self._writes()
        for _ in range(runs):
            await (await steps.start(length)).result()
        writes = (await self._writes() - before) / runs
        self._figures.add(
            f"writes of a run of {length} steps", writes, "writes", target=f"{length + 1}"
        )

    async def sleepers(self, number: int) -> None:
        """How late runs wake that sleep for a second, all at once."""
        print(f"sleeps: {number} of 1 s at once")
        woke_late.clear()
        handles = [await sleeper.start(1.0, time.time() + 1.0) for _ in range(number)]
        await asyncio.gather(*(handle.result() for handle in handles))
        late = [max(0.0, seconds) * 1000 for seconds in woke_late]
        self._figures.add("sleeps of 1 s: woke late, median", median(late), "ms")
        self._figures.add("sleeps of 1 s: woke late, p95", percentile(late, 95), "ms")

    async def messages(self, number: int) -> None:
        """How long a message takes from `send` to the waiting body."""
        print(f"messages: {number}, one by one")
        handle = await listener.start(number)
        delays = []
        for index in range(number):
            handled[index] = asyncio.get_running_loop().create_future()
            sent = time.perf_counter()
            await handle.send("bench", index)
            delays.append((await handled[index] - sent) * 1000)
        await handle.result()
        self._figures.add("send to handled, median", median(delays), "ms")
        self._figures.add("send to handled, p95", percentile(delays, 95), "ms")

    async def long_run(self, length: int) -> None:
        """Cost per step over a long run, and what its replay takes."""
        print(f"a run of {length} steps")
        marks: list[float] = []
        off = self._engine.events.on("step:completed", lambda _: marks.append(time.perf_counter()))
        handle = await steps.start(length)
        await handle.result()
        off()
        tenth = length // 10
        first = (marks[tenth] - marks[0]) / tenth * 1000
        last = (marks[-1] - marks[-tenth - 1]) / tenth * 1000
        self._figures.add("long run: per step, first tenth", first, "ms")
        self._figures.add(
            "long run: per step, last tenth", last, "ms", ratio=last / first, to="first tenth"
        )
        await self._replay(handle.id, length)

    async def _replay(self, run_id: str, length: int) -> None:
        """Read and replay a finished journal the way a worker does that takes a run over."""
        from streamline.replay import Execution

        store = self._engine.store
        began = time.perf_counter()
        run = await store.load_run(run_id)
        assert run is not None
        entries = [*await store.load_archive(run_id, run.journal_base), *run.journal]
        read = time.perf_counter()
        execution = Execution(run, steps, limit=1 << 20, recorded=entries)
        execution.start(replaying=True)
        execution.replay(entries)
        replayed = time.perf_counter()
        assert execution.outcome is not None
        self._figures.add(f"read of a journal of {length}", (read - began) * 1000, "ms")
        self._figures.add("replay per entry", (replayed - read) / length * 1e6, "us")

    async def _writes(self) -> int:
        status = await self._client.admin.command("serverStatus")
        counters = status["opcounters"]
        return int(counters["insert"] + counters["update"] + counters["delete"])


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
