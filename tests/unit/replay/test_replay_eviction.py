"""A dropped body: its cleanup has no effect, nothing is logged or warned of, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from replay_player import Player, Recording, replay_at_once, step, workflow

from streamline import context as run

happened: list[str] = []


@step
def effect(name: str) -> str:
    happened.append(name)
    return name


@step
async def async_effect(name: str) -> str:
    happened.append(name)
    return name


async def _finally_with_awaits() -> None:
    try:
        await effect("a")
    finally:
        await effect("b")
        await async_effect("b2")
        await asyncio.sleep(1)
        await run.wait("c")
        await asyncio.gather(effect("d"), effect("e"))


async def _finally_with_tasks() -> None:
    try:
        await effect("a")
    finally:
        task = asyncio.create_task(effect("b"))
        async with asyncio.TaskGroup() as group:
            group.create_task(effect("c"))
            group.create_task(asyncio.sleep(1))
        await task


async def _swallows_everything_with_steps() -> None:
    while True:
        try:
            await effect("a")
        except BaseException:
            continue


async def _swallows_everything_with_async_steps() -> None:
    held = []
    while True:
        try:
            await async_effect("a")
        except BaseException as error:
            held.append(error)


async def _swallows_everything_with_sleeps() -> None:
    while True:
        with contextlib.suppress(BaseException):
            await asyncio.sleep(1)


async def _swallows_everything_and_holds_it() -> None:
    errors = []
    while True:
        try:
            await asyncio.create_task(effect("a"))
        except BaseException as error:
            errors.append(error)


async def _retries_until_not_cancelled() -> None:
    try:
        await effect("a")
    finally:
        while True:
            try:
                await effect("b")
                break
            except asyncio.CancelledError:
                continue


async def _task_group() -> None:
    async def child(name: str) -> None:
        try:
            await effect(name)
        finally:
            await effect(f"{name}-cleanup")

    async with asyncio.TaskGroup() as group, asyncio.timeout(60):
        for name in "abc":
            group.create_task(child(name))
        await effect("main")


async def _async_generator() -> None:
    async def numbers() -> Any:
        try:
            yield 1
            yield await effect("two")
        finally:
            await effect("closed")

    held = numbers()
    await anext(held)
    async for _ in numbers():
        await effect("in loop")


async def _not_awaited() -> None:
    later = effect("later")
    slot = run.receive("later")
    await effect("now")
    await later
    await slot


async def _locks() -> None:
    lock, condition = asyncio.Lock(), asyncio.Condition()

    async def waiter() -> None:
        async with condition:
            await condition.wait()
            await effect("woken")

    tasks = [asyncio.create_task(waiter()) for _ in range(2)]
    async with lock:
        await effect("locked")
        await asyncio.wait(tasks)


async def _logs_in_cleanup() -> None:
    try:
        await effect("a")
    except BaseException:
        run.logger.error("the body is closed")
        raise
    finally:
        run.logger.warning("cleanup")
        run.set_context(cleaned=True)
        run.patched("cleanup")
        async with asyncio.timeout(3):
            await run.sleep(1)


async def _receives() -> None:
    try:
        await run.receive("orders", timeout=60)
    finally:
        await run.wait("why?", timeout=60)


async def _shields_and_races() -> None:
    tasks = {asyncio.create_task(effect(name)) for name in "abc"}
    try:
        await asyncio.shield(asyncio.gather(*tasks))
    finally:
        await asyncio.wait(tasks, timeout=5)
        for done in asyncio.as_completed([effect("x"), effect("y")]):
            await done


async def _failed_task_that_nobody_asked() -> None:
    async def failing() -> None:
        raise ValueError("not asked for")

    held = asyncio.create_task(failing())
    await effect("a")
    assert held


BODIES = [value for name, value in list(globals().items()) if inspect.iscoroutinefunction(value)]
BODIES = [body for body in BODIES if body.__name__.startswith("_")]


def _parked(body: Callable[..., Any], seed: int = 0, entries: int = 0) -> Recording:
    return Player(
        workflow(name="flow")(body), seed=seed, max_entries=entries, messages=[("orders", 1)]
    ).play()


@pytest.fixture
def silent(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Check that nothing is run, logged or said."""
    happened.clear()
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: said.append(unraisable))
    caplog.set_level(logging.DEBUG)
    yield
    gc.collect()
    assert happened == []
    assert said == []
    assert caplog.records == []


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__.strip("_"))
@pytest.mark.usefixtures("silent")
def test_a_dropped_body_has_no_effect(body: Callable[..., Any]) -> None:
    recording = _parked(body)
    execution = recording.execution
    issued = len(recording.ids)
    assert issued or body is _failed_task_that_nobody_asked
    execution.evict()
    assert execution.open.take_issued() == []
    assert not execution.open
    assert not execution.new_patches
    assert execution.replaying


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__.strip("_"))
@pytest.mark.parametrize("entries", [0, 1, 2])
def test_a_dropped_body_is_dropped_where_it_stands(
    body: Callable[..., Any], entries: int, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(3):
        execution = _parked(body, seed, entries).execution
        happened.clear()
        caplog.clear()
        execution.evict()
        gc.collect()
        assert happened == []
        assert caplog.records == []


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__.strip("_"))
def test_a_dropped_body_leaves_no_task(body: Callable[..., Any]) -> None:
    from replay_player import played

    gc.collect()
    gc.disable()
    try:
        recording = _parked(body)
        tasks = [weakref.ref(task) for task in recording.execution._loop._tasks]
        assert tasks
        recording.execution.evict()
        played.clear()
        del recording
        gc.collect()
        assert [reference() for reference in tasks if reference() is not None] == []
    finally:
        gc.enable()


