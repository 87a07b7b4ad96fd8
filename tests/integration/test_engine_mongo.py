"""The engine's API on a real mongod: with change streams on a replica set, polling on a standalone.

What a second process would do is done by a second engine: nothing passes between two engines but
through the server.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from beanie import init_beanie
from pymongo import AsyncMongoClient, monitoring

from streamline import (
    InvalidState,
    Registry,
    RunAlreadyCompleted,
    RunCancelled,
    RunConflict,
    RunFailed,
    RunNotFound,
    ServerUnavailable,
    Status,
    Streamline,
    ValidationError,
    WorkflowRun,
    current,
    heartbeat,
    receive,
    step,
    wait,
    workflow,
)
from tests.servers import free_port

pytestmark = pytest.mark.mongo

registry = Registry()
SECONDS = 10.0


@step(registry=registry)
async def add(a: int, b: int) -> int:
    return a + b


@workflow(registry=registry)
async def adding(n: int) -> int:
    total = 0
    for index in range(n):
        total = await add(total, index)
    return total


@workflow(registry=registry)
async def asking(question: str) -> str:
    answer = await wait(question, name="answer", type=str)
    return f"{question} {answer}"


@workflow(registry=registry)
async def collecting(count: int) -> list[int]:
    return [await receive("numbers", type=int) for _ in range(count)]


@workflow(registry=registry)
async def sleeping(seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        await add(1, 1)  # cleaning up is durable too
        raise
    return "slept"


@workflow(registry=registry)
async def pausing() -> int:
    first = await receive("go", type=int)
    return await add(first, 1)


@workflow(registry=registry)
async def raising() -> None:
    raise LookupError("nothing there")


@step(registry=registry)
def in_thread(n: int) -> tuple[int, bool]:
    return n, threading.current_thread() is threading.main_thread()


@workflow(registry=registry)
async def threading_() -> tuple[int, bool]:
    return await in_thread(3)


@workflow(registry=registry)
async def blocking(seconds: float) -> str:
    time.sleep(seconds)  # noqa: ASYNC251 - what a body must not do
    return "blocked"


@step(registry=registry)
async def lasting(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return current().attempt


@workflow(registry=registry)
async def lasting_run(seconds: float) -> int:
    return await lasting(seconds)


@step(registry=registry, attempts=2, heartbeat_timeout="0.2s", wait=lambda state: 0.0)
async def beating(beats: int) -> Any:
    if current().attempt == 2:
        return current().last_heartbeat
    for beat in range(beats):
        heartbeat({"beat": beat})
        await asyncio.sleep(0.05)
    await asyncio.sleep(60)


@workflow(registry=registry)
async def beating_run(beats: int) -> Any:
    return await beating(beats)


@step(registry=registry)
async def alive() -> None:
    heartbeat({"beat": 0})
    await asyncio.sleep(60)


@workflow(registry=registry)
async def alive_run() -> None:
    await alive()


@pytest.fixture(params=["replica", "standalone"])
def server(request: pytest.FixtureRequest) -> str:
    """The URI of each kind of server in turn."""
    uri: str = request.getfixturevalue(f"mongod_{request.param}")
    return uri


def _with_database(uri: str, name: str | None = None) -> str:
    head, _, options = uri.partition("?")
    return f"{head.rstrip('/')}/{name or f'engine_{uuid.uuid4().hex[:8]}'}?{options}"


@pytest.fixture
def address(server: str) -> str:
    """The URI of a database of this test's own, on each kind of server."""
    return _with_database(server)


@pytest.fixture
def replica_address(mongod_replica: str) -> str:
    """The URI of a database of this test's own on the replica set."""
    return _with_database(mongod_replica)


@pytest.fixture
async def worker(address: str) -> AsyncIterator[Streamline]:
    """An engine that works."""
    async with Streamline(address, registry=registry) as engine:
        yield engine


@pytest.fixture
async def client(address: str, worker: Streamline) -> AsyncIterator[Streamline]:
    """Another engine on the same database, that doesn't work."""
    async with Streamline(address, registry=registry, worker=False) as engine:
        yield engine


async def _reach(engine: Streamline, run_id: str, *statuses: str) -> WorkflowRun:
    async with asyncio.timeout(SECONDS):
        while True:
            run = await engine.handle(run_id).get()
            if run.status in statuses:
                return run
            await asyncio.sleep(0.01)


