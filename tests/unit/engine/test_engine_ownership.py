"""Who may drive a run: promise 3; BEHAVIOURS 3 to 5, 31, 32 and 35."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import weakref
from datetime import timedelta
from typing import Any

import pytest
from engine_support import SECONDS, steps_of, until, until_status

from streamline import Registry, Status, Streamline, current, receive, sleep, step, workflow
from streamline.replay import Execution
from streamline.store.memory import MemoryStore
from streamline.worker import session


@pytest.fixture
def held(world):
    """A step that ends when its event is set; each call has its own."""

    class Held:
        def __init__(self):
            self.calls = []
            self.cancelled = 0

    held = Held()

    @world.step(name="held")
    async def wait_here(x: int) -> str:
        call = asyncio.Event()
        held.calls.append(call)
        number = len(held.calls)
        try:
            await call.wait()
        except asyncio.CancelledError:
            held.cancelled += 1
            raise
        return f"call {number}"

    @world.workflow(name="flow")
    async def flow() -> list[str]:
        return [await wait_here(1), await wait_here(2)]

    held.flow = flow
    return held


async def test_a_run_taken_over_while_its_owner_computes(world, held):
    """Behaviours 3, 4: the old owner's write is refused, and it stops and touches nothing more."""
    old = world.process
    handle = await held.flow.start()
    await until(lambda: held.calls)
    other = await world.another_worker()
    await world.hand_over(handle.id, other)
    await until(lambda: len(held.calls) == 2)
    held.calls[0].set()  # the old owner's step ends now
    await until(lambda: old.worker.claimed == 0)
    assert steps_of(await handle.get()) == []
    held.calls[1].set()
    await until(lambda: len(held.calls) == 3)
    held.calls[2].set()
    assert await handle.result(SECONDS) == ["call 2", "call 3"]
    assert len(held.calls) == 3


async def test_a_renewal_that_finds_the_claim_lost_cancels_the_steps(world, held):
    """Behaviour 3, W13"""
    old = world.process
    handle = await held.flow.start()
    await until(lambda: held.calls)
    other = await world.another_worker()
    await world.hand_over(handle.id, other)
    await until(lambda: len(held.calls) == 2)
    old.worker.renew_now()
    await until(lambda: held.cancelled == 1)
    await until(lambda: old.worker.claimed == 0)
    held.calls[1].set()
    await until(lambda: len(held.calls) == 3)
    held.calls[2].set()
    await handle.result(SECONDS)
    assert held.cancelled == 1


async def test_a_completion_computed_before_a_takeover_is_refused(world):
    """Behaviour 4: what was recorded first wins."""
    calls, both_there = [], asyncio.Event()

    @world.step
    async def work() -> int:
        calls.append(1)
        await both_there.wait()
        return len(calls)

    @world.workflow
    async def flow() -> int:
        return await work()

    other = None
    taken = []

    def take_over(commit):
        if commit.status is Status.DONE and not taken:
            taken.append(1)
            for coroutine in (
                other.mortal_store.expire_claims(world.process.worker.id),
                other.mortal_store.claim_run(other.worker.scheduler.new_claim(), commit.run_id),
            ):
                try:
                    coroutine.send(None)
                except StopIteration as done:
                    result = done.value
            other.worker.adopt(result)
        return False

    old = world.process
    world.process.mortal_store.before_commit = take_over
    handle = await flow.start()
    await until_status(handle, Status.RUNNING)
    other = await world.another_worker()
    both_there.set()
    assert await handle.result(SECONDS) == 2
    assert taken
    assert old.worker.claimed == 0
    assert world.names("workflow:completed") == []  # the new owner tells it, elsewhere


async def test_two_workers_recover_a_dead_ones_runs_once_each(world):
    """Behaviour 5"""
    started = []

    @world.step
    async def work(n: int) -> int:
        started.append(n)
        if started.count(n) == 1:
            await asyncio.sleep(60)
        return n

    @world.workflow
    async def flow(n: int) -> int:
        return await work(n)

    handles = [await flow.start(n) for n in range(20)]
    await until(lambda: len(started) == 20)
    others = [await world.another_worker() for _ in range(2)]
    dead = world.process
    dead.die()
    await others[0].mortal_store.expire_claims(dead.worker.id)
    world._process = others[0]
    world.others.remove(others[0])
    assert [await handle.result(SECONDS) for handle in handles] == list(range(20))
    assert sorted(started) == sorted([*range(20), *range(20)])
    assert all([(await handle.get()).fence == 2 for handle in handles])


async def test_a_lease_that_runs_out_is_taken_over_by_time_alone(world, held):
    """Promise 3; behaviour 35: the host that was suspended writes nothing once it wakes."""
    old = world.process
    handle = await held.flow.start()
    await until(lambda: held.calls)
    other = await world.another_worker()
    world._process = other  # time now renews the other's leases, not the suspended one's
    world.others = [old]
    await world.advance("61s")
    await until(lambda: len(held.calls) == 2)
    assert (await world.run(handle.id)).recoveries == 1
    held.calls[0].set()
    await until(lambda: old.worker.claimed == 0)
    held.calls[1].set()
    await until(lambda: len(held.calls) == 3)
    held.calls[2].set()
    assert await handle.result(SECONDS) == ["call 2", "call 3"]


