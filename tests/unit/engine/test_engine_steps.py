"""How steps are attempted: FEATURES D6 and W13; BEHAVIOURS 7, 16 and 17."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading

import pytest
import tenacity
from engine_support import SECONDS, kinds_of, until, until_status

from streamline import RunFailed, Status, current
from streamline.worker import attempt as attempt_module
from streamline.worker import tail


async def test_a_step_timeout_runs_the_steps_cleanup_and_each_attempt_has_its_own(world):
    """Behaviour 17"""
    ends = []

    @world.step(timeout=0.03, attempts=3, wait=tenacity.wait_none())
    async def slow() -> int:
        try:
            if current().attempt == 3:
                return 3
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ends.append(current().attempt)
        return 0

    @world.workflow
    async def flow() -> int:
        return await slow()

    handle = await flow.start()
    assert await handle.result(SECONDS) == 3
    assert ends == [1, 2, 3]
    errors = [entry.error for entry in (await handle.get()).journal if entry.error]
    assert [error.code for error in errors] == ["STEP_TIMEOUT"] * 2


async def test_a_step_that_ignores_its_cancellation_is_left_behind(world, monkeypatch, caplog):
    """Behaviour 17: its late result is ignored."""
    monkeypatch.setattr(attempt_module, "CANCEL_GRACE", 0.02)
    go = asyncio.Event()
    ended = []

    @world.step(timeout=0.02, attempts=1)
    async def stubborn() -> int:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        ended.append(1)
        return 1

    @world.workflow
    async def flow() -> str:
        try:
            await stubborn()
        except TimeoutError:
            return "timed out"
        return ""

    with caplog.at_level(logging.WARNING):
        assert await (await flow.start()).result(SECONDS) == "timed out"
    assert "left behind" in caplog.text
    go.set()
    await until(lambda: ended)


async def test_a_step_in_a_thread_times_out_while_its_thread_goes_on(world, monkeypatch):
    """Behaviour 17"""
    monkeypatch.setattr(attempt_module, "CANCEL_GRACE", 0.02)
    seen, go = [], threading.Event()

    @world.step(timeout=0.02, attempts=1)
    def slow() -> None:
        seen.append(current().cancelled.wait(5))
        go.wait(5)

    @world.workflow
    async def flow() -> str:
        try:
            await slow()
        except TimeoutError:
            return "timed out"
        return ""

    assert await (await flow.start()).result(SECONDS) == "timed out"
    await until(lambda: seen)
    assert seen == [True]
    go.set()


async def test_a_timeout_error_of_the_step_itself_is_an_ordinary_failure(world):
    """Behaviour 17"""

    @world.step(name="ask", timeout="1h", attempts=1)
    async def ask() -> None:
        raise TimeoutError("the server said nothing")

    @world.workflow
    async def flow() -> None:
        await ask()

    with pytest.raises(RunFailed, match="the server said nothing") as caught:
        await (await flow.start()).result(SECONDS)
    assert caught.value.error_code == "STEP_FAILED"


async def test_the_attempt_count_survives_a_crash_in_the_backoff(world):
    """Behaviour 17"""
    attempts = []

    @world.step(attempts=3, wait=tenacity.wait_fixed(3600))
    async def failing() -> None:
        attempts.append((current().attempt, world.clock.now()))
        raise OSError

    @world.workflow
    async def flow() -> None:
        await failing()

    handle = await flow.start()
    began = world.clock.now()
    await until_status(handle, Status.WAITING)
    for _ in range(2):
        await world.advance(1800)
        await world.crash()
        await world.advance(1800)
    assert [n for n, _ in attempts] == [1, 2, 3]
    assert [(at - began).total_seconds() for _, at in attempts] == [0, 3600, 7200]
    assert await handle.status() is Status.FAILED


async def test_a_long_retry_parks_the_run_and_a_short_one_stays(world):
    """D6: nobody has to hold the run for an hour."""

    @world.step(attempts=3, wait=tenacity.wait_fixed(0.1))
    async def short() -> None:
        if current().attempt < 3:
            raise OSError

    @world.step(attempts=2, wait=tenacity.wait_fixed(3600))
    async def long() -> None:
        if current().attempt < 2:
            raise OSError

    @world.workflow
    async def hold() -> None:
        await short()

    @world.workflow
    async def park() -> None:
        await long()

    held, parked = await hold.start(), await park.start()
    await until_status(parked, Status.WAITING)
    await until(lambda: world.process.worker.cached == 1)
    await held.wait(SECONDS)
    await parked.wait(SECONDS)
    assert (await held.get()).fence == 1
    assert (await parked.get()).fence == 2
    assert kinds_of(await parked.get()) == [("attempt", long.name), ("step", long.name)]


async def test_tenacitys_strategies_decide(world):
    """D6: stop, wait and retry are tenacity's own objects."""
    at = []

    @world.step(
        stop=tenacity.stop_after_attempt(4) | tenacity.stop_after_delay(1_000_000),
        wait=tenacity.wait_incrementing(start=10, increment=10),
        retry=tenacity.retry_if_exception_type(OSError),
    )
    async def flaky(kind: str) -> int:
        at.append(world.clock.now())
        if kind == "value":
            raise ValueError("not retried")
        if len(at) < 4:
            raise OSError
        return len(at)

    @world.workflow
    async def flow(kind: str) -> int:
        return await flaky(kind)

    assert await (await flow.start("os")).result(SECONDS) == 4
    assert [(b - a).total_seconds() for a, b in itertools.pairwise(at)] == [10, 20, 30]
    at.clear()
    with pytest.raises(RunFailed, match="not retried"):
        await (await flow.start("value")).result(SECONDS)
    assert len(at) == 1


