"""Children: workflows called in a body (D4, W16; behaviour 27)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from streamline import (
    InvalidState,
    Registry,
    RunCancelled,
    RunConflict,
    RunFailed,
    Status,
    Streamline,
    ValidationError,
    continue_as_new,
    current,
    receive,
    sleep,
    wait,
    workflow,
)
from streamline.codec import encode_exception
from streamline.errors import DataCorruption
from streamline.handles import StartOptions
from streamline.model import (
    Commit,
    EntryKind,
    Input,
    Message,
    MessageKind,
    Parent,
    PostResult,
    Run,
    Slot,
    SlotKind,
)
from streamline.outbox import readable
from streamline.replay import ChildCommand, Execution
from streamline.store.memory import MemoryStore
from streamline.worker import children
from streamline.worker.inbox import Inbox
from tests.conformance.samples import held_run
from tests.unit.engine.engine_support import (
    SECONDS,
    World,
    kinds_of,
    once_it_waits,
    until,
    until_status,
)


@dataclass
class Box:
    number: int


class Boom(Exception):
    pass


class Family:
    """A parent's world: a few children to call."""

    def __init__(self, world: World) -> None:
        self.ran: list[int] = []
        self.cleaned: list[str] = []

        @world.step
        async def note(number: int) -> int:
            self.ran.append(number)
            return number

        @world.step
        async def clean(run_id: str) -> None:
            self.cleaned.append(run_id)

        @world.workflow
        async def boxed(number: int) -> Box:
            return Box(await note(number))

        @world.workflow
        async def broken(text: str) -> None:
            raise Boom(text)

        @world.workflow
        async def slow(seconds: float = 3600.0) -> str:
            try:
                await sleep(seconds)
            except asyncio.CancelledError:
                await clean(current().run_id)
                raise
            return current().run_id

        self.note, self.boxed, self.broken, self.slow = note, boxed, broken, slow


@pytest.fixture
def family(world: World) -> Family:
    return Family(world)


def at_once(coroutine: Coroutine[Any, Any, Any]) -> None:
    with pytest.raises(StopIteration):
        coroutine.send(None)


async def ended(world: World, run_id: str) -> Status:
    await world.settle()
    return (await world.run(run_id)).status


# -- calling and starting -------------------------------------------------------------------------


async def test_a_called_workflow_is_a_run_of_its_own(world: World, family: Family):
    """W16, D4"""

    @world.workflow
    async def parent(number: int) -> Box:
        box = await family.boxed(number)
        assert isinstance(box, Box)
        return box

    run = await parent.options(id="p").start(3)
    assert await run.result(SECONDS) == Box(3)
    child = await world.run(f"p/{family.boxed.name}")
    assert child.status is Status.DONE
    assert child.parent is not None
    assert (child.parent.run, child.parent.slot) == ("p", family.boxed.name)
    assert child.outbox == []
    stored = await world.run("p")
    assert kinds_of(stored) == [("child", family.boxed.name), ("outcome", family.boxed.name)]
    assert stored.inbox == []
    assert family.ran == [3]


async def test_children_are_numbered_by_call_order(world: World, family: Family):
    @world.workflow
    async def parent() -> list[int]:
        boxes = await asyncio.gather(*(family.boxed(n) for n in range(20)))
        return [box.number for box in boxes]

    run = await parent.options(id="p").start()
    assert await run.result(SECONDS) == list(range(20))
    assert (await world.run(f"p/{family.boxed.name}#7")).output == {"number": 6}


async def test_a_started_child_is_awaited_later_and_as_often_as_wanted(
    world: World, family: Family
):
    @world.workflow
    async def parent() -> list[object]:
        handle = await family.slow.start(60)
        await family.note(1)
        with pytest.raises(TimeoutError, match="it goes on"):
            await handle.result(timeout=10)
        both = await asyncio.gather(handle.result(), handle.result())
        return [handle.id, *both, await handle.result()]

    run = await parent.options(id="p").start()
    child = f"p/{family.slow.name}"
    assert await run.result(SECONDS) == [child] * 4
    assert family.cleaned == []


async def test_a_waiting_parent_shows_its_children(world: World, family: Family):
    @world.workflow
    async def parent() -> None:
        await family.slow.start()
        await family.slow()

    run = await parent.options(id="p").start()
    await world.settle()
    document = await run.get()
    assert document.status == Status.WAITING
    assert [(slot.kind, slot.name, slot.detached) for slot in document.awaiting] == [
        (SlotKind.CHILD, f"p/{family.slow.name}", True),
        (SlotKind.CHILD, f"p/{family.slow.name}#2", False),
    ]


async def test_parents_that_wait_hold_no_place():
    """A hundred parents with a hundred places would wait for ever."""
    registry = Registry()

    @workflow(registry=registry)
    async def child(depth: int) -> int:
        return depth if depth == 0 else 1 + await child(depth - 1)

    async with Streamline.memory(concurrency=1, registry=registry) as engine:
        runs = [await engine.start_run(child, 3) for _ in range(3)]
        assert [await run.result(SECONDS) for run in runs] == [3, 3, 3]


async def test_a_child_is_there_before_a_step_that_knows_of_it(world: World, family: Family):
    @world.workflow
    async def listener() -> str:
        return await receive("ch", type=str)

    @world.step
    async def tell(handle) -> str:
        await handle.send("ch", "hello")
        return str(await handle.status())

    @world.workflow
    async def parent() -> list[str]:
        handle = await listener.start()
        return [await tell(handle), await handle.result()]

    run = await parent.start()
    status, heard = await run.result(SECONDS)
    assert heard == "hello"
    assert status in ("running", "waiting", "queued", "done")


