"""A message to a run that is parked here claims it in the same write, and it goes on at once."""

from __future__ import annotations

import asyncio

import pytest
from engine_support import SECONDS, until, until_status

from streamline import Status, Streamline, ValidationError, receive, wait
from streamline.errors import ServerUnavailable
from streamline.store.memory import MemoryStore


@pytest.fixture
def listener(world):
    @world.workflow
    async def listener(count: int) -> list[int]:
        return [await receive("numbers", type=int) for _ in range(count)]

    return listener


@pytest.fixture
def endless(world):
    @world.step
    async def endless() -> None:
        await asyncio.sleep(1000)

    return endless


@pytest.fixture
def local(world):
    """The engine that sends is the worker, as in an app that does both."""
    return world.process


async def parked(world, local, flow, *args):
    handle = await flow.options(engine=local).start(*args)
    await until(lambda: local.worker.cached == 1 and local.worker.claimed == 0)
    return handle


async def test_it_goes_on_without_a_claim_of_its_own(world, local, listener, monkeypatch):
    handle = await parked(world, local, listener, 3)

    async def never(*args, **options):
        raise AssertionError("this message took more than the write itself")

    for verb in ("claim_run", "load_run", "post"):
        monkeypatch.setattr(local.mortal_store, verb, never)
    for number in range(3):
        await handle.send("numbers", number)
        await until(lambda: local.worker.claimed == 0)
    monkeypatch.undo()
    assert await handle.result(SECONDS) == [0, 1, 2]
    assert (await world.run(handle.id)).fence == 4, "one claim at the start, one a message"


async def test_a_wait_is_resumed_and_checked_without_a_look(world, local, monkeypatch):
    @world.workflow
    async def asking() -> int:
        return await wait("how many?", type=int)

    handle = await parked(world, local, asking)
    with pytest.raises(ValidationError):
        await handle.resume("many")
    assert (await world.run(handle.id)).inbox_seq == 0
    assert local.worker.cached == 1, "put back where it was"
    await handle.resume(3)
    assert await handle.result(SECONDS) == 3


async def test_the_process_dies_after_the_write_that_claimed(world, local, listener):
    """The message was acknowledged: whoever takes the run over finds it."""
    handle = await parked(world, local, listener, 1)
    store = local.mortal_store
    post = store.post_to_parked

    async def dying(*args, **options):
        run = await post(*args, **options)
        world.crash_soon()
        return run

    store.post_to_parked = dying
    await handle.send("numbers", 7)
    assert await world.handle(handle.id).result(SECONDS) == [7]
    assert (await world.run(handle.id)).fence == 3


async def test_a_sender_that_is_cancelled_strands_no_run(world, local, listener):
    """The write may have claimed the run: then it is driven here, whoever waits for the reply."""
    handle = await parked(world, local, listener, 1)
    store, done, never = local.mortal_store, asyncio.Event(), asyncio.Event()
    post = store.post_to_parked

    async def unheard(*args, **options):
        run = await post(*args, **options)
        done.set()
        await never.wait()
        return run

    store.post_to_parked = unheard
    sender = asyncio.create_task(handle.send("numbers", 7))
    await done.wait()
    sender.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sender
    assert await handle.result(SECONDS) == [7]


async def test_a_write_that_did_not_land_leaves_the_run_parked(world, local, listener):
    handle = await parked(world, local, listener, 1)
    store = local.mortal_store
    post = store.post_to_parked

    async def away(*args, **options):
        store.post_to_parked = post
        raise ServerUnavailable("away")

    store.post_to_parked = away
    with pytest.raises(ServerUnavailable):
        await handle.send("numbers", 1)
    await until(lambda: local.worker.cached == 1)
    await handle.send("numbers", 2)
    assert await handle.result(SECONDS) == [2]


async def test_a_run_that_another_took_meanwhile_gets_its_message(world, local, listener):
    """What is cached here is stale: the message goes by way of the store."""
    handle = await parked(world, local, listener, 2)
    other = await world.another_worker()
    await local.mortal_store.post(handle.id, local.control._message("send", "numbers", 1, None))
    run = await other.mortal_store.claim_run(other.worker.scheduler.new_claim(), handle.id)
    other.worker.adopt(run)
    await until(lambda: other.worker.claimed == 0)
    await until_status(handle, Status.WAITING)
    await handle.send("numbers", 2)
    assert await handle.result(SECONDS) == [1, 2]


