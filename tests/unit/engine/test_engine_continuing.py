"""`continue_as_new`: a run goes on as its next generation, with an empty journal."""

from __future__ import annotations

import asyncio
import threading

import pytest
from engine_support import SECONDS, steps_of, until, until_status

import streamline
from streamline import (
    InvalidState,
    RunCancelled,
    RunConflict,
    RunFailed,
    Status,
    StepNotFound,
    ValidationError,
    continue_as_new,
    current,
    heartbeat,
    patched,
    receive,
    set_context,
    sleep,
    wait,
)
from streamline.model import Message, MessageKind
from streamline.store.memory import MemoryStore
from streamline.testing import export_history, import_history, replay
from streamline.worker import session


@pytest.fixture
def ran(world):
    """What the step `note` was called with."""
    return []


@pytest.fixture
def note(world, ran):
    @world.step(name="note")
    async def note(text: str) -> str:
        ran.append(text)
        return text

    return note


def hook_before(world, when, act):
    """Do something within the store right before the first commit for which `when` holds."""
    done = []

    def hook(commit):
        if when(commit) and not done:
            done.append(at_once(act()))
        return False

    world.process.mortal_store.before_commit = hook
    return done


def at_once(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as finished:
        return finished.value
    raise AssertionError("the store waited")


def continues(commit):
    return commit.continuation is not None


# -- going on -------------------------------------------------------------------------------------


async def test_a_run_goes_on_with_new_arguments_and_an_empty_journal(world):
    @world.step(name="add")
    async def add(a: int, b: int) -> int:
        return a + b

    @world.workflow
    async def counting(n: int, total: int = 0) -> int:
        total = await add(total, n)
        if n > 1:
            continue_as_new(n - 1, total=total)
        return total

    run = await counting.start(3)
    assert await run.result(SECONDS) == 6
    stored = await run.get()
    assert stored.generation == 3
    assert (stored.input.args, stored.input.kwargs) == ([1], {"total": 5})
    assert (stored.past.input.args, stored.past.input.kwargs) == ([3], {})
    assert steps_of(stored) == ["add"]
    assert world.names("workflow:") == [
        "workflow:started",
        "workflow:continued",
        "workflow:continued",
        "workflow:completed",
    ]
    assert [e.data for e in world.heard if e.name == "workflow:continued"] == [2, 3]


async def test_it_stays_the_same_claim(world, note):
    @world.workflow
    async def flow(n: int) -> str:
        await note(f"{n}")
        if n:
            continue_as_new(n - 1)
        await sleep("1h")
        return "slept"

    claims = []
    world.process.mortal_store.after_commit = lambda commit: claims.append(commit.fence)
    run = await flow.start(2)
    await until_status(run, Status.WAITING)
    stored = await world.run(run.id)
    assert claims == [1, 2, 3]  # the step's result is never written where nobody reads it
    assert (stored.fence, stored.recoveries, stored.rev) == (3, 0, 3)
    assert world.names("workflow:resumed") == []


async def test_the_context_is_kept_and_each_replay_begins_with_it(world):
    seen = []

    @world.workflow
    async def flow(n: int) -> dict[str, int]:
        seen.append(dict(current().context))
        set_context(**{f"k{n}": n})
        if n:
            continue_as_new(n - 1)
        await sleep("1h")
        return dict(current().context)

    run = await flow.options(context={"given": 9}).start(1)
    await until_status(run, Status.WAITING)
    await world.crash()
    assert await run.result(SECONDS) == {"given": 9, "k1": 1, "k0": 0}
    assert seen == [{"given": 9}, {"given": 9, "k1": 1}, {"given": 9, "k1": 1}]
    assert (await run.get()).context == {"given": 9, "k1": 1, "k0": 0}


async def test_cleanup_on_the_way_out_is_durable(world, note, ran):
    @world.workflow
    async def flow(n: int) -> str:
        try:
            await note(f"work {n}")
            if n:
                continue_as_new(n - 1)
            return "done"
        except Exception:
            await note("never")
            raise
        finally:
            await note(f"clean {n}")
            await sleep("1h")
            await note(f"cleaned {n}")

    assert await world.crash_everywhere(flow, 1) == "done"
    ran.clear()
    run = await flow.start(1)
    await run.result(SECONDS)
    assert ran == ["work 1", "clean 1", "cleaned 1", "work 0", "clean 0", "cleaned 0"]


async def test_an_error_on_the_way_out_counts_as_after_a_return(world):
    @world.workflow
    async def flow() -> None:
        try:
            continue_as_new()
        finally:
            raise LookupError("in the cleanup")

    with pytest.raises(RunFailed, match="in the cleanup"):
        await (await flow.start()).result(SECONDS)


async def test_a_task_group_is_cancelled_and_the_run_goes_on(world, note, ran):
    @world.workflow
    async def flow(n: int) -> str:
        async def beside() -> None:
            try:
                await sleep("1h")
            finally:
                await note(f"cancelled {n}")

        if not n:
            return "done"
        async with asyncio.TaskGroup() as group:
            group.create_task(beside())
            await note(f"work {n}")
            continue_as_new(n - 1)

    run = await flow.start(2)
    assert await run.result(SECONDS) == "done"
    assert ran == ["work 2", "cancelled 2", "work 1", "cancelled 1"]


async def test_the_call_may_come_from_a_task_that_is_awaited(world, note):
    @world.workflow
    async def flow(way: str, again: bool = True) -> str:
        async def call() -> None:
            await note(way)
            continue_as_new(way, again=False)

        if not again:
            return way
        if way == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(call())
                group.create_task(sleep("1h"))
        elif way == "gather":
            await asyncio.gather(call(), sleep("1h"))
        elif way == "wait_for":
            await asyncio.wait_for(call(), 60)
        else:
            await asyncio.create_task(call())
        return "swallowed"

    for way in ("group", "gather", "wait_for", "task"):
        run = await flow.start(way)
        assert await run.result(SECONDS) == way
        assert (await run.get()).generation == 2


async def test_another_error_in_the_group_fails_the_run(world):
    @world.workflow
    async def flow() -> None:
        async def stumble() -> None:
            try:
                await sleep("1h")
            finally:
                raise LookupError("stumbled")

        async with asyncio.TaskGroup() as group:
            group.create_task(stumble())
            await sleep(1)
            continue_as_new()

    run = await flow.start()
    with pytest.raises(RunFailed):
        await run.result(SECONDS)
    assert (await run.get()).generation == 1


async def test_a_body_that_catches_it_and_returns_fails_and_goes_on_once_mended(world, note):
    broken = True

    @world.workflow
    async def flow(n: int) -> str:
        await note(f"{n}")
        try:
            if n:
                continue_as_new(n - 1)
        except BaseException:
            if not broken:
                raise
        return "done"

    run = await flow.start(1)
    with pytest.raises(RunFailed, match=r"continue_as_new\(\).*Let it pass"):
        await run.result(SECONDS)
    assert (await run.get()).error.code == "INVALID_STATE"
    broken = False
    await run.retry()
    assert await run.result(SECONDS) == "done"
    assert (await run.get()).generation == 2


# -- what runs meanwhile --------------------------------------------------------------------------


async def test_steps_that_run_are_cancelled_and_their_late_results_ignored(world):
    log = []
    release = threading.Event()

    @world.step(name="slow")
    async def slow(n: int) -> int:
        try:
            await asyncio.sleep(0.01 if not n else 60)
        except asyncio.CancelledError:
            log.append(f"cancelled {n}")
            raise
        return n

    @world.step(name="thread")
    def in_thread(n: int) -> int:
        if n:
            release.wait(5)
        return n

    @world.workflow
    async def flow(n: int) -> list[int]:
        both = asyncio.gather(slow(n), in_thread(n))
        if n:
            await sleep(0.001)  # for both to start
            continue_as_new(0)
        return await both

    run = await flow.start(1)
    await until(lambda: "step:started" in world.names())
    await world.advance(1)
    release.set()
    assert await run.result(SECONDS) == [0, 0]
    assert log == ["cancelled 1"]
    assert sorted(steps_of(await run.get())) == ["slow", "thread"]


async def test_a_heartbeat_of_the_last_generation_is_nobodys(world):
    beats = []

    @world.step(name="copy")
    async def copy(n: int) -> None:
        beats.append(current().last_heartbeat)
        if n:
            heartbeat({"at": 500})
            await asyncio.sleep(60)

    @world.workflow
    async def flow(n: int) -> str:
        task = asyncio.create_task(copy(n))
        await sleep(1)
        if n:
            continue_as_new(0)
        await task
        return "done"

    run = await flow.start(1)
    await until(lambda: beats)
    await world.advance(1)
    assert await run.result(SECONDS) == "done"
    assert beats == [None, None]


async def test_a_heartbeat_from_a_thread_that_comes_too_late_is_nobodys(world):
    """It was on its way to the event loop when its step was called off."""
    beats = []

    @world.step(name="copy")
    async def copy(n: int) -> None:
        beats.append(current().last_heartbeat)
        await asyncio.sleep(60 if n else 0)

    @world.workflow
    async def flow(n: int) -> str:
        task = asyncio.create_task(copy(n))
        await sleep(1)
        if n:
            continue_as_new(n - 1)
        await task
        return "done"

    run = await flow.options(id="r").start(2)
    await until(lambda: beats)
    driver = world.process.worker.drivers.get("r")
    assert driver is not None
    board = driver._board
    late = board._states["copy"].running
    await world.advance(1)
    await until(lambda: len(beats) == 2)
    board._beat(late, {"at": 500})
    await world.settle()
    assert board._states["copy"].heartbeat is None
    assert [each.heartbeat for each in (await world.run("r")).attempts] in ([], [None])
    await world.advance(1)
    assert await run.result(SECONDS) == "done"


async def test_a_pause_is_for_the_next_generation_then(world, note, ran):
    @world.workflow
    async def flow(n: int) -> str:
        await note(f"{n}")
        if n:
            continue_as_new(n - 1)
        return "done"

    run = await flow.options(id="r").start(1)
    pause = Message(id="p", kind=MessageKind.PAUSE, at=world.clock.now())
    hook_before(world, continues, lambda: world._store.post("r", pause))
    await until_status(run, Status.PAUSED)
    assert (await run.get()).generation == 2
    assert ran == ["1"]
    await run.unpause()
    assert await run.result(SECONDS) == "done"


# -- cancel ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
async def test_a_cancel_that_comes_with_the_continuation_ends_the_run(world, note, ran, after):
    @world.workflow
    async def flow(n: int) -> None:
        try:
            await note(f"{n}")
            await sleep("1h") if not n else None
        except asyncio.CancelledError:
            await note("cleanup")
            raise
        continue_as_new(n - 1)

    run = await flow.options(id="r").start(1)
    cancel = Message(id="c", kind=MessageKind.CANCEL, at=world.clock.now(), payload="enough")
    store = world.process.mortal_store
    posted = hook_before(world, continues, lambda: world._store.post("r", cancel))
    if after:
        store.before_commit, store.after_commit = lambda commit: False, store.before_commit
    with pytest.raises(RunCancelled, match="enough"):
        await run.result(SECONDS)
    assert len(posted) == 1
    assert (await run.get()).generation == 2
    assert (ran[0], ran[-1]) == ("1", "cleanup")


async def test_a_loop_that_awaits_nothing_can_be_cancelled(world):
    @world.workflow
    async def spinning(n: int = 0) -> None:
        continue_as_new(n + 1)

    run = await spinning.start()
    await until(lambda: len(world.names("workflow:continued")) > 5)
    await run.cancel()
    with pytest.raises(RunCancelled):
        await run.result(SECONDS)


async def test_a_run_terminated_meanwhile_does_not_continue(world, note):
    @world.workflow
    async def flow(n: int = 0) -> None:
        await note(f"{n}")
        continue_as_new(n + 1)

    run = await flow.options(id="r").start()
    failure = streamline.codec.encode_exception(RunCancelled("x"), code="WORKFLOW_CANCELLED")
    hook_before(world, continues, lambda: world._store.terminate("r", failure))
    with pytest.raises(RunCancelled):
        await run.result(SECONDS)
    await world.settle()
    assert (await run.get()).generation == 1


# -- messages -------------------------------------------------------------------------------------


async def test_no_message_is_lost_and_each_counts_once(world):
    @world.workflow
    async def flow(rounds: int, got: list[int]) -> list[int]:
        got = [*got, await receive("in", type=int), await receive("in", type=int)]
        if rounds > 1:
            continue_as_new(rounds - 1, got)
        return got

    run = await flow.start(3, [])
    for number in range(6):
        await run.send("in", number, id=f"m{number}")
        await world.settle()
        for again in range(number + 1):  # of earlier generations, too
            await run.send("in", -1, id=f"m{again}")
    assert await run.result(SECONDS) == list(range(6))
    stored = await world.run(run.id)
    assert stored.past.taken == ["m0", "m1", "m2", "m3"]
    assert stored.inbox == []


async def test_so_many_ids_of_taken_messages_are_kept(world, monkeypatch):
    monkeypatch.setattr(session, "KEPT_IDS", 3)

    @world.workflow
    async def flow(rounds: int) -> None:
        for _ in range(2):
            await receive("in")
        continue_as_new(rounds - 1)

    run = await flow.start(9)
    for number in range(6):
        await run.send("in", number, id=f"m{number}")
    await world.settle()
    stored = await world.run(run.id)
    assert (stored.generation, stored.past.taken) == (4, ["m3", "m4", "m5"])


async def test_messages_of_all_kinds_before_and_during_a_continuation_stay(world, note):
    @world.workflow
    async def flow(n: int) -> list[str]:
        await note(f"{n}")
        if n:
            continue_as_new(n - 1)
        return [await receive("a"), await receive("b"), await receive("a")]

    run = await flow.options(id="r").start(2)
    await run.send("a", "one")

    def send():
        message = Message(
            id="x", kind=MessageKind.SEND, at=world.clock.now(), name="b", payload="two"
        )
        return world._store.post("r", message)

    hook_before(world, continues, send)
    await world.settle()
    await run.send("a", "three")
    assert await run.result(SECONDS) == ["one", "two", "three"]


async def test_an_answer_for_a_wait_of_the_last_generation_is_not_taken_by_the_next(world):
    """Both waits have the id `wait:ask`; the first answer comes when its wait is being left."""

    @world.workflow
    async def flow(n: int) -> str:
        async def ask() -> str:
            return await wait(f"question {n}", name="ask", type=str)

        if not n:
            return await ask()
        asking = asyncio.create_task(ask())
        await receive("leave")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        continue_as_new(0)

    run = await flow.options(id="r").start(1)
    await until_status(run, Status.WAITING)
    await world.process.stop(0)  # both messages lie there before a worker looks
    await run.send("leave")
    await run.resume("to the first", name="ask")
    await world._spawn()
    await until(lambda: world.names("workflow:continued"))
    await until_status(run, Status.WAITING)
    assert (await world.run("r")).inbox == []
    await run.resume("to the second")
    assert await run.result(SECONDS) == "to the second"


async def test_an_answer_that_was_accepted_reaches_the_wait_that_is_being_left(world):
    @world.workflow
    async def flow(n: int) -> list[str]:
        answers: list[str] = []

        async def ask() -> None:
            answers.append(await wait("well?", name="ask", type=str))

        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            try:
                async with asyncio.timeout(60):
                    await receive("nothing")
            except TimeoutError:
                pass
            if n and not answers:
                continue_as_new(0)
        return answers

    run = await flow.options(id="r").start(1)
    await until_status(run, Status.WAITING)
    answer = Message(
        id="x", kind=MessageKind.RESUME, at=world.clock.now(), name="wait:ask", payload="yes"
    )
    posted = hook_before(world, continues, lambda: world._store.post("r", answer, slot="wait:ask"))
    assert await run.result(SECONDS) == ["yes"]
    assert posted == ["posted"]
    assert (await run.get()).generation == 1


async def test_a_run_that_is_parked_where_its_messages_come_from_keeps_its_past(world):
    """Such a message claims the run, and its body goes on without being read anew."""

    @world.workflow
    async def flow(left: int, got: list[str]) -> list[str]:
        got = [*got, f"{current().generation} {await receive('in', type=str)}"]
        if left:
            continue_as_new(left - 1, got)
        return got

    async with streamline.Streamline(store=MemoryStore(), registry=world.registry) as engine:
        run = await engine.start_run(flow, 2, [])
        for text in ("a", "b", "c"):
            await until_status(run, Status.WAITING)
            await run.send("in", text)
        assert await run.result(SECONDS) == ["1 a", "2 b", "3 c"]
        stored = await run.get()
    assert stored.past.input.args == [2, []]
    assert (len(stored.past.taken), stored.fence) == (2, 6)


# -- crashes --------------------------------------------------------------------------------------


async def test_crashes_at_every_commit_of_a_continuing_run_change_nothing(world):
    @world.step(name="work")
    async def work(text: str) -> str:
        return f"{text} {current().idempotency_key.partition('/')[2]}"

    @world.workflow
    async def flow(rounds: int, log: list[str]) -> list[str]:
        set_context(**{f"round{rounds}": len(log)})
        first = await work("before")
        await sleep("1h")
        mail = await receive("mail", type=str)
        both = await asyncio.gather(work("a"), work("b"))
        log = [*log, first, mail, *both]
        if rounds > 1:
            continue_as_new(rounds - 1, log)
        return [*log, str(sorted(current().context.items()))]

    async def speak(run):
        for number in range(4):
            await run.send("mail", f"mail {number}", id=f"m{number}")
            await run.send("mail", f"mail {number}", id=f"m{number}")

    result = await world.crash_everywhere_with(lambda: flow.start(4, []), speak)
    assert result == [
        *("before work", "mail 0", "a work#2", "b work#3"),
        *("before work@2", "mail 1", "a work#2@2", "b work#3@2"),
        *("before work@3", "mail 2", "a work#2@3", "b work#3@3"),
        *("before work@4", "mail 3", "a work#2@4", "b work#3@4"),
        "[('round1', 12), ('round2', 8), ('round3', 4), ('round4', 0)]",
    ]


async def test_an_owner_that_lost_the_run_continues_nothing(world, note, ran):
    @world.workflow
    async def flow(n: int) -> str:
        await note(f"{n}")
        if n:
            continue_as_new(n - 1)
        return "done"

    other = await world.another_worker()

    async def seize():
        holder = (await world._store.load_run("r")).worker
        thief = other if holder == world.process.worker.id else world.process
        await thief.mortal_store.expire_claims(holder)
        claimed = await thief.mortal_store.claim_run(thief.worker.scheduler.new_claim(), "r")
        thief.worker.adopt(claimed)

    hook_before(world, continues, seize)
    other.mortal_store.before_commit = world.process.mortal_store.before_commit
    run = await flow.options(id="r").start(1)
    assert await run.result(SECONDS) == "done"
    assert ran == ["1", "1", "0"]
    stored = await world.run("r")
    assert (stored.generation, stored.fence) == (2, 3)


async def test_a_renewal_beside_the_continuation_loses_nothing(world, note):
    @world.workflow
    async def flow(n: int) -> str:
        await note(f"{n}")
        if n:
            continue_as_new(n - 1)
        return "done"

    worker = world.process.worker
    seen = []

    def renew_with_the_old_fence(commit):
        if commit.continuation is not None:
            # It was on its way when the commit landed, and is told before the commit's result.
            held = worker.drivers.fences()
            renewal = worker._services.store.renew(worker.id, held, 60)
            worker.drivers.renewed(held, renewal, world.clock.now())
            seen.append(renewal.lost)
        return False

    world.process.mortal_store.after_commit = renew_with_the_old_fence
    run = await flow.options(id="r").start(2)
    assert await run.result(SECONDS) == "done"
    assert seen == [{"r"}, {"r"}]
    assert (await run.get()).fence == 3


# -- what differs between generations -------------------------------------------------------------


async def test_keys_and_random_values_differ_from_generation_to_generation(world):
    keys, values = [], []

    @world.step(name="charge")
    async def charge() -> None:
        keys.append(current().idempotency_key)

    @world.workflow
    async def flow(n: int) -> str:
        values.append((current().generation, streamline.uuid4(), streamline.random()))
        await charge()
        await sleep("1h")
        if n:
            continue_as_new(n - 1)
        return "done"

    run = await flow.options(id="o-1").start(2)
    await until_status(run, Status.WAITING)
    await world.crash()
    assert await run.result(SECONDS) == "done"
    assert keys == ["o-1/charge", "o-1/charge@2", "o-1/charge@3"]
    assert values[0] == values[1]  # replayed
    assert [generation for generation, *_ in values[1:]] == [1, 2, 3]
    assert len({value for _, *both in values for value in both}) == 6


async def test_patched_is_decided_anew(world, note):
    new = False

    @world.workflow
    async def flow(n: int) -> bool:
        taken = patched("change") if new else False
        await note(f"{n} {taken}")
        await sleep("1h")
        if n:
            continue_as_new(n - 1)
        return taken

    run = await flow.start(1)
    await until_status(run, Status.WAITING)
    new = True
    await world.crash()
    assert await run.result(SECONDS) is True
    assert steps_of(await run.get()) == ["note"]


async def test_the_newest_code_and_python_take_over(world, monkeypatch):
    monkeypatch.setattr("streamline.launcher.PYTHON", "3.10")

    @world.workflow(name="flow", version="1.0.0")
    async def old(n: int) -> str:
        await receive("go")
        continue_as_new(n)

    run = await old.start(1)
    await until_status(run, Status.WAITING)
    assert (await run.get()).python == "3.10"

    @world.workflow(name="flow", version="1.1.0")
    async def new(n: int, more: str = "more") -> str:
        return f"{n} {more} {current().version}"

    await run.send("go")
    assert await run.result(SECONDS) == "1 more 1.1.0"
    stored = await run.get()
    assert (stored.version, stored.python) == ("1.1.0", streamline.worker.identity.PYTHON)


async def test_a_pinned_run_stays_with_its_version(world):
    @world.workflow(name="flow", version="1.0.0", pin=True)
    async def old(again: bool = True) -> str:
        if again:
            continue_as_new(again=False)
        return "old"

    @world.workflow(name="flow", version="2.0.0", pin=True)
    async def new(again: bool = True) -> str:
        return "new"

    run = await old.start()
    assert await run.result(SECONDS) == "old"
    assert (await run.get()).code == "flow@1.0.0"


async def test_the_timeout_is_that_of_the_run_as_a_whole(world):
    @world.workflow(timeout="150m")
    async def flow(n: int = 0) -> None:
        await sleep("1h")
        continue_as_new(n + 1)

    run = await flow.start()
    began = world.clock.now()
    with pytest.raises(RunFailed, match="took longer than its timeout"):
        await run.result(SECONDS)
    stored = await run.get()
    assert stored.generation == 3
    assert (stored.ended_at - began).total_seconds() == pytest.approx(150 * 60, abs=1)


async def test_time_does_not_go_back(world):
    times = []

    @world.workflow
    async def flow(n: int) -> str:
        times.append(streamline.now())
        await sleep("1h")
        times.append(streamline.now())
        if n:
            continue_as_new(n - 1)
        return "done"

    await (await flow.start(2)).result(SECONDS)
    assert times == sorted(times)
    assert (times[-1] - times[0]).total_seconds() >= 3 * 3600


# -- callers --------------------------------------------------------------------------------------


async def test_a_second_start_is_compared_with_what_the_run_was_started_with(world):
    @world.workflow
    async def flow(n: int) -> str:
        if n:
            continue_as_new(n - 1)
        await sleep("1h")
        return "done"

    run = await flow.options(id="r").start(1)
    await until_status(run, Status.WAITING)
    assert (await flow.options(id="r").start(1)).id == "r"
    with pytest.raises(RunConflict):
        await flow.options(id="r").start(0)
    assert await run.result(SECONDS) == "done"
    assert await (await flow.options(id="r").start(1)).result(SECONDS) == "done"
    again = await flow.options(id="r", on_existing="restart").start(0)
    assert await again.result(SECONDS) == "done"
    assert (await again.get()).generation == 1


async def test_rewind_and_retry_stay_within_the_generation(world, ran, note):
    @world.workflow
    async def flow(n: int) -> str:
        await note(f"first {n}")
        if n:
            await note("second")
            continue_as_new(n - 1)
        return await note("last")

    run = await flow.start(1)
    assert await run.result(SECONDS) == "last"
    await run.rewind("note#2")
    assert await run.result(SECONDS) == "last"
    assert ran == ["first 1", "second", "first 0", "last", "last"]
    with pytest.raises(StepNotFound):
        await run.rewind("note#3")
    await run.rewind("note")
    assert await run.result(SECONDS) == "last"
    assert ran[-2:] == ["first 0", "last"]
    assert (await run.get()).generation == 2


async def test_a_history_holds_the_present_generation(world, note):
    @world.workflow
    async def flow(n: int) -> str:
        text = await note(f"{n} {streamline.uuid4()}")
        if n:
            continue_as_new(n - 1)
        await sleep("1h")
        return text

    run = await flow.start(1)
    await run.result(SECONDS)
    history = export_history(await world.run(run.id))
    assert replay(flow, history).ending == "done"
    recorded = import_history(history)
    assert (recorded.generation, recorded.first_input.args) == (2, [1])


# -- mistakes -------------------------------------------------------------------------------------


async def test_wrong_arguments_raise_at_the_call(world):
    @world.workflow
    async def flow(n: int) -> list[str]:
        caught = []
        for arguments in (("not a number", 2), ("not a number",)):
            try:
                continue_as_new(*arguments)
            except ValidationError as error:
                caught.append(str(error))
        return caught

    too_many, wrong = await (await flow.start(1)).result(SECONDS)
    assert "continues with don't fit" in too_many
    assert "argument 'n'" in wrong


async def test_wrong_arguments_fail_a_run_that_does_not_catch_them(world):
    @world.workflow
    async def flow(n: int) -> None:
        continue_as_new(object())

    run = await flow.start(1)
    with pytest.raises(RunFailed, match=run.id):
        await run.result(SECONDS)
    assert (await run.get()).error.code == "VALIDATION_ERROR"


def test_outside_a_run_it_is_refused():
    with pytest.raises(InvalidState, match="outside a run"):
        continue_as_new(1)


async def test_in_a_step_it_is_refused(world):
    @world.step(name="calling", attempts=1)
    async def calling() -> None:
        continue_as_new(1)

    @world.workflow
    async def flow() -> None:
        await calling()

    with pytest.raises(RunFailed, match="in a step of run"):
        await (await flow.start()).result(SECONDS)


# -- long journals --------------------------------------------------------------------------------


async def test_a_long_journal_is_warned_of_once_in_each_generation(world, note, caplog):
    services = world.process.worker._services
    limited = type(services)(
        **{name: getattr(services, name) for name in services.__struct_fields__}
        | {"journal_warning": 5}
    )
    world.process.worker._services = limited

    @world.workflow(name="chatty")
    async def flow(n: int) -> str:
        for number in range(8):
            await note(f"{n} {number}")
        await receive("go")
        if n:
            continue_as_new(n - 1)
        return "done"

    run = await flow.options(id="r").start(1)
    for generation in (1, 2):
        await until_status(run, Status.WAITING)
        warned = [r for r in caplog.records if "continue_as_new" in r.getMessage()]
        assert len(warned) == generation
        assert "'r' of workflow 'chatty'" in warned[-1].getMessage()
        await run.send("go")
        if generation == 1:
            await until(lambda: world.names("workflow:continued"))
    assert await run.result(SECONDS) == "done"
    heard = [e for e in world.heard if e.name == "workflow:long-journal"]
    assert [(e.run_id, e.data) for e in heard] == [("r", 5), ("r", 5)]


async def test_it_is_the_engine_that_says_how_long_is_long(world):
    assert world.process.worker._services.journal_warning == 10_000
    quiet = streamline.Streamline.memory()
    assert quiet._services(world._store).journal_warning == 10_000
    never = streamline.Streamline("mongodb://localhost", journal_warning=None)
    assert never._services(world._store).journal_warning is None
