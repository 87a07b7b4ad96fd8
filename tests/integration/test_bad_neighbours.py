"""Steps, listeners, clients and documents that misbehave harm nobody but themselves."""

from __future__ import annotations

import asyncio
import itertools
import logging
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
import pytest
from pymongo import AsyncMongoClient, MongoClient

from streamline import (
    Event,
    Registry,
    RunFailed,
    Status,
    Streamline,
    current,
    receive,
    sleep,
    step,
    wait,
    workflow,
)
from streamline.model import Message, MessageKind, PostResult
from streamline.store.mongo import MongoStore
from tests.servers import Mongod

pytestmark = pytest.mark.mongo

SECONDS = 20.0
registry = Registry()


class Rude(BaseException):
    pass


RAISED: dict[str, Callable[[], BaseException]] = {
    "BaseException": lambda: Rude("rude"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "StopIteration": lambda: StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration,
    "TimeoutError": TimeoutError,
    "ExceptionGroup": lambda: BaseExceptionGroup("several", [Rude("one"), SystemExit(1)]),
}


@step(registry=registry, attempts=1)
async def raising(name: str) -> None:
    raise RAISED[name]()


@step(registry=registry, attempts=1, timeout="30s")
async def raising_in_time(name: str) -> None:
    raise RAISED[name]()


@step(registry=registry, attempts=1)
def raising_in_thread(name: str) -> None:
    raise RAISED[name]()


STEPS: dict[str, Any] = {
    "async": raising,
    "timeout": raising_in_time,
    "thread": raising_in_thread,
}


@workflow(registry=registry)
async def running(kind: str, name: str) -> str:
    await STEPS[kind](name)
    return "unharmed"


@step(registry=registry)
async def add(n: int) -> int:
    return n + 1


@workflow(registry=registry)
async def adding(n: int) -> int:
    for _ in range(3):
        n = await add(n)
    return n


@workflow(registry=registry)
async def sleeping(seconds: float) -> float:
    began = time.monotonic()
    await sleep(seconds)
    return time.monotonic() - began


blocked = threading.Event()


@step(registry=registry)
async def blocking(seconds: float) -> int:
    blocked.set()
    time.sleep(seconds)  # noqa: ASYNC251 - what a step must not do
    return current().attempt


@step(registry=registry)
async def lasting(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return current().attempt


@workflow(registry=registry)
async def lasting_run(seconds: float, *, blocks: bool = False) -> int:
    return await (blocking if blocks else lasting)(seconds)


hold = threading.Event()


@step(registry=registry)
def holding() -> str:
    hold.wait(SECONDS)
    return "held"


@workflow(registry=registry)
async def holding_run() -> str:
    return await holding()


@workflow(registry=registry)
async def collecting(count: int) -> int:
    total = 0
    for _ in range(count):
        total += await receive("numbers", type=int)
    return total


@workflow(registry=registry)
async def waiting() -> None:
    await wait("for ever")


@pytest.fixture
def address(mongod_replica: str) -> str:
    """The URI of a database of this test's own."""
    return _with_database(mongod_replica)


def _with_database(uri: str) -> str:
    head, _, options = uri.partition("?")
    return f"{head.rstrip('/')}/rude_{uuid.uuid4().hex[:8]}?{options}"


@pytest.fixture
async def engine(address: str) -> AsyncIterator[Streamline]:
    async with Streamline(address, registry=registry) as engine:
        yield engine


async def _until(read: Callable[[], Awaitable[object]], seconds: float = SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if await read():
                return
            await asyncio.sleep(0.02)


# -- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAISED)
@pytest.mark.parametrize("kind", STEPS)
async def test_whatever_a_step_raises_fails_its_run_alone(
    engine: Streamline, kind: str, name: str
) -> None:
    neighbour = await engine.start_run(sleeping, 0.2)
    run = await engine.start_run(running, kind, name)
    with pytest.raises(RunFailed) as caught:
        await run.result(SECONDS)
    assert caught.value.step == STEPS[kind].name
    assert caught.value.error_code == "STEP_FAILED"
    assert await neighbour.result(SECONDS) > 0
    assert await (await engine.start_run(adding, 1)).result(SECONDS) == 4


async def test_a_step_that_blocks_the_loop_costs_no_lease(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    blocked.clear()
    async with Streamline(address, registry=registry, lease="1.5s") as engine:
        patient = await engine.start_run(lasting_run, 4.0)
        rude = await engine.start_run(lasting_run, 4.0, blocks=True)
        stop = threading.Event()
        other = threading.Thread(target=_work_elsewhere, args=(address, stop))
        other.start()
        try:
            # The first attempt of each: nobody took them over meanwhile.
            assert (await patient.result(SECONDS), await rude.result(SECONDS)) == (1, 1)
            assert (await patient.get()).fence == (await rude.get()).fence == 1
        finally:
            stop.set()
            await asyncio.to_thread(other.join)
    assert "the event loop has been blocked" in caplog.text
    assert "time.sleep(seconds)" in caplog.text


def _work_elsewhere(address: str, stop: threading.Event) -> None:
    async def work() -> None:
        async with Streamline(address, registry=registry, lease="1.5s"):
            await asyncio.to_thread(stop.wait)

    asyncio.run(work())


async def test_steps_that_fill_every_thread_hold_up_only_such_steps(address: str) -> None:
    hold.clear()
    async with Streamline(address, registry=registry, concurrency=8, lease="1.5s") as engine:
        full = [await engine.start_run(holding_run) for _ in range(7)]
        more = asyncio.gather(*(adding.options(engine=engine).start(n) for n in range(20)))
        assert [await run.result(SECONDS) for run in await more] == [n + 3 for n in range(20)]
        slept = await engine.start_run(sleeping, 1.0)
        assert await slept.result(SECONDS) > 0.8
        await asyncio.sleep(1.0)
        assert [(await run.get()).fence for run in full] == [1] * 7
        hold.set()
        assert [await run.result(SECONDS) for run in full] == ["held"] * 7


async def test_the_engine_stops_though_a_thread_hangs_and_the_pool_is_full(address: str) -> None:
    hold.clear()
    engine = await Streamline(address, registry=registry).start()
    run = await engine.start_run(holding_run)
    await _until(lambda: _is(run, "running"))
    loop = asyncio.get_running_loop()
    others = [loop.run_in_executor(None, hold.wait, SECONDS) for _ in range(64)]
    began = time.monotonic()
    await engine.stop(drain="0.2s")
    assert time.monotonic() - began < 5.0
    hold.set()
    await asyncio.gather(*others)
    async with Streamline(address, registry=registry) as another:
        assert await another.handle(run.id).result(SECONDS) == "held"


async def _is(run: Any, status: str) -> bool:
    found = await run.get()
    return bool(found.status == status)


async def test_a_step_that_is_refused_memory_fails_and_the_process_goes_on(address: str) -> None:
    program = """
        import asyncio, resource, sys
        from streamline import Streamline, step, workflow, RunFailed

        @step(attempts=2, wait=lambda state: 0.0)
        async def hungry() -> int:
            eaten = []
            while True:
                eaten.append(bytearray(64 * 1024 * 1024))

        @step
        async def modest() -> int:
            return 1

        @workflow
        async def eating() -> int:
            try:
                return await hungry()
            except MemoryError:
                return await modest()

        @workflow
        async def living() -> int:
            await asyncio.sleep(0.5)
            return await modest()

        async def main() -> None:
            async with Streamline(sys.argv[1]) as engine:
                neighbour = await living.start()
                size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (size + 600 * 1024 * 1024,) * 2)
                print(await (await eating.start()).result(30), await neighbour.result(30))

        asyncio.run(main())
    """
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(program), address],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"1 1\n"), done.stderr.decode()


# -- listeners ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RAISED if name != "KeyboardInterrupt"])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_whatever_a_listener_raises_harms_no_run(
    engine: Streamline, kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="streamline.events")
    told: list[str] = []

    def rude(event: Event) -> None:
        told.append(event.name)
        raise RAISED[name]()

    async def rude_later(event: Event) -> None:
        await asyncio.sleep(0)
        rude(event)

    engine.events.on("*", rude if kind == "sync" else rude_later)
    assert await (await engine.start_run(adding, 1)).result(SECONDS) == 4
    await _until(lambda: asyncio.sleep(0, "workflow:completed" in told))
    assert "engine:error" in told


async def test_a_listener_that_never_ends_keeps_the_engine_from_nothing(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(event: Event) -> None:
        await asyncio.Event().wait()

    engine = await Streamline(address, registry=registry).start()
    engine.events.on("*", endless)
    assert await (await engine.start_run(adding, 1)).result(SECONDS) == 4
    began = time.monotonic()
    await engine.stop()
    assert time.monotonic() - began < 8.0


# -- floods ---------------------------------------------------------------------------------------


async def test_a_run_that_gets_messages_all_the_time_gets_somewhere(engine: Streamline) -> None:
    count = 400
    run = await engine.start_run(collecting, count)
    neighbours = asyncio.create_task(_start_again_and_again(engine))
    numbers = iter(range(count))
    halfway = asyncio.Event()

    async def send() -> None:
        for number in numbers:
            await run.send("numbers", number)
            if number == count // 2:
                halfway.set()

    async with asyncio.timeout(100):
        sending = asyncio.gather(*(send() for _ in range(50)))
        await halfway.wait()
        # It keeps up while the messages pour in, and doesn't only begin once they stop.
        while (await run.get()).rev < 20:
            assert not sending.done(), "it got nowhere while messages came in"
            await asyncio.sleep(0.05)
        await sending
        assert await run.result() == sum(range(count))
    neighbours.cancel()
    assert await neighbours < SECONDS


@workflow(registry=registry)
async def asking(count: int) -> int:
    done = 0
    for number in range(count):
        question = asyncio.create_task(wait("what now?", name=f"q{number}"))
        done = await add(done)
        question.cancel()
    return done


async def test_a_run_with_open_waits_ends_while_messages_pour_in(
    engine: Streamline, address: str
) -> None:
    """Each step closes a wait and opens one, and every commit finds that messages came in."""
    run = await engine.start_run(asking, 20)
    stores = [MongoStore(address) for _ in range(6)]
    numbers = itertools.count()

    async def pour(store: MongoStore) -> PostResult:
        await store.open()
        result = PostResult.POSTED
        while result is PostResult.POSTED:
            at = store.clock.now()
            noise = Message(id=f"m{next(numbers)}", kind=MessageKind.SEND, at=at, name="noise")
            result = await store.post(run.id, noise)
        await store.close()
        return result

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        pouring = [group.create_task(pour(store)) for store in stores]
        assert await run.result() == 20
    # It didn't end because the inbox was full, nor after the messages.
    assert [task.result() for task in pouring] == [PostResult.ENDED] * len(stores)


async def test_ten_thousand_messages_that_lie_there_are_all_received(address: str) -> None:
    count = 10_000
    store = MongoStore(address)
    async with Streamline(address, registry=registry, worker=False) as client:
        run = await client.start_run(collecting, count)
    await store.open()
    now = store.clock.now()
    messages = [
        {"id": f"m{n}", "kind": "send", "at": now, "name": "numbers", "payload": n}
        for n in range(count)
    ]
    # As ten thousand sends would leave it, at one go.
    change = {"$set": {"inbox": messages, "inbox_seq": count}}
    await store.database.workflow_runs.update_one({"_id": run.id}, change)
    await store.close()
    async with Streamline(address, registry=registry) as engine:
        neighbour = await engine.start_run(sleeping, 0.5)
        assert await engine.handle(run.id).result(60) == sum(range(count))
        assert await neighbour.result(SECONDS) > 0.3
        found = await engine.handle(run.id).get()
        assert (len(found.inbox), found.journal_base + len(found.journal)) == (0, count)


async def _start_again_and_again(engine: Streamline) -> float:
    """Start short runs until cancelled; return how long the slowest took."""
    slowest = 0.0
    try:
        while True:
            began = time.monotonic()
            assert await (await engine.start_run(adding, 1)).result(SECONDS) == 4
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        return slowest


async def test_a_thousand_runs_cancelled_at_once_all_end(engine: Streamline) -> None:
    runs = await asyncio.gather(*(engine.start_run(waiting) for _ in range(1000)))
    collection = engine.store.database.workflow_runs  # type: ignore[attr-defined]

    async def parked() -> bool:
        return bool(await collection.count_documents({"status": "waiting"}) == 1000)

    await _until(parked)
    await asyncio.gather(*(run.cancel() for run in runs))
    ended = await asyncio.gather(*(run.wait(60) for run in runs))
    assert {run.status for run in ended} == {Status.CANCELLED}


# -- servers --------------------------------------------------------------------------------------


class GuardedMongod(Mongod):
    """A server that asks who you are."""

    def __init__(self) -> None:
        super().__init__(None)

    def _command(self, directory: Path) -> list[str]:
        return [*super()._command(directory), "--auth"]


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """Give the address of a server, for a user who may read and write documents and no more."""
    with GuardedMongod() as mongod:
        with MongoClient[dict[str, Any]](mongod.uri) as client:
            roles = [{"role": "root", "db": "admin"}]
            client.admin.command("createUser", "root", pwd="toor", roles=roles)
        root = mongod.uri.replace("://", "://root:toor@")
        with MongoClient[dict[str, Any]](root) as client:
            resource = {"db": "shop", "collection": ""}
            actions = ["find", "insert", "update", "remove"]
            privileges = [{"resource": resource, "actions": actions}]
            client.shop.command("createRole", "clerk", privileges=privileges, roles=[])
            client.shop.command("createUser", "clerk", pwd="s3cret", roles=["clerk"])
        yield f"mongodb://clerk:s3cret@{mongod.address}/shop?directConnection=true"


async def test_a_user_who_may_not_create_indexes_works_and_is_told(
    guarded: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="streamline")
    async with Streamline(guarded, registry=registry) as engine:
        assert await (await engine.start_run(adding, 1)).result(SECONDS) == 4
        slept = await engine.start_run(sleeping, 0.7)
        assert await slept.result(SECONDS) > 0.5
    assert "db.workflow_runs.createIndex(" in caplog.text
    assert "s3cret" not in caplog.text


async def test_a_server_without_a_replica_set_does_everything(mongod_standalone: str) -> None:
    address = _with_database(mongod_standalone)
    async with (
        Streamline(address, registry=registry),
        Streamline(address, registry=registry, worker=False) as client,
    ):
        assert await (await client.start_run(adding, 1)).result(SECONDS) == 4
        slept = await client.start_run(sleeping, 0.7)
        assert await slept.result(SECONDS) > 0.5
        run = await client.start_run(collecting, 2)
        await run.send("numbers", 1)
        await run.send("numbers", 2)
        assert await run.result(SECONDS) == 3


# -- documents ------------------------------------------------------------------------------------

NONSENSE: list[Any] = [
    None,
    "nonsense",
    -7,
    2.5,
    True,
    [],
    ["nonsense"],
    {},
    {"$gt": "x"},
    [{"id": 5}],
    datetime(1, 1, 1, tzinfo=UTC),
    bson.Binary(b"x"),
    bson.ObjectId(b"twelve bytes"),
    bson.Regex("x"),
    bson.Code("x"),
    bson.MinKey(),
    bson.Timestamp(1, 1),
    bson.Decimal128("1.5"),
]
FIELDS = [
    "workflow", "version", "code", "status", "input", "input.args", "input.kwargs", "input.context",
    "python", "created_at", "updated_at", "context", "meta", "tags", "tenant", "priority", "output",
    "error", "journal", "journal_base", "rev", "inbox", "inbox_seq", "awaiting", "attempts",
    "recoveries", "worker", "claim", "fence", "due_at", "started_at", "ended_at", "expire_after",
    "journal.0", "journal.0.id", "journal.0.kind", "journal.0.at", "journal.0.value",
    "journal.0.error", "journal.0.context", "journal.0.attempt", "journal.0.fence",
    "inbox.0", "inbox.0.id", "inbox.0.kind", "inbox.0.payload", "inbox.0.name",
    "awaiting.0", "awaiting.0.id", "awaiting.0.kind", "awaiting.0.type", "awaiting.0.data",
]  # fmt: skip


@workflow(registry=registry)
async def victim(n: int) -> int:
    n = await add(n)
    return n + await receive("numbers", type=int)


async def _prepared(address: str) -> dict[str, Any]:
    """Return the document of a run in mid-life: a step recorded, a message in its inbox."""
    async with Streamline(address, registry=registry) as engine:
        run = await engine.start_run(victim, 1)
        await _until(lambda: _is(run, "waiting"))
    async with Streamline(address, registry=registry, worker=False) as engine:
        await engine.handle(run.id).send("numbers", 1)
        runs = engine.store.database.workflow_runs  # type: ignore[attr-defined]
        document: dict[str, Any] = await runs.find_one_and_delete({"_id": run.id})
    return document


async def test_documents_that_make_no_sense_harm_no_others(
    address: str, mongod_replica: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="streamline")
    whole = await _prepared(address)
    name = address.rpartition("/")[2].partition("?")[0]
    async with AsyncMongoClient[dict[str, Any]](mongod_replica) as client:
        runs = client[name].workflow_runs
        cases: dict[str, tuple[str, Any]] = {}
        for number, (field, value) in enumerate(itertools.product(FIELDS, NONSENSE)):
            cases[f"bad-{number}"] = (field, value)
        await runs.insert_many([{**whole, "_id": run_id} for run_id in cases])
        for run_id, (field, value) in cases.items():
            await runs.update_one({"_id": run_id}, {"$set": {field: value}})
        for number, field in enumerate(FIELDS):
            await runs.insert_one({**whole, "_id": f"less-{number}"})
            await runs.update_one({"_id": f"less-{number}"}, {"$unset": {field: ""}})
            cases[f"less-{number}"] = (field, "missing")
        strange_ids: list[Any] = [7, bson.ObjectId(), {"a": 1}, None, b"x", datetime.now(UTC)]
        await runs.insert_many([{**whole, "_id": id_} for id_ in strange_ids])
        good = [f"good-{n}" for n in range(5)]
        await runs.insert_many([{**whole, "_id": run_id} for run_id in good])
        async with Streamline(address, registry=registry, lease="5s") as engine:
            results = [await engine.handle(run_id).result(60) for run_id in good]
            assert results == [3] * 5
            assert await (await engine.start_run(adding, 1)).result(SECONDS) == 4

            going = {"status": {"$in": ["queued", "running"]}, "due_at": {"$type": "date"}}
            going["code"] = {"$in": ["victim", "adding"]}

            async def none_goes_round() -> bool:
                return await runs.count_documents(going) == 0

            await _until(none_goes_round, seconds=90)
            codes: dict[str, int] = {}
            async for document in runs.find({"_id": {"$in": list(cases)}}):
                error = document.get("error")
                code = str(error.get("code")) if isinstance(error, dict) else "-"
                key = f"{document.get('status')!s:.20} {code}"
                codes[key] = codes.get(key, 0) + 1
                assert (document.get("recoveries") or 0) == 0 or code != "-", cases[document["_id"]]
            assert codes.get("failed DATA_CORRUPTION", 0) > 400, codes
            assert await (await engine.start_run(adding, 1)).result(SECONDS) == 4


async def test_a_journal_of_nonsense_pauses_or_fails_its_run(address: str) -> None:
    whole = await _prepared(address)
    now = datetime.now(UTC)
    entry = {"id": "add", "kind": "step", "at": now, "fence": 1}
    journals: dict[str, list[dict[str, Any]]] = {
        "unknown": [{**entry, "id": "never"}],
        "twice": [entry, entry],
        "timer": [{**entry, "kind": "timer"}],
        "message": [{**entry, "kind": "message"}],
        "type": [{**entry, "value": "text"}],
        "none": [{**entry, "value": None}],
        "error": [{**entry, "error": {"code": "x", "type": "x", "message": "x"}}],
        "cancel": [{**entry, "kind": "message", "id": "cancel"}],
        "attempt": [{**entry, "kind": "attempt", "attempt": 10**18}],
    }
    store = MongoStore(address)
    await store.open()
    await store.database.workflow_runs.insert_many(
        [{**whole, "_id": name, "journal": journal} for name, journal in journals.items()]
    )
    await store.database.workflow_runs.insert_one({**whole, "_id": "base", "journal_base": 10**6})
    await store.close()
    async with Streamline(address, registry=registry) as engine:
        found: dict[str, str] = {}
        for name in [*journals, "base"]:
            await _until(lambda name=name: _settled(engine, name))  # type: ignore[misc]
            run = await engine.handle(name).get()
            found[name] = f"{run.status} {run.error.code if run.error else ''}".strip()
        assert found == {
            "unknown": "paused NON_DETERMINISM",
            "twice": "paused NON_DETERMINISM",
            "timer": "paused NON_DETERMINISM",
            "message": "paused NON_DETERMINISM",
            "type": "paused NON_DETERMINISM",
            "none": "paused NON_DETERMINISM",
            "error": "failed x",
            "cancel": "cancelled WORKFLOW_CANCELLED",
            "attempt": "done",
            "base": "failed DATA_CORRUPTION",
        }
        assert await (await engine.start_run(adding, 1)).result(SECONDS) == 4


async def _settled(engine: Streamline, run_id: str) -> bool:
    run = await engine.handle(run_id).get()
    return run.status in ("paused", "failed", "done", "cancelled")
