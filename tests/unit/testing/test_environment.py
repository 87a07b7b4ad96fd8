"""The testing kit, tested with itself."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from streamline import (
    InvalidState,
    Registry,
    RunFailed,
    Status,
    receive,
    sleep,
    step,
    wait,
    workflow,
)
from streamline.testing import Environment

registry = Registry()


@step(registry=registry)
async def double(x: int) -> int:
    return x * 2


@step(registry=registry)
def add(x: int, y: int) -> int:
    return x + y


@step(registry=registry)
async def fragile(x: int) -> int:
    raise ValueError(f"bad {x}")


@workflow(registry=registry)
async def arithmetic(n: int) -> int:
    first = await double(n)
    second, third = await asyncio.gather(double(first), add(first, 1))
    await sleep("1h")
    return await add(second, third)


@workflow(registry=registry)
async def conversation(n: int) -> list[str]:
    answer = await wait("a number, please", type=int)
    heard = [await receive("talk", type=str) for _ in range(n)]
    await sleep("30d")
    return [str(await double(answer)), *heard]


@workflow(registry=registry)
async def doomed(n: int) -> int:
    return await fragile(n)


async def resume_once_it_waits(handle, payload):
    while True:
        try:
            return await handle.resume(payload)
        except InvalidState:
            await asyncio.sleep(0.001)


@pytest.fixture
async def env():
    async with Environment(registry=registry) as environment:
        yield environment


async def test_time_is_skipped_while_a_result_is_waited_for(env):
    began = env.clock.now()
    handle = await arithmetic.start(3)
    assert await handle.result(timeout=5) == 19
    assert timedelta(hours=1) <= env.clock.now() - began < timedelta(hours=1, seconds=1)


async def test_time_stands_still_while_nobody_waits(env):
    began = env.clock.now()
    handle = await arithmetic.start(3)
    await env.settle()
    await asyncio.sleep(0.02)
    assert await handle.status() is Status.WAITING
    assert env.clock.now() == began


async def test_advance_fires_what_falls_due_on_the_way(env):
    handle = await arithmetic.start(3)
    await env.advance("59m")
    assert await handle.status() is Status.WAITING
    await env.advance("1m")
    assert await handle.status() is Status.DONE


async def test_a_month_of_sleep_and_messages(env):
    handle = await conversation.start(2)
    await handle.send("talk", "early")
    await env.settle()
    await handle.resume(21)
    await handle.send("talk", "late")
    assert await handle.result(timeout=5) == ["42", "early", "late"]


async def test_a_mock_takes_the_place_of_a_step(env):
    mock = env.mock(double, returns=7)
    assert await (await arithmetic.start(3)).result(timeout=5) == 15
    assert mock.await_count == 2


async def test_a_mock_that_raises_is_retried_like_the_step(env):
    mock = env.mock(fragile, side_effect=[OSError("1"), OSError("2"), 5])
    assert await (await doomed.start(3)).result(timeout=5) == 5
    assert mock.await_count == 3


async def test_a_crash_is_survived(env):
    handle = await arithmetic.start(3)
    await env.settle()
    await env.crash()
    assert await handle.result(timeout=5) == 19


async def test_crashes_at_every_commit_change_nothing(env):
    assert await env.crash_everywhere(arithmetic, 3) == 19


async def test_a_failing_workflow_fails_alike_at_every_crash(env):
    with pytest.raises(RunFailed, match="bad 3"):
        await env.crash_everywhere(doomed, 3)


async def test_crashes_in_a_conversation_lose_no_message(env):
    async def speak(handle):
        for word in ("one", "two"):
            await handle.send("talk", word)
        await resume_once_it_waits(handle, 21)

    result = await env.crash_everywhere_with(lambda: conversation.start(2), speak)
    assert result == ["42", "one", "two"]


@workflow(registry=registry)
async def calling(n: int) -> list[int]:
    return list(await asyncio.gather(arithmetic(n), arithmetic(n + 1)))


async def test_a_mocked_workflow_is_not_run():
    """K2"""
    async with Environment(registry=registry) as env:
        mock = env.mock(arithmetic, side_effect=lambda n: n * 100)
        run = await calling.options(id="p").start(3)
        assert await run.result(10) == [300, 400]
        assert sorted(call.args for call in mock.await_args_list) == [(3,), (4,)]
        assert (await env.handle("p/arithmetic#2").get()).output == 400
        assert await env.crash_everywhere(calling, 3) == [300, 400]


async def test_a_mocked_workflow_fails_at_once():
    async with Environment(registry=registry) as env:
        mock = env.mock(arithmetic, raises=KeyError("no"))
        with pytest.raises(RunFailed, match="no"):
            await calling(3)
        assert mock.await_count <= 2
