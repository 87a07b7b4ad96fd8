"""What claims and wakes cost among very many parked runs."""

from __future__ import annotations

import itertools
import time

import msgspec

from benchmarks import plans
from benchmarks.bench import Bench, Place, database_of, warm_up
from benchmarks.figures import at_most, median
from benchmarks.filled import fill
from benchmarks.messages import send
from benchmarks.workflows import listener, steps
from streamline import Streamline
from streamline.handles import RunHandle
from streamline.model import Claim

_BATCH = 50
_LEASE = 60.0
_LOOKS = 5


class Costs(msgspec.Struct):
    """What each turn took on one collection, in milliseconds."""

    claim: list[float] = []
    claim_one: list[float] = []
    look: list[float] = []
    wake: list[float] = []


async def measure(bench: Bench) -> None:
    """Claim and wake in an empty and in a filled collection, in turns; look at the plans."""
    sizes = bench.sizes
    async with bench.place() as empty, bench.place() as full:
        for place in (empty, full):  # indexes first
            async with Streamline(place.address) as engine:
                await warm_up(engine)
        began = time.perf_counter()
        await fill(full, sleeping=sizes.stored_sleeping, waiting=sizes.stored_waiting)
        stored = await full.database["workflow_runs"].estimated_document_count()
        print(f"  ({stored:,} runs stored in {time.perf_counter() - began:.0f} s)", flush=True)
        costs = [Costs(), Costs()]
        await _claims(bench, [empty, full], costs)
        await _wakes(bench, [empty, full], costs)
        _report(bench, *costs)
        await plans.measure(bench, full)


async def _claims(bench: Bench, places: list[Place], costs: list[Costs]) -> None:
    # Clients only: nobody else claims.
    async with (
        Streamline(places[0].address, worker=False) as empty,
        Streamline(places[1].address, worker=False) as full,
    ):
        for turn in range(bench.sizes.filled_turns + 3):
            pairs = [(empty, costs[0]), (full, costs[1])]
            for engine, cost in pairs if turn % 2 else reversed(pairs):
                await _claim(engine, cost if turn >= 3 else Costs(), f"claim-{turn}")


async def _claim(engine: Streamline, cost: Costs, claim_id: str) -> None:
    """Measure the claim of many due runs, of one, and the look at what is due next."""
    store, codes = engine.store, engine.registry.codes()  # those of what is parked too
    handles = [await engine.start_run(steps, 1) for _ in range(_BATCH + 1)]
    claim = Claim(id=claim_id, worker="benchmark", lease=_LEASE)
    marks = [time.perf_counter()]
    one = await store.claim_run(claim, handles[-1].id)
    marks.append(time.perf_counter())
    many = await store.claim_due(claim, codes, _BATCH)
    marks.append(time.perf_counter())
    for _ in range(_LOOKS):
        await store.next_due(codes)
    marks.append(time.perf_counter())
    assert one is not None
    assert len(many) == _BATCH
    took = [(end - begin) * 1000 for begin, end in itertools.pairwise(marks)]
    cost.claim_one.append(took[0])
    cost.claim.append(took[1])
    cost.look.append(took[2] / _LOOKS)
    runs = database_of(engine)["workflow_runs"]
    await runs.delete_many({"_id": {"$in": [handle.id for handle in handles]}})


async def _wakes(bench: Bench, places: list[Place], costs: list[Costs]) -> None:
    turns = bench.sizes.filled_turns * 3
    async with (
        Streamline(places[0].address) as empty,
        Streamline(places[1].address) as full,
    ):
        handles: list[RunHandle[None]] = [
            await engine.start_run(listener, turns + 3) for engine in (empty, full)
        ]
        for turn in range(turns + 3):
            for handle, cost in zip(handles, costs, strict=True):
                took = await send(handle, turn)
                if turn >= 3:
                    cost.wake.append(took)
        for handle in handles:
            await handle.result()


def _report(bench: Bench, empty: Costs, full: Costs) -> None:
    sizes = bench.sizes
    stored = f"{sizes.stored_sleeping:,} sleeping and {sizes.stored_waiting:,} waiting"
    print(f"  among {stored}, next to an empty collection:")
    for what, alone, among in (
        (f"claim of {_BATCH} due runs", empty.claim, full.claim),
        ("claim of one run", empty.claim_one, full.claim_one),
        ("wake by a message", empty.wake, full.wake),
        ("look at what is due next", empty.look, full.look),
    ):
        ratio = median(among) / median(alone)
        bench.figures.add(
            f"filled: {what}",
            median(among),
            "ms",
            ratio=ratio,
            to="empty",
            target=at_most(ratio, 1.5, "1.5 x empty"),
        )
