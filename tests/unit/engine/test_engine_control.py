"""Cancel, terminate, pause: FEATURES C1 to C3; BEHAVIOURS 4 and 19 to 21."""

from __future__ import annotations

import asyncio

import pytest
from engine_support import SECONDS, kinds_of, steps_of, until, until_status

from streamline import (
    InvalidState,
    RunAlreadyCompleted,
    RunCancelled,
    Status,
    receive,
    sleep,
    wait,
)
from streamline.model import Message, MessageKind


def post_at(world, kind, when):
    """Post a control message right before the first commit for which `when` holds."""
    posted = []

    def hook(commit):
        if when(commit) and not posted:
            message = Message(id=f"m-{kind}", kind=kind, at=world.clock.now(), payload="now")
            coroutine = world._store.post(commit.run_id, message)
            try:
                coroutine.send(None)
            except StopIteration as done:
                posted.append(done.value)
        return False

    world.process.mortal_store.before_commit = hook
    return posted


@pytest.fixture
def gate(world):
    """A step `held` that ends when the gate is opened, and a log of what ran."""

    class Gate:
        def __init__(self):
            self.opened = asyncio.Event()
            self.log = []

    gate = Gate()

    @world.step(name="held")
    async def held(x: int = 0) -> int:
        gate.log.append(f"held {x}")
        try:
            await gate.opened.wait()
        except asyncio.CancelledError:
            gate.log.append(f"cancelled {x}")
            raise
        return x

    @world.step(name="note")
    async def note(text: str) -> str:
        gate.log.append(text)
        return text

    gate.held, gate.note = held, note
    return gate


# -- cancel -----------------------------------------------------------------------------------


async def test_a_draft_is_cancelled_at_once_and_its_body_never_starts(world):
    """C1, behaviour 19"""
    ran = []

    @world.workflow
    async def flow() -> None:
        ran.append(1)

    handle = await flow.options(delay="1d").start()
    await handle.cancel("changed my mind")
    run = await handle.get()
    assert run.status is Status.CANCELLED
    assert run.error.code == "WORKFLOW_CANCELLED"
    assert run.ended_at is not None
    await world.advance("2d")
    assert ran == []
    with pytest.raises(RunCancelled, match="changed my mind"):
        await handle.result(SECONDS)


async def test_a_cancel_before_the_first_activation_holds_for_a_body_that_never_awaits(world):
    """Behaviour 19: it was claimed already, so its worker must see to it."""
    ran = []

    @world.workflow
    async def flow() -> int:
        ran.append(1)
        return 1

    @world.workflow
    async def awaiting() -> None:
        await receive("never")

    for each in (flow, awaiting):
        handle = await each.start()
        claimed = await world.process.mortal_store.claim_run(
            world.process.worker.scheduler.new_claim(), handle.id
        )
        await handle.cancel("too early")
        world.process.worker.adopt(claimed)
        with pytest.raises(RunCancelled, match="too early"):
            await handle.result(SECONDS)
        assert (await handle.get()).inbox == []


async def test_a_cancelled_body_may_clean_up_durably(world, gate):
    """C1, behaviour 19: in except and finally, over crashes too."""

    @world.workflow
    async def flow() -> None:
        try:
            await receive("never")
        except asyncio.CancelledError:
            await gate.note("except")
            raise
        finally:
            await sleep("1h")
            await gate.note("finally")

    async def cancel(handle):
        await handle.cancel("enough")

    with pytest.raises(RunCancelled, match="was cancelled"):
        await world.crash_everywhere_with(flow.start, cancel)
    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    gate.log.clear()
    await handle.cancel("enough")
    run = await handle.wait(SECONDS)
    assert gate.log == ["except", "finally"]
    assert (run.status, run.error.code) == (Status.CANCELLED, "WORKFLOW_CANCELLED")


async def test_the_reason_of_a_cancel_is_told(world):
    """C1: to the body, and to whoever asks for the result."""
    told = []

    @world.workflow
    async def flow() -> None:
        try:
            await receive("never")
        except asyncio.CancelledError as error:
            told.append(error.args)
            raise

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    await handle.cancel("out of stock")
    with pytest.raises(RunCancelled, match="out of stock"):
        await handle.result(SECONDS)
    assert told == [("out of stock",)]


async def test_a_cancel_reaches_a_step_in_another_process(world, gate):
    """C1"""

    @world.workflow
    async def flow() -> int:
        return await gate.held()

    handle = await flow.start()
    await until(lambda: gate.log)
    other = await world.another_worker()
    await other.control.cancel_run(handle.id, None)
    assert (await handle.wait(SECONDS)).status is Status.CANCELLED
    await until(lambda: len(gate.log) == 2)
    assert gate.log == ["held 0", "cancelled 0"]


async def test_a_cancel_of_an_ended_run_changes_nothing(world):
    """C1"""

    @world.workflow
    async def flow() -> int:
        return 1

    handle = await flow.start()
    before = await handle.wait(SECONDS)
    await handle.cancel()
    await handle.terminate()
    assert (await handle.get()) == before


