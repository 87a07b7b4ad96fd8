"""What code inside a run can rely on: FEATURES W10 to W14; BEHAVIOURS 13 and 14."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
from engine_support import SECONDS, steps_of, until, until_status

from streamline import (
    InvalidState,
    RunFailed,
    Status,
    StepNotFound,
    current,
    heartbeat,
    logger,
    now,
    patched,
    random,
    receive,
    set_context,
    sleep,
    uuid4,
    wait,
)


async def test_now_random_and_uuid4_are_the_same_on_replay_and_differ_between_runs(world):
    """W10, behaviour 13"""
    seen = []

    @world.workflow
    async def flow() -> None:
        values = (now(), random(), uuid4())
        seen.append((current().run_id, values))
        await sleep("1d")
        seen.append((current().run_id, (now(), random(), uuid4())))

    one, two = await flow.start(), await flow.start()
    await until_status(one, Status.WAITING)
    await until_status(two, Status.WAITING)
    await world.crash()
    await asyncio.gather(one.wait(SECONDS), two.wait(SECONDS))
    firsts = {run: [v for r, v in seen if r == run] for run in (one.id, two.id)}
    for values in firsts.values():
        first, replayed, after = values
        assert first == replayed
        assert after[0] > first[0]
        assert not set(after) & set(first)
    assert firsts[one.id][0][1] != firsts[two.id][0][1]
    assert firsts[one.id][0][2].version == 4


async def test_a_log_line_is_not_repeated_on_replay(world, caplog):
    """W10, behaviour 14"""

    @world.workflow
    async def flow() -> None:
        logger.info("before")
        await sleep("1d")
        logger.info("after")

    with caplog.at_level(logging.INFO, "streamline.run"):
        handle = await flow.start()
        await until_status(handle, Status.WAITING)
        await world.crash()
        await handle.result(SECONDS)
    lines = [record for record in caplog.records if record.name == "streamline.run"]
    assert [line.getMessage() for line in lines] == ["before", "after"]
    assert all(line.run_id == handle.id for line in lines)


async def test_replaying_is_true_for_what_happened_before(world):
    """W12"""
    seen = []

    @world.step
    async def look() -> bool:
        return current().replaying

    @world.workflow
    async def flow() -> bool:
        seen.append(("first", current().replaying))
        await sleep("1d")
        seen.append(("second", current().replaying))
        return await look()

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    await world.crash()
    assert await handle.result(SECONDS) is False
    assert seen == [("first", False), ("first", True), ("second", False)]


async def test_context_is_kept_with_the_run_and_changed_by_body_and_steps(world):
    """W11"""

    @world.step
    async def charge() -> int:
        set_context(charged=True, by="step")
        assert current().context["charged"]
        return 1

    @world.workflow
    async def flow() -> dict[str, object]:
        set_context(tenantId="t", by="body")
        await charge()
        return dict(current().context)

    handle = await flow.options(context={"given": 1}).start()
    expected = {"given": 1, "tenantId": "t", "charged": True, "by": "step"}
    assert await handle.result(SECONDS) == expected
    assert (await handle.get()).context == expected
    assert await world.crash_everywhere(flow) == {k: v for k, v in expected.items() if k != "given"}


async def test_a_replay_sees_the_context_as_it_was_at_each_point(world):
    """W11: not as it is now."""

    @world.step
    async def bump() -> None:
        set_context(n=current().context.get("n", 0) + 10)

    @world.workflow
    async def flow() -> list[int]:
        seen = []
        for _ in range(3):
            set_context(n=current().context.get("n", 0) + 1)
            seen.append(current().context["n"])
            await bump()
            seen.append(current().context["n"])
            await sleep("1d")
        return seen

    assert await world.crash_everywhere(flow) == [1, 11, 12, 22, 23, 33]


async def test_the_context_of_a_failed_attempt_is_not_kept(world):
    """W11: recorded with its result."""
    attempts = []

    @world.step
    async def flaky() -> None:
        set_context(**{f"attempt{current().attempt}": True})
        attempts.append(dict(current().context))
        if current().attempt == 1:
            raise OSError

    @world.workflow
    async def flow() -> None:
        await flaky()

    handle = await flow.start()
    assert (await handle.wait(SECONDS)).context == {"attempt2": True}
    assert attempts == [{"attempt1": True}, {"attempt2": True}]


async def test_the_context_shows_in_the_document_while_the_run_waits(world):
    """W11: queryable."""

    @world.workflow
    async def flow() -> None:
        set_context(state="asking")
        await wait("go on?")

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    assert (await handle.get()).context == {"state": "asking"}


async def test_the_context_is_read_only_but_for_set_context(world):
    """W11"""

    @world.workflow
    async def flow() -> None:
        current().context["x"] = 1

    with pytest.raises(RunFailed, match="mappingproxy"):
        await (await flow.start()).result(SECONDS)


async def test_current_tells_of_the_run_and_the_step(world):
    """W12"""
    seen = {}

    def facts():
        me = current()
        return {
            "run": me.run_id,
            "workflow": me.workflow,
            "version": me.version,
            "meta": dict(me.meta),
            "input": me.input,
            "step": me.step_id,
            "attempt": me.attempt,
        }

    @world.step(name="look")
    async def look() -> int:
        seen["step"] = facts()
        if current().attempt == 1:
            raise OSError
        return 5

    @world.step(name="plain")
    def plain() -> None:
        seen["thread"] = facts()

    @world.workflow(name="flow", version="3")
    async def flow(x: int, *, y: str) -> int:
        seen["body"] = facts()
        await look()
        await look()
        await plain()
        assert current().output_of("look#2") == 5
        return current().output_of(look)

    handle = await flow.options(meta={"m": 1}).start(1, y="b")
    assert await handle.result(SECONDS) == 5
    common = {
        "run": handle.id,
        "workflow": "flow",
        "version": "3",
        "meta": {"m": 1},
        "input": ((1,), {"y": "b"}),
    }
    assert seen["body"] == {**common, "step": None, "attempt": 0}
    assert seen["step"]["step"] == "look#2"
    assert seen["thread"] == {**common, "step": "plain", "attempt": 1}


async def test_output_of_an_unrecorded_step_says_so(world):
    """W12, E1"""

    @world.workflow
    async def flow() -> str:
        try:
            current().output_of("nothing")
        except StepNotFound as error:
            return f"{error.code} {error.run_id == current().run_id} {error.step}"
        return ""

    assert await (await flow.start()).result(SECONDS) == "STEP_NOT_FOUND True nothing"


async def test_the_idempotency_key_is_the_same_on_every_attempt_and_no_other_steps(world):
    """W12, behaviour 7"""
    keys = []

    @world.step
    async def charge() -> None:
        keys.append(current().idempotency_key)
        if len(keys) == 1:
            raise OSError

    @world.workflow
    async def flow() -> None:
        await charge()
        await charge()

    handle = await flow.start()
    await handle.result(SECONDS)
    assert keys[0] == keys[1] != keys[2]
    assert all(handle.id in key for key in keys)


async def test_what_is_called_in_the_wrong_place_says_where_it_belongs(world):
    """W12, E1"""
    said = []

    async def try_all(calls):
        for call in calls:
            try:
                result = call()
                if asyncio.iscoroutine(result):
                    await result
            except InvalidState as error:
                said.append(str(error))

    @world.step
    async def in_step() -> None:
        await try_all([lambda: wait("x"), lambda: receive("x"), lambda: patched("x")])

    @world.workflow
    async def flow() -> None:
        await try_all([heartbeat, lambda: current().idempotency_key, lambda: current().cancelled])
        await in_step()

    await (await flow.start()).result(SECONDS)
    assert len(said) == 6
    assert all("in a @step" in text for text in said[:3])
    assert all("in the workflow body" in text for text in said[3:])
    await try_all([current, heartbeat, lambda: wait("x"), lambda: set_context(a=1)])
    assert len(said) == 10
    assert all("outside a run" in text for text in said[6:])


async def test_steps_that_are_not_called_are_not_there(world):
    """W14"""

    @world.step(name="a")
    async def a() -> None: ...

    @world.step(name="b")
    async def b() -> None: ...

    @world.workflow
    async def flow(take: bool) -> None:
        if take:
            await a()
        await b()

    both, one = await flow.start(True), await flow.start(False)
    assert steps_of(await both.wait(SECONDS)) == ["a", "b"]
    assert steps_of(await one.wait(SECONDS)) == ["b"]


# -- heartbeats and cancellation of steps ------------------------------------------------------


async def test_heartbeat_details_survive_into_the_next_attempt(world):
    """W13"""
    seen = []

    @world.step
    async def copy() -> int:
        seen.append(current().last_heartbeat)
        heartbeat({"row": len(seen)})
        heartbeat({"row": len(seen) * 10})
        if len(seen) < 3:
            raise OSError
        return len(seen)

    @world.workflow
    async def flow() -> int:
        return await copy()

    assert await (await flow.start()).result(SECONDS) == 3
    assert seen == [None, {"row": 10}, {"row": 20}]


async def test_heartbeat_details_survive_a_crash_of_the_attempt(world):
    """W13"""
    seen = []

    @world.step
    async def copy() -> int:
        seen.append(current().last_heartbeat)
        heartbeat({"row": 7})
        if len(seen) == 1:
            await asyncio.sleep(60)
        return len(seen)

    @world.workflow
    async def flow() -> int:
        # A commit while the step runs must not lose what was beaten.
        _, number = await asyncio.gather(receive("go"), copy())
        return number

    handle = await flow.start()
    await until(lambda: seen)
    await world.settle()
    await handle.send("go")
    await world.settle()
    assert [a.heartbeat for a in (await world.run(handle.id)).attempts] == [{"row": 7}]
    await world.crash()
    assert await handle.result(SECONDS) == 2
    assert seen == [None, {"row": 7}]


async def test_heartbeat_details_survive_a_crash_during_the_backoff(world):
    """W13, behaviour 17"""
    seen = []

    @world.step
    async def copy() -> int:
        seen.append((current().attempt, current().last_heartbeat))
        heartbeat(len(seen))
        if len(seen) < 3:
            raise OSError
        return len(seen)

    @world.workflow
    async def flow() -> int:
        return await copy()

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    await world.crash()
    assert await handle.result(SECONDS) == 3
    assert seen == [(1, None), (2, 1), (3, 2)]


async def test_a_step_without_a_heartbeat_for_too_long_is_cut_off(world):
    """W13"""
    beats = []

    @world.step(heartbeat_timeout=0.06, attempts=1)
    async def silent(times: int) -> None:
        for n in range(times):
            heartbeat(n)
            beats.append(n)
            await asyncio.sleep(0.03)
        await asyncio.sleep(30)

    @world.workflow
    async def flow() -> None:
        await silent(4)

    with pytest.raises(RunFailed, match="no heartbeat") as caught:
        await (await flow.start()).result(SECONDS)
    assert caught.value.error_code == "STEP_TIMEOUT"
    assert beats == [0, 1, 2, 3]


async def test_a_step_is_cancelled_when_its_run_is(world):
    """W13, C1"""
    ends = []

    @world.step
    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ends.append(current().cancelled.is_set())
            raise

    @world.workflow
    async def flow() -> None:
        await slow()

    handle = await flow.start()
    await until(lambda: "step:started" in world.names())
    await asyncio.sleep(0.005)
    await handle.cancel()
    assert (await handle.wait(SECONDS)).status is Status.CANCELLED
    await until(lambda: ends)
    assert ends == [True]


async def test_a_step_in_a_thread_sees_that_it_is_cancelled(world):
    """W13, C1"""
    ends = []

    @world.step
    def slow() -> None:
        cancelled = current().cancelled
        heartbeat("begun")
        ends.append(cancelled.wait(10))
        try:
            heartbeat("still here")
        except InvalidState as error:
            ends.append(str(error))

    @world.workflow
    async def flow() -> None:
        await slow()

    handle = await flow.start()
    await until(lambda: "step:started" in world.names())
    await asyncio.sleep(0.01)
    await handle.cancel()
    assert (await handle.wait(SECONDS)).status is Status.CANCELLED
    await until(lambda: len(ends) == 2)
    assert ends[0] is True
    assert "was cancelled; stop it" in ends[1]


async def test_a_long_step_is_never_taken_for_stale(world):
    """W13: leases renew by themselves as time passes."""
    go = asyncio.Event()
    started = []

    @world.step
    async def slow() -> int:
        started.append(1)
        await go.wait()
        return 1

    @world.workflow
    async def flow() -> int:
        return await slow()

    handle = await flow.start()
    await until(lambda: started)
    other = await world.another_worker()
    for _ in range(20):
        world._move_to(world.clock.now() + timedelta(seconds=30))
        await asyncio.sleep(0.001)
    assert other.worker.claimed == 0
    go.set()
    assert await handle.result(SECONDS) == 1
    assert started == [1]


async def test_a_sibling_of_a_failed_step_is_cancelled_in_a_task_group(world):
    """W1, W13"""
    ends = []

    @world.step(attempts=1)
    async def bad() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("bad")

    @world.step
    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ends.append("cancelled")

    @world.workflow
    async def flow() -> str:
        said = ""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(slow())
                group.create_task(bad())
        except* ValueError as errors:
            said = str(errors.exceptions[0])
        return said

    assert await (await flow.start()).result(SECONDS) == "bad"
    await until(lambda: ends)
