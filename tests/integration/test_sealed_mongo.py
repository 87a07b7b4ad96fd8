"""Encrypted payloads on a real mongod: nothing that a user passes can be read in the database."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import bson
import pytest
from pymongo import AsyncMongoClient

from streamline import (
    AesGcm,
    Registry,
    RunCancelled,
    RunFailed,
    Streamline,
    WorkflowRun,
    continue_as_new,
    current,
    heartbeat,
    receive,
    step,
    wait,
    workflow,
)
from streamline.errors import DataCorruption

pytestmark = pytest.mark.mongo

MARK = "attack-at-dawn"
SECONDS = 10.0
registry = Registry()


class Refused(Exception):
    def __init__(self, who: str) -> None:
        super().__init__(f"refused: {who}")
        self.who = who


@step(registry=registry, attempts=2, wait=lambda state: 0.0)
async def whisper(text: str, *, to: str) -> dict[str, str]:
    heartbeat({"at": text})
    if current().attempt == 1:
        await asyncio.sleep(0.1)  # for the heartbeat to be written
        raise Refused(text)
    return {"text": text, "to": to}


@step(registry=registry, attempts=1)
async def refuse(text: str) -> None:
    raise Refused(text) from LookupError(text)


@workflow(registry=registry)
async def telling(text: str, *, to: str) -> list[Any]:
    told = await whisper(text, to=to)
    mail = await receive("mail", type=str)
    answer = await wait(f"May I tell {text}?", data={"text": text}, name="answer", type=str)
    for number in range(210):  # past what a document keeps: into the archive
        await short(f"{text} {number}")
    last = await wait("And now?", name="last")
    return [told, mail, answer, last]


@workflow(registry=registry)
async def renewing(text: str, generations: int) -> str:
    for number in range(210):
        await short(f"{text} {number}")
    await receive("mail", type=str)
    if generations > 1:
        continue_as_new(text, generations - 1)
    return text


@step(registry=registry)
async def short(text: str) -> str:
    return text


@workflow(registry=registry)
async def failing(text: str) -> None:
    await refuse(text)


@pytest.fixture
async def raw(mongod_replica: str) -> AsyncIterator[Any]:
    """Give a database of this test's own, as anybody with a client sees it."""
    async with AsyncMongoClient(mongod_replica) as client:
        database = client[f"sealed_{uuid.uuid4().hex[:8]}"]
        yield database
        await client.drop_database(database.name)


@pytest.fixture
async def engine(mongod_replica: str, raw: Any) -> AsyncIterator[Streamline]:
    head, _, options = mongod_replica.partition("?")
    sealing = AesGcm({"k": b"k" * 32}, current="k")
    address = f"{head.rstrip('/')}/{raw.name}?{options}"
    async with Streamline(address, registry=registry, payload_codec=sealing) as engine:
        yield engine


async def _reach(engine: Streamline, run_id: str, wait_name: str) -> WorkflowRun:
    async with asyncio.timeout(SECONDS):
        while True:
            run = await engine.handle(run_id).get()
            if run.status == "waiting" and [slot.name for slot in run.awaiting] == [wait_name]:
                return run
            await asyncio.sleep(0.01)


async def _check_unreadable(raw: Any) -> None:
    for name in await raw.list_collection_names():
        async for document in raw[name].find():
            assert MARK.encode() not in bson.encode(document), (name, document)


async def test_no_payload_can_be_read_in_the_database(engine: Streamline, raw: Any) -> None:
    run = await engine.start_run(telling, MARK, to=f"{MARK}!")
    await _reach(engine, run.id, "mail")
    await _check_unreadable(raw)
    await run.send("mail", f"letter {MARK}")
    asked = await _reach(engine, run.id, "answer")
    assert (asked.awaiting[0].reason, asked.awaiting[0].data) == (
        f"May I tell {MARK}?",
        {"text": MARK},
    )
    await run.send("mail", f"never taken {MARK}")
    await _check_unreadable(raw)
    await run.resume(f"yes {MARK}")
    await _reach(engine, run.id, "last")
    await _check_unreadable(raw)
    assert await raw.workflow_journal.count_documents({"run": run.id}) > 0
    await run.resume(MARK)
    told = {"text": MARK, "to": f"{MARK}!"}
    assert await run.result(SECONDS) == [told, f"letter {MARK}", f"yes {MARK}", MARK]
    await _check_unreadable(raw)


async def test_nothing_can_be_read_of_a_run_that_continues_as_new(
    engine: Streamline, raw: Any
) -> None:
    run = await engine.start_run(renewing, MARK, 2)
    for _ in range(2):
        await run.send("mail", f"letter {MARK}")
    assert await run.result(SECONDS) == MARK
    assert (await raw.workflow_runs.find_one({"_id": run.id}))["generation"] == 2
    await _check_unreadable(raw)


async def test_no_error_can_be_read_in_the_database(engine: Streamline, raw: Any) -> None:
    failed = await engine.start_run(failing, MARK)
    with pytest.raises(RunFailed) as caught:
        await failed.result(SECONDS)
    assert isinstance(caught.value.__cause__, Refused)
    assert caught.value.__cause__.who == MARK
    cancelled = await engine.start_run(telling, "x", to="y")
    await _reach(engine, cancelled.id, "mail")
    await cancelled.cancel(f"because of {MARK}")
    with pytest.raises(RunCancelled, match=MARK):
        await cancelled.result(SECONDS)
    ended = await engine.start_run(telling, "x", to="y")
    await ended.terminate(f"because of {MARK}")
    with pytest.raises(RunCancelled, match=MARK):
        await ended.result(SECONDS)
    await _check_unreadable(raw)


async def test_beanie_reads_sealed_values_and_what_stays_plain(
    engine: Streamline, raw: Any
) -> None:
    run = await engine.start_run(failing, MARK)
    await run.wait(SECONDS)
    found = await WorkflowRun.find_one(WorkflowRun.id == run.id)
    assert found is not None
    assert found.code == "sealed/failing"
    assert (found.workflow, found.status, found.journal[0].id) == ("failing", "failed", "refuse")
    assert found.error is not None
    assert (found.error.code, found.error.step) == ("STEP_FAILED", "refuse")
    assert found.error.message == "(sealed)"
    assert found.input.args[0].keys() == {"key", "aes_gcm"}


async def test_a_tampered_run_fails_alone_and_those_who_wait_learn_why(
    engine: Streamline, raw: Any
) -> None:
    bad, good = [await engine.start_run(telling, "x", to="y") for _ in range(2)]
    for run in (bad, good):
        await _reach(engine, run.id, "mail")
    waiting = asyncio.create_task(bad.result(SECONDS))
    await asyncio.sleep(0.1)
    await raw.workflow_runs.update_one({"_id": bad.id}, {"$set": {"input.args": ["plain"]}})
    with pytest.raises(DataCorruption, match=bad.id):
        await bad.send("mail", "x")
    await raw.workflow_runs.update_one(
        {"_id": bad.id}, [{"$set": {"due_at": "$$NOW", "inbox_seq": 1}}]
    )
    with pytest.raises(RunFailed, match="is not encrypted") as caught:
        await waiting
    assert caught.value.error_code == "DATA_CORRUPTION"
    await good.send("mail", "x")
    await _reach(engine, good.id, "answer")