@pytest.mark.parametrize("method", ["get", "status", "wait", "resume", "pause", "execute"])
async def test_io_on_a_child_in_a_body_is_refused(world: World, family: Family, method: str):
    @world.workflow
    async def parent() -> str:
        handle = await family.slow.start(1)
        try:
            await getattr(handle, method)()
        except InvalidState as error:
            return str(error)
        return "allowed"

    told = await (await parent.start()).result(SECONDS)
    assert f"{method}()" in told
    assert "@step" in told


async def test_a_handle_of_another_run_is_refused_in_a_body(world: World, family: Family):
    @world.workflow
    async def parent() -> str:
        try:
            await family.slow.handle("x").result()
        except InvalidState as error:
            return str(error)
        return "allowed"

    assert "run 'x' in its body" in await (await parent.start()).result(SECONDS)


async def test_a_workflow_called_in_a_step_is_started_and_awaited(world: World, family: Family):
    @world.step
    async def outside() -> int:
        return (await family.boxed.options(id="mine")(5)).number

    @world.workflow
    async def parent() -> int:
        return await outside()

    assert await (await parent.start()).result(SECONDS) == 5
    assert (await world.run("mine")).parent is None


async def test_options_of_a_child(world: World, family: Family):
    @world.workflow
    async def parent() -> Box:
        late = family.boxed.options(id="named", delay="1h", tags=["t"], meta={"m": 1})
        return await late(4)

    run = await parent.start()
    await world.settle()
    child = await world.run("named")
    assert (child.status, child.tags, child.meta) == (Status.DRAFT, ["t"], {"m": 1})
    assert await run.result(SECONDS) == Box(4)


async def test_another_engine_for_a_child_is_refused(world: World, family: Family):
    @world.workflow
    async def parent() -> None:
        await family.boxed.options(engine=world)(4)

    with pytest.raises(RunFailed, match="engine="):
        await (await parent.start()).result(SECONDS)


# -- ids ------------------------------------------------------------------------------------------


async def test_one_id_called_twice_is_one_run(world: World, family: Family):
    @world.workflow
    async def parent() -> list[Box]:
        same = family.boxed.options(id="shared")
        return list(await asyncio.gather(same(4), same(4)))

    runs = [await parent.start(), await parent.start()]
    for run in runs:
        assert await run.result(SECONDS) == [Box(4), Box(4)]
    assert family.ran == [4]


async def test_several_parents_are_told_of_a_child_that_is_running(world: World, family: Family):
    @world.workflow
    async def parent() -> str:
        return await family.slow.options(id="shared")(60)

    runs = [await parent.options(id=f"p{n}").start() for n in range(3)]
    await world.settle()
    child = await world.run("shared")
    assert child.parent is not None
    assert sorted([child.parent.run, *child.followers]) == ["p0", "p1", "p2"]
    assert [await run.result(SECONDS) for run in runs] == ["shared"] * 3
    assert (await world.run("shared")).outbox == []


async def test_a_followed_run_survives_its_followers(world: World, family: Family):
    @world.workflow
    async def parent() -> str:
        return await family.slow.options(id="others")(60)

    other = await family.slow.options(id="others").start(60)
    run = await parent.start()
    await world.settle()
    await run.cancel()
    assert await ended(world, run.id) is Status.CANCELLED
    assert await other.result(SECONDS) == "others"


async def test_an_ended_run_gives_its_result_to_a_parent(world: World, family: Family):
    await (await family.boxed.options(id="old").start(8)).result(SECONDS)

    @world.workflow
    async def parent() -> Box:
        return await family.boxed.options(id="old")(8)

    assert await (await parent.start()).result(SECONDS) == Box(8)
    assert family.ran == [8]


async def test_a_child_id_of_another_run_is_a_conflict_in_the_parent(world: World, family: Family):
    await family.boxed.options(id="taken").start(8)

    @world.workflow
    async def parent() -> list[str]:
        told = []
        for start in (
            family.slow.options(id="taken").start(60),
            family.boxed.options(id="taken")(9),
            family.boxed.options(id=current().run_id)(9),
        ):
            with pytest.raises(RunConflict) as caught:
                await start
            told.append(str(caught.value))
        return told

    flow, given, itself = await (await parent.start()).result(SECONDS)
    assert "of workflow" in flow
    assert "another input" in given
    assert "its own child" in itself


async def test_a_child_whose_result_is_gone_raises_in_the_parent(world: World, monkeypatch):
    """The parent must not wait for what will never be there again."""

    async def gone(value: Any, run_id: str, place: str) -> Any:
        raise DataCorruption(f"the payload of run {run_id!r} at {place} is gone", run_id=run_id)

    @world.workflow
    async def child() -> int:
        await sleep(60)
        return 1

    @world.workflow
    async def parent() -> str:
        with pytest.raises(DataCorruption) as caught:
            await child()
        return str(caught.value)

    monkeypatch.setattr(world.process.worker.courier._spill, "load", gone)
    assert "is gone" in await (await parent.start()).result(SECONDS)


async def test_a_run_that_is_gone_before_it_can_be_followed_is_started_anew(
    world: World, family: Family, monkeypatch: pytest.MonkeyPatch
):
    """The parent's worker stood still: the one that was there has ended and expired."""
    await family.slow.options(id="c").start(60)
    store, follow = world.process.mortal_store, world.process.mortal_store.follow

    async def late(run_id: str, follower: str) -> Run | None:
        monkeypatch.setattr(store, "follow", follow)
        del world._shared._documents["c"]
        world._shared._due.pop("c", None)
        return await follow(run_id, follower)

    monkeypatch.setattr(store, "follow", late)

    @world.workflow
    async def parent() -> str:
        return await family.slow.options(id="c")(60)

    run = await parent.start()
    assert await run.result(SECONDS) == "c"
    assert (await world.run(run.id)).fence == 2, "claimed to begin, and once for the end"


