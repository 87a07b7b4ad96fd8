"""Whether four workers on one database do more than one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import msgspec

from benchmarks.bench import Bench, Place
from benchmarks.figures import at_least, median
from benchmarks.helper import Helper
from benchmarks.processor import BusyCores
from benchmarks.workflows import pauses, steps
from streamline import Streamline

_FLEET = 4
_STARTS = 100
_STARTED_PER_SECOND = 200
_TURNS = 3


class Load(msgspec.Struct, frozen=True):
    """A backlog of runs of one kind."""

    name: str
    flow: Any
    args: tuple[Any, ...]
    length: int


LOADS = (
    Load("steps that compute nothing", steps, (5,), 5),
    # More than one worker can have in hand, though neither it nor the server is busy.
    Load("steps that wait 0.3 s", pauses, (2, 0.3), 2),
)


class Crew(msgspec.Struct):
    """Some workers on a database, and what they have done."""

    size: int
    place: Place
    client: Streamline
    rates: list[float] = []
    cores: list[float] = []

    async def work_off(self, load: Load, number: int) -> None:
        """Let a backlog be worked off that is due all at one instant."""
        slots = asyncio.Semaphore(_STARTS)
        clock = self.client.store.clock
        begin = clock.now() + timedelta(seconds=1 + number / _STARTED_PER_SECOND)
        later = load.flow.options(engine=self.client, start_at=begin)

        async def one() -> str:
            async with slots:
                run_id: str = (await later.start(*load.args)).id
                return run_id

        ids = await asyncio.gather(*(one() for _ in range(number)))
        await asyncio.sleep((begin - clock.now()).total_seconds())
        busy = BusyCores.from_now()
        ended = await self._ended(ids)
        self.cores.append(busy.mean())
        self.rates.append(number * load.length / (ended - begin).total_seconds())

    async def _ended(self, ids: list[str]) -> datetime:
        """Return when the last of the runs ended."""
        runs = self.place.database["workflow_runs"]
        query = {"_id": {"$in": ids}}
        while await runs.count_documents({**query, "status": {"$ne": "done"}}):
            await asyncio.sleep(0.1)
        last = await runs.find_one(query, {"ended_at": 1}, sort={"ended_at": -1})
        assert last is not None
        ended: datetime = last["ended_at"]
        return ended


async def measure(bench: Bench) -> None:
    """Give the same backlogs to one worker and to four, in turns."""
    async with _crew(bench, 1) as one, _crew(bench, _FLEET) as fleet:
        for load in LOADS:
            for crew in (one, fleet) * _TURNS:
                await crew.work_off(load, bench.sizes.fleet_runs)
            _report(bench, load, one, fleet)
            for crew in (one, fleet):
                crew.rates, crew.cores = [], []


@contextlib.asynccontextmanager
async def _crew(bench: Bench, size: int) -> AsyncIterator[Crew]:
    async with contextlib.AsyncExitStack() as stack:
        place = await stack.enter_async_context(bench.place())
        client = Streamline(place.address, worker=False)
        await stack.enter_async_context(client)
        for _ in range(size):
            await stack.enter_async_context(Helper("worker", place.address))
        yield Crew(size, place, client)


def _report(bench: Bench, load: Load, one: Crew, fleet: Crew) -> None:
    alone, together = median(one.rates), median(fleet.rates)
    busy = [f"{median(crew.cores):.1f} cores busy" for crew in (one, fleet)]
    bench.figures.add(f"one worker, {load.name} ({busy[0]})", alone, "steps/s")
    bench.figures.add(
        f"{fleet.size} workers, {load.name} ({busy[1]})",
        together,
        "steps/s",
        ratio=together / alone,
        to="one",
        target=at_least(together / alone, 1.0, "1.0 x one worker"),
    )
