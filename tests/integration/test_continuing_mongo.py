"""`continue_as_new` on a real mongod: long loops, messages from elsewhere, what crashes leave."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from streamline import (
    Registry,
    RunCancelled,
    Streamline,
    continue_as_new,
    current,
    receive,
    step,
    workflow,
)
from streamline.model import CommitResult, Status
from streamline.store.archive import Archive
from streamline.store.mongo import MongoStore
from tests.conformance.samples import BOOM, commit_of, continuing, entry, held_run, load

pytestmark = pytest.mark.mongo

SECONDS = 60.0
registry = Registry()


@step(registry=registry)
async def add(total: int, number: int) -> int:
    return total + number


@step(registry=registry)
async def key() -> str:
    return current().idempotency_key


@workflow(registry=registry)
async def collecting(generations: int, got: list[str]) -> list[str]:
    for _ in range(4):
        got.append(await receive("in", type=str))
    await key()
    if generations > 1:
        continue_as_new(generations - 1, got)
    return got


@workflow(registry=registry)
async def long_rounds(rounds: int, total: int = 0) -> int:
    for _ in range(250):  # past what a document keeps: into the archive
        total = await add(total, 1)
    if rounds > 1:
        continue_as_new(rounds - 1, total)
    await receive("end")
    return total


@workflow(registry=registry)
async def endless(n: int = 0) -> None:
    await key()
    continue_as_new(n + 1)


@pytest.fixture(params=["replica", "standalone"])
def address(request: pytest.FixtureRequest) -> str:
    """The URI of a database of this test's own, on each kind of server."""
    uri: str = request.getfixturevalue(f"mongod_{request.param}")
    head, _, options = uri.partition("?")
    return f"{head.rstrip('/')}/continue_{uuid.uuid4().hex[:8]}?{options}"


@pytest.fixture
async def worker(address: str) -> AsyncIterator[Streamline]:
    async with Streamline(address, registry=registry) as engine:
        yield engine


@pytest.fixture
async def client(address: str, worker: Streamline) -> AsyncIterator[Streamline]:
    """Another engine on the same database, that doesn't work."""
    async with Streamline(address, registry=registry, worker=False) as engine:
        yield engine


@pytest.fixture
async def raw(address: str) -> AsyncIterator[Any]:
    """The database, as anybody with a client sees it."""
    async with AsyncMongoClient[dict[str, Any]](address, tz_aware=True) as client:
        database = client.get_default_database()
        yield database
        await client.drop_database(database.name)


async def test_each_of_many_messages_is_taken_once_and_in_order(
    client: Streamline, worker: Streamline, raw: Any
) -> None:
    """200 messages of two senders, each sent up to three times, to 50 generations of one run."""
    run = await client.start_run(collecting, 50, [])

    async def send(engine: Streamline, sender: str) -> None:
        order = random.Random(sender)
        handle = engine.handle(run.id)
        for number in range(100):
            for _ in range(order.randint(1, 3)):
                await handle.send("in", f"{sender}{number}", id=f"{sender}{number}")
            if number > 10 and order.random() < 0.3:
                earlier = order.randrange(number)
                await handle.send("in", "again", id=f"{sender}{earlier}")

    await asyncio.gather(send(client, "a"), send(worker, "b"))
    got = await run.result(SECONDS)
    assert [text for text in got if text[0] == "a"] == [f"a{n}" for n in range(100)]
    assert [text for text in got if text[0] == "b"] == [f"b{n}" for n in range(100)]
    document = await run.get()
    assert (document.generation, document.inbox, document.inbox_seq) == (50, [], 200)
    assert await raw.workflow_journal.count_documents({}) == 0


async def test_the_archive_of_each_generation_goes_with_it(
    worker: Streamline, address: str, raw: Any
) -> None:
    run = await worker.start_run(long_rounds, 3)
    await _reach(worker, run.id, Status.WAITING)
    parts = await raw.workflow_journal.find({"run": run.id}).to_list()
    document = await raw.workflow_runs.find_one({"_id": run.id})
    assert sum(len(part["entries"]) for part in parts) == document["journal_base"] < 250
    assert {part["fence"] for part in parts} == {document["fence"]} == {3}
    await worker.stop()
    async with Streamline(address, registry=registry) as other:  # replays the archived journal
        await other.handle(run.id).send("end")
        assert await other.handle(run.id).result(SECONDS) == 750