async def test_a_call_that_was_not_made_may_be_given_another_id(world: World, family: Family):
    """By newer code, that takes the run over from a worker which died before it made the call."""
    ids = ["old", "new"]

    @world.workflow
    async def parent() -> str:
        return await family.slow.options(id=ids[0])(60)

    dying = iter([True])
    world.process.mortal_store.before_write = lambda verb: (
        verb == "create_run" and next(dying, False) and (world.process.die() or True)
    )
    run = await parent.options(id="p").start()
    await until(lambda: bool(world._shared.get("p").get("awaiting")))
    dead = world.process.worker.id
    del ids[0]
    process = await world._spawn()
    await process.mortal_store.expire_claims(dead)
    assert await run.result(SECONDS) == "new"
    assert world._shared.get("old") is None


async def test_on_existing_means_the_same_for_a_child(world: World, family: Family):
    await (await family.boxed.options(id="old").start(8)).result(SECONDS)

    @world.workflow
    async def parent() -> Box:
        with pytest.raises(RunConflict):
            await family.boxed.options(id="old", on_existing="fail")(8)
        return await family.boxed.options(id="old", on_existing="restart")(9)

    assert await (await parent.start()).result(SECONDS) == Box(9)
    assert family.ran == [8, 9]


async def test_arguments_that_do_not_fit_raise_in_the_body(world: World, family: Family):
    @world.workflow
    async def parent() -> str:
        with pytest.raises(ValidationError) as caught:
            await family.boxed("three")
        return str(caught.value)

    assert "number" in await (await parent.start()).result(SECONDS)


async def test_options_and_reasons_that_make_no_sense_raise_in_the_body(
    world: World, family: Family
):
    @world.workflow
    async def parent() -> int:
        for options in ({"delay": "soon"}, {"priority": "high"}, {"meta": {"a": object()}}):
            with (
                pytest.raises(ValueError, match="soon")
                if "delay" in options
                else pytest.raises(ValidationError)
            ):
                await family.boxed.options(**options)(1)
        with pytest.raises(ValidationError):
            await family.boxed.options(id=5)(1)
        handle = await family.slow.start()
        for reason in (5, "\ud800"):
            with pytest.raises(ValidationError):
                await handle.cancel(reason)
        await handle.cancel()
        return 1

    assert await (await parent.start()).result(SECONDS) == 1
    assert family.ran == []


async def test_what_a_body_does_to_an_argument_afterwards_is_not_passed(
    world: World, family: Family
):
    @world.workflow
    async def echo(numbers: list[int], more: dict[str, list[int]]) -> list[int]:
        return [*numbers, *more["more"]]

    @world.workflow
    async def parent() -> list[int]:
        numbers, more = [1], {"more": [2]}
        task = asyncio.create_task(echo(numbers, more))
        await asyncio.sleep(0)
        numbers.append(3)
        more["more"].append(4)
        return await task

    assert await (await parent.start()).result(SECONDS) == [1, 2]


async def test_ids_of_deep_children_stay_within_bounds(world: World):
    @world.workflow(name="n" * 90)
    async def deep(left: int) -> str:
        return current().run_id if left == 0 else await deep(left - 1)

    run = await deep.options(id="top").start(12)
    last = await run.result(SECONDS)
    assert len(last) <= 500
    assert last.startswith("top/")


# -- failures -------------------------------------------------------------------------------------


async def test_a_failing_child_raises_its_error_in_the_parent(world: World, family: Family):
    """W16"""

    @world.workflow
    async def middle() -> None:
        await family.broken("deep")

    @world.workflow
    async def parent() -> list[str]:
        with pytest.raises(RunFailed) as caught:
            await middle()
        inner = caught.value.__cause__
        assert isinstance(inner, RunFailed)
        assert isinstance(inner.__cause__, Boom)
        return [str(caught.value.run_id), str(inner.run_id), str(inner.__cause__)]

    run = await parent.options(id="p").start()
    child = f"p/{middle.name}"
    assert await run.result(SECONDS) == [child, f"{child}/{family.broken.name}", "deep"]


async def test_a_parent_that_lets_it_through_fails_where_it_called(world: World, family: Family):
    @world.workflow
    async def parent() -> None:
        await family.broken("no")

    run = await parent.options(id="p").start()
    with pytest.raises(RunFailed, match="failed in step") as caught:
        await run.result(SECONDS)
    assert caught.value.step == family.broken.name
    child_error = caught.value.__cause__
    assert isinstance(child_error, RunFailed)
    assert child_error.run_id == f"p/{family.broken.name}"
    assert isinstance(child_error.__cause__, Boom)


async def test_a_cancelled_child_raises_in_the_parent(world: World, family: Family):
    @world.workflow
    async def parent() -> str:
        with pytest.raises(RunCancelled) as caught:
            await family.slow()
        return str(caught.value)

    run = await parent.options(id="p").start()
    await world.settle()
    await world.handle(f"p/{family.slow.name}").cancel("enough")
    assert "enough" in await run.result(SECONDS)


async def test_a_terminated_child_raises_in_the_parent(world: World, family: Family):
    @world.workflow
    async def parent() -> None:
        await family.slow()

    run = await parent.options(id="p").start()
    await world.settle()
    await world.handle(f"p/{family.slow.name}").terminate()
    with pytest.raises(RunFailed) as caught:
        await run.result(SECONDS)
    assert isinstance(caught.value.__cause__, RunCancelled)


async def test_a_result_of_another_type_raises_in_the_parent(world: World, family: Family):
    await (await family.slow.options(id="text").start(1)).result(SECONDS)
    stored = await world.run("text")

    @world.workflow
    async def parent() -> str:
        with pytest.raises(ValidationError) as caught:
            await family.slow.options(id="text")(1)
        return str(caught.value)

    world._shared.put({**world._shared.get("text"), "output": 5})
    assert stored.output == "text"
    assert "result of" in await (await parent.start()).result(SECONDS)


