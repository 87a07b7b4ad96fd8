"""Runs pass from process to process: in good order, after a death, and not at all."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from streamline import RunFailed
from tests.acceptance.apps import flows
from tests.acceptance.checker import (
    Evidence,
    check_everything,
    gather_evidence,
    repeated_executions,
)
from tests.acceptance.harness import Site

pytestmark = [pytest.mark.mongo, pytest.mark.kill, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def _long_lease(site: Site) -> None:
    site.lease = "60s"  # whoever waits for a lease to run out is too late


async def _evidence(site: Site) -> Evidence:
    evidence = await gather_evidence(site.database)
    check_everything(evidence)
    return evidence


async def test_a_drained_worker_hands_over_to_a_new_one(site: Site) -> None:
    async with site.client() as engine:
        old = await site.work()
        new = await site.standby()

        async def start(n: int) -> int:
            run = await flows.plodding.options(id=f"run-{n}", engine=engine).start(n, 0.3)
            return await run.result(timeout=20)

        runs = [asyncio.create_task(start(n)) for n in range(60)]
        await site.until(
            "some are in their long step",
            lambda: site.effects(step="plod"),
            lambda count: count >= 30,
        )
        old.terminate()
        runs += [asyncio.create_task(start(n)) for n in range(60, 90)]
        await asyncio.gather(new.go(), old.stopped())
        assert await asyncio.gather(*runs) == [flows.plodded(n) for n in range(90)]
    evidence = await _evidence(site)
    assert repeated_executions(evidence) == 0
    assert not any(run.get("recoveries") for run in evidence.runs.values())


async def test_a_step_that_outlasts_the_drain_runs_again_elsewhere(site: Site) -> None:
    async with site.client() as engine:
        old = await site.work("--drain", "0.2s")
        run = await flows.plodding.options(id="run", engine=engine).start(1, 2.0)
        await site.until("it is in its long step", lambda: site.effects(step="plod"))
        old.terminate()
        await old.stopped()
        assert await site.effects(step="plod", kind="cancelled", pid=old.pid) == 1
        await site.work()
        assert await run.result(timeout=10) == flows.plodded(1)
    await _evidence(site)


async def test_a_live_worker_of_the_host_takes_over_at_once(site: Site) -> None:
    async with site.client() as engine:
        dying, living = await asyncio.gather(site.work(), site.work())
        runs = [
            await flows.plodding.options(id=f"run-{n}", engine=engine).start(n, 1.0)
            for n in range(40)
        ]
        await site.until(
            "all are in their long step",
            lambda: site.effects(step="plod"),
            lambda count: count == len(runs),
        )
        orphans = await site.database.effects.distinct("run", {"step": "plod", "pid": dying.pid})
        killed_at = time.time()
        await dying.kill()
        results = await asyncio.gather(*(run.result(timeout=20) for run in runs))
        assert results == [flows.plodded(n) for n in range(40)]
    assert orphans, "the one that died held nothing"
    taken = [
        effect["at"]
        async for effect in site.database.effects.find(
            {"step": "plod", "kind": "start", "pid": living.pid, "run": {"$in": orphans}}
        )
    ]
    assert len(taken) == len(orphans)
    assert max(taken) - killed_at < 2.0
    await _evidence(site)


async def test_a_workflow_that_a_worker_does_not_know_is_left_to_another(site: Site) -> None:
    async with site.client() as engine:
        await site.work()
        strange = await flows.exotic.options(id="strange", engine=engine).start(41)
        known = await flows.plodding.options(id="known", engine=engine).start(1, 0.05)
        assert await known.result(timeout=10) == flows.plodded(1)
        run = await strange.get()
        assert (run.status, run.fence) == ("queued", 0)
        await site.work("--foreign")
        assert await strange.result(timeout=10) == 42


async def test_starts_with_one_id_in_two_processes_make_one_run(site: Site) -> None:
    starters = [await site.run("starter", "only", "7") for _ in range(2)]
    await asyncio.gather(*(starter.say("go", after="standing by") for starter in starters))
    expected = " ".join([str(flows.plodded(7))] * 5)
    await asyncio.gather(*(starter.expect(expected) for starter in starters))
    assert [await starter.ended() for starter in starters] == [0, 0]
    evidence = await _evidence(site)
    assert list(evidence.runs) == ["only"]
    assert repeated_executions(evidence) == 0


async def test_an_at_most_once_step_whose_process_died_counts_as_failed(site: Site) -> None:
    async with site.client() as engine:
        worker = await site.work()
        run = await flows.at_most_once.options(id="run", engine=engine).start(1)
        await site.until("the step has begun", lambda: site.effects(step="once"))
        await worker.kill()
        await site.work()
        assert await run.result(timeout=10) == "StepFailed"
    await _evidence(site)
    assert await site.effects(step="once") == 1


async def test_the_count_of_attempts_and_the_backoff_survive_the_process(site: Site) -> None:
    async with site.client() as engine:
        worker = await site.work()
        run = await flows.backing_off.options(id="run", engine=engine).start()
        await site.until(
            "the first attempt is recorded",
            lambda: site.database.workflow_runs.find_one({"journal.kind": "attempt"}),
        )
        await worker.kill()
        await site.work()
        assert await run.result(timeout=15) == "as always"
    evidence = await _evidence(site)
    attempts = sorted(evidence.effects, key=lambda effect: effect["at"])
    assert [effect["attempt"] for effect in attempts] == [1, 2, 3]
    retries = [e["retry_at"].timestamp() for e in evidence.journals["run"] if "retry_at" in e]
    waits = [e["at"] - due for e, due in zip(attempts[1:], retries, strict=True)]
    assert all(-0.1 < wait < 2.0 for wait in waits), waits


async def test_a_sleep_that_fell_due_while_nobody_worked_wakes_once_and_at_once(
    site: Site,
) -> None:
    async with site.client() as engine:
        worker = await site.work()
        run = await flows.napping.options(id="run", engine=engine).start(1.0)
        parked = await site.until(
            "it is parked",
            lambda: site.database.workflow_runs.find_one({"status": "waiting"}),
        )
        await worker.kill()
        due = parked["due_at"].timestamp()
        await asyncio.sleep(max(0.0, due - time.time()) + 0.5)
        worker = await site.work()
        ready_at = time.time()
        await run.result(timeout=10)
    evidence = await _evidence(site)
    journal = evidence.journals["run"]
    assert [entry["kind"] for entry in journal] == ["step", "timer", "step"]
    assert journal[1]["at"].timestamp() - ready_at < 1.0


async def test_a_run_that_kills_its_process_is_failed_after_five_recoveries(
    site: Site, tmp_path: Path
) -> None:
    flag = tmp_path / "poisonous"
    flag.touch()
    async with site.client() as engine:
        run = await flows.poison.options(id="run", engine=engine).start(str(flag))
        deaths = 0
        while (await run.status()) != "failed":
            worker = await site.work()
            ended = asyncio.create_task(worker.ended())
            failed = asyncio.create_task(run.wait(timeout=20))
            await asyncio.wait({ended, failed}, return_when=asyncio.FIRST_COMPLETED)
            deaths += ended.done()
            for task in (ended, failed):
                task.cancel()
            await asyncio.gather(ended, failed, return_exceptions=True)
            assert deaths < 10, "it goes on for ever"
        with pytest.raises(RunFailed, match="lost its worker"):
            await run.result()
    assert deaths == 6, "the first time, and five recoveries"