async def _reach(engine: Streamline, run_id: str, status: Status) -> None:
    async with asyncio.timeout(SECONDS):
        while await engine.handle(run_id).status() is not status:  # noqa: ASYNC110 - a client
            await asyncio.sleep(0.02)


async def test_a_cancel_reaches_a_run_that_continues_all_the_time(
    client: Streamline, worker: Streamline
) -> None:
    for delay in (0.0, 0.05, 0.2):
        run = await client.start_run(endless)
        await asyncio.sleep(delay)
        await run.cancel("enough")
        with pytest.raises(RunCancelled, match="enough"):
            await run.result(SECONDS)


async def test_a_worker_that_stops_hands_over_between_generations(
    worker: Streamline, address: str, raw: Any
) -> None:
    run = await worker.start_run(endless)
    await asyncio.sleep(0.3)
    await worker.stop()
    before = await _generation(raw, run.id)
    async with Streamline(address, registry=registry) as other:
        async with asyncio.timeout(SECONDS):
            while await _generation(raw, run.id) <= before + 3:  # noqa: ASYNC110 - a client
                await asyncio.sleep(0.02)
        await other.handle(run.id).cancel()
        with pytest.raises(RunCancelled):
            await other.handle(run.id).result(SECONDS)


async def _generation(raw: Any, run_id: str) -> int:
    document = await raw.workflow_runs.find_one({"_id": run_id})
    generation: int = document.get("generation", 1)
    return generation


# -- a crash between the commit and what follows it -----------------------------------------------


@pytest.fixture
async def store(address: str, raw: Any) -> AsyncIterator[MongoStore]:
    store = MongoStore(address)
    await store.open()
    yield store
    await store.close()


class Died(Exception):
    pass


async def _leave_parts_behind(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archive three entries, continue, and die before they are removed."""
    run = held_run(store, expire_after=60.0)
    await store.create_run(run)
    old = tuple(entry(store, f"old{n}") for n in range(3))
    await store.commit(commit_of(run, entries=old))
    await store.commit(commit_of(await load(store), archive=old))
    with monkeypatch.context() as dying:

        async def die(*args: Any, **kwargs: Any) -> None:
            raise Died

        dying.setattr(Archive, "remove", die)
        with pytest.raises(Died):
            await store.commit(continuing(store, await load(store), journal_base=3))


async def _archive_new(store: MongoStore, *ids: str) -> None:
    """Write entries, and archive them with the next commit."""
    new = tuple(entry(store, id_) for id_ in ids)
    await store.commit(commit_of(await load(store), entries=new, generation=2))
    run = await load(store)
    moved = commit_of(run, archive=tuple(run.journal), journal_base=run.journal_base, generation=2)
    assert await store.commit(moved) is CommitResult.LANDED


async def test_what_a_crash_leaves_of_an_archive_is_never_read(
    store: MongoStore, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _leave_parts_behind(store, monkeypatch)
    assert await raw.workflow_journal.count_documents({"run": "r"}) == 1
    assert (await load(store)).generation == 2
    # The same indexes, in the same and in other portions than the part that was left behind.
    for ids in (("new0", "new1", "new2"), ("new3",)):
        await _archive_new(store, *ids)
    found = await store.load_archive("r", 4)
    assert [each.id for each in found] == ["new0", "new1", "new2", "new3"]
    # The next continuation takes everything with it.
    again = continuing(store, await load(store), journal_base=4)
    assert await store.commit(again) is CommitResult.LANDED
    assert await raw.workflow_journal.count_documents({"run": "r"}) == 0


async def test_what_a_crash_leaves_of_an_archive_expires_with_the_run(
    store: MongoStore, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _leave_parts_behind(store, monkeypatch)
    at = store.clock.now() + timedelta(seconds=60)
    run = await load(store)
    done = commit_of(run, Status.DONE, generation=run.generation, expire_at=at)
    assert await store.commit(done) is CommitResult.LANDED
    [part] = await raw.workflow_journal.find({"run": "r"}).to_list()
    assert part["expire_at"] == at


async def test_what_a_crash_leaves_of_an_archive_expires_with_a_terminated_run(
    store: MongoStore, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _leave_parts_behind(store, monkeypatch)
    await store.terminate("r", BOOM)
    [part] = await raw.workflow_journal.find({"run": "r"}).to_list()
    assert part["expire_at"] == (await load(store)).expire_at