@pytest.mark.parametrize("epoch", [0, 1, "x"])
async def test_a_child_that_cannot_be_read_fails_in_the_parent(
    world: World, family: Family, epoch: object
):
    @world.workflow
    async def parent() -> None:
        again = family.boxed.options(delay="1h", id="c", on_existing="restart")
        await again(1)

    if epoch:  # that of the one which is restarted
        await (await family.boxed.options(id="c").start(0)).result(SECONDS)
    run = await parent.start()
    await world.settle()
    stored = world._shared.get("c")
    assert stored.get("epoch", 0) == (1 if epoch else 0)
    world._shared.put({**stored, "tags": 5, "epoch": epoch})
    with pytest.raises(RunFailed, match="DATA_CORRUPTION"):
        await run.result(SECONDS)


async def test_a_child_that_takes_workers_down_fails_in_the_parent(world: World, family: Family):
    """E3"""

    @world.workflow
    async def parent() -> None:
        await family.slow.options(id="c")()

    run = await parent.start()
    await world.settle()
    poisoned = {"recoveries": 9, "due_at": world.clock.now()}
    world._shared.put({**world._shared.get("c"), **poisoned})
    world.process.worker._parked.evict()
    world.process.worker.scheduler.notice_due()
    with pytest.raises(RunFailed, match="without progress"):
        await run.result(SECONDS)


# -- cancels --------------------------------------------------------------------------------------


async def test_a_cancel_goes_down(world: World, family: Family):
    """W16, C1: to children awaited, only started, and not begun."""

    @world.workflow
    async def parent() -> None:
        await family.slow.start()
        await family.boxed.options(delay="1h").start(1)
        await family.slow()

    run = await parent.options(id="p").start()
    await world.settle()
    await run.cancel()
    assert await ended(world, "p") is Status.CANCELLED
    slow, boxed = family.slow.name, family.boxed.name
    for child in (f"p/{slow}", f"p/{slow}#2", f"p/{boxed}"):
        assert (await world.run(child)).status is Status.CANCELLED, child
    assert sorted(family.cleaned) == [f"p/{slow}", f"p/{slow}#2"]
    assert (await world.run("p")).outbox == []


async def test_a_cancel_goes_all_the_way_down(world: World, family: Family):
    @world.workflow
    async def nested(depth: int) -> None:
        await (family.slow() if depth == 0 else nested(depth - 1))

    run = await nested.options(id="p").start(3)
    await world.settle()
    await run.cancel()
    await world.settle()
    assert len(world._shared) == 5
    for run_id in world._shared.ids():
        assert (await world.run(run_id)).status is Status.CANCELLED