async def test_a_message_with_an_id_counts_once(world, local, listener):
    """W6: whether it lies in the inbox, was taken, or is in the archive."""
    handle = await parked(world, local, listener, 3)
    for number, name in enumerate(("one", "two", "three")):
        for _ in range(3):
            await handle.send("numbers", number, id=name)
        await until(lambda: local.worker.claimed == 0)
        await handle.send("numbers", -1, id="one")
    assert await handle.result(SECONDS) == [0, 1, 2]


async def test_a_message_whose_first_was_archived_counts_once(world, local, monkeypatch):
    @world.workflow
    async def long() -> list[int]:
        return [await receive("numbers", type=int) for _ in range(4)]

    monkeypatch.setattr("streamline.worker.tail.MAX_ENTRIES", 2)
    handle = await parked(world, local, long)
    for number in range(3):
        await handle.send("numbers", number, id=f"n{number}")
        await until(lambda: local.worker.claimed == 0)
    assert (await world.run(handle.id)).journal_base == 2
    await handle.send("numbers", -1, id="n0")
    await until(lambda: local.worker.claimed == 0)
    await handle.send("numbers", 3, id="n3")
    assert await handle.result(SECONDS) == [0, 1, 2, 3]


async def test_a_start_that_is_cancelled_strands_no_run(world, local, listener):
    @world.workflow
    async def quick() -> int:
        return 1

    store, done, never = local.mortal_store, asyncio.Event(), asyncio.Event()
    create = store.create_run

    async def unheard(run):
        created = await create(run)
        done.set()
        await never.wait()
        return created

    store.create_run = unheard
    start = asyncio.create_task(quick.options(engine=local, id="q").start())
    await done.wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert await world.handle("q").result(SECONDS) == 1


async def test_what_comes_in_before_the_claims_reply_is_heard_of(
    world, local, monkeypatch, endless
):
    """It finds the run neither parked nor driven: whoever takes the run in must look."""

    @world.workflow
    async def listener() -> None:
        await receive("numbers", type=int)
        await endless()

    handle = await parked(world, local, listener)
    post = local.mortal_store.post_to_parked

    async def slowly(*args, **options):
        run = await post(*args, **options)
        if run is not None:
            await asyncio.create_task(handle.cancel())
        return run

    monkeypatch.setattr(local.mortal_store, "post_to_parked", slowly)
    await handle.send("numbers", 1)
    await until_status(handle, Status.CANCELLED)


async def test_a_check_that_breaks_down_strands_no_run(world, local, listener):
    """As a validator of the user's may."""
    handle = await parked(world, local, listener, 1)

    def compose(run):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await local._control._delivery.deliver(handle.id, compose)
    assert local.worker.cached == 1
    assert local.worker._places.kept == 0
    await handle.send("numbers", 1)
    assert await handle.result(SECONDS) == [1]


async def test_a_message_between_a_claim_and_its_reply_is_seen(world, local, monkeypatch, endless):
    """It finds the run claimed, but not driven yet; the reply doesn't have it."""

    @world.workflow
    async def woken() -> None:
        await receive("numbers", type=int)
        await endless()

    store, between = local.mortal_store, []
    for verb in (store.claim_due, store.claim_run):

        async def slowly(*args, verb=verb):
            claimed = await verb(*args)
            if claimed:
                between.append(await asyncio.create_task(handle.cancel()))
            return claimed

        monkeypatch.setattr(store, verb.__name__, slowly)
    handle = await parked(world, local, woken)
    store = MemoryStore(world.clock, data=world._shared)
    async with Streamline(store=store, worker=False, registry=world.registry) as client:
        await client.handle(handle.id).send("numbers", 1)
    await until_status(handle, Status.CANCELLED)
    assert len(between) == 1


async def test_a_message_between_a_start_and_its_reply_is_seen(world, local, monkeypatch, endless):
    """As above: whoever made up the run's id can write to it at once."""

    @world.workflow
    async def busy() -> None:
        await endless()

    store = local.mortal_store
    create = store.create_run

    async def slowly(*args):
        created = await create(*args)
        await asyncio.create_task(local.handle("mine").cancel())
        return created

    monkeypatch.setattr(store, "create_run", slowly)
    handle = await busy.options(engine=local, id="mine").start()
    await until_status(handle, Status.CANCELLED)