async def _until(read: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(SECONDS):
        while True:
            if found := await read():
                return found
            await asyncio.sleep(0.01)


# -- starting and results -------------------------------------------------------------------------


async def test_a_run_started_here_is_done_here(worker: Streamline) -> None:
    run = await worker.start_run(adding, 4)
    assert await run.result(timeout=SECONDS) == 6
    document = await run.get()
    assert (document.status, document.output, document.rev) == (Status.DONE, 6, 4)


async def test_a_client_s_run_is_done_by_the_worker(client: Streamline) -> None:
    began = time.monotonic()
    run = await client.start_run(adding, 4)
    assert await run.result(timeout=SECONDS) == 6
    assert time.monotonic() - began < 2.0, "the worker or the client was not woken"


async def test_a_failure_reaches_the_client_with_its_cause(client: Streamline) -> None:
    run = await client.start_run(raising)
    with pytest.raises(RunFailed, match="nothing there") as caught:
        await run.result(timeout=SECONDS)
    assert isinstance(caught.value.__cause__, LookupError)
    assert (await run.wait()).status == "failed"


async def test_ids_are_checked(client: Streamline) -> None:
    start = adding.options(id="one", engine=client).start
    first = await start(2)
    assert await first.result(timeout=SECONDS) == 1
    assert await (await start(2)).result(timeout=SECONDS) == 1
    with pytest.raises(RunConflict):
        await start(3)
    with pytest.raises(RunConflict):
        await asking.options(id="one", engine=client).start("Who?")
    with pytest.raises(RunConflict):
        await adding.options(id="one", engine=client, on_existing="fail").start(2)
    again = await adding.options(id="one", engine=client, on_existing="restart").start(3)
    assert await again.result(timeout=SECONDS) == 3
    with pytest.raises(RunNotFound):
        await client.handle("none").result(timeout=SECONDS)


async def test_many_waiters_are_served_together(client: Streamline) -> None:
    runs = [await client.start_run(asking, str(n)) for n in range(20)]
    waiting = [asyncio.create_task(run.result(timeout=20)) for run in runs for _ in range(50)]
    await asyncio.gather(*(_reach(client, run.id, "waiting") for run in runs))
    await asyncio.gather(*(run.resume("yes") for run in runs))
    results = await asyncio.gather(*waiting)
    assert results == [f"{n} yes" for n in range(20) for _ in range(50)]


# -- messages and control -------------------------------------------------------------------------


async def test_a_wait_shows_what_is_asked_and_is_resumed_once(client: Streamline) -> None:
    run = await client.start_run(asking, "Who?")
    document = await _reach(client, run.id, "waiting")
    assert [(slot.name, slot.reason) for slot in document.awaiting] == [("answer", "Who?")]
    with pytest.raises(ValidationError):
        await run.resume(42)
    outcomes = await asyncio.gather(
        *(run.resume(answer) for answer in ("me", "you")), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["InvalidState", "NoneType"]
    winner = "me" if outcomes[0] is None else "you"
    assert await run.result(timeout=SECONDS) == f"Who? {winner}"
    with pytest.raises(InvalidState):
        await run.resume("late")


async def test_messages_are_kept_in_order_and_counted_once(client: Streamline) -> None:
    run = await client.start_run(collecting, 3)
    await run.send("numbers", 1, id="a")
    await run.send("numbers", 1, id="a")
    await _reach(client, run.id, "waiting")
    await run.send("numbers", 2, id="b")
    await run.send("numbers", 3, id="c")
    assert await run.result(timeout=SECONDS) == [1, 2, 3]
    await run.send("numbers", 3, id="c")  # a repetition is no error, even now
    with pytest.raises(RunAlreadyCompleted):
        await run.send("numbers", 4)


async def test_a_message_wakes_a_parked_run_at_once(client: Streamline) -> None:
    run = await client.start_run(collecting, 20)
    began = time.monotonic()
    for number in range(20):
        await _reach(client, run.id, "waiting")
        await run.send("numbers", number)
    assert await run.result(timeout=20) == list(range(20))
    assert time.monotonic() - began < 10.0


async def test_cancel_lets_the_body_clean_up(client: Streamline) -> None:
    run = await client.start_run(sleeping, 3600)
    await _reach(client, run.id, "waiting")
    await run.cancel("not needed")
    with pytest.raises(RunCancelled):
        await run.result(timeout=SECONDS)
    document = await run.get()
    assert [entry.id for entry in document.journal] == ["cancel", "add"]
    await run.cancel()  # no-op


async def test_terminate_asks_nobody(client: Streamline) -> None:
    run = await client.start_run(sleeping, 3600)
    await _reach(client, run.id, "waiting")
    await run.terminate()
    with pytest.raises(RunCancelled):
        await run.result(timeout=SECONDS)
    assert (await run.get()).journal == []


async def test_a_step_of_a_run_terminated_elsewhere_is_cancelled_at_once(
    replica_address: str,
) -> None:
    async with (
        Streamline(replica_address, registry=registry) as worker,
        Streamline(replica_address, registry=registry, worker=False) as client,
    ):
        run = await worker.start_run(lasting_run, 3600.0)
        await _reach(client, run.id, "running")
        await client.handle(run.id).terminate()
        with pytest.raises(RunCancelled):
            await run.result(timeout=SECONDS)  # no renewal of the lease could tell so soon

        async def dropped() -> bool:
            return worker.health().claimed == 0

        await _until(dropped)


async def test_a_run_not_begun_yet_is_cancelled_at_once(client: Streamline) -> None:
    run = await adding.options(delay="1h", engine=client).start(1)
    assert await run.status() is Status.DRAFT
    await run.cancel()
    assert await run.status() is Status.CANCELLED


async def test_a_paused_run_goes_on_when_unpaused(client: Streamline) -> None:
    run = await client.start_run(pausing)
    await _reach(client, run.id, "waiting")
    await run.pause("wait for it")
    await run.send("go", 1)
    await _reach(client, run.id, "paused")
    await run.unpause()
    assert await run.result(timeout=SECONDS) == 2
    with pytest.raises(InvalidState):
        await run.unpause()


async def test_execute_drives_a_run_without_a_worker(address: str) -> None:
    async with Streamline(address, registry=registry, worker=False) as engine:
        run = await engine.start_run(pausing)
        assert await run.execute() is Status.WAITING
        await run.send("go", 1)
        assert await run.execute() is Status.DONE
        assert await run.result(timeout=SECONDS) == 2


async def test_execute_of_a_workflow_unknown_here_leaves_the_run_alone(address: str) -> None:
    async with (
        Streamline(address, registry=registry, worker=False) as knowing,
        Streamline(address, registry=Registry(), worker=False) as ignorant,
    ):
        run = await knowing.start_run(adding, 2)
        with pytest.raises(Exception, match="adding"):
            await ignorant.handle(run.id).execute()
        assert await run.status() is Status.QUEUED
        assert await run.execute() is Status.DONE


async def test_a_delayed_start_waits(client: Streamline) -> None:
    run = await adding.options(delay=0.3, engine=client).start(2)
    assert await run.result(timeout=SECONDS) == 1
    document = await run.get()
    assert document.started_at is not None
    assert (document.started_at - document.created_at).total_seconds() >= 0.3


# -- connections ----------------------------------------------------------------------------------


async def test_a_wrong_address_fails_in_time_and_tells_no_password() -> None:
    address = f"mongodb://user:s3cret-w0rd@127.0.0.1:{free_port()}/shop"
    engine = Streamline(address, registry=registry, server_timeout="0.5s")
    began = time.monotonic()
    with pytest.raises(ServerUnavailable) as caught:
        await engine.start()
    assert time.monotonic() - began < 3.0
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cret" not in f"{error}{error!r}"
        error = error.__cause__ or error.__context__


async def test_two_engines_on_two_databases_in_one_process(mongod_replica: str) -> None:
    addresses = _with_database(mongod_replica), _with_database(mongod_replica)
    async with (
        Streamline(addresses[0], registry=registry) as one,
        Streamline(addresses[1], registry=registry) as two,
    ):
        first = await adding.options(id="same", engine=one).start(3)
        second = await adding.options(id="same", engine=two).start(4)
        assert await first.result(timeout=SECONDS) == 3
        assert await second.result(timeout=SECONDS) == 6
        assert (await adding.start(5)).id  # goes to the one started last
        assert (await one.handle("same").get()).output == 3


async def test_the_users_own_connection_is_used_and_left_open(server: str) -> None:
    async with AsyncMongoClient[dict[str, Any]](server) as mongo:
        database = mongo[f"engine_{uuid.uuid4().hex[:8]}"]
        async with Streamline(database, registry=registry) as engine:
            run = await engine.start_run(adding, 3)
            assert await run.result(timeout=SECONDS) == 3
        assert await database.workflow_runs.count_documents({"status": "done"}) == 1


async def test_runs_are_beanie_documents(mongod_replica: str) -> None:
    async with AsyncMongoClient[dict[str, Any]](mongod_replica) as mongo:
        database = mongo[f"engine_{uuid.uuid4().hex[:8]}"]
        async with Streamline(database, registry=registry) as engine:
            await init_beanie(database=database, document_models=[WorkflowRun], skip_indexes=True)
            runs = [await engine.start_run(adding, n) for n in range(3)]
            await asyncio.gather(*(run.result(timeout=SECONDS) for run in runs))
            asked = await engine.start_run(asking, "Who?")
            await _reach(engine, asked.id, "waiting")
            done = await WorkflowRun.find(WorkflowRun.status == "done").to_list()
            assert {run.id for run in done} == {run.id for run in runs}
            waiting = await WorkflowRun.find(WorkflowRun.status == "waiting").to_list()
            assert [run.awaiting[0].reason for run in waiting] == ["Who?"]


async def test_a_run_claimed_ahead_of_its_timer_is_not_early(worker: Streamline) -> None:
    run = await worker.start_run(sleeping, 0.9)
    assert await run.result(timeout=SECONDS) == "slept"
    document = await run.get()
    (fired,) = document.journal
    assert document.fence == 2, "it was parked and claimed again"
    assert document.started_at is not None
    assert fired.at - document.started_at >= timedelta(seconds=0.9)


class _Commands(monitoring.CommandListener):
    """Keeps the commands to the engine's collections."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def of(self, run_id: str) -> list[str]:
        """Return the names of those commands that name a run; not the scheduler's own rounds."""
        return [name for name, command in self.seen if run_id in command]

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        target = event.command.get(event.command_name)
        if target in ("workflow_runs", "workflow_journal"):
            self.seen.append((event.command_name, str(event.command)))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


async def test_n_steps_take_n_plus_one_writes_and_no_read(mongod_replica: str) -> None:
    listener = _Commands()
    client = AsyncMongoClient[dict[str, Any]](mongod_replica, event_listeners=[listener])
    async with client as mongo:
        database = mongo[f"engine_{uuid.uuid4().hex[:8]}"]
        async with Streamline(database, registry=registry) as engine:

            async def watched() -> bool:
                return engine.health().watched

            await _until(watched)  # what begins with a look at everything has begun
            run = await engine.start_run(adding, 10)
            assert await run.result(timeout=SECONDS) == 45
    names = listener.of(run.id)
    assert names.count("insert") == 1
    assert names.count("update") == 10
    assert len(names) == 11, names


async def test_a_message_to_a_run_parked_here_takes_one_write_and_its_commit(
    mongod_replica: str,
) -> None:
    listener = _Commands()
    client = AsyncMongoClient[dict[str, Any]](mongod_replica, event_listeners=[listener])
    async with client as mongo:
        database = mongo[f"engine_{uuid.uuid4().hex[:8]}"]
        async with Streamline(database, registry=registry) as engine:
            run = await engine.start_run(collecting, 3)
            for number in range(3):
                await _until(lambda: _parked(engine))
                listener.seen.clear()
                await run.send("numbers", number)
                assert listener.of(run.id) == ["findAndModify"]
            assert await run.result(timeout=SECONDS) == [0, 1, 2]
    names = listener.of(run.id)
    assert names == ["findAndModify", "update"]


async def _parked(engine: Streamline) -> bool:
    health = engine.health()
    return health.watched and health.cached == 1 and health.claimed == 0


# -- steps, blocked loops, leases -----------------------------------------------------------------


async def test_a_plain_function_runs_in_a_thread(worker: Streamline) -> None:
    run = await worker.start_run(threading_)
    assert tuple(await run.result(timeout=SECONDS)) == (3, False)


async def test_a_step_without_a_heartbeat_is_tried_again_from_the_last(worker: Streamline) -> None:
    run = await worker.start_run(beating_run, 5)
    assert await run.result(timeout=SECONDS) == {"beat": 4}
    attempts = [entry for entry in (await run.get()).journal if entry.kind == "attempt"]
    assert [entry.error.code for entry in attempts if entry.error] == ["STEP_TIMEOUT"]


async def test_heartbeats_are_in_the_document(worker: Streamline) -> None:
    run = await worker.start_run(alive_run)

    async def beaten() -> bool:
        return any(a.heartbeat == {"beat": 0} for a in (await run.get()).attempts)

    await _until(beaten)
    await run.terminate()


async def test_a_body_that_blocks_is_reported_and_others_keep_their_leases(
    replica_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "streamline")
    async with (
        Streamline(replica_address, registry=registry, lease="0.9s") as blocked,
        Streamline(replica_address, registry=registry, worker=False) as client,
    ):
        steady = await blocked.start_run(lasting_run, 3.0)
        await blocked.start_run(blocking, 2.0)
        assert await steady.result(timeout=SECONDS) == 1
        document = await client.handle(steady.id).get()
        assert document.recoveries == 0
        assert document.fence == 1, "the lease of a run that did nothing wrong was not renewed"
    report = next(record for record in caplog.records if "has been blocked" in record.message)
    assert "time.sleep(seconds)" in report.getMessage()


async def test_a_step_longer_than_the_lease_runs_once(address: str) -> None:
    async with (
        Streamline(address, registry=registry, lease="0.6s") as one,
        Streamline(address, registry=registry, lease="0.6s"),
    ):
        run = await one.start_run(lasting_run, 2.0)
        assert await run.result(timeout=SECONDS) == 1
        document = await run.get()
    assert (document.fence, document.recoveries) == (1, 0)


async def test_a_run_whose_process_dies_five_times_is_failed(address: str) -> None:
    async with Streamline(address, registry=registry, worker=False) as engine:
        run = await engine.start_run(lasting_run, 60)
        runs = engine.store.database.workflow_runs  # type: ignore[attr-defined]
        worker = engine._worker
        assert worker is not None
        deaths = fence = 0
        while deaths < 6:  # the first time, and five recoveries
            fence += 1
            task = asyncio.create_task(run.execute())
            async with asyncio.timeout(SECONDS):
                while not (task.done() or worker.drivers.holds(run.id)):  # noqa: ASYNC110 - neither tells by an event
                    await asyncio.sleep(0.01)
            if not task.done():  # else it is a suspect, and was put off
                worker.kill()
                worker._stopping = False
                deaths += 1
            await asyncio.gather(task, return_exceptions=True)
            await runs.update_one({"_id": run.id}, {"$currentDate": {"due_at": True}})
            await asyncio.sleep(0.01)
        assert fence == 9, "the last three recoveries were put off once each"
        assert await run.execute() is Status.FAILED
        with pytest.raises(RunFailed, match="lost its worker"):
            await run.result(timeout=SECONDS)


async def test_a_claim_in_flight_when_the_engine_stops_is_handed_back(address: str) -> None:
    async with Streamline(address, registry=registry, worker=False) as client:
        engine = await Streamline(address, registry=registry).start()
        claimed = asyncio.Event()

        def slowed(claim: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def slow(*args: Any) -> Any:
                found = await claim(*args)
                if found:
                    claimed.set()
                    await asyncio.sleep(0.1)
                return found

            return slow

        for verb in ("claim_due", "claim_run"):
            setattr(engine.store, verb, slowed(getattr(engine.store, verb)))
        run = await client.start_run(sleeping, 3600)
        await asyncio.wait_for(claimed.wait(), SECONDS)
        await engine.stop()
        assert await run.status() in (Status.QUEUED, Status.WAITING)


async def test_a_stopped_engine_hands_its_runs_back_at_once(address: str) -> None:
    async with Streamline(address, registry=registry, worker=False) as client:
        engine = await Streamline(address, registry=registry).start()
        run = await engine.start_run(lasting_run, 3.0)
        await _reach(client, run.id, "running")
        await engine.stop(drain=0)
        document = await client.handle(run.id).get()
        assert (document.status, document.worker) == (Status.QUEUED, None)
        async with Streamline(address, registry=registry):
            assert await client.handle(run.id).result(timeout=SECONDS) == 1
        assert (await client.handle(run.id).get()).recoveries == 0