async def test_a_child_is_cancelled_when_nobody_waits_any_more(world: World, family: Family):
    """By a timeout, a lost race, a failed group; the parent goes on."""

    @world.workflow
    async def parent() -> list[str]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await family.slow()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(family.slow(), 60)
        race = [asyncio.create_task(family.slow(s)) for s in (5.0, 3600.0)]
        done, pending = await asyncio.wait(race, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(family.slow())
                group.create_task(family.broken("no"))
        except* RunFailed:
            pass
        handle = await family.slow.start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await handle.result()
        with pytest.raises(RunCancelled):
            await handle.result()
        await sleep(5)
        return [task.result() for task in done]

    run = await parent.options(id="p").start()
    slow = family.slow.name
    assert await run.result(SECONDS) == [f"p/{slow}#3"]
    await world.settle()
    statuses = {n: (await world.run(f"p/{slow}" + (f"#{n}" if n > 1 else ""))).status.value
                for n in range(1, 7)}  # fmt: skip
    assert statuses == {n: "done" if n == 3 else "cancelled" for n in range(1, 7)}
    stored = await world.run("p")
    assert (stored.inbox, stored.outbox) == ([], [])


async def test_a_body_cancels_a_child_by_its_handle(world: World, family: Family):
    @world.workflow
    async def parent() -> str:
        handle = await family.slow.start()
        await handle.cancel("for a reason")
        await handle.cancel("again")
        with pytest.raises(RunCancelled) as caught:
            await handle.result()
        return str(caught.value)

    run = await parent.options(id="p").start()
    assert "for a reason" in await run.result(SECONDS)
    child = await world.run(f"p/{family.slow.name}")
    assert len([entry for entry in child.journal if entry.id == "cancel"]) == 1


async def test_a_terminated_parent_takes_its_children_along(world: World, family: Family):
    """C2"""

    @world.workflow
    async def parent() -> None:
        await family.slow.start()
        await family.slow()

    run = await parent.options(id="p").start()
    await world.settle()
    await run.terminate()
    await world.settle()
    for child in (f"p/{family.slow.name}", f"p/{family.slow.name}#2"):
        assert (await world.run(child)).status is Status.CANCELLED


@pytest.mark.parametrize("fails", [True, False])
async def test_what_is_awaited_ends_with_the_parent_and_what_is_started_goes_on(
    world: World, family: Family, fails: bool
):
    @world.workflow
    async def parent() -> None:
        await family.slow.options(id="started").start(60)
        handle = await family.slow.options(id="awaited").start(60)
        tasks = [
            asyncio.create_task(family.slow.options(id="called")(60)),
            asyncio.create_task(handle.result()),
        ]
        await sleep(1)
        assert not tasks[0].done()
        if fails:
            raise Boom

    run = await parent.start()
    await run.wait(SECONDS)
    await world.settle()
    assert await ended(world, "called") is Status.CANCELLED
    assert await ended(world, "awaited") is Status.CANCELLED
    assert await world.handle("started").result(SECONDS) == "started"
    await world.settle()
    assert (await world.run("started")).outbox == []


# -- control --------------------------------------------------------------------------------------


async def test_a_paused_parent_hears_of_it_afterwards(world: World, family: Family):
    """C3"""

    @world.workflow
    async def parent() -> list[str]:
        first = await family.slow.start(60)
        await wait("go on?")
        return [await first.result()]

    run = await parent.options(id="p").start()
    await world.settle()
    await run.pause()
    await until_status(run, Status.PAUSED)
    await world.advance(120)
    assert (await world.run(f"p/{family.slow.name}")).outbox == []
    assert [m.kind.value for m in (await world.run("p")).inbox] == ["outcome"]
    await run.unpause()
    await once_it_waits(lambda: run.resume(None))
    assert await run.result(SECONDS) == [f"p/{family.slow.name}"]


async def test_a_rewound_parent_has_new_children(world: World, family: Family):
    """C4: what is dropped is done again, children too; with other arguments for all one knows."""
    numbers = iter(range(10))

    @world.step
    async def draw() -> int:
        return next(numbers)

    @world.workflow
    async def parent() -> list[int]:
        before = await family.boxed(100)
        drawn = await draw()
        return [before.number, (await family.boxed(drawn)).number]

    run = await parent.options(id="p").start()
    assert await run.result(SECONDS) == [100, 0]
    await run.rewind(draw)
    assert await run.result(SECONDS) == [100, 1]
    assert family.ran == [100, 0, 1]
    assert (await world.run(f"p/{family.boxed.name}#2~1")).output == {"number": 1}


async def test_a_child_started_before_the_rewind_is_kept(world: World, family: Family):
    @world.workflow
    async def parent() -> list[object]:
        handle = await family.boxed.start(1)
        number = await family.note(2)
        return [handle.id, number, (await handle.result()).number]

    run = await parent.options(id="p").start()
    expected = [f"p/{family.boxed.name}", 2, 1]
    assert await run.result(SECONDS) == expected
    await run.rewind(family.note)
    assert await run.result(SECONDS) == expected
    assert sorted(family.ran) == [1, 2, 2]


async def test_a_retried_parent_calls_the_failed_child_anew(world: World, family: Family):
    """C5"""
    attempts = []

    @world.workflow
    async def shaky() -> int:
        attempts.append(current().run_id)
        if len(attempts) == 1:
            raise Boom
        return 7

    @world.workflow
    async def parent() -> list[int]:
        return [await family.note(1), await shaky()]

    run = await parent.options(id="p").start()
    with pytest.raises(RunFailed):
        await run.result(SECONDS)
    await run.retry()
    assert await run.result(SECONDS) == [1, 7]
    assert attempts == [f"p/{shaky.name}", f"p/{shaky.name}~1"]
    assert family.ran == [1]


@pytest.mark.parametrize("how", ["retry", "rewind"])
@pytest.mark.parametrize("other", ["cancelled", "done"])
async def test_a_call_that_was_given_up_with_the_body_is_made_anew(
    world: World, family: Family, how: str, other: str
):
    """Else the parent would only hear that it had cancelled it. What was done is done."""
    attempts: list[str] = []
    others: list[str] = []

    @world.workflow
    async def shaky() -> int:
        attempts.append(current().run_id)
        await sleep(1)
        if len(attempts) == 1:
            raise Boom
        return 7

    @world.workflow
    async def beside() -> str:
        others.append(current().run_id)
        try:
            await sleep(60)
        except asyncio.CancelledError:
            if other == "cancelled":
                raise
        return current().run_id

    @world.workflow
    async def parent() -> list[object]:
        return list(await asyncio.gather(beside(), shaky()))

    run = await parent.options(id="p").start()
    with pytest.raises(RunFailed):
        await run.result(SECONDS)
    await world.settle()
    if how == "retry":
        await run.retry()
    else:
        await run.rewind(shaky.name)
    first, again = f"p/{beside.name}", f"p/{beside.name}~1"
    expected = [first, again] if other == "cancelled" else [first]
    assert await run.result(SECONDS) == [expected[-1], 7]
    assert list(dict.fromkeys(others)) == expected


async def test_a_restarted_parent_has_new_children(world: World, family: Family):
    @world.workflow
    async def parent(number: int) -> Box:
        return await family.boxed(number)

    assert await (await parent.options(id="p").start(1)).result(SECONDS) == Box(1)
    again = await parent.options(id="p", on_existing="restart").start(2)
    assert await again.result(SECONDS) == Box(2)


async def test_a_child_expires_only_once_it_has_told(world: World, family: Family):
    """O5"""

    @world.workflow
    async def parent() -> Box:
        return await family.boxed.options(id="c", expire_after="1h")(1)

    untold = []
    world.process.mortal_store.before_write = lambda verb: bool(
        verb.startswith("post") and untold.append(world._shared.get("c"))
    )
    await (await parent.start()).result(SECONDS)
    await world.settle()
    assert untold[0]["status"] == "done"
    assert "expire_at" not in untold[0]
    child = await world.run("c")
    assert child.expire_at is not None
    assert child.ended_at is not None
    assert (child.expire_at - child.ended_at).total_seconds() == 3600


async def test_execute_drives_parent_and_child_in_turn(world: World):
    """H4: each by itself, with no worker in the background."""
    registry = Registry()

    @workflow(registry=registry)
    async def child() -> int:
        return 4

    @workflow(registry=registry)
    async def parent() -> int:
        return await child.options(id="c")() + 1

    async with Streamline(store=MemoryStore(), worker=False, registry=registry) as engine:
        run = await engine.start_run(parent)
        assert await run.execute() is Status.WAITING
        assert await engine.handle("c").execute() is Status.DONE
        assert await run.execute() is Status.DONE
        assert await run.result() == 5


# -- code that changes ----------------------------------------------------------------------------


async def test_a_step_in_the_place_of_a_child_is_a_divergence(world: World, family: Family):
    """E2"""
    as_step = False

    @world.step(name="both")
    async def stepped() -> str:
        return "step"

    @world.workflow(name="both")
    async def called() -> str:
        await sleep(60)
        return "child"

    @world.workflow
    async def parent() -> str:
        return await (stepped() if as_step else called())

    run = await parent.start()
    await world.settle()
    as_step = True
    await world.crash()
    world.process.worker._parked.evict()
    await world.advance(61)
    document = await run.get()
    assert document.status == Status.PAUSED
    assert document.error is not None
    assert "a step of that name" in document.error.message
    as_step = False
    await run.unpause()
    assert await run.result(SECONDS) == "child"


# -- crashes --------------------------------------------------------------------------------------


async def test_crashes_anywhere_change_nothing(world: World, family: Family):
    """Behaviour 27: before and after every write that parent or children cause."""

    @world.workflow
    async def middle(number: int) -> int:
        return (await family.boxed(number)).number + await family.note(number * 10)

    @world.workflow
    async def parent() -> list[object]:
        handle = await middle.start(1)
        try:
            await family.broken("no")
        except RunFailed as error:
            told = repr(error.__cause__)
        shared = family.boxed.options(id="shared")
        both = await asyncio.gather(shared(5), shared(5))
        return [handle.id, told, await handle.result(), [box.number for box in both]]

    result = await world.crash_everywhere_with(lambda: parent.options(id="p").start())
    assert result == [f"p/{middle.name}", "Boom('no')", 11, [5, 5]]


async def test_crashes_anywhere_let_no_cancel_get_lost(world: World, family: Family):
    """Behaviour 27: a child given up is cancelled, though the parent ended long ago."""
    runs: list[list[Status]] = []

    @world.workflow
    async def parent() -> str:
        await family.slow.options(id="detached").start(10**7)
        try:
            async with asyncio.timeout(60):
                await family.slow.options(id="late")(10**7)
        except TimeoutError:
            await family.note(1)
        asyncio.create_task(family.slow.options(id="open")(10**7))  # noqa: RUF006
        await sleep(1)
        return "done"

    worlds: list[World] = []

    def sibling():
        other = World()
        other.registry = world.registry
        worlds.append(other)
        return other

    world.sibling = sibling  # type: ignore[method-assign]
    stop = World.stop

    async def look_and_stop(self, drain=0.0):
        await self.settle()
        found = [self._shared.get(id_) for id_ in ("late", "open", "detached")]
        runs.append([each["status"] for each in found])
        await stop(self, drain)

    World.stop = look_and_stop  # type: ignore[method-assign]
    try:
        assert await world.crash_everywhere(parent) == "done"
    finally:
        World.stop = stop  # type: ignore[method-assign]
    assert len(runs) > 20
    for late, open_, detached in runs:
        assert (late, open_) == ("cancelled", "cancelled")
        assert detached in ("waiting", "running")


@pytest.mark.parametrize("calls", [1, 3])
async def test_a_child_that_ran_and_expired_is_not_started_again(
    world: World, family: Family, calls: int
):
    """The parent's worker died before it could record the start, and the end was told."""

    @world.workflow
    async def parent() -> list[Box]:
        call = family.boxed.options(id="c")
        return list(await asyncio.gather(*(call(1) for _ in range(calls))))

    dying = iter([True])
    world.process.mortal_store.after_write = lambda verb: (
        verb == "create_run" and next(dying, False) and (world.process.die() or True)
    )
    run = await parent.start()
    await until(lambda: world._shared.get("c") is not None)
    dead = world.process.worker.id
    stored = await world.run(run.id)
    assert stored.journal == []
    payload = {"number": 1}
    told = Message(
        id="outcome/c/1", kind=MessageKind.OUTCOME, at=world.clock.now(), name="c", payload=payload
    )
    assert await world.store.post(run.id, told) is PostResult.POSTED
    del world._shared._documents["c"], world._shared._due["c"]
    process = await world._spawn()
    await process.mortal_store.expire_claims(dead)
    assert await run.result(SECONDS) == [Box(1)] * calls
    assert world._shared.get("c") is None
    assert family.ran == []


async def test_a_child_that_is_born_after_its_parents_death_is_cancelled(
    world: World, family: Family
):
    """The parent is terminated between the commit that calls the child and the child's start."""

    @world.workflow
    async def parent() -> None:
        await family.slow.options(id="c")()

    def terminate(verb: str) -> bool:
        stored = world._shared.get("p")
        if verb == "create_run" and stored["status"] != "cancelled":
            error = encode_exception(RunCancelled("p"), code="WORKFLOW_CANCELLED")
            at_once(world.store.terminate("p", error))
            told = world._shared.get("p")["outbox"]
            assert [each["to"] for each in told] == ["c"]
            at_once(world.store.settle_outbox("p", readable(told), world.clock.now()))
        return False

    world.process.mortal_store.before_write = terminate
    await parent.options(id="p").start()
    await until(lambda: world._shared.get("c") is not None)
    await until(lambda: world._shared.get("c")["status"] == "cancelled")


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("fate", ["done", "cancelled", "restarted", "expired", "moved on"])
async def test_a_child_created_too_late_asks_whether_it_is_wanted(
    world: World, family: Family, fate: str, detached: bool
):
    """Its creator stood still, and woke when the parent had long moved on."""

    @world.workflow
    async def parent() -> None:
        await receive("ch")

    run = await parent.options(id="p").start()
    await world.settle()
    if fate == "done":
        await run.send("ch")
        await run.wait(SECONDS)
    elif fate != "moved on":
        await run.terminate()
    if fate == "restarted":
        await world.advance(1)
        await parent.options(id="p", on_existing="restart").start()
    if fate == "expired":
        del world._shared._documents["p"]
    called_by = Parent(run="p", slot="s", code=parent.code, detached=detached)
    await world._launcher.launch_child(
        family.boxed, Input(args=[1]), StartOptions(id="late"), called_by
    )
    given_up = fate in ("cancelled", "moved on") or not detached
    child = await world.handle("late").wait(SECONDS)
    assert (child.status == Status.CANCELLED) == given_up
    assert family.ran == ([] if given_up else [1])
    assert child.inbox == []


async def test_a_parent_that_forgot_the_message_looks_for_the_end(world: World, family: Family):
    """As after a rewind, or from a backup: what is told once is not told again."""

    @world.workflow
    async def parent() -> str:
        return await family.slow.options(id="c")(60)

    run = await parent.options(id="p").start()
    await world.settle()
    await run.pause()
    await until_status(run, Status.PAUSED)
    await world.advance(61)
    stored = await world.run("p")
    assert len(stored.inbox) == 1
    world._shared.put({**world._shared.get("p"), "inbox": []})
    await world.crash()
    await run.unpause()
    assert await run.result(SECONDS) == "c"


async def test_an_end_that_was_found_survives_a_message_that_comes_in(world: World, family: Family):
    """A commit that is refused is made anew: of a run that ended before, nobody tells again."""
    await (await family.boxed.options(id="old").start(8)).result(SECONDS)
    sent = []

    @world.workflow
    async def parent() -> list[object]:
        box = await family.boxed.options(id="old")(8)
        return [box.number, await receive("ch", type=str)]

    def disturb(commit: Commit) -> bool:
        if commit.run_id == "p" and any(e.kind is EntryKind.OUTCOME for e in commit.entries):
            id_ = f"m{len(sent)}"
            now = world.clock.now()
            message = Message(id=id_, kind=MessageKind.SEND, at=now, name="ch", payload=id_)
            if not sent:
                at_once(world.store.post("p", message))
            sent.append(id_)
        return False

    world.process.mortal_store.before_commit = disturb
    run = await parent.options(id="p").start()
    assert await run.result(SECONDS) == [8, "m0"]
    assert len(sent) > 1


async def test_a_child_restarted_by_its_parent_tells_of_each_end(world: World, family: Family):
    @world.workflow
    async def parent() -> list[int]:
        again = family.boxed.options(id="c", on_existing="restart")
        return [(await again(number)).number for number in range(4)]

    assert await (await parent.start()).result(SECONDS) == [0, 1, 2, 3]


@pytest.fixture
def told(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """What runs are told by the first worker, as it tells it."""
    told: list[Message] = []
    worker = world.process.worker
    tell = worker._tell

    async def listening(run_id: str, message: Message) -> bool:
        told.append(message)
        return await tell(run_id, message)

    monkeypatch.setattr(worker.courier, "_tell", listening)
    return told


async def test_an_end_told_twice_is_not_taken_for_the_next_one(
    world: World, told: list[Message], monkeypatch: pytest.MonkeyPatch
):
    """By a process that stood still, once the entry of the first time was archived."""
    monkeypatch.setattr("streamline.worker.tail.MAX_ENTRIES", 1)
    tell, store = world.process.worker._tell, world.process.mortal_store

    @world.workflow
    async def child(number: int) -> int:
        await sleep(60 * number)
        return number

    @world.workflow
    async def parent() -> list[int]:
        again = child.options(id="c", on_existing="restart")
        return [await again(number) for number in range(1, 4)]

    run = await parent.options(id="p").start()
    await world.settle()
    await world.advance(61)
    assert (await world.run("p")).status is Status.WAITING
    claiming = store.post_to_parked

    async def searching_no_archive(parked: Run, *args: Any, **options: Any) -> Run | None:
        assert not parked.journal_base, "the write that claims can't know that this isn't new"
        return await claiming(parked, *args, **options)

    monkeypatch.setattr(store, "post_to_parked", searching_no_archive)
    assert not await tell("p", told[0])
    monkeypatch.undo()
    assert await store.post("p", told[0]) is PostResult.DUPLICATE
    assert await run.result(SECONDS) == [1, 2, 3]


@pytest.mark.parametrize("when", ["before the next is called", "once it is started"])
async def test_an_end_told_twice_is_not_taken_by_the_next_generation(
    world: World, told: list[Message], when: str
):
    """Of a child with an id of its own, that each generation restarts."""
    store = world.process.mortal_store

    @world.workflow
    async def child(number: int) -> int:
        await sleep(60)
        return number

    @world.workflow
    async def parent(number: int, seen: list[int]) -> list[int]:
        seen = [*seen, await child.options(id="c", on_existing="restart")(number)]
        if number == 3:
            return seen
        continue_as_new(number + 1, seen)

    def tell_again(commit: Commit) -> bool:
        if commit.continuation is not None and when == "before the next is called":
            at_once(world.store.post("p", told[0]))
        return False

    store.after_commit = tell_again
    run = await parent.options(id="p").start(1, [])
    await world.settle()
    await world.advance(61)
    if when == "once it is started":
        assert await world.store.post("p", told[0]) is PostResult.POSTED
        await world.settle()
    assert await run.result(SECONDS) == [1, 2, 3]
    assert (await world.run("p")).inbox == []


async def test_an_earlier_end_is_no_end_of_a_later_run(world: World, family: Family):
    """Where an earlier call of the same id, for which it was kept, was withdrawn meanwhile."""
    now = world.clock.now()
    slot = Slot(id="c#2", kind=SlotKind.CHILD, name="c", since=now)
    call = ChildCommand(
        id="c#2",
        slot=slot,
        flow=family.boxed,
        given=None,
        options=StartOptions(),
        future=asyncio.get_running_loop().create_future(),
        started=True,
        stamp="100.000.2",
    )
    body = cast("Execution", SimpleNamespace(open=SimpleNamespace(children={"c#2": call})))
    run = held_run(world.store, "p")
    for stamp, counts in {
        "99.999.9": False,
        "100.000.1": False,
        "100.000.2": True,
        "100.000.3": True,
        "100.001.0": True,
        "of a time before stamps": True,
    }.items():
        told = Message(id=f"outcome/c/{stamp}/7", kind=MessageKind.OUTCOME, at=now, name="c")
        inbox = Inbox(msgspec.structs.replace(run, inbox=[told]))
        assert len(children.outcome_entries(told, [call], now)) == counts
        assert (children.untold(body, inbox) == []) == counts
        assert (children.strays(body, [told]) == set()) == counts


async def test_an_id_that_expired_and_came_again_tells_of_each_end(world: World, family: Family):
    @world.workflow
    async def parent() -> list[int]:
        first = await family.boxed.options(id="c")(1)
        await sleep("1d")
        return [first.number, (await family.boxed.options(id="c")(2)).number]

    run = await parent.start()
    await world.settle()
    del world._shared._documents["c"]
    assert await run.result(SECONDS) == [1, 2]


async def test_a_full_mailbox_is_told_later(world: World, family: Family):
    @world.workflow
    async def parent() -> list[object]:
        handle = await family.slow.options(id="c").start(60)
        await wait("go on?")
        return [await handle.result(), len(await receive("ch", type=str))]

    world.process.mortal_store._runs.inbox_limit = 3000
    run = await parent.start()
    await world.settle()
    await run.pause()
    await until_status(run, Status.PAUSED)
    await run.send("ch", "x" * 2900)
    await world.advance(120)
    assert [d.to for d in (await world.run("c")).outbox] == [run.id]
    await run.unpause()
    await once_it_waits(lambda: run.resume(None))
    assert await run.result(SECONDS) == ["c", 2900]


async def test_a_parent_keeps_nothing_of_children_that_it_gave_up(world: World, family: Family):
    @world.workflow
    async def parent() -> int:
        for _ in range(5):
            try:
                await asyncio.wait_for(family.slow(), 10)
            except TimeoutError:
                continue
        await sleep(60)
        return 1

    run = await parent.options(id="p").start()
    assert await run.result(SECONDS) == 1
    stored = await world.run("p")
    assert (stored.inbox, stored.outbox, stored.awaiting) == ([], [], [])
    assert len(family.cleaned) == 5


async def test_runs_without_children_have_no_fields_for_them(world: World, family: Family):
    run = await family.boxed.start(1)
    await run.result(SECONDS)
    fields = world._shared.get(run.id).keys()
    assert not fields & {"parent", "followers", "outbox", "outbox_due", "epoch"}
    assert msgspec.structs.fields(type(await world.run(run.id)))


async def test_a_process_that_dies_while_it_tells_leaves_no_body(world: World, family: Family):
    """Behaviour 32: the parent was taken out of the cache for its message."""

    @world.workflow
    async def parent() -> Box:
        return await family.boxed.options(delay="1h")(1)

    run = await parent.start()
    await world.settle()
    dying = world.process
    driver = dying.worker._parked.find(run.id)
    dying.mortal_store.before_write = lambda verb: (
        verb == "post_to_parked" and (world.crash_soon() or True)
    )
    assert await run.result(SECONDS) == Box(1)
    assert dying.worker.cached == 0
    assert not driver.can_go_on


@pytest.mark.parametrize("ends", ["done", "terminated"])
async def test_who_follows_as_a_run_ends_is_told(world: World, family: Family, ends: str):
    """No message comes in that would make the commit look again."""
    told: list[list[str]] = []

    def follow(commit: Commit) -> bool:
        if commit.run_id == "c" and commit.status.ended:
            told.append([dispatch.to for dispatch in commit.outbox])
            if len(told) == 1:
                at_once(world.store.follow("c", "late"))
        return False

    world.process.mortal_store.before_commit = follow
    run = await family.slow.options(id="c").start(60)
    if ends == "done":
        await run.result(SECONDS)
        assert told == [[], ["late"]]
    else:
        await world.settle()
        await world.store.follow("c", "late")
        await world.store.terminate("c", encode_exception(Boom(), code="WORKFLOW_CANCELLED"))
        assert [each.to for each in (await world.run("c")).outbox] == ["late"]


async def test_a_run_that_continues_as_new_has_new_children(world: World, family: Family):
    @world.workflow
    async def parent(numbers: list[int]) -> list[int]:
        if not numbers:
            await family.slow.options(id="started").start(10**6)
            asyncio.create_task(family.slow.options(id="called")(10**6))  # noqa: RUF006
        numbers.append((await family.boxed(len(numbers))).number)
        shared = await family.slow.options(id="shared")(60)
        assert shared == "shared"
        if len(numbers) < 3:
            continue_as_new(numbers)
        return numbers

    run = await parent.options(id="p").start([])
    assert await run.result(SECONDS) == [0, 1, 2]
    await world.settle()
    assert (await world.run("called")).status is Status.CANCELLED
    assert (await world.run("started")).status is Status.WAITING
    boxed = family.boxed.name
    assert {id_ for id_ in world._shared.ids() if boxed in id_} == {
        f"p/{boxed}", f"p/{boxed}~1", f"p/{boxed}~2"
    }  # fmt: skip
    stored = await world.run("p")
    assert (stored.outbox, stored.inbox, stored.epoch) == ([], [], 2)
    result = await world.crash_everywhere_with(lambda: parent.options(id="p").start([]))
    assert result == [0, 1, 2]


@pytest.mark.parametrize("shared", [False, True])
async def test_a_large_result_of_a_child_is_kept_outside_of_both(
    world: World, family: Family, shared: bool
):
    size = 4_000_000

    @world.workflow
    async def large(letter: str) -> str:
        return letter * size

    @world.workflow
    async def parent() -> list[int]:
        call = large.options(id="c" if shared else None)
        texts = await asyncio.gather(call("a"), call("a"))
        later = await large.options(id="c2").start("b")
        await sleep("1h")
        return [len(text) for text in (*texts, await later.result())]

    run = await parent.options(id="p").start()
    assert await run.result(SECONDS) == [size] * 3
    assert len(str(world._shared.get("p"))) < 100_000
    await world.crash()
    assert await world.crash_everywhere_with(lambda: parent.options(id="q").start()) == [size] * 3
