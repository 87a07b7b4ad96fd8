"""Messages that come in just before a commit: what it must look at, and what can't stop it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from engine_support import SECONDS, until, until_status

from streamline import InvalidState, RunCancelled, Status, wait
from streamline.ids import new_id
from streamline.model import Commit, CommitResult, Message, MessageKind, PostResult, SlotKind

Late = Callable[[Commit], Awaitable[object]]


def before_each_commit(world, monkeypatch, late: Late) -> list[CommitResult]:
    """Let something happen between what the worker knows and what it writes; return results."""
    store = world.process.mortal_store
    commit = store.commit
    results: list[CommitResult] = []

    async def commit_late(each: Commit) -> CommitResult:
        await asyncio.sleep(0)  # a commit takes its time
        await late(each)
        results.append(await commit(each))
        return results[-1]

    monkeypatch.setattr(store, "commit", commit_late)
    return results


async def post(world, run_id: str, kind: MessageKind, name: str = "", payload=None) -> PostResult:
    at = world.clock.now()
    message = Message(id=new_id(), kind=kind, at=at, name=name, payload=payload)
    slot = name if kind is MessageKind.RESUME else None
    return await world._store.post(run_id, message, slot=slot)


@pytest.fixture
def flood(world, monkeypatch) -> list[CommitResult]:
    """Let messages that the run doesn't ask for come in faster than it can ever commit."""

    async def send(commit: Commit) -> None:
        assert await post(world, commit.run_id, MessageKind.SEND, "noise") == "posted"

    return before_each_commit(world, monkeypatch, send)


@pytest.fixture
def endless(world):
    """A run that goes from step to step."""

    @world.step
    async def tick() -> None: ...

    @world.workflow
    async def endless() -> None:
        while True:
            await tick()

    return endless


async def test_a_run_with_an_open_wait_gets_on_and_ends_while_messages_pour_in(world, flood):
    bodies = []

    @world.step
    async def double(n: int) -> int:
        bodies.append(n)
        return 2 * n

    @world.workflow
    async def flow() -> list[int]:
        results = []
        for n in range(5):
            question = asyncio.create_task(wait("what now?", name=f"q{n}"))
            results.append(await double(n))
            question.cancel()  # so each step closes a wait and opens one
        return results

    run = await flow.start()
    assert await run.result(SECONDS) == [0, 2, 4, 6, 8]
    assert bodies == [0, 1, 2, 3, 4]
    # Only the end was refused, once, and what it was to end with went first.
    assert flood.count(CommitResult.INBOX_MOVED) == 1
    assert len((await run.get()).inbox) == len(flood)


async def test_a_run_can_be_paused_and_cancelled_while_messages_pour_in(world, flood, endless):
    """C1, C3"""
    run = await endless.start()
    await until(lambda: len(flood) > 5)
    await run.pause()
    await until_status(run, Status.PAUSED)
    await run.unpause()
    await until_status(run, Status.RUNNING)
    await run.cancel("enough")
    with pytest.raises(RunCancelled, match="enough"):
        await run.result(SECONDS)


@pytest.mark.parametrize("pouring", [False, True])
async def test_a_resume_is_seen_by_the_commit_that_would_close_its_wait(
    world, monkeypatch, pouring
):
    """Promise 2, W4: what was accepted is acted on."""
    resumed = []

    @world.step
    async def look() -> None: ...

    @world.workflow
    async def flow() -> str:
        question = asyncio.create_task(wait("and?", name="q", type=str))
        await look()
        await look()
        question.cancel()  # unless it is answered
        try:
            return await question
        except asyncio.CancelledError:
            return "nobody answered"

    async def resume(commit: Commit) -> None:
        if pouring:
            await post(world, commit.run_id, MessageKind.SEND, "noise")
        stored = (await world.run(commit.run_id)).awaiting
        if commit.awaiting == () and [each.kind for each in stored] == [SlotKind.WAIT]:
            resumed.append(await post(world, commit.run_id, MessageKind.RESUME, "wait:q", "this"))

    before_each_commit(world, monkeypatch, resume)
    run = await flow.start()
    assert await run.result(SECONDS) == "this"
    assert resumed == [PostResult.POSTED]