async def test_a_cancel_of_a_run_that_was_claimed_and_handed_back(world, gate):
    """C1"""

    @world.workflow
    async def flow() -> None:
        try:
            await gate.held()
        finally:
            await gate.note("clean")

    handle = await flow.start()
    await until(lambda: gate.log)
    await world.process.stop(0)
    await handle.cancel()
    world._process = await world.another_worker()
    world.others.clear()
    assert (await handle.wait(SECONDS)).status is Status.CANCELLED
    assert gate.log[-1] == "clean"


async def test_a_cancel_that_the_body_swallows_is_not_delivered_twice(world, gate):
    """Behaviour 20: not after a crash either."""

    @world.workflow
    async def flow() -> list[str]:
        seen = []
        for _ in range(3):
            try:
                await sleep("1h")
                seen.append("slept")
            except asyncio.CancelledError:
                seen.append("cancelled")
        return seen

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    await handle.cancel()
    await world.settle()
    await world.crash()
    assert await handle.result(SECONDS) == ["cancelled", "slept", "slept"]
    kinds = kinds_of(await handle.get())
    assert kinds.count(("message", "cancel")) == 1


async def test_a_swallowed_cancel_is_delivered_once_at_every_crash(world):
    """Behaviour 20"""

    @world.workflow
    async def flow() -> list[str]:
        seen = []
        for _ in range(2):
            try:
                await receive("never", timeout="1h")
            except asyncio.CancelledError:
                seen.append("cancelled")
            except TimeoutError:
                seen.append("timeout")
        return seen

    async def cancel(handle):
        await until_status(handle, Status.WAITING)
        await handle.cancel()

    result = await world.crash_everywhere_with(flow.start, cancel)
    assert result == ["cancelled", "timeout"]


async def test_a_cancel_that_comes_as_the_run_completes_is_not_lost(world, gate):
    """Behaviours 4 and 20: it was acknowledged, so it reaches the body; the result is dropped."""

    @world.workflow
    async def flow() -> str:
        return await gate.note("work")

    posted = post_at(world, MessageKind.CANCEL, lambda commit: commit.status is Status.DONE)
    handle = await flow.start()
    run = await handle.wait(SECONDS)
    assert [result.value for result in posted] == ["posted"]
    assert run.status is Status.CANCELLED
    assert run.output is None
    assert run.inbox == []


async def test_a_cancel_after_the_last_write_comes_too_late(world, gate):
    """Behaviour 20: one of them."""

    @world.workflow
    async def flow() -> str:
        return await gate.note("work")

    late = []

    def after(commit):
        if commit.status is Status.DONE:
            coroutine = world.control.cancel_run(commit.run_id, None)
            try:
                coroutine.send(None)
            except StopIteration:
                late.append(True)
        return False

    world.process.mortal_store.after_commit = after
    handle = await flow.start()
    assert await handle.result(SECONDS) == "work"
    assert late


async def test_a_shielded_step_finishes_when_the_run_is_cancelled(world, gate, caplog):
    """Behaviour 21: and no stray log lines."""

    @world.workflow
    async def flow() -> None:
        await asyncio.shield(gate.held(1))

    handle = await flow.start()
    await until(lambda: gate.log)
    await handle.cancel()
    await world.settle()
    assert await handle.status() is Status.RUNNING
    gate.opened.set()
    run = await handle.wait(SECONDS)
    assert run.status is Status.CANCELLED
    assert gate.log == ["held 1"]
    assert steps_of(run) == ["held"]
    assert caplog.records == []


async def test_a_shielded_step_finishes_also_over_a_crash(world, gate):
    """Behaviour 21"""

    @world.workflow
    async def flow() -> None:
        await asyncio.shield(gate.held(1))

    handle = await flow.start()
    await until(lambda: gate.log)
    await handle.cancel()
    await world.settle()
    await world.crash()
    gate.opened.set()
    run = await handle.wait(SECONDS)
    assert run.status is Status.CANCELLED
    assert steps_of(run) == ["held"]


async def test_a_cancel_that_finds_a_step_done_but_unwritten_keeps_its_result(world, gate):
    """Promise 1: what ended is recorded, and not run again by the cleanup."""

    @world.workflow
    async def flow() -> None:
        try:
            await gate.note("work")
            await receive("never")
        finally:
            await gate.note("clean")

    post_at(world, MessageKind.CANCEL, lambda commit: bool(commit.entries))
    handle = await flow.start()
    run = await handle.wait(SECONDS)
    assert run.status is Status.CANCELLED
    assert gate.log == ["work", "clean"]


async def test_cancel_of_a_paused_run_ends_it(world, gate):
    """C1, C3"""

    @world.workflow
    async def flow() -> None:
        try:
            await receive("never")
        finally:
            await gate.note("clean")

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    await handle.pause()
    await until_status(handle, Status.PAUSED)
    await handle.cancel()
    assert (await handle.wait(SECONDS)).status is Status.CANCELLED
    assert gate.log == ["clean"]


# -- terminate --------------------------------------------------------------------------------