async def test_a_suspended_hosts_timers_fire_once(world):
    """Behaviour 35"""
    fired = []

    @world.step
    async def fire() -> None:
        fired.append(world.clock.now())

    @world.workflow
    async def flow() -> None:
        await sleep("1h")
        await fire()

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    await world.another_worker()
    await world.advance("2h")
    await handle.wait(SECONDS)
    assert len(fired) == 1


async def test_a_worker_that_claims_its_own_lapsed_run_anew_drives_it_once(world, held):
    """Behaviour 35: there is no other worker; it was suspended for longer than its lease."""
    handle = await held.flow.start()
    await until(lambda: held.calls)
    world.clock.move_to(world.clock.now() + timedelta(minutes=5))  # nobody renewed meanwhile
    world.process.worker.scheduler.notice_due()  # in memory nothing is polled for
    await until(lambda: len(held.calls) == 2)
    held.calls[0].set()
    held.calls[1].set()
    await until(lambda: len(held.calls) == 3)
    held.calls[2].set()
    assert await handle.result(SECONDS) == ["call 2", "call 3"]
    assert len(held.calls) == 3


async def test_an_evicted_run_has_no_effects_and_leaks_nothing(world, caplog):
    """Behaviour 32: its finally blocks ask for nothing, no task leaks, nothing is logged."""
    ran = []

    @world.step
    async def clean(n: int) -> None:
        ran.append(n)

    @world.workflow
    async def flow(n: int) -> int:
        async def helper() -> None:
            try:
                await receive("never")
            finally:
                await clean(-n)

        task = asyncio.create_task(helper())
        try:
            async with asyncio.timeout(100_000):
                value = await receive("box", type=int)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return value
        finally:
            await clean(n)
            await sleep(1)

    world.process.worker._parked.size = 2
    before = len(asyncio.all_tasks())
    with caplog.at_level(logging.DEBUG, "asyncio"):
        handles = [await flow.start(n) for n in range(1, 7)]
        await world.settle()
        gc.collect()
        assert ran == []
        assert len(asyncio.all_tasks()) <= before
        assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
        assert world.process.worker.cached == 2
        for number, handle in enumerate(handles):
            await handle.send("box", number)
        assert [await handle.result(SECONDS) for handle in handles] == list(range(6))
    assert sorted(ran) == [-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6]


async def test_what_an_ended_run_held_is_freed_without_the_collector(world, monkeypatch):
    """Many runs in flight would keep the garbage collector busy: nothing may refer to itself."""
    bodies: list[weakref.ref[Execution]] = []

    class Watched(Execution):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            bodies.append(weakref.ref(self))

    monkeypatch.setattr(session, "Execution", Watched)

    @world.step
    async def work(n: int) -> int:
        return n

    @world.workflow
    async def child(n: int) -> int:
        return await work(n)

    @world.workflow(timeout="1d")
    async def flow() -> int:
        total = sum(await asyncio.gather(*(work(n) for n in range(3))))
        assert current().output_of(work) == 0
        await sleep(60)
        async with asyncio.timeout(3600):
            return total + await receive("box", type=int) + await child(1)

    gc.collect()
    gc.disable()
    try:
        run = await flow.start()
        await run.send("box", 1)
        assert await run.result(SECONDS) == 5
        await world.settle()
        assert len(bodies) == 2
        assert [body() for body in bodies] == [None, None]
    finally:
        gc.enable()


async def test_evicting_every_run_at_every_park_changes_nothing(world):
    """Behaviour 32, promise 4"""

    @world.step
    async def work(n: int) -> int:
        return n * 2

    @world.workflow
    async def flow() -> list[object]:
        out = []
        for n in range(4):
            out.append(await asyncio.gather(work(n), receive("box", type=int)))
            await sleep("1h")
        return out

    world.process.worker._parked.size = 0
    handle = await flow.start()
    for n in range(4):
        await handle.send("box", n)
    assert await handle.result(SECONDS) == [[n * 2, n] for n in range(4)]
    assert world.process.worker.cached == 0


async def test_a_body_that_never_yields_is_reported_with_its_stack(caplog):
    """Behaviour 31: and the leases of the others are renewed. Takes real time: a thread watches."""
    registry = Registry()
    renewed = []

    class Watched(MemoryStore):
        def renew(self, worker, held, lease):
            renewed.append(set(held))
            return super().renew(worker, held, lease)

    @step(registry=registry)
    async def quiet() -> None:
        await asyncio.sleep(1.2)

    @workflow(registry=registry)
    async def patient() -> int:
        await quiet()
        return 1

    @workflow(registry=registry)
    async def greedy() -> int:
        time.sleep(0.9)  # noqa: ASYNC251 - that it blocks is the point
        return 2

    engine = Streamline(store=Watched(), registry=registry, lease=0.6)
    with caplog.at_level(logging.ERROR):
        async with engine:
            first = await patient.start()
            await asyncio.sleep(0.05)
            second = await greedy.start()
            assert await first.result(SECONDS) == 1
            assert await second.result(SECONDS) == 2
            assert (await first.get()).fence == 1
    assert "has been blocked" in caplog.text
    assert second.id in caplog.text
    assert "time.sleep(0.9)" in caplog.text
    assert any(first.id in held for held in renewed)
