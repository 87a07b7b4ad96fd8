"""A worker process that stops for longer than its lease, and then goes on."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from tests.acceptance.apps import flows
from tests.acceptance.checker import check_everything, check_messages, gather_evidence
from tests.acceptance.harness import Load, Site

pytestmark = [pytest.mark.mongo, pytest.mark.kill, pytest.mark.timeout(300)]

RUNS = 20


async def test_a_frozen_worker_writes_nothing_after_it_lost_its_claims(site: Site) -> None:
    site.lease = "2s"
    async with site.client() as engine:
        old = await site.work()
        # So long that the first is at it still when the last has begun, also on a busy host.
        starts = (
            flows.plodding.options(id=f"run-{n}", engine=engine).start(n, 5.0) for n in range(RUNS)
        )
        runs = await asyncio.gather(*starts)
        await site.until(
            "all are in their long step",
            lambda: site.effects(step="plod", kind="start", pid=old.pid),
            lambda count: count == RUNS,
        )
        old.freeze()
        new = await site.work()
        results = await asyncio.gather(*(run.result(timeout=20) for run in runs))
        assert results == [flows.plodded(n) for n in range(RUNS)]
        before = (await gather_evidence(site.database)).runs
        thawed_at = time.time()
        old.thaw()
        await site.until(
            "its steps are cancelled",
            lambda: site.effects(kind="cancelled", pid=old.pid),
            lambda count: count == RUNS,
        )
        late = await site.effects(kind="start", pid=old.pid, at={"$gt": thawed_at})
        assert late == 0, f"{late} steps were started by the worker that had lost their runs"
        await new.kill()
        # It works as before.
        again = await flows.plodding.options(id="again", engine=engine).start(5, 0.1)
        assert await again.result(timeout=10) == flows.plodded(5)
        assert await site.effects(run="again", pid=old.pid) > 0
    evidence = await gather_evidence(site.database)
    assert {run_id: evidence.runs[run_id] for run_id in before} == before
    check_everything(evidence)


async def test_workers_frozen_in_turn_under_load(site: Site, rng: random.Random) -> None:
    site.lease = "1s"
    async with site.client() as engine:
        load = Load(site, engine, rng, size=20)
        async with load.running():
            workers = [await site.work(), await site.work()]
            for turn in range(3):
                await load.reach(load.done + 3)
                worker = workers[turn % 2]
                worker.freeze()
                await load.reach(load.done + 5)  # the other goes on
                await asyncio.sleep(rng.uniform(0.5, 1.5))
                worker.thaw()
    evidence = await gather_evidence(site.database)
    check_everything(evidence)
    check_messages(evidence, load.sent)
