"""What `make chaos` found, each made certain in memory."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from engine_support import SECONDS, until, until_status
from pymongo.errors import OperationFailure
from tenacity import wait_fixed

from streamline import ServerUnavailable, Status, receive
from streamline.store.connection import Connection
from streamline.store.memory import MemoryStore
from streamline.worker import held
from streamline.worker.leases import LeaseKeeper


async def test_an_outage_while_a_run_is_read_does_not_fail_it(world, monkeypatch):
    """Nor does it hand the run back: the reads of a driver go through outages as its commits do."""
    monkeypatch.setattr(held, "RETRY_OUTAGE", 0.01)
    go_on, outages = asyncio.Event(), []

    @world.step
    async def hold() -> None:
        await go_on.wait()

    @world.workflow
    async def flow() -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(hold())
            return await receive("word", type=str)

    store = world.process.mortal_store
    load_run = store.load_run

    async def away(run_id, *, journal=True, inbox=True):
        if len(outages) < 2:
            outages.append(run_id)
            raise ServerUnavailable("away for longer than its timeout")
        return await load_run(run_id, journal=journal, inbox=inbox)

    handle = await flow.start()
    await until(lambda: world.process.worker.quiet)
    monkeypatch.setattr(store, "load_run", away)
    await handle.send("word", "heard")
    await until(lambda: len(outages) == 2)
    go_on.set()
    assert await handle.result(SECONDS) == "heard"


async def test_a_parked_body_is_not_taken_for_that_of_a_restarted_run(world):
    """Another run of the same id may come to the same `rev`; its body is another all the same."""

    @world.workflow
    async def flow(word: str) -> str:
        return word + await receive("word", type=str)

    first, second = world.process.worker, (await world.another_worker()).worker
    second._concurrency = 0
    handle = await flow.options(id="again").start("old ")
    await until_status(handle, Status.WAITING)
    await handle.terminate()
    await world.advance(1)
    first._concurrency, second._concurrency = 0, 1
    second.scheduler.notice_room()
    await flow.options(id="again", on_existing="restart").start("new ")
    await until(lambda: second.cached)
    first._concurrency, second._concurrency = 1, 0
    first.scheduler.notice_room()
    await handle.send("word", "heard")
    assert await handle.result(SECONDS) == "new heard"


async def test_one_claim_that_fails_does_not_strand_the_others(world, monkeypatch):
    """Of runs claimed by name at once, those that were got are driven."""

    @world.workflow
    async def flow() -> str:
        return await receive("word", type=str)

    store = world.process.mortal_store
    handles = [await flow.start() for _ in range(2)]
    for handle in handles:
        await until_status(handle, Status.WAITING)
    claim_run, asked = store.claim_run, []

    async def claim(claim, run_id):
        asked.append(run_id)
        if asked == [handles[0].id]:
            raise ServerUnavailable("away")
        await asyncio.sleep(0.01)
        return await claim_run(claim, run_id)

    monkeypatch.setattr(store, "claim_run", claim)
    await asyncio.gather(*(handle.send("word", "heard") for handle in handles))
    assert await handles[1].result(SECONDS) == "heard"
    assert (await handles[1].get()).fence == 2  # claimed at its start and for the message
    assert await handles[0].result(SECONDS) == "heard"


async def test_leases_are_renewed_after_an_error_of_any_kind():
    """An error that no repetition cures (a full disk, a right taken away) ends no thread."""

    class Store(MemoryStore):
        renewals = 0

        def renew(self, worker, held, lease):
            self.renewals += 1
            if self.renewals == 1:
                raise OperationFailure("no space left on device", 14031)
            return super().renew(worker, held, lease)

    store, renewed = Store(), []
    keeper = LeaseKeeper(
        store,
        "worker",
        0.03,
        held=lambda: {"run": 1},
        on_renewal=lambda *told: renewed.append(told),
        on_lapse=lambda: None,
        blocked_after=1.0,
    )
    keeper.start()
    try:
        await until(lambda: renewed)
    finally:
        await keeper.stop()


async def test_a_cancel_ends_a_run_that_was_paused_twice(world):
    """A pause holds until a cancel, however many were sent; an acknowledged cancel is acted on."""
    cleaned = []

    @world.step
    async def clean() -> None:
        cleaned.append(1)

    @world.workflow
    async def flow() -> None:
        try:
            await receive("never")
        finally:
            await clean()

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    await handle.pause()
    await until_status(handle, Status.PAUSED)
    await handle.pause()
    await handle.cancel()
    assert (await handle.wait(SECONDS)).status is Status.CANCELLED
    assert cleaned


async def test_a_claim_that_lapses_while_its_run_is_read_writes_nothing(world, monkeypatch):
    """Its steps are cancelled and forgotten by then: it would park the run as if none were asked.

    Found with seed 301: a run stood still for ever, beside a message in its inbox.
    """
    go_on, reading, read = asyncio.Event(), asyncio.Event(), asyncio.Event()
    calls = []

    @world.step
    async def hold() -> None:
        calls.append(1)
        if len(calls) == 1:
            await go_on.wait()

    @world.workflow
    async def flow() -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(hold())
            return await receive("word", type=str)

    store = world.process.mortal_store
    load_run = store.load_run

    async def slow(run_id, *, journal=True, inbox=True):
        reading.set()
        await read.wait()
        return await load_run(run_id, journal=journal, inbox=inbox)

    handle = await flow.start()
    await until(lambda: world.process.worker.quiet)
    monkeypatch.setattr(store, "load_run", slow)
    await handle.send("word", "heard")
    await reading.wait()
    world.process.worker.drivers.lose(handle.id)  # its lease ran out here; nobody else has taken it
    read.set()
    await world.another_worker()
    assert await handle.result(SECONDS) == "heard"
    assert len(calls) == 2


async def test_a_body_parked_by_a_claim_that_lapsed_is_not_gone_on_with(world):
    """Its board of steps was emptied, so the retry that it waits for would never come."""
    calls = []

    @world.step(attempts=2, wait=wait_fixed(60))
    async def flaky() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("at first")
        return "done"

    @world.workflow
    async def flow() -> str:
        return await flaky()

    def lapse(commit):
        if commit.status is Status.WAITING:
            world.process.worker.drivers.lose(commit.run_id)
        return False

    world.process.mortal_store.before_commit = lapse
    handle = await flow.start()
    assert await handle.result(SECONDS) == "done"
    assert len(calls) == 2


async def test_a_claim_that_cannot_be_handed_back_stops_nothing(world, monkeypatch):
    """Whatever the server says to it: the lease runs out by itself."""
    calls = []

    @world.step
    async def hold() -> str:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return "done"

    @world.workflow
    async def flow() -> str:
        return await hold()

    async def refuse(run_id, fence, *, faulty=False):
        raise OperationFailure("no space left on device", 14031)

    world.process.worker._concurrency = 0
    other = await world.another_worker()
    monkeypatch.setattr(other.mortal_store, "release", refuse)
    handle = await flow.start()
    await until(lambda: calls)
    await other.stop(0)
    world.process.worker._concurrency = 1
    world.process.worker.scheduler.notice_room()
    assert await handle.result(SECONDS) == "done"


class TestCancelledWaitForAPrimary:
    """PyMongo's lock of the topology turns it into a RuntimeError. Found with seed 700, set."""

    async def wait(self, again):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("Lock is not acquired") from None

    async def test_at_its_timeout_the_server_is_unavailable(self):
        connection = Connection("mongodb://host/", timeout=timedelta(milliseconds=10))
        with pytest.raises(ServerUnavailable, match="did not answer within"):
            await connection.persist(self.wait)

    async def test_from_outside_it_is_cancelled(self):
        connection = Connection("mongodb://host/", timeout=timedelta(seconds=10))
        task = asyncio.create_task(connection.persist(self.wait))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
