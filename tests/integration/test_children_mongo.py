"""Children on a real mongod: with change streams on a replica set, polling on a standalone.

Each engine is a process as far as the server knows: they have nothing but the server in common.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from streamline import (
    Registry,
    RunCancelled,
    RunFailed,
    Status,
    Streamline,
    WorkflowRun,
    receive,
    sleep,
    step,
    workflow,
)
from streamline.codec import AesGcm
from streamline.model import Dispatch, DispatchKind
from tests.acceptance.apps.worker import address_of

pytestmark = pytest.mark.mongo

SECONDS = 15.0
parents = Registry()
children = Registry()
everything = Registry()


@dataclass
class Box:
    number: int


for _registry in (children, everything):

    @step(name="double", registry=_registry)
    async def double(number: int) -> int:
        return number * 2

    @workflow(name="boxed", registry=_registry)
    async def boxed(number: int) -> Box:
        return Box(await double(number))

    @workflow(name="broken", registry=_registry)
    async def broken() -> None:
        raise LookupError("nothing there")

    @workflow(name="slow", registry=_registry)
    async def slow() -> str:
        return await receive("go", type=str)


for _registry in (parents, everything):

    @workflow(name="summing", registry=_registry)
    async def summing(count: int) -> int:
        boxes = await asyncio.gather(*(boxed(number) for number in range(count)))
        return sum(box.number for box in boxes)

    @workflow(name="failing", registry=_registry)
    async def failing() -> str:
        try:
            await broken()
        except RunFailed as error:
            return repr(error.__cause__)
        return "nothing raised"

    @workflow(name="holding", registry=_registry)
    async def holding() -> str:
        await slow.start()
        return await slow()

    @workflow(name="hasty", registry=_registry)
    async def hasty() -> str:
        try:
            async with asyncio.timeout(2):  # on a slow machine, too, the child has begun by then
                return await slow()
        except TimeoutError:
            await sleep(0.6)
            return "too late"

    @workflow(name="sharing", registry=_registry)
    async def sharing(id: str) -> str:
        return await slow.options(id=id)()


@pytest.fixture(params=["replica", "standalone"])
def address(request: pytest.FixtureRequest) -> str:
    """The URI of a database of this test's own, on each kind of server."""
    uri: str = request.getfixturevalue(f"mongod_{request.param}")
    return address_of(uri, f"children_{uuid.uuid4().hex[:8]}")


@pytest.fixture
async def engine(address: str) -> AsyncIterator[Streamline]:
    async with Streamline(address, registry=everything) as engine:
        yield engine


async def until_status(engine: Streamline, run_id: str, *statuses: Status) -> WorkflowRun:
    async with asyncio.timeout(SECONDS):
        while (run := await engine.handle(run_id).get()).status not in statuses:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return run


async def test_a_parent_takes_the_results_of_its_children(engine: Streamline) -> None:
    run = await engine.start_run(summing, 30)
    assert await run.result(SECONDS) == sum(n * 2 for n in range(30))
    assert await (await engine.start_run(failing)).result(SECONDS) == (
        "LookupError('nothing there')"
    )
    await engine.control._worker.courier.finish()
    left = await WorkflowRun.find({"outbox": {"$exists": True}}).to_list()
    assert left == []


async def test_parent_and_children_live_in_different_processes(address: str) -> None:
    async with (
        Streamline(address, registry=parents) as first,
        Streamline(address, registry=children),
        Streamline(address, registry=everything, worker=False) as client,
    ):
        runs = [await client.start_run(summing, 5) for _ in range(10)]
        assert [await run.result(SECONDS) for run in runs] == [20] * 10
        assert await (await first.start_run(failing)).result(SECONDS) == (
            "LookupError('nothing there')"
        )


@pytest.mark.parametrize("how", ["cancel", "terminate"])
async def test_a_cancel_goes_down_to_other_processes(address: str, how: str) -> None:
    async with (
        Streamline(address, registry=parents),
        Streamline(address, registry=children),
        Streamline(address, registry=everything, worker=False) as client,
    ):
        run = await client.start_run(holding)
        ids = [f"{run.id}/slow", f"{run.id}/slow#2"]
        async with asyncio.timeout(SECONDS):
            while await _count(client, ids) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await getattr(run, how)()
        with pytest.raises(RunCancelled):
            await run.result(SECONDS)
        for child in ids:
            await until_status(client, child, Status.CANCELLED)


