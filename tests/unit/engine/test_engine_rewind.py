"""Rewind and retry: FEATURES C4 and C5; the context at each point of a replay: W11."""

from __future__ import annotations

import asyncio

import pytest
from engine_support import SECONDS, steps_of, until_status

from streamline import (
    InvalidState,
    NonRetryable,
    RunFailed,
    Status,
    StepNotFound,
    current,
    set_context,
    sleep,
)


@pytest.fixture
def ran(world):
    return []


@pytest.fixture
def pipeline(world, ran):
    @world.step(name="note")
    async def note(text: str) -> str:
        ran.append(text)
        return text

    @world.workflow
    async def pipeline() -> list[str]:
        first = await note("a")
        rest = await asyncio.gather(note("b"), note("c"))
        await sleep("1h")
        return [first, *rest, await note("d")]

    return pipeline


async def test_a_rewound_run_repeats_what_came_after_the_step(world, ran, pipeline):
    handle = await pipeline.start()
    assert await handle.result(SECONDS) == ["a", "b", "c", "d"]
    await handle.rewind("note#3")
    assert await handle.result(SECONDS) == ["a", "b", "c", "d"]
    assert ran == ["a", "b", "c", "d", "c", "d"]
    assert steps_of(await handle.get()) == ["note", "note#2", "note#3", "note#4"]


async def test_a_cancelled_or_running_run_is_not_rewound(world, pipeline):
    handle = await pipeline.start()
    await until_status(handle, Status.WAITING)
    with pytest.raises(InvalidState, match="waiting"):
        await handle.rewind("note")
    await handle.terminate()
    with pytest.raises(InvalidState, match="cancelled"):
        await handle.rewind("note")


async def test_a_step_that_never_ran_is_named(world, pipeline):
    handle = await pipeline.start()
    await handle.wait(SECONDS)
    with pytest.raises(StepNotFound, match="nothing-of-the-sort"):
        await handle.rewind("nothing-of-the-sort")


async def test_a_failed_run_is_retried_from_the_failed_step_and_keeps_the_rest(world, ran):
    broken = True

    @world.step(name="good")
    async def good(text: str) -> str:
        ran.append(text)
        return text

    @world.step(name="bad")
    async def bad() -> str:
        ran.append("bad")
        if broken:
            raise NonRetryable("not yet")
        return "mended"

    @world.workflow
    async def flow() -> list[str]:
        await good("first")
        done = await asyncio.gather(bad(), good("beside"), return_exceptions=True)
        for result in done:
            if isinstance(result, Exception):
                raise result
        return [str(result) for result in done]

    handle = await flow.start()
    with pytest.raises(RunFailed, match="not yet"):
        await handle.result(SECONDS)
    broken = False
    await handle.retry()
    assert await handle.result(SECONDS) == ["mended", "beside"]
    assert ran.count("first") == 1
    with pytest.raises(InvalidState, match="done"):
        await handle.retry()


async def test_a_replay_sees_the_context_as_it_was_at_each_point(world):
    seen = []

    @world.step(name="mark")
    async def mark() -> None:
        set_context(marked=True)

    @world.workflow
    async def flow() -> dict[str, object]:
        seen.append(dict(current().context))
        await mark()
        seen.append(dict(current().context))
        set_context(count=1)
        await sleep("1h")
        set_context(count=2)
        return dict(current().context)

    handle = await flow.options(context={"given": 1}).start()
    await until_status(handle, Status.WAITING)
    assert (await handle.get()).context == {"given": 1, "marked": True, "count": 1}
    await world.crash()
    assert await handle.result(SECONDS) == {"given": 1, "marked": True, "count": 2}
    assert seen == [{"given": 1}, {"given": 1, "marked": True}] * 2
    assert (await handle.get()).context == {"given": 1, "marked": True, "count": 2}
