"""Engines, starts and handles: FEATURES G2, G3, H1 to H6; BEHAVIOURS 1, 2, 30, 33, 34."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta

import pytest
from engine_support import SECONDS, until, until_status

from streamline import (
    InvalidState,
    Registry,
    RunConflict,
    RunFailed,
    RunNotFound,
    Status,
    Streamline,
    ValidationError,
    WorkflowNotFound,
    receive,
    sleep,
    step,
    workflow,
)
from streamline.store.memory import MemoryStore
from streamline.store.memory_data import MemoryData


@pytest.fixture
def flow(world):
    @world.step
    async def double(x: int) -> int:
        return x * 2

    @world.workflow(name="flow")
    async def flow(x: int) -> int:
        return await double(x)

    return flow


@pytest.fixture
def sleeper(world):
    @world.workflow(name="sleeper")
    async def sleeper(x: int) -> int:
        await sleep("1d")
        return x

    return sleeper


# -- engines ----------------------------------------------------------------------------------


async def test_an_engine_can_be_started_and_stopped_by_hand():
    """G2"""
    registry = Registry()

    @workflow(registry=registry)
    async def flow() -> int:
        return 1

    engine = Streamline.memory(registry=registry)
    await engine.start()
    with pytest.raises(InvalidState, match="started already"):
        await engine.start()
    assert await (await flow.start()).result(SECONDS) == 1
    await engine.stop()
    await engine.stop()
    with pytest.raises(InvalidState, match="not started"):
        engine.handle("x")


async def test_an_engine_can_be_started_again_after_a_stop():
    """G2"""
    registry = Registry()

    @workflow(registry=registry)
    async def flow() -> int:
        return 1

    engine = Streamline.memory(registry=registry)
    for _ in range(2):
        async with engine:
            assert await (await flow.start()).result(SECONDS) == 1


async def test_several_engines_side_by_side_keep_their_runs_apart():
    """G2"""
    registry = Registry()

    @workflow(registry=registry)
    async def flow(x: int) -> int:
        return x

    async with Streamline.memory(registry=registry) as one:
        async with Streamline.memory(registry=registry) as two:
            first = await flow.options(engine=one, id="a").start(1)
            second = await flow.options(engine=two, id="a").start(2)
            third = await two.start_run(flow, 3)
            assert await first.result(SECONDS) == 1
            assert await second.result(SECONDS) == 2
            assert await third.result(SECONDS) == 3
        assert await (await flow.options(id="a").start(1)).result(SECONDS) == 1
        with pytest.raises(RunNotFound):
            await one.handle(third.id).status()


async def test_a_client_starts_and_waits_while_a_worker_elsewhere_does_the_work():
    """G3"""
    registry, data = Registry(), MemoryData()

    @workflow(registry=registry)
    async def flow(x: int) -> list[int]:
        return [x, await receive("more", type=int)]

    client = Streamline(store=MemoryStore(data=data), worker=False, registry=registry)
    worker = Streamline(store=MemoryStore(data=data), registry=registry)
    async with client:
        handle = await flow.options(engine=client).start(1)
        assert await handle.status() is Status.QUEUED
        async with worker:
            await handle.send("more", 2)
            assert await handle.result(SECONDS) == [1, 2]
            assert client.health().claimed == 0


async def test_a_client_that_lacks_the_definition_gets_plain_data():
    """G3"""
    registry, data = Registry(), MemoryData()

    @workflow(registry=registry)
    async def flow() -> tuple[int, int]:
        return (1, 2)

    client = Streamline(store=MemoryStore(data=data), worker=False, registry=Registry())
    worker = Streamline(store=MemoryStore(data=data), registry=registry)
    async with worker, client:
        handle = await flow.options(engine=worker).start()
        assert await handle.result(SECONDS) == (1, 2)
        assert await client.handle(handle.id).result(SECONDS) == [1, 2]


# -- starting ---------------------------------------------------------------------------------


async def test_a_start_is_durable_when_it_returns(world, flow):
    """H1"""
    handle = await flow.start(1)
    await world.crash()
    assert await handle.result(SECONDS) == 2


async def test_options_are_kept_with_the_run(world, flow):
    """H2"""
    handle = await flow.options(
        id="o-1",
        context={"tenantId": "t"},
        meta={"by": "me"},
        tags=["a", "b"],
        priority=3,
        tenant="t",
    ).start(1)
    run = await handle.wait(SECONDS)
    assert (run.id, run.context, run.meta) == ("o-1", {"tenantId": "t"}, {"by": "me"})
    assert (run.tags, run.priority, run.tenant) == (["a", "b"], 3, "t")


async def test_a_delayed_start_is_a_draft_until_it_is_due(world, flow):
    """H2"""
    handle = await flow.options(delay="1h").start(1)
    await world.advance("59m")
    assert await handle.status() is Status.DRAFT
    await world.advance("1m")
    assert await handle.status() is Status.DONE


async def test_start_at_is_kept_and_a_past_one_is_now(world, flow):
    """H2"""
    at = world.clock.now() + timedelta(days=2)
    later = await flow.options(start_at=at).start(1)
    past = await flow.options(start_at=at - timedelta(days=9)).start(2)
    await world.settle()
    assert await past.status() is Status.DONE
    assert await later.result(SECONDS) == 2
    assert (await later.get()).started_at == at


async def test_contradictory_start_options_are_refused(world, flow):
    """H2"""
    aware = world.clock.now()
    naive = datetime.fromtimestamp(0)  # noqa: DTZ006 - that it is naive is the point
    for options in ({"start_at": aware, "delay": 1}, {"start_at": naive}, {"id": ""}):
        with pytest.raises(ValidationError):
            await flow.options(**options).start(1)


async def test_two_concurrent_starts_of_one_id_are_one_run(world):
    """H2, behaviour 1"""
    calls = []

    @world.step
    async def work(x: int) -> int:
        calls.append(x)
        await asyncio.sleep(0.01)
        return x

    @world.workflow
    async def flow(x: int) -> int:
        return await work(x)

    handles = await asyncio.gather(*(flow.options(id="same").start(1) for _ in range(5)))
    assert await asyncio.gather(*(h.result(SECONDS) for h in handles)) == [1] * 5
    assert calls == [1]


async def test_the_id_of_a_finished_run_gives_its_result(world, flow):
    """H2, behaviour 2: the body is not run."""
    first = await flow.options(id="o").start(1)
    await first.wait(SECONDS)
    second = await flow.options(id="o").start(1)
    assert await second.result(SECONDS) == 2
    assert (await second.get()).fence == 1


async def test_the_id_of_another_workflow_or_input_is_a_conflict(world, flow, sleeper):
    """H2, behaviour 2: the original is unharmed."""
    handle = await flow.options(id="o").start(1)
    with pytest.raises(RunConflict, match="'o' is of workflow 'flow', not 'sleeper'"):
        await sleeper.options(id="o").start(1)
    with pytest.raises(RunConflict, match="another input"):
        await flow.options(id="o").start(2)
    assert await handle.result(SECONDS) == 2


async def test_on_existing_fail_refuses_only_an_ended_run(world, flow, sleeper):
    """H2"""
    running = await sleeper.options(id="s").start(1)
    assert (await sleeper.options(id="s", on_existing="fail").start(1)).id == running.id
    await (await flow.options(id="f").start(1)).wait(SECONDS)
    await world.advance(1)
    with pytest.raises(RunConflict, match="ended as done"):
        await flow.options(id="f", on_existing="fail").start(1)


async def test_a_restarted_run_is_younger_than_the_one_before(world, flow):
    """Also where the clock of the host that created that one was ahead."""
    await (await flow.options(id="f").start(1)).wait(SECONDS)
    before = await world.run("f")
    ahead = before.created_at + timedelta(hours=1)
    world._shared.put({**world._shared.get("f"), "created_at": ahead})
    await (await flow.options(id="f", on_existing="restart").start(5)).wait(SECONDS)
    assert (await world.run("f")).created_at > ahead


async def test_on_existing_restart_runs_it_anew(world, flow):
    """H2"""
    await (await flow.options(id="f").start(1)).wait(SECONDS)
    again = await flow.options(id="f", on_existing="restart").start(5)
    assert await again.result(SECONDS) == 10
    run = await again.get()
    assert run.fence == 3  # 2 of the restart, which no old claim fits; 3 of its claim
    assert len(run.journal) == 1


async def test_a_restart_tells_that_it_started(world, flow):
    """H2, O1"""
    await (await flow.options(id="f").start(1)).wait(SECONDS)
    await (await flow.options(id="f", on_existing="restart").start(5)).wait(SECONDS)
    assert world.names("workflow:") == ["workflow:started", "workflow:completed"] * 2


async def test_ids_sort_by_creation(world, sleeper):
    """H1: UUIDv7."""
    ids = []
    for _ in range(3):
        ids.append((await sleeper.start(1)).id)
        await asyncio.sleep(0.002)
    assert ids == sorted(ids)


# -- handles ----------------------------------------------------------------------------------


async def test_every_call_on_an_unknown_id_says_run_not_found(world):
    """H3"""
    handle = world.handle("nobody")
    calls = [
        handle.result,
        handle.wait,
        handle.get,
        handle.status,
        handle.resume,
        lambda: handle.send("c"),
        handle.cancel,
        handle.terminate,
        handle.pause,
        handle.unpause,
        handle.execute,
    ]
    for call in calls:
        with pytest.raises(RunNotFound, match="'nobody'"):
            await call()


async def test_a_handle_by_id_is_typed_by_its_flow(world, flow):
    """H3"""
    started = await flow.start(4)
    assert await flow.handle(started.id).result(SECONDS) == 8
    assert await world.handle(started.id).result(SECONDS) == 8


async def test_a_result_that_takes_too_long_times_out_and_the_run_goes_on(world):
    """H3"""
    go = asyncio.Event()

    @world.step
    async def slow() -> int:
        await go.wait()
        return 1

    @world.workflow
    async def flow() -> int:
        return await slow()

    handle = await flow.start()
    with pytest.raises(TimeoutError):
        await handle.result(0.02)
    with pytest.raises(TimeoutError):
        await handle.wait("20ms")
    go.set()
    assert await handle.result(SECONDS) == 1


async def test_a_failed_run_raises_with_its_cause(world):
    """H3"""

    @world.step(attempts=1)
    async def bad() -> None:
        raise KeyError("k")

    @world.workflow(name="flow")
    async def flow() -> None:
        await bad()

    handle = await flow.start()
    with pytest.raises(RunFailed) as caught:
        await handle.result(SECONDS)
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.run_id == handle.id
    assert caught.value.step == bad.name
    assert handle.id in str(caught.value)
    assert bad.name in str(caught.value)


async def test_waiters_in_a_new_process_get_the_result_of_an_old_run(world, sleeper):
    """H3: a restart loses nobody."""
    handle = await sleeper.start(3)
    await until_status(handle, Status.WAITING)
    client = Streamline(
        store=MemoryStore(world.clock, world._shared), worker=False, registry=world.registry
    )
    async with client:
        waiting = asyncio.ensure_future(client.handle(handle.id).result(SECONDS))
        await asyncio.sleep(0.01)
        await world.crash()
        assert await handle.result(SECONDS) == 3
        assert await waiting == 3


async def test_a_worker_that_was_full_wakes_for_what_falls_due_later(world, sleeper):
    """G1: all its places were taken when it went to sleep, and all of them parked."""
    handles = [await sleeper.options(id=f"r{n}").start(n) for n in range(world._concurrency)]
    assert [await handle.result(SECONDS) for handle in handles] == list(range(100))


async def test_a_claim_in_flight_when_the_worker_stops_is_handed_back(world, sleeper):
    """C6, behaviour 34: it would be nobody's until its lease ran out."""
    store = world.process.mortal_store
    for verb in (store.claim_due, store.claim_run):

        async def slow(*args, verb=verb):
            claimed = await verb(*args)
            await asyncio.sleep(0.02)
            return claimed

        setattr(store, verb.__name__, slow)
    handle = await sleeper.start(1)
    await until_status(handle, Status.RUNNING)
    await world.process.stop("1s")
    assert await handle.status() is not Status.RUNNING


