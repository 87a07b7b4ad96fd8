"""Large payloads on a real mongod: a 100 MB result, its replay, encryption, retention, GridFS."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import bson
import pytest
from gridfs import AsyncGridFSBucket
from pymongo import AsyncMongoClient

from streamline import (
    AesGcm,
    PayloadTooLarge,
    Registry,
    RunConflict,
    RunFailed,
    Streamline,
    WorkflowRun,
    receive,
    step,
    wait,
    workflow,
)
from streamline.codec import CODEC_OPTIONS
from tests.servers import Mongod

pytestmark = pytest.mark.mongo

KILO, MEGA = 1000, 1000 * 1000
SECONDS = 60.0
MARK = b"attack-at-dawn"
registry = Registry()


@step(registry=registry)
async def fetch(size: int) -> bytes:
    return MARK + b"x" * (size - len(MARK))


@step(registry=registry)
async def count(rows: list[dict[str, Any]]) -> int:
    return len(rows)


@workflow(registry=registry)
async def fetching(size: int) -> int:
    fetched = await fetch(size)
    await wait("go on", name="on")
    return len(fetched)


@workflow(registry=registry)
async def counting(rows: list[dict[str, Any]]) -> int:
    return await count(rows)


@workflow(registry=registry)
async def echoing() -> bytes:
    return await receive("mail", type=bytes)


@pytest.fixture(scope="module")
def mongod() -> Iterator[Mongod]:
    """A replica set of one that deletes what expired every second."""
    with Mongod(parameters={"ttlMonitorSleepSecs": 1}) as mongod:
        yield mongod


@pytest.fixture
async def raw(mongod: Mongod) -> AsyncIterator[Any]:
    """Give a database of this test's own, as anybody with a client sees it."""
    async with AsyncMongoClient(mongod.uri) as client:
        database = client[f"large_{uuid.uuid4().hex[:8]}"]
        yield database
        await client.drop_database(database.name)


@pytest.fixture
def address(mongod: Mongod, raw: Any) -> str:
    head, _, options = mongod.uri.partition("?")
    return f"{head.rstrip('/')}/{raw.name}?{options}"


async def parked(engine: Streamline, run_id: str) -> WorkflowRun:
    async with asyncio.timeout(SECONDS):
        while True:
            run = await engine.handle(run_id).get()
            if run.status == "waiting" or run.ended_at is not None:
                return run
            await asyncio.sleep(0.02)


async def until_left(collection: Any, number: int) -> None:
    """Wait until so many documents are left."""
    async with asyncio.timeout(SECONDS):
        while await collection.count_documents({}) > number:  # noqa: ASYNC110 - others delete them
            await asyncio.sleep(0.05)


async def test_a_result_of_100_mb_works_and_a_new_worker_replays_it(address: str, raw: Any) -> None:
    size = 100 * MEGA
    async with Streamline(address, registry=registry) as first:
        run = await first.start_run(fetching, size)
        document = await parked(first, run.id)
    assert document.status == "waiting"
    (entry,) = document.journal
    assert entry.value["size"] == size + 13
    stored = await raw.workflow_runs.find_one({"_id": run.id})
    assert len(bson.encode(stored)) < 2 * KILO
    head = await raw.workflow_payloads.find_one({"run": run.id})
    assert (head["_id"], head["chunks"]) == (entry.value["payload"], 12)
    assert "content" not in head
    # What lies beside is ordinary GridFS.
    bucket = AsyncGridFSBucket(raw, "workflow_payloads")
    stream = await bucket.open_download_stream(head["_id"])
    content = bson.decode(await stream.read(), CODEC_OPTIONS)["v"]
    assert (len(content), content[:20]) == (size, MARK + b"x" * 6)
    async with Streamline(address, registry=registry) as second:
        handle = second.handle(run.id)
        await handle.resume()
        assert await handle.result(SECONDS) == size
        assert len(await handle.load(entry.value)) == size


async def test_an_input_of_20_mb_works(address: str, raw: Any) -> None:
    rows = [{"id": number, "name": f"{number}" * 200} for number in range(25_000)]
    async with Streamline(address, registry=registry) as engine:
        run = await counting.options(id="one", engine=engine).start(rows)
        assert await run.result(SECONDS) == len(rows)
        size = (await run.get()).input.args[0]["size"]
        assert size > 20 * MEGA
        again = await counting.options(id="one", engine=engine).start(rows)
        assert await again.result(SECONDS) == len(rows)
        rows[-1]["name"] = "another"
        with pytest.raises(RunConflict):
            await counting.options(id="one", engine=engine).start(rows)
    assert await raw.workflow_payloads.count_documents({}) == 1
    assert await raw["workflow_payloads.files"].count_documents({}) == 1


