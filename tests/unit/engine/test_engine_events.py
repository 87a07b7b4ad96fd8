"""Events, health and outages: FEATURES O1 and O2; BEHAVIOUR 29 as far as memory shows it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from engine_support import SECONDS, until, until_status

from streamline import (
    InvalidState,
    RunFailed,
    ServerUnavailable,
    Status,
    Streamline,
    continue_as_new,
    current,
    receive,
    sleep,
)
from streamline.model import Commit, CommitResult
from streamline.store.memory import MemoryStore
from streamline.worker import breaker, held


@pytest.fixture
def flow(world):
    @world.step(name="flaky", attempts=2)
    async def flaky() -> int:
        if current().attempt == 1:
            raise OSError("once")
        return 1

    @world.step(name="bad", attempts=1)
    async def bad() -> None:
        raise ValueError("bad")

    @world.workflow(name="flow")
    async def flow(fails: bool) -> int:
        value = await flaky()
        await sleep("1d")
        if fails:
            await bad()
        return value

    return flow


async def test_events_tell_a_runs_life_in_order(world, flow):
    """O1"""
    handle = await flow.start(False)
    await handle.result(SECONDS)
    assert world.names() == [
        "workflow:started",
        "step:started",
        "step:retry-scheduled",
        "workflow:waiting",
        "workflow:resumed",
        "step:started",
        "step:completed",
        "workflow:waiting",
        "workflow:resumed",
        "workflow:completed",
    ]
    assert {event.run_id for event in world.heard} == {handle.id}
    assert {event.workflow for event in world.heard} == {"flow"}
    retry = world.heard[2]
    assert (retry.step, retry.attempt, str(retry.error)) == ("flaky", 1, "once")
    assert retry.data > retry.at
    completed = world.heard[6]
    assert (completed.step, completed.attempt, completed.data) == ("flaky", 2, 1)
    assert world.heard[-1].data == 1


async def test_a_failure_is_told_with_its_error(world, flow):
    """O1"""
    handle = await flow.start(True)
    with pytest.raises(RunFailed):
        await handle.result(SECONDS)
    assert world.names()[-3:] == ["step:started", "step:failed", "workflow:failed"]
    for event in world.heard[-2:]:
        assert isinstance(event.error, ValueError)
        assert str(event.error) == "bad"


async def test_an_event_comes_after_the_write_that_makes_it_true(world, flow):
    """O1"""
    stored = []

    def look(event):
        document = world._shared.get(event.run_id)
        stored.append((event.name, document["status"], "output" in document))

    world.events.on("workflow:completed", look)
    world.events.on("workflow:waiting", look)
    await (await flow.start(False)).result(SECONDS)
    assert stored == [
        ("workflow:waiting", "waiting", False),
        ("workflow:waiting", "waiting", False),
        ("workflow:completed", "done", True),
    ]


async def test_a_commit_that_was_refused_is_never_told(world):
    """O1: what didn't come true isn't told; a taken-over run is told by its new owner only."""

    @world.step(name="work")
    async def work() -> int:
        return 1

    @world.workflow
    async def flow() -> int:
        return await work()

    world.process.mortal_store.before_commit = lambda commit: _lose(world, commit)
    await flow.start()
    await until(lambda: world.process.worker.claimed == 0 and "step:started" in world.names())
    assert "step:completed" not in world.names()
    assert "workflow:completed" not in world.names()


def _lose(world, commit: Commit) -> bool:
    run = world._shared.get(commit.run_id)
    world._shared.put(run | {"fence": run["fence"] + 1})
    return False


async def test_paused_cancelled_and_recovered_are_told(world):
    """O1"""

    @world.workflow
    async def flow() -> None:
        await receive("never")

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    await handle.pause()
    await until_status(handle, Status.PAUSED)
    await handle.unpause()
    await until_status(handle, Status.WAITING)
    await handle.cancel()
    await handle.wait(SECONDS)
    names = world.names("workflow:")
    assert names == [
        "workflow:started",
        "workflow:waiting",
        "workflow:resumed",
        "workflow:paused",
        "workflow:resumed",
        "workflow:waiting",
        "workflow:resumed",
        "workflow:cancelled",
    ]


async def test_a_run_ended_without_its_body_is_told_too(world):
    """O1: terminated, or cancelled before it began."""

    @world.workflow
    async def flow() -> None:
        await receive("never")

    draft, waiting = await flow.options(delay="1d").start(), await flow.start()
    await until_status(waiting, Status.WAITING)
    await draft.cancel()
    await waiting.terminate()
    assert world.names().count("workflow:cancelled") == 2
    await waiting.terminate()
    assert world.names().count("workflow:cancelled") == 2


async def test_a_recovery_is_told(world):
    """O1"""
    go = asyncio.Event()

    @world.step
    async def slow() -> None:
        await go.wait()

    @world.workflow
    async def flow() -> None:
        await slow()

    handle = await flow.start()
    await until(lambda: "step:started" in world.names())
    await world.crash()
    go.set()
    await handle.wait(SECONDS)
    assert "workflow:recovered" in world.names()


async def test_listeners_that_raise_harm_nothing_and_are_reported(world, flow, caplog):
    """O1: sync and async ones."""
    heard = []

    def sync_listener(event):
        raise RuntimeError("sync")

    async def async_listener(event):
        await asyncio.sleep(0)
        raise RuntimeError("async")

    async def good(event):
        await asyncio.sleep(0)
        heard.append(event.name)

    world.events.on("*", sync_listener)
    world.events.on("workflow:completed", async_listener)
    world.events.on("workflow:completed", good)
    with caplog.at_level(logging.CRITICAL):
        assert await (await flow.start(False)).result(SECONDS) == 1
        await world.events.drain()
    assert heard == ["workflow:completed"]
    errors = [str(event.error) for event in world.heard if event.name == "engine:error"]
    assert errors.count("async") == 1
    assert errors.count("sync") >= 10


async def test_a_listener_can_be_taken_off_again(world, flow):
    """O1"""
    heard = []
    off = world.events.on("workflow:started", heard.append)
    await (await flow.start(False)).result(SECONDS)
    off()
    off()
    await (await flow.start(False)).result(SECONDS)
    assert len(heard) == 1


async def test_engines_do_not_hear_each_other(flow, world):
    """O1"""
    heard = []
    async with Streamline.memory(registry=world.registry) as other:
        other.events.on("*", heard.append)
        await (await flow.options(engine=world).start(False)).result(SECONDS)
    assert heard == []


# -- outages ----------------------------------------------------------------------------------


class FailingStore(MemoryStore):
    """A store whose server can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.fail_claims = 0
        self.fail_commits = 0
        self.lose_replies = 0
        self.error: Exception = ServerUnavailable("the server is away")

    async def claim_due(self, *args):
        if self.fail_claims:
            self.fail_claims -= 1
            raise self.error
        return await super().claim_due(*args)

    async def claim_run(self, *args):
        if self.fail_claims:
            self.fail_claims -= 1
            raise self.error
        return await super().claim_run(*args)

    async def commit(self, commit: Commit) -> CommitResult:
        if self.fail_commits:
            self.fail_commits -= 1
            raise ServerUnavailable("the server is away")
        result = await super().commit(commit)
        if self.lose_replies:
            self.lose_replies -= 1
            raise ServerUnavailable("the reply was lost")
        return result


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(breaker.CircuitBreaker, "delay", lambda self: 0.002)
    monkeypatch.setattr(held, "RETRY_OUTAGE", 0.002)