async def test_a_wait_that_a_resume_closed_is_not_opened_again(world, monkeypatch):
    """W4: of two resumes one wins, also when the worker is about to open a second wait."""
    results = []

    @world.step
    async def look() -> None: ...

    @world.workflow
    async def flow() -> list[str]:
        first = asyncio.create_task(wait("1?", name="one", type=str))
        await look()
        second = asyncio.create_task(wait("2?", name="two", type=str))
        return [await first, await second]

    async def resume(commit: Commit) -> None:
        if commit.awaiting is not None and len(commit.awaiting) == 2:
            results.append(await post(world, commit.run_id, MessageKind.RESUME, "wait:one", "a"))

    before_each_commit(world, monkeypatch, resume)
    run = await flow.start()
    await until(lambda: results)
    await until_status(run, Status.WAITING)
    with pytest.raises(InvalidState):
        await run.resume("b", name="one")
    await run.resume("c", name="two")
    assert await run.result(SECONDS) == ["a", "c"]
    assert results == [PostResult.POSTED]


async def test_a_pause_that_was_taken_back_does_not_pause(world, monkeypatch, endless):
    """C3: `unpause` returned, so the run goes on."""
    taken_back = []

    async def unpause(commit: Commit) -> None:
        if commit.status is Status.PAUSED:
            taken_back.append(await world._store.unpause(commit.run_id))

    results = before_each_commit(world, monkeypatch, unpause)
    run = await endless.start()
    await until(lambda: len(results) > 2)
    await run.pause()
    await until(lambda: taken_back)
    before = len(results)
    await until(lambda: len(results) > before + 5)
    assert taken_back == [True]
    assert await run.status() is Status.RUNNING
    await run.terminate()


async def test_a_cancel_is_not_slept_on_by_a_run_about_to_be_paused(world, monkeypatch, endless):
    """C1: a cancel reaches a paused run, and one that becomes so at this moment."""

    async def cancel(commit: Commit) -> None:
        if commit.status is Status.PAUSED:
            await post(world, commit.run_id, MessageKind.CANCEL, payload="stop")

    results = before_each_commit(world, monkeypatch, cancel)
    run = await endless.start()
    await until(lambda: len(results) > 2)
    await run.pause()
    with pytest.raises(RunCancelled, match="stop"):
        await run.result(SECONDS)


async def test_a_cancel_is_not_slept_on_by_a_run_whose_code_no_longer_fits(world, monkeypatch):
    """C1, E2"""

    @world.step
    async def before() -> None: ...

    @world.step
    async def after() -> None: ...

    def deploy(step):
        @world.workflow
        async def flow() -> None:
            await step()
            await wait("go on?")

        return flow

    run = await deploy(before).start()
    await until_status(run, Status.WAITING)
    deploy(after)
    await world.crash()

    async def cancel(commit: Commit) -> None:
        if commit.status is Status.PAUSED:
            await post(world, commit.run_id, MessageKind.CANCEL)

    before_each_commit(world, monkeypatch, cancel)
    await run.resume(None)
    assert (await run.wait(SECONDS)).status is Status.CANCELLED


async def test_a_cancel_before_the_end_alone_is_not_passed_over(world, monkeypatch):
    """Behaviour 20: of a cancel and the end in one moment, what was acknowledged counts."""

    @world.step
    async def look() -> None: ...

    @world.workflow
    async def flow() -> None:
        await look()

    async def pour(commit: Commit) -> None:
        alone = commit.status is Status.DONE and not commit.entries
        kind = MessageKind.CANCEL if alone else MessageKind.SEND
        await post(world, commit.run_id, kind, payload="at last")

    before_each_commit(world, monkeypatch, pour)
    with pytest.raises(RunCancelled, match="at last"):
        await (await flow.start()).result(SECONDS)