async def test_terminate_ends_a_run_without_asking_it(world, gate):
    """C2"""

    @world.workflow
    async def flow() -> int:
        try:
            return await gate.held()
        finally:
            await gate.note("never reached")

    handle = await flow.start()
    await until(lambda: gate.log)
    await handle.terminate("now!")
    run = await handle.get()
    assert run.status is Status.CANCELLED
    with pytest.raises(RunCancelled, match="now!"):
        await handle.result(SECONDS)
    gate.opened.set()
    await world.advance("2m")  # a renewal tells the worker
    await until(lambda: world.process.worker.claimed == 0)
    assert gate.log in (["held 0"], ["held 0", "cancelled 0"])
    assert (await handle.get()) == run


async def test_terminate_ends_waiting_paused_and_draft_runs(world):
    """C2"""

    @world.workflow
    async def flow() -> None:
        await wait("x")

    waiting, paused = await flow.start(), await flow.start()
    draft = await flow.options(delay="1d").start()
    await until_status(waiting, Status.WAITING)
    await until_status(paused, Status.WAITING)
    await paused.pause()
    await until_status(paused, Status.PAUSED)
    for handle in (waiting, paused, draft):
        await handle.terminate()
        run = await handle.get()
        assert (run.status, run.awaiting, run.due_at) == (Status.CANCELLED, [], None)


# -- pause ------------------------------------------------------------------------------------


async def test_a_pause_is_honoured_at_the_next_step_boundary(world, gate):
    """C3: from any process."""

    @world.workflow
    async def flow() -> list[object]:
        return [await gate.held(1), await gate.note("second")]

    handle = await flow.start()
    await until(lambda: gate.log)
    other = await world.another_worker()
    await other.control.pause_run(handle.id, "maintenance")
    await world.settle()
    assert await handle.status() is Status.RUNNING
    gate.opened.set()
    await until_status(handle, Status.PAUSED)
    assert gate.log == ["held 1"]
    assert steps_of(await handle.get()) == ["held"]
    await handle.unpause()
    assert await handle.result(SECONDS) == [1, "second"]
    assert gate.log == ["held 1", "second"]


async def test_a_sleep_that_falls_due_while_paused_fires_on_unpause(world, gate):
    """C3"""

    @world.workflow
    async def flow() -> str:
        await sleep("1h")
        return await gate.note("after")

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    await handle.pause()
    await until_status(handle, Status.PAUSED)
    await world.advance("1d")
    assert await handle.status() is Status.PAUSED
    assert gate.log == []
    await handle.unpause()
    assert await handle.result(SECONDS) == "after"


async def test_messages_to_a_paused_run_are_kept(world):
    """C3, W6"""

    @world.workflow
    async def flow() -> int:
        return await receive("box", type=int)

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    await handle.pause()
    await until_status(handle, Status.PAUSED)
    await handle.send("box", 3)
    await world.settle()
    assert await handle.status() is Status.PAUSED
    await handle.unpause()
    assert await handle.result(SECONDS) == 3


async def test_a_pause_taken_back_before_it_took_effect_has_none(world, gate):
    """C3"""

    @world.workflow
    async def flow() -> list[object]:
        return [await gate.held(1), await gate.note("second")]

    handle = await flow.start()
    await until(lambda: gate.log)
    await handle.pause()
    await world.settle()
    await handle.unpause()
    gate.opened.set()
    assert await handle.result(SECONDS) == [1, "second"]
    assert "workflow:paused" not in world.names()


async def test_a_pause_that_races_a_park_takes_effect(world):
    """C3"""

    @world.workflow
    async def flow() -> None:
        await sleep("1d")

    post_at(world, MessageKind.PAUSE, lambda commit: commit.status is Status.WAITING)
    handle = await flow.start()
    await until_status(handle, Status.PAUSED)
    await handle.unpause()
    await handle.result(SECONDS)


async def test_a_paused_draft_does_not_begin(world, gate):
    """C3"""

    @world.workflow
    async def flow() -> str:
        return await gate.note("begun")

    handle = await flow.options(delay="1h").start()
    await handle.pause()
    await world.advance("2h")
    assert await handle.status() is Status.PAUSED
    assert gate.log == []
    await handle.unpause()
    assert await handle.result(SECONDS) == "begun"


async def test_unpause_of_a_run_that_is_not_paused_is_refused(world):
    """C3, E1"""

    @world.workflow
    async def flow() -> None:
        await receive("never")

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    with pytest.raises(InvalidState, match="waiting, not paused"):
        await handle.unpause()


async def test_pause_of_an_ended_run_is_refused(world):
    """C3, E1"""

    @world.workflow
    async def flow() -> None: ...

    handle = await flow.start()
    await handle.wait(SECONDS)
    with pytest.raises(RunAlreadyCompleted):
        await handle.pause()
    with pytest.raises(InvalidState):
        await handle.unpause()


async def test_pausing_twice_needs_unpausing_once(world, gate):
    """C3"""

    @world.workflow
    async def flow() -> list[object]:
        return [await gate.held(1), await gate.note("second")]

    handle = await flow.start()
    await until(lambda: gate.log)
    await handle.pause()
    await handle.pause()
    gate.opened.set()
    await until_status(handle, Status.PAUSED)
    await handle.unpause()
    assert await handle.result(SECONDS) == [1, "second"]