def test_a_plain_parked_body_is_freed_without_the_collector() -> None:
    class Held:
        pass

    held: list[weakref.ref[Held]] = []

    async def body() -> None:
        value = Held()
        held.append(weakref.ref(value))
        await effect("a")
        assert value

    gc.collect()
    gc.disable()
    try:
        _parked(body).execution.evict()
        assert held[0]() is None
    finally:
        gc.enable()


def test_a_long_replay_keeps_no_answered_command_and_restores_what_it_found() -> None:
    async def body() -> None:
        for number in range(1000):
            await effect(str(number))

    recording = _parked(body, entries=250)
    hooks, passes = sys.get_asyncgen_hooks(), gc.get_stats()[0]["collections"]
    execution = replay_at_once(recording)
    assert sys.get_asyncgen_hooks() == hooks
    assert gc.isenabled()
    assert gc.get_stats()[0]["collections"] > passes, "the collector had its turn meanwhile"
    assert [command.id for command in execution.open.issued] == list(execution.open)


def test_eviction_restores_what_it_found() -> None:
    hooks, unraisable = sys.get_asyncgen_hooks(), sys.unraisablehook
    _parked(_swallows_everything_and_holds_it).execution.evict()
    assert sys.get_asyncgen_hooks() == hooks
    assert sys.unraisablehook is unraisable
    assert gc.isenabled()


async def test_eviction_works_inside_a_task_of_another_loop() -> None:
    happened.clear()
    _parked(_finally_with_tasks).execution.evict()
    assert asyncio.current_task() is not None
    await asyncio.sleep(0)
    assert happened == []


def test_eviction_twice_is_harmless() -> None:
    execution = _parked(_finally_with_awaits).execution
    execution.evict()
    execution.evict()


def test_eviction_of_a_body_that_never_began_is_harmless() -> None:
    from replay_player import LIMIT, make_run

    from streamline.replay import Execution

    flow = workflow(name="flow")(_receives)
    Execution(make_run(flow), flow, limit=LIMIT).evict()
