"""A worker is killed again and again under runs that continue as new, and none of them notices."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import defaultdict

import pytest

from streamline import Streamline
from tests.acceptance.apps import flows
from tests.acceptance.checker import check_everything, gather_evidence
from tests.acceptance.harness import END, Site, persist

pytestmark = [pytest.mark.mongo, pytest.mark.kill, pytest.mark.timeout(300)]

KILLS = 8
RUNS = 20
GENERATIONS = 12


async def test_runs_that_continue_as_new_survive_kills_of_their_workers(
    site: Site, rng: random.Random
) -> None:
    site.lease = "60s"  # only a takeover within the host can be in time
    async with site.client() as engine:
        lives = [asyncio.create_task(_live(engine, rng, f"r{n}")) for n in range(RUNS)]
        heir = await site.standby()
        for _ in range(KILLS):
            worker = await heir.go()
            heir = await site.standby()
            await site.until(
                f"worker {worker.pid} works",
                lambda pid=worker.pid: site.effects(pid=pid),
                lambda count: count >= 20,
            )
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            in_flight = await site.in_flight()
            await worker.kill()
        await heir.go()
        await asyncio.gather(*lives)
    assert in_flight, "the runs had ended before the last kill"
    evidence = await gather_evidence(site.database)
    check_everything(evidence)
    began: dict[tuple[str, int], list[float]] = defaultdict(list)
    keys = set()
    for effect in evidence.effects:
        began[effect["run"], effect["generation"]].append(effect["at"])
        keys.add(effect["idempotency_key"])
    assert len(keys) == RUNS * GENERATIONS * 3
    for (run_id, generation), times in began.items():
        if generation > 1:
            # What runs in this one is never followed by a step of the one before.
            assert max(began[run_id, generation - 1]) <= min(times), (run_id, generation)
    repeated = len(evidence.effects) - len(keys)
    sys.stdout.write(f"{KILLS} kills, {len(keys)} steps, {repeated} executions repeated\n")
    assert repeated > 0, "no kill hit a step: the test proves little"


async def _live(engine: Streamline, rng: random.Random, run_id: str) -> None:
    start = flows.renewing.options(id=run_id, engine=engine).start
    run = await persist(lambda: start(GENERATIONS))
    for number in range(2 * GENERATIONS):
        await asyncio.sleep(rng.uniform(0, 0.5))
        for _ in range(rng.choice([1, 1, 2])):  # a repeated id counts once
            await persist(lambda number=number: run.send("mail", number, id=f"mail-{number}"))
    assert (await run.result(END)) == flows.renewed(GENERATIONS)
    assert (await run.get()).generation == GENERATIONS
    # What it was started with is what counts, though it has gone on with other things since.
    assert (await start(GENERATIONS)).id == run_id