async def test_a_thousand_waiters_share_their_looks(world, sleeper):
    """Behaviour 30: control still gets through, and there is no storm of polls."""
    handles = await asyncio.gather(*(sleeper.options(id=f"r{n}").start(n) for n in range(200)))
    waiting = [asyncio.ensure_future(h.result(SECONDS)) for h in handles for _ in range(5)]
    await asyncio.sleep(0)
    await handles[0].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results[5:] == [n for n in range(1, 200) for _ in range(5)]


async def test_whoever_waits_when_the_engine_stops_is_told_so():
    """H3: a stopped engine is no cancellation of the caller's task."""
    registry = Registry()

    @workflow(registry=registry)
    async def flow() -> None:
        await sleep("1d")

    async with Streamline.memory(registry=registry) as engine:
        handle = await flow.start()
        waiting = asyncio.ensure_future(handle.result())
        await until(lambda: engine._waiters.count == 1)
    with pytest.raises(InvalidState, match="stopped"):
        await waiting


async def test_outcome_and_status_become_visible_in_one_write(world):
    """H6: never `done` without its output, never ended without `ended_at`."""

    @world.step(attempts=1)
    async def work(x: int) -> int:
        if x < 0:
            raise ValueError(x)
        return x

    @world.workflow
    async def flow(x: int) -> int:
        return await work(x)

    seen = []
    store = world.process.mortal_store
    store.on_commit = lambda commit: seen.append(store.data.get(commit.run_id))
    for x in (1, -1):
        await (await flow.start(x)).wait(SECONDS)
    cancelled = await flow.options(delay="1h").start(1)
    await cancelled.cancel()
    seen.append(world._shared.get(cancelled.id))
    for document in seen:
        status = document["status"]
        assert ("output" in document) == (status == "done")
        assert ("error" in document) == (status in ("failed", "cancelled"))
        assert ("ended_at" in document) == (status in ("done", "failed", "cancelled"))
    assert {document["status"] for document in seen} >= {"done", "failed", "cancelled"}


