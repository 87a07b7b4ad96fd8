"""Worker processes of parents and children are killed, and no family notices (behaviour 27)."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter

import pytest

from streamline.handles import RunHandle
from tests.acceptance.apps import flows
from tests.acceptance.checker import check_everything, gather_evidence, repeated_executions
from tests.acceptance.harness import END, Site, persist

pytestmark = [pytest.mark.mongo, pytest.mark.kill, pytest.mark.timeout(120)]

FAMILIES = 16
KILLS = 5


async def test_children_and_parents_survive_their_workers(site: Site, rng: random.Random) -> None:
    site.lease = "60s"  # only a takeover within the host can be in time
    async with site.client() as engine:
        workers = [await site.work(), await site.work()]
        heir = await site.standby()
        runs: list[tuple[int, RunHandle[list[int]]]] = []
        for number in range(FAMILIES):
            start = flows.household.options(id=f"family-{number}", engine=engine).start
            runs.append((number * 100, await start(number * 100)))
        for _ in range(KILLS):
            await asyncio.sleep(rng.uniform(0.1, 0.8))
            place = rng.randrange(2)
            await workers[place].kill()
            workers[place] = await heir.go()
            heir = await site.standby()
        for n, run in runs:
            assert await persist(run.result, within=END) == flows.kept(n)
        await site.until("every child has ended", site.in_flight, lambda left: left == 0)
        untold = {"outbox": {"$exists": True}}
        await site.until(
            "everybody was told",
            lambda: site.database.workflow_runs.count_documents(untold),
            lambda left: left == 0,
        )
    evidence = await gather_evidence(site.database)
    check_everything(evidence)
    ends = Counter((run["workflow"], run["status"]) for run in evidence.runs.values())
    # One whose time was up before a worker could start it was given up unborn.
    assert ends.pop(("endless", "cancelled")) <= FAMILIES
    assert ends == {
        ("household", "done"): FAMILIES,
        ("errand", "done"): FAMILIES * 4,
        ("hopeless", "failed"): FAMILIES,
    }
    for run_id, entries in evidence.journals.items():
        told = Counter(entry["id"] for entry in entries if entry["kind"] == "outcome")
        assert set(told.values()) <= {1}, f"{run_id} was told more than once: {told}"
        assert not evidence.runs[run_id].get("inbox"), f"{run_id} keeps messages"
    sys.stdout.write(
        f"{KILLS} kills, {len(evidence.runs)} runs, {len(evidence.effects)} executions, "
        f"{repeated_executions(evidence)} of them repeated\n"
    )