async def test_a_message_of_1_mb_is_kept_as_it_is_in_a_document(address: str, raw: Any) -> None:
    async with Streamline(address, registry=registry) as engine:
        run = await engine.start_run(echoing)
        await parked(engine, run.id)
        await run.send("mail", b"x" * MEGA)
        assert await run.result(SECONDS) == b"x" * MEGA
        contents = [p["content"] async for p in raw.workflow_payloads.find({"run": run.id})]
        assert contents == [{"v": b"x" * MEGA}] * 2  # the message and the output
        found = await WorkflowRun.find_one(WorkflowRun.id == run.id)
        assert found is not None
        assert found.output == (await run.get()).output
        assert await run.load(found.output) == b"x" * MEGA
        assert await WorkflowRun.find({"output.payload": found.output["payload"]}).count() == 1


async def test_a_payload_beyond_the_limit_is_a_clear_error(address: str) -> None:
    async with Streamline(address, registry=registry, payload_limit=MEGA) as engine:
        with pytest.raises(PayloadTooLarge, match=r"the arguments of run .* 1,000,000 are allowed"):
            await engine.start_run(counting, [{"x": "x" * MEGA}])
        run = await engine.start_run(fetching, MEGA)
        with pytest.raises(RunFailed, match=r"the result of step 'fetch' .* 1,000,000 are") as it:
            await run.result(SECONDS)
        assert it.value.error_code == "PAYLOAD_TOO_LARGE"


async def test_large_payloads_are_ciphertext_in_the_database(address: str, raw: Any) -> None:
    codec = AesGcm({"k": b"k" * 32}, current="k")
    async with Streamline(address, registry=registry, payload_codec=codec) as engine:
        runs = [await engine.start_run(fetching, size) for size in (MEGA, 17 * MEGA)]
        mail = await engine.start_run(echoing)
        await mail.send("mail", MARK * 100_000)
        assert await mail.result(SECONDS) == MARK * 100_000
        for run in runs:
            await parked(engine, run.id)
        for name in await raw.list_collection_names():
            async for document in raw[name].find():
                assert MARK not in bson.encode(document)
    async with Streamline(address, registry=registry, payload_codec=codec) as second:
        for run, size in zip(runs, (MEGA, 17 * MEGA), strict=True):
            await second.handle(run.id).resume()
            assert await second.handle(run.id).result(SECONDS) == size


async def test_large_payloads_go_with_their_run(address: str, raw: Any) -> None:
    async with Streamline(address, registry=registry) as engine:
        expiring = fetching.options(expire_after="1s", engine=engine)
        kept = await engine.start_run(fetching, MEGA)
        for size in (MEGA, 17 * MEGA):
            run = await expiring.start(size)
            await parked(engine, run.id)
            await run.resume()
            await run.result(SECONDS)
        await parked(engine, kept.id)
        assert await engine.store.sweep_payloads() == 0
        assert await raw.workflow_payloads.count_documents({}) == 3
        await until_left(raw.workflow_runs, 1)  # MongoDB deletes what expired
        now = engine.store.clock.now()
        due = {"check_at": {"$lte": now + timedelta(minutes=3)}}
        await raw.workflow_payloads.update_many(due, {"$set": {"check_at": now}})
        assert await engine.store.sweep_payloads() == 2
        assert [head["run"] async for head in raw.workflow_payloads.find()] == [kept.id]
        for name in ("files", "chunks"):
            assert await raw[f"workflow_payloads.{name}"].count_documents({}) == 0


async def test_a_worker_sweeps_by_itself(
    address: str, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamline.worker.sweeper.EVERY", 0.05)
    async with Streamline(address, registry=registry) as engine:
        long_ago = engine.store.clock.now() - timedelta(days=2)
        await raw.workflow_payloads.insert_one(
            {"_id": bson.ObjectId.from_datetime(long_ago), "run": "gone", "check_at": long_ago}
        )
        await until_left(raw.workflow_payloads, 0)


async def test_a_payload_that_somebody_deleted_fails_its_run_alone(address: str, raw: Any) -> None:
    async with Streamline(address, registry=registry) as first:
        bad, good = [await first.start_run(fetching, MEGA) for _ in range(2)]
        for run in (bad, good):
            await parked(first, run.id)
    await raw.workflow_payloads.delete_one({"run": bad.id})
    async with Streamline(address, registry=registry) as second:
        for run in (bad, good):
            await second.handle(run.id).resume()
        assert await second.handle(good.id).result(SECONDS) == MEGA
        with pytest.raises(RunFailed, match=r"journal/step/fetch/1.*is missing") as caught:
            await second.handle(bad.id).result(SECONDS)
        assert caught.value.error_code == "DATA_CORRUPTION"
        assert bad.id in str(caught.value)