# -- execute ----------------------------------------------------------------------------------


async def test_execute_drives_a_run_without_a_worker():
    """H4: done, failed or parked."""
    registry = Registry()

    @workflow(registry=registry)
    async def flow(kind: str) -> str:
        if kind == "fail":
            raise ValueError
        if kind == "park":
            await receive("more")
        return kind

    async with Streamline.memory(registry=registry, worker=False) as engine:
        done, failed, parked = [await flow.start(k) for k in ("done", "fail", "park")]
        assert await done.status() is Status.QUEUED
        assert await done.execute() is Status.DONE
        assert await failed.execute() is Status.FAILED
        assert await parked.execute() is Status.WAITING
        assert await parked.execute() is Status.WAITING
        await parked.send("more")
        assert await parked.execute() is Status.DONE
        assert await done.execute() is Status.DONE
        assert await done.result(SECONDS) == "done"
        assert engine.health().claimed == 0


async def test_execute_of_a_run_that_another_worker_holds_says_running(world):
    """H4"""
    go = asyncio.Event()

    @world.step
    async def slow() -> int:
        await go.wait()
        return 1

    @world.workflow
    async def flow() -> int:
        return await slow()

    handle = await flow.start()
    await until_status(handle, Status.RUNNING)
    assert await handle.execute() is Status.RUNNING
    go.set()
    assert await handle.result(SECONDS) == 1