async def test_stop_after_delay_counts_from_the_first_attempt_over_crashes(world):
    """D6: the attempts may be hours apart, in different processes."""
    attempts = []

    @world.step(stop=tenacity.stop_after_delay(7000), wait=tenacity.wait_fixed(3600))
    async def failing() -> None:
        attempts.append(current().attempt)
        raise OSError

    @world.workflow
    async def flow() -> None:
        await failing()

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    await world.crash()
    assert (await handle.wait(SECONDS)).status is Status.FAILED
    assert attempts == [1, 2, 3]


async def test_results_can_be_retried_and_the_accepted_one_is_recorded(world):
    """D6"""
    values = iter([1, 2, 7])

    @world.step(attempts=5, retry=tenacity.retry_if_result(lambda value: value < 5))
    async def poll() -> int:
        return next(values)

    @world.workflow
    async def flow() -> int:
        return await poll()

    assert await (await flow.start()).result(SECONDS) == 7


async def test_sync_and_async_steps_run_side_by_side(world):
    """D1, W1"""
    barrier = threading.Barrier(2, timeout=5)

    @world.step
    def threaded(x: int) -> int:
        barrier.wait()
        return x

    @world.step
    async def plain(x: int) -> int:
        await asyncio.to_thread(barrier.wait)
        return x

    @world.workflow
    async def flow() -> list[int]:
        return await asyncio.gather(threaded(1), plain(2))

    assert await (await flow.start()).result(SECONDS) == [1, 2]


async def test_a_step_may_change_its_arguments_without_the_body_seeing_it(world):
    """Promise 4: a replay doesn't run the step."""

    @world.step
    async def consume(items: list[int]) -> int:
        items.clear()
        return 0

    @world.workflow
    async def flow() -> list[int]:
        items = [1, 2, 3]
        await consume(items)
        return items

    assert await world.crash_everywhere(flow) == [1, 2, 3]


async def test_steps_that_end_together_are_written_together(world):
    """DESIGN 5: N steps that end together are one write."""
    commits = []

    @world.step
    async def quick(n: int) -> int:
        return n

    @world.workflow
    async def flow() -> int:
        return sum(await asyncio.gather(*(quick(n) for n in range(50))))

    world.process.mortal_store.on_commit = commits.append
    assert await (await flow.start()).result(SECONDS) == 1225
    assert len(commits) <= 2


async def test_n_steps_in_a_row_are_n_writes(world):
    """DESIGN 5: the last result and the end are one write."""
    commits = []

    @world.step
    async def quick(n: int) -> int:
        return n

    @world.workflow
    async def flow() -> int:
        return sum([await quick(n) for n in range(10)])

    world.process.mortal_store.on_commit = commits.append
    assert await (await flow.start()).result(SECONDS) == 45
    assert len(commits) == 10


async def test_a_run_of_many_steps_moves_its_journal_out_and_replays(world, monkeypatch):
    """DESIGN 4: long journals."""
    monkeypatch.setattr(tail, "MAX_ENTRIES", 20)
    ran = []

    @world.step
    async def quick(n: int) -> int:
        ran.append(n)
        return n

    @world.workflow
    async def flow() -> int:
        total = sum([await quick(n) for n in range(50)])
        await asyncio.sleep(3600)
        return total + sum([await quick(n) for n in range(50)])

    handle = await flow.start()
    await until(lambda: world.process.worker.cached == 1, 30)
    run = await world.run(handle.id)
    assert run.journal_base > 0
    assert len(run.journal) + run.journal_base == 50
    await world.crash()
    assert await handle.result(20) == 2 * sum(range(50))
    assert len(ran) == 100