@pytest.mark.parametrize("error", [ServerUnavailable("away"), RuntimeError("a bug")])
async def test_the_breaker_opens_after_five_failures_and_closes_by_itself(
    world, quick_retries, caplog, error
):
    """O2"""

    @world.workflow
    async def flow() -> int:
        return 1

    store = FailingStore()
    store.error = error
    engine = Streamline(store=store, registry=world.registry)
    names = []
    engine.events.on("*", lambda event: names.append(event.name))
    with caplog.at_level(logging.CRITICAL):
        async with engine:
            await asyncio.sleep(0.01)
            assert engine.health().circuit_open is False
            store.fail_claims = 8
            handle = await flow.options(engine=engine, delay=0.02).start()
            await until(lambda: "scheduler:circuit-open" in names)
            assert engine.health().circuit_open is True
            assert engine.health().success_rate < 1
            assert await handle.result(SECONDS) == 1
            assert engine.health().circuit_open is False
    assert names.count("scheduler:error") == 8
    assert names.index("scheduler:circuit-open") == 5  # after five errors
    assert names.count("scheduler:circuit-closed") == 1


async def test_a_commit_is_tried_again_until_the_server_is_back(world, quick_retries):
    """O2, promise 6: nothing is lost, and no step runs again."""
    ran = []

    @world.step
    async def work() -> int:
        ran.append(1)
        return 1

    @world.workflow
    async def flow() -> int:
        return await work()

    store = FailingStore()
    async with Streamline(store=store, registry=world.registry) as engine:
        store.fail_commits = 3
        errors = []
        engine.events.on("engine:error", lambda event: errors.append(event.error))
        handle = await flow.options(engine=engine).start()
        assert await handle.result(SECONDS) == 1
    assert ran == [1]
    assert len(errors) == 3
    assert all(isinstance(error, ServerUnavailable) for error in errors)


async def test_a_commit_whose_reply_was_lost_is_applied_once(world, quick_retries):
    """Behaviour 29"""
    ran = []

    @world.step(name="work")
    async def work() -> int:
        ran.append(1)
        return len(ran)

    @world.workflow
    async def flow() -> list[int]:
        return [await work(), await work()]

    store = FailingStore()
    async with Streamline(store=store, registry=world.registry) as engine:
        store.lose_replies = 1
        handle = await flow.options(engine=engine).start()
        assert await handle.result(SECONDS) == [1, 2]
        assert [entry.id for entry in (await handle.get()).journal] == ["work", "work#2"]


async def test_a_continuation_whose_reply_was_lost_is_applied_once(world, quick_retries):
    """Behaviour 29"""

    @world.step(name="work")
    async def work() -> int:
        return current().generation

    @world.workflow
    async def flow(got: list[int]) -> list[int]:
        got.append(await work())
        if len(got) < 3:
            continue_as_new(got)
        return got

    store = FailingStore()
    async with Streamline(store=store, registry=world.registry) as engine:
        store.lose_replies = 5
        handle = await flow.options(engine=engine).start([])
        assert await handle.result(SECONDS) == [1, 2, 3]
        assert (await handle.get()).generation == 3


async def test_health_tells_of_claims_cache_and_polls(world):
    """O2"""
    go = asyncio.Event()

    @world.step
    async def slow() -> None:
        await go.wait()

    @world.workflow
    async def flow(waits: bool) -> None:
        await (receive("never") if waits else slow())

    engine = world.process
    await flow.start(True)
    await flow.start(False)
    await world.settle()
    health = engine.health()
    assert (health.claimed, health.cached) == (1, 1)
    assert health.last_poll == world.clock.now()
    assert health.success_rate == 1
    assert health.lag.total_seconds() == 0
    go.set()
    with pytest.raises(InvalidState):
        Streamline.memory().health()