async def test_execute_of_an_unknown_workflow_leaves_the_run_for_others(world):
    """H4, behaviour 33"""

    @workflow(name="elsewhere", registry=Registry())
    async def elsewhere() -> None: ...

    handle = await elsewhere.start()
    with pytest.raises(WorkflowNotFound, match="'elsewhere'"):
        await handle.execute()
    assert await handle.status() is Status.QUEUED


# -- workers coming and going ---------------------------------------------------------------------


async def test_an_unknown_workflow_is_left_for_another_worker(world):
    """Behaviour 33: not failed."""
    having = Registry()

    @workflow(name="elsewhere", registry=having)
    async def elsewhere() -> int:
        return 1

    handle = await elsewhere.start()
    await world.settle()
    assert await handle.status() is Status.QUEUED
    await world.another_worker(having)
    assert await handle.result(SECONDS) == 1


async def test_a_message_from_a_worker_that_lacks_the_code_reaches_the_run(world):
    """Behaviour 33: the sender's worker doesn't keep what it can't drive."""
    having = Registry()

    @workflow(name="elsewhere", registry=having)
    async def elsewhere() -> int:
        return await receive("more", type=int)

    sender = Streamline(store=MemoryStore(world.clock, world._shared), registry=Registry())
    await world.another_worker(having)
    async with sender:
        handle = await elsewhere.options(engine=world).start()
        await until_status(handle, Status.WAITING)
        await sender.handle(handle.id).send("more", 7)
        await world.settle()
        await until_status(handle, Status.DONE)
    assert (await handle.get()).recoveries == 0


