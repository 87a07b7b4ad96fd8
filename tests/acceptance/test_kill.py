"""A worker process is killed again and again, and no run notices."""

from __future__ import annotations

import asyncio
import random
import sys

import pytest

from tests.acceptance.checker import (
    check_everything,
    check_messages,
    gather_evidence,
    repeated_executions,
)
from tests.acceptance.harness import Load, Site

pytestmark = [pytest.mark.mongo, pytest.mark.kill, pytest.mark.timeout(300)]

KILLS = 20
IN_FLIGHT = 75
SHARED = 30


async def test_a_worker_killed_twenty_times_loses_and_repeats_nothing(
    site: Site, rng: random.Random
) -> None:
    site.lease = "60s"  # only a takeover within the host can be in time
    async with site.client() as engine:
        load = Load(site, engine, rng, size=IN_FLIGHT)
        async with load.running():
            heir = await site.standby()
            for _ in range(KILLS):
                worker = await heir.go()
                heir = await site.standby()
                await site.until(
                    f"worker {worker.pid} works",
                    lambda pid=worker.pid: site.effects(pid=pid),
                    lambda count: count >= 10,
                )
                # A run that gets nowhere in six lives counts as poison, rightly (E3); on a slow
                # machine, with a kill every second, honest ones would too.
                await site.until(
                    "the suspects get somewhere",
                    lambda: site.database.workflow_runs.count_documents(
                        {"status": {"$in": ["running", "queued"]}, "recoveries": {"$gte": 4}}
                    ),
                    lambda count: count == 0,
                )
                await asyncio.sleep(rng.uniform(0.0, 0.9))
                load.check()
                await site.until("many are in flight", site.in_flight, lambda count: count >= 50)
                await worker.kill()
            await heir.go()
    evidence = await gather_evidence(site.database)
    check_everything(evidence)
    check_messages(evidence, load.sent)
    assert all(run["status"] == "done" for run in evidence.runs.values())
    sys.stdout.write(
        f"{KILLS} kills, {len(evidence.runs)} runs, at least 50 in flight, "
        f"{len(evidence.effects)} executions, {repeated_executions(evidence)} of them repeated\n"
    )
    assert repeated_executions(evidence) > 0, "no kill hit a step: the test proves little"


@pytest.mark.parametrize("size", [2, 4])
async def test_several_workers_killed_at_random_share_the_runs(
    site: Site, rng: random.Random, size: int
) -> None:
    async with site.client() as engine:
        load = Load(site, engine, rng, size=SHARED)
        async with load.running():
            workers = await asyncio.gather(*(site.work() for _ in range(size)))
            heir = await site.standby()
            for _ in range(6):
                done = load.done
                await load.reach(done + 5)
                await asyncio.sleep(rng.uniform(0.0, 0.5))
                place = rng.randrange(size)
                await workers[place].kill()
                workers[place] = await heir.go()
                heir = await site.standby()
    evidence = await gather_evidence(site.database)
    check_everything(evidence)
    check_messages(evidence, load.sent)
    pids = {effect["pid"] for effect in evidence.effects}
    assert len(pids) > size, f"only {len(pids)} processes had a part in it"
