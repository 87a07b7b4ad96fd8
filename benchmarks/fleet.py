"""Whether four workers on one database do more than one."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime, timedelta

from benchmarks.bench import Bench, Place
from benchmarks.figures import at_least, median
from benchmarks.helper import Helper
from benchmarks.processor import BusyCores
from benchmarks.throughput import LENGTH
from benchmarks.workflows import steps
from streamline import Streamline

_FLEET = 4
_AHEAD = timedelta(seconds=1)
_STARTS = 100
_TURNS = 3


async def measure(bench: Bench) -> None:
    """Give the same backlog to one worker and to four, in turns."""
    rates: dict[int, list[float]] = {1: [], _FLEET: []}
    cores: dict[int, list[float]] = {1: [], _FLEET: []}
    async with contextlib.AsyncExitStack() as stack:
        crews = {}
        for size in rates:
            place = await stack.enter_async_context(bench.place())
            client = Streamline(place.address, worker=False)
            await stack.enter_async_context(client)
            for _ in range(size):
                await stack.enter_async_context(Helper("worker", place.address))
            crews[size] = (place, client)
        for _ in range(_TURNS):
            for size, (place, client) in crews.items():
                rate, busy = await _work_off(bench, place, client)
                rates[size].append(rate)
                cores[size].append(busy)
    _report(bench, rates, cores)


async def _work_off(bench: Bench, place: Place, client: Streamline) -> tuple[float, float]:
    """Return how many runs of a backlog end per second, and how many cores were busy."""
    number = bench.sizes.fleet_runs
    slots = asyncio.Semaphore(_STARTS)
    begin = client.store.clock.now() + _AHEAD + timedelta(seconds=number / 500)
    later = steps.options(engine=client, start_at=begin)

    async def one() -> str:
        async with slots:
            return (await later.start(LENGTH)).id

    ids = await asyncio.gather(*(one() for _ in range(number)))
    await asyncio.sleep((begin - client.store.clock.now()).total_seconds())
    cores = BusyCores.from_now()
    ended = await _ended(place, ids)
    return number / (ended - begin).total_seconds(), cores.mean()


async def _ended(place: Place, ids: list[str]) -> datetime:
    """Return when the last of the runs ended."""
    runs = place.database["workflow_runs"]
    query = {"_id": {"$in": ids}}
    while await runs.count_documents({**query, "status": {"$ne": "done"}}):
        await asyncio.sleep(0.1)
    last = await runs.find_one(query, {"ended_at": 1}, sort={"ended_at": -1})
    assert last is not None
    ended: datetime = last["ended_at"]
    return ended


def _report(bench: Bench, rates: dict[int, list[float]], cores: dict[int, list[float]]) -> None:
    one, four = median(rates[1]), median(rates[_FLEET])
    bench.figures.add("one worker", one * LENGTH, "steps/s")
    bench.figures.add("one worker: busy cores of the machine", median(cores[1]), "cores")
    bench.figures.add(
        f"{_FLEET} workers",
        four * LENGTH,
        "steps/s",
        ratio=four / one,
        to="one",
        target=at_least(four / one, 1.0, "1.0 x one worker"),
    )
    bench.figures.add(
        f"{_FLEET} workers: busy cores of the machine", median(cores[_FLEET]), "cores"
    )