async def _count(engine: Streamline, ids: list[str]) -> int:
    return await WorkflowRun.find({"_id": {"$in": ids}}).count()


async def test_a_child_nobody_waits_for_is_cancelled(engine: Streamline) -> None:
    run = await engine.start_run(hasty)
    assert await run.result(SECONDS) == "too late"
    await until_status(engine, f"{run.id}/slow", Status.CANCELLED)
    parent = await run.get()
    assert (parent.inbox, parent.outbox) == ([], [])


async def test_several_parents_follow_one_child(engine: Streamline) -> None:
    runs = [await engine.start_run(sharing, "shared") for _ in range(5)]
    for run in runs:
        await until_status(engine, run.id, Status.WAITING)
    await engine.handle("shared").send("go", "went")
    assert [await run.result(SECONDS) for run in runs] == ["went"] * 5


async def test_what_a_dead_process_left_in_an_outbox_is_delivered(engine: Streamline) -> None:
    """As if it had died between the end's commit and the message, or before a cancel."""
    child = await slow.options(id="left", engine=engine).start()
    runs = engine.store.database.workflow_runs
    told = Dispatch(kind=DispatchKind.CANCEL, to="left", rev=1)
    done = await boxed.options(id="sender", engine=engine).start(1)
    await done.result(SECONDS)
    await runs.update_one(
        {"_id": "sender"},
        {
            "$set": {
                "outbox": [{"kind": told.kind.value, "to": told.to, "rev": told.rev}],
                "outbox_due": datetime.now(UTC),
            }
        },
    )
    with pytest.raises(RunCancelled):
        await child.result(SECONDS)
    async with asyncio.timeout(SECONDS):
        while "outbox" in (await runs.find_one({"_id": "sender"}) or {}):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_payloads_of_children_are_sealed(address: str) -> None:
    codec = AesGcm({"k": b"k" * 32}, current="k")
    async with Streamline(address, registry=everything, payload_codec=codec) as engine:
        run = await engine.start_run(summing, 3)
        assert await run.result(SECONDS) == 6
        assert await (await engine.start_run(failing)).result(SECONDS) == (
            "LookupError('nothing there')"
        )
        client: AsyncMongoClient[dict[str, Any]]
        async with AsyncMongoClient(address) as client:
            stored = await client.get_default_database().workflow_runs.find().to_list()
    assert len(stored) == 6
    assert "nothing there" not in str(stored)


async def test_one_child_costs_so_many_writes(mongod_replica: str) -> None:
    """A run of its own, and two writes more on its side: the message, and that it was told."""
    address = address_of(mongod_replica, f"children_{uuid.uuid4().hex[:8]}")
    async with Streamline(address, registry=everything) as engine:
        run = await engine.start_run(summing, 1)
        await run.result(SECONDS)
        await engine.control._worker.courier.finish()
        documents = {each.id: each for each in await WorkflowRun.find_all().to_list()}
        parent, child = documents[run.id], documents[f"{run.id}/boxed"]
        # Beside the inserts: that a child is called, the park, and the end. The child: its end.
        assert (parent.rev, child.rev) == (3, 1)
        assert Counter(entry.kind.value for entry in parent.journal) == {"child": 1, "outcome": 1}


async def test_the_end_of_a_child_is_heard_soon(mongod_replica: str) -> None:
    address = address_of(mongod_replica, f"children_{uuid.uuid4().hex[:8]}")
    async with Streamline(address, registry=everything) as engine:
        await (await engine.start_run(summing, 1)).result(SECONDS)
        began = time.monotonic()
        for _ in range(10):
            await (await engine.start_run(summing, 1)).result(SECONDS)
        assert (time.monotonic() - began) / 10 < 0.5  # a poll alone would take two seconds