async def test_a_worker_that_drains_while_another_starts_strands_nothing(world):
    """C6, behaviour 34: and no recorded step runs twice."""
    ran = []

    @world.step
    async def work(run: int, n: int) -> int:
        ran.append((run, n))
        await asyncio.sleep(0.001)
        return n

    @world.workflow
    async def flow(run: int) -> int:
        return sum([await work(run, n) for n in range(5)])

    handles = [await flow.start(run) for run in range(20)]
    await until(lambda: len(ran) > 20)
    draining = asyncio.ensure_future(world.process.stop("5s"))
    successor = await world.another_worker()
    await draining
    world._process = successor
    world.others.remove(successor)
    assert [await handle.result(SECONDS) for handle in handles] == [10] * 20
    assert len(ran) == len(set(ran)) == 100
    assert not [n for n in world.names() if n == "workflow:recovered"]


async def test_steps_that_outlast_the_drain_are_handed_back(world):
    """C6: others go on at once, and it is no recovery."""
    attempts = []

    @world.step
    async def stubborn(n: int) -> int:
        attempts.append(n)
        if len(attempts) <= 3:
            await asyncio.sleep(60)
        return n

    @world.workflow
    async def flow(n: int) -> int:
        return await stubborn(n)

    handles = [await flow.start(n) for n in range(3)]
    await until(lambda: len(attempts) == 3)
    await world.process.stop(0.01)
    for handle in handles:
        assert await handle.status() is Status.QUEUED
    world._process = await world.another_worker()
    world.others.clear()
    assert [await handle.result(SECONDS) for handle in handles] == [0, 1, 2]
    assert all([(await handle.get()).recoveries == 0 for handle in handles])


async def test_a_run_that_ends_while_another_is_handed_back_stops_nothing(world):
    """C6: the drain is over, one step ends just then, and the stop goes on."""
    finish = asyncio.Event()

    @world.step
    async def held(n: int) -> int:
        await finish.wait()
        return n

    @world.workflow
    async def flow(n: int) -> int:
        return await held(n)

    handles = [await flow.start(n) for n in range(3)]
    await until(lambda: world.names("step:").count("step:started") == 3)
    store = world.process.mortal_store
    release = store.release

    async def slow_release(run_id: str, fence: int, **how: bool) -> bool:
        finish.set()  # the other steps end while the first run is handed back
        await asyncio.sleep(0.01)
        return await release(run_id, fence, **how)

    store.release = slow_release
    await world.process.stop(0.0)
    world._process = await world.another_worker()
    world.others.clear()
    assert [await handle.result(SECONDS) for handle in handles] == [0, 1, 2]


async def test_an_engine_holds_its_concurrency(world):
    """G1"""
    registry = Registry()
    now, most = 0, 0

    @workflow(registry=registry)
    async def flow() -> None:
        await work()

    @step(registry=registry)
    async def work() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1

    async with Streamline.memory(registry=registry, concurrency=3) as engine:
        handles = await asyncio.gather(*(flow.options(engine=engine).start() for _ in range(20)))
        await asyncio.gather(*(handle.result(SECONDS) for handle in handles))
    assert most == 3


async def test_concurrent_starts_do_not_overshoot_the_concurrency():
    """G1: a start that is being written has its place already."""
    registry = Registry()
    now, most = 0, 0

    class Slow(MemoryStore):
        async def create_run(self, run):
            await asyncio.sleep(0.005)
            return await super().create_run(run)

    @step(registry=registry)
    async def work() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1

    @workflow(registry=registry)
    async def flow() -> None:
        await work()

    async with Streamline(store=Slow(), registry=registry, concurrency=3) as engine:
        handles = await asyncio.gather(*(flow.options(engine=engine).start() for _ in range(20)))
        await asyncio.gather(*(handle.result(SECONDS) for handle in handles))
    assert most == 3


async def test_nothing_is_logged_by_an_ordinary_life(world, flow, caplog):
    """G2"""
    with caplog.at_level(logging.WARNING):
        assert await (await flow.start(1)).result(SECONDS) == 2
        await world.process.stop()
    assert caplog.records == []
