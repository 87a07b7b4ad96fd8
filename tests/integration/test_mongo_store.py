"""What only a real server shows of the Mongo store: plans, lost replies, failovers, refusals."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import msgspec
import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.monitoring import CommandListener

from streamline.codec import PayloadRef
from streamline.errors import ServerUnavailable
from streamline.model import (
    OUTPUT,
    Attempt,
    CommitResult,
    Dispatch,
    DispatchKind,
    Input,
    MessageKind,
    PostResult,
    Run,
    Status,
)
from streamline.store.connection import UNDER_WAY
from streamline.store.indexes import RUNS, by_hand
from streamline.store.mongo import MongoStore
from streamline.store.updates import HAS_DUE, due_filter
from tests.conformance.samples import (
    BOOM,
    commit_of,
    continuing,
    entry,
    held_run,
    load,
    message,
    new_claim,
    new_run,
)
from tests.servers import Mongod, ReplicaSet

pytestmark = pytest.mark.mongo
Document = dict[str, Any]
SHORT = timedelta(seconds=1)


@pytest.fixture(scope="module")
def mongod() -> Iterator[Mongod]:
    """A replica set of one that can be told to fail."""
    with Mongod(parameters={"enableTestCommands": 1}) as mongod:
        yield mongod


@pytest.fixture
async def client(mongod: Mongod) -> AsyncIterator[AsyncMongoClient[Document]]:
    client: AsyncMongoClient[Document] = AsyncMongoClient(mongod.uri)
    async with client:
        yield client


@pytest.fixture
async def store(client: AsyncMongoClient[Document]) -> AsyncIterator[MongoStore]:
    store = MongoStore(client[f"test_{bson.ObjectId()}"])
    await store.open()
    name = store.database.name
    yield store
    await store.close()
    await client.drop_database(name)


@asynccontextmanager
async def failing(
    client: AsyncMongoClient[Document], commands: list[str], mode: object, **how: Any
) -> AsyncIterator[None]:
    """Let commands fail: `mode` is a number of times or `alwaysOn`."""
    point = {"configureFailPoint": "failCommand", "data": {"failCommands": commands, **how}}
    await client.admin.command({**point, "mode": mode})
    try:
        yield
    finally:
        await client.admin.command({**point, "mode": "off"})


async def test_a_write_concern_error_with_labels_is_gone_through(
    store: MongoStore, client: AsyncMongoClient[Document]
) -> None:
    """As a step-down leaves it, in a reply that PyMongo can't read. Found by make chaos."""
    for run_id in ("claimed", "ended"):
        await store.create_run(new_run(store, run_id))
    error = {"code": 189, "errmsg": "stepped down", "errorLabels": ["RetryableWriteError"]}
    how = {"writeConcernError": error, "errorLabels": ["RetryableWriteError"]}
    async with failing(client, ["findAndModify"], {"times": 1}, **how):
        claimed = await store.claim_run(new_claim(), "claimed")
    assert claimed is not None
    assert claimed.fence == 1
    async with failing(client, ["findAndModify"], {"times": 1}, **how):
        assert await store.terminate("ended", BOOM)


# -- plans ----------------------------------------------------------------------------------------


class Recorder(CommandListener):
    """Keeps the commands that a client sends."""

    KINDS = ("find", "update", "findAndModify", "delete", "distinct", "aggregate", "count")

    def __init__(self) -> None:
        self.commands: list[Document] = []

    def started(self, event: Any) -> None:
        if event.command_name in self.KINDS:
            command = bson.decode(bson.encode(event.command))
            if "$changeStream" not in str(command.get("pipeline")):
                self.commands.append(command)

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


def single(command: Document) -> Iterator[Document]:
    """Split a command into what `explain` takes, without what the session adds."""
    extra = ("lsid", "txnNumber", "writeConcern", "readConcern", "ordered", "maxTimeMS")
    plain = {k: v for k, v in command.items() if not k.startswith("$") and k not in extra}
    many = {"update": "updates", "delete": "deletes"}.get(next(iter(plain)))
    for statement in plain[many] if many else [None]:
        yield {**plain, many: [statement]} if many else plain


def stages(plan: object) -> Iterator[str]:
    if isinstance(plan, Mapping):
        if isinstance(plan.get("stage"), str):
            yield plan["stage"]
        for part in plan.values():
            yield from stages(part)
    elif isinstance(plan, list):
        for part in plan:
            yield from stages(part)


async def every_verb(store: MongoStore) -> None:
    """Call each verb, with what makes it ask all its questions."""
    run = held_run(store, journal=[entry(store, "a")], expire_after=60.0)
    await store.create_run(run)
    await store.create_run(run)
    later = store.clock.now() + timedelta(days=1)
    attempts = (Attempt(id="a", attempt=1, started_at=later),)
    await store.commit(commit_of(run, archive=tuple(run.journal), attempts=attempts))
    await asyncio.gather(*(store.commit(commit_of(run, inbox_seq=9)) for _ in range(3)))
    await store.heartbeat("r", 1, "a", 1)
    await asyncio.to_thread(store.renew, "w1", {"r": 1, "other": 2}, 60.0)
    await store.post("r", message(store, "m"))
    await store.post("r", message(store, "m"))
    await store.post("r", message(store, "p", MessageKind.PAUSE), slot="none")
    await store.load_archive("r", 1)
    await store.claim_holders("w", besides="w")
    await store.expire_claims("w1")
    await store.claim_due(new_claim(), ["wf", "other"], 10)
    await store.claim_due(new_claim(ahead=1.0), ["wf", "other"], 10)
    await store.release("r", 2)
    await store.next_due(["wf", "other"])
    await store.claim_run(new_claim(), "r")
    await store.post_to_parked(run, message(store, "n"), new_claim(), slot="none")
    await store.unpause("r")
    await store.load_ended(["r", "other"])
    archived = await load(store)
    assert await store.commit(continuing(store, archived, journal_base=1)) is CommitResult.LANDED
    await store.post("r", message(store, "taken"))
    ended = commit_of(await load(store), Status.DONE, generation=2, expire_at=later)
    assert await store.commit(ended) is CommitResult.LANDED
    done = await load(store)
    assert await store.replace_run(held_run(store, fence=9), rev=done.rev, fence=done.fence)
    await store.follow("r", "another")
    await store.cancel_unstarted("r", BOOM)
    await store.terminate("r", BOOM)
    outboxes = await store.load_outboxes(["wf", "other"], 10)
    assert [outbox.run_id for outbox in outboxes] == ["r"]
    await store.settle_outbox("r", outboxes[0].dispatches, later)
    await every_payload_verb(store)


async def every_payload_verb(store: MongoStore) -> None:
    """Keep payloads outside, small and in chunks, and let all of them go again."""
    refs = [PayloadRef.new(store.clock.now() - timedelta(days=2), 9) for _ in range(4)]
    for ref, size in zip(refs, (5, 13_000_000, 5, 5), strict=True):
        await store.put_payload("p", ref, OUTPUT, bson.encode({"v": b"x" * size}), fence=1)
        await store.load_payload("p", ref, OUTPUT)
    given = PayloadRef.new(store.clock.now(), 9)
    run = held_run(store, "p", input=Input(args=[given]), spilled=True, expire_after=60.0)
    assert (await store.create_run(run))[1]
    late = message(store, "late", payload=given)
    assert await store.post("p", late) is PostResult.POSTED
    entries = (entry(store, "a", refs[0]),)
    await store.commit(commit_of(run, entries=entries, spilled=True))
    moved = commit_of(await load(store, "p"), archive=entries, entries=(entry(store, "b"),))
    await store.commit(moved)
    later = store.clock.now() + timedelta(days=1)
    ended = commit_of(
        await load(store, "p"), Status.DONE, expire_at=later, spilled=True, output=refs[2]
    )
    assert await store.commit(ended) is CommitResult.LANDED
    assert await store.rewind_run(await load(store, "p"), entries)
    assert await store.sweep_payloads() == 3
    assert await store.terminate("p", BOOM)
    done = await load(store, "p")
    again = held_run(store, "p", input=Input(args=[given]), fence=9, spilled=True)
    assert await store.replace_run(again, rev=done.rev, fence=done.fence)
    await store.discard_payload("p", refs[3])


Recorded = tuple[MongoStore, Recorder, AsyncDatabase[Document]]


@pytest.fixture
async def recorded(mongod: Mongod) -> AsyncIterator[Recorded]:
    """An open store, what it asks the server from now on, and its database."""
    recorder = Recorder()
    client: AsyncMongoClient[Document]
    async with AsyncMongoClient(mongod.uri, event_listeners=[recorder]) as client:
        database = client[f"test_{bson.ObjectId()}"]
        store = MongoStore(database)
        await store.open()
        recorder.commands.clear()
        yield store, recorder, database
        await store.close()
        await client.drop_database(database)


async def test_no_query_of_the_store_scans_a_collection(recorded: Recorded) -> None:
    store, recorder, database = recorded
    await store.create_run(new_run(store, "another"))
    await every_verb(store)
    commands, recorder.commands = recorder.commands, []
    kinds = {next(iter(command)) for command in commands}
    assert kinds >= {"find", "update", "findAndModify", "delete", "aggregate"}
    for command in commands:
        for one in single(command):
            plan = await database.command("explain", one)
            assert "COLLSCAN" not in set(stages(plan)), one


async def test_the_look_for_other_workers_reads_the_index_alone(recorded: Recorded) -> None:
    """It comes several times a second, and documents of running runs may be large."""
    store, recorder, database = recorded
    for number, worker in enumerate(["here/1", "here/1", "here/2", "there/1"]):
        await store.create_run(held_run(store, f"r{number}", worker=worker))
    recorder.commands.clear()
    assert await store.claim_holders("here/", besides="here/1") == ["here/2"]
    (asked,) = (one for command in recorder.commands for one in single(command))
    plan = await database.command("explain", asked)
    assert not {"FETCH", "COLLSCAN"} & set(stages(plan))


async def test_a_look_for_outboxes_examines_only_what_it_returns(store: MongoStore) -> None:
    runs = [held_run(store, f"r{i}") for i in range(50)]
    await asyncio.gather(*(store.create_run(run) for run in runs))
    dispatch = Dispatch(kind=DispatchKind.CANCEL, to="x", rev=1)
    now = store.clock.now()
    told = [commit_of(run, outbox=(dispatch,), outbox_due=now) for run in runs[:5]]
    await asyncio.gather(*(store.commit(each) for each in told))
    assert len(await store.load_outboxes(["wf"], 20)) == 5
    due = {"code": {"$in": ["wf"]}, "outbox_due": HAS_DUE}
    find = {"find": RUNS, "filter": due, "sort": {"outbox_due": 1}, "limit": 20}
    plan = await store.database.command("explain", find, verbosity="executionStats")
    assert plan["executionStats"]["totalDocsExamined"] == 5


async def test_a_look_for_due_runs_examines_only_what_it_returns(store: MongoStore) -> None:
    runs = [new_run(store, f"late{i}", due_in=3600) for i in range(50)]
    runs += [held_run(store, f"parked{i}") for i in range(50)]
    runs += [new_run(store, f"due{i}") for i in range(5)]
    await asyncio.gather(*(store.create_run(run) for run in runs))
    await asyncio.gather(
        *(store.commit(commit_of(run, Status.WAITING)) for run in runs if run.fence)
    )
    for ahead in (0.0, 0.25):
        due = {"code": {"$in": ["wf"]}, **due_filter(new_claim(ahead=ahead))}
        find = {"find": RUNS, "filter": due, "sort": {"due_at": 1}, "limit": 20}
        plan = await store.database.command("explain", find, verbosity="executionStats")
        assert plan["executionStats"]["totalDocsExamined"] == 5


# -- lost replies and retries ---------------------------------------------------------------------


Verb = Callable[[MongoStore], Awaitable[Any]]


async def prepare(store: MongoStore) -> None:
    """Make runs for the verbs below, named for what they are."""
    held: dict[str, Document] = {
        "held": {},
        "pausing": {"inbox": [message(store, "p", MessageKind.PAUSE)]},
    }
    for run_id, fields in held.items():
        await store.create_run(held_run(store, run_id, **fields))
    for run_id in ("queued", "due"):
        await store.create_run(new_run(store, run_id, code=run_id))
    ended = {"done": Status.DONE, "paused": Status.PAUSED, "parked": Status.WAITING}
    for run_id, status in ended.items():
        run = held_run(store, run_id)
        await store.create_run(run)
        await store.commit(commit_of(run, status))


async def commit(store: MongoStore) -> CommitResult:
    run = held_run(store, "held")
    return await store.commit(commit_of(run, Status.WAITING, entries=(entry(store, "s"),)))


async def continued(store: MongoStore) -> CommitResult:
    return await store.commit(continuing(store, held_run(store, "held"), journal_base=1))


async def group(store: MongoStore) -> list[CommitResult]:
    commits = [
        commit_of(held_run(store, run_id), inbox_seq=seq, entries=(entry(store, "s"),))
        for run_id, seq in {"held": 0, "pausing": 7, "none": 0}.items()
    ]
    return list(await asyncio.gather(*(store.commit(each) for each in commits)))


async def claimed_ids(store: MongoStore) -> list[tuple[str, int]]:
    return [(run.id, run.fence) for run in await store.claim_due(new_claim(), ["due"], 5)]


async def claimed(store: MongoStore) -> int:
    run = await store.claim_run(new_claim(), "due")
    return 0 if run is None else run.fence


async def replaced(store: MongoStore) -> bool:
    return await store.replace_run(held_run(store, "done", fence=2), rev=1, fence=1)


async def posted_to_parked(store: MongoStore) -> tuple[list[str], int] | None:
    known = held_run(store, "parked", rev=1)
    run = await store.post_to_parked(known, message(store, "m"), new_claim())
    return None if run is None else ([each.id for each in run.inbox], run.fence)


REF = PayloadRef.new(datetime.now(UTC), 9)
LARGE = {"input": Input(args=[REF]), "spilled": True}


async def put(store: MongoStore) -> list[bytes]:
    """Put a small payload and one in chunks; return what is there."""
    sizes = {PayloadRef.new(datetime.now(UTC), size): size for size in (5, 13_000_000)}
    for ref, size in sizes.items():
        await store.put_payload("p", ref, OUTPUT, bson.encode({"v": b"x" * size}))
    loaded = [await store.load_payload("p", ref, OUTPUT) for ref in sizes]
    return [bson.decode(data)["v"][:1] for data in loaded]


async def followers(store: MongoStore) -> list[str]:
    run = await store.follow("held", "a")
    return [] if run is None else run.followers


async def settled(store: MongoStore) -> list[Dispatch]:
    dispatch = Dispatch(kind=DispatchKind.CANCEL, to="x", rev=1)
    run = held_run(store, "held")
    await store.commit(commit_of(run, outbox=(dispatch,), outbox_due=store.clock.now()))
    await store.settle_outbox("held", [dispatch], store.clock.now())
    return (await load(store, "held")).outbox


VERBS: dict[str, tuple[Verb, object]] = {
    "put_payload": (put, [b"x", b"x"]),
    "create_large": (lambda s: created(s, held_run(s, "new", **LARGE)), True),
    "post_large": (lambda s: s.post("held", message(s, "m", payload=REF)), PostResult.POSTED),
    "create": (lambda s: created(s, held_run(s, "new")), True),
    "replace": (replaced, True),
    "claim_due": (claimed_ids, [("due", 1)]),
    "claim_run": (claimed, 1),
    "release": (lambda s: s.release("held", 1), True),
    "commit": (commit, CommitResult.LANDED),
    "continue": (continued, CommitResult.LANDED),
    "group": (group, [CommitResult.LANDED, CommitResult.INBOX_MOVED, CommitResult.LOST]),
    "post": (lambda s: s.post("held", message(s, "m")), PostResult.POSTED),
    "post_to_parked": (posted_to_parked, (["m"], 2)),
    "cancel_unstarted": (lambda s: s.cancel_unstarted("queued", BOOM), True),
    "terminate": (lambda s: s.terminate("held", BOOM), True),
    "unpause": (lambda s: s.unpause("paused"), True),
    "take_back": (lambda s: s.unpause("pausing"), True),
    "follow": (followers, ["a"]),
    "settle_outbox": (settled, []),
}


async def created(store: MongoStore, run: Run) -> bool:
    return (await store.create_run(run))[1]


async def state(store: MongoStore) -> dict[str, Document]:
    """Return what is stored, without what differs by time and chance."""
    found: list[Document] = await store.database[RUNS].find().to_list()
    return {
        document["_id"]: {
            name: value
            for name, value in document.items()
            if name != "claim" and not name.endswith("_at") and name not in ("journal", "inbox")
        }
        | {name: [each["id"] for each in document.get(name, ())] for name in ("journal", "inbox")}
        | {"past": {k: v for k, v in document.get("past", {}).items() if k != "at"}}
        for document in found
    }


WRITES = ["insert", "update", "findAndModify"]


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_whose_reply_was_lost_applies_once(
    client: AsyncMongoClient[Document], store: MongoStore, verb: str
) -> None:
    call, expected = VERBS[verb]
    await prepare(store)
    assert await call(store) == expected
    once = await state(store)
    await store.database[RUNS].delete_many({})
    await prepare(store)
    # The write is done, but the reply says that its durability is unknown.
    unknown = {"code": 64, "errmsg": "waiting for replication timed out"}
    async with failing(client, WRITES, {"times": 2}, writeConcernError=unknown):
        assert await call(store) == expected
    assert await state(store) == once


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_survives_a_connection_that_breaks(
    client: AsyncMongoClient[Document], store: MongoStore, verb: str
) -> None:
    call, expected = VERBS[verb]
    await prepare(store)
    async with failing(client, [*WRITES, "find"], {"times": 3}, closeConnection=True):
        assert await call(store) == expected


async def test_one_statement_of_a_group_that_is_interrupted_is_sent_again(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [held_run(store, str(number)) for number in range(4)]
    for run in runs:
        await store.create_run(run)
    send = type(store.database).command
    replies = 0

    async def interrupted(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal replies
        group = command["updates"] if isinstance(command, dict) and "update" in command else ()
        if len(group) == 3 and not replies:  # the first goes alone
            replies += 1
            command = {**command, "updates": command["updates"][:2]}
            reply = await send(self, command, *args, **kwargs)
            return {**reply, "writeErrors": [{"index": 2, "code": 11602, "errmsg": "stepdown"}]}
        return await send(self, command, *args, **kwargs)

    monkeypatch.setattr(type(store.database), "command", interrupted)
    results = await asyncio.gather(*(store.commit(commit_of(run)) for run in runs))
    assert replies == 1
    assert results == [CommitResult.LANDED] * 4
    assert [(await load(store, run.id)).rev for run in runs] == [1, 1, 1, 1]


async def test_renew_survives_a_connection_that_breaks(
    client: AsyncMongoClient[Document], store: MongoStore
) -> None:
    await store.create_run(held_run(store))
    async with failing(client, ["update", "find"], {"times": 3}, closeConnection=True):
        renewal = await asyncio.to_thread(store.renew, "w1", {"r": 1}, 60.0)
    assert set(renewal.inbox_seq) == {"r"}


# -- workers side by side -------------------------------------------------------------------------


async def test_several_stores_take_each_run_once(mongod: Mongod) -> None:
    uri = mongod.uri.replace("/?", f"/test_{bson.ObjectId()}?")
    stores = [MongoStore(uri) for _ in range(4)]
    for store in stores:
        await store.open()
    await asyncio.gather(*(stores[0].create_run(new_run(stores[0], str(i))) for i in range(300)))
    taken: list[str] = []

    async def work(store: MongoStore) -> None:
        misses = 0
        while misses < 3:
            runs = await store.claim_due(new_claim(), ["wf"], 10)
            taken.extend(run.id for run in runs)
            misses = 0 if runs else misses + 1

    await asyncio.gather(*(work(store) for store in stores))
    assert Counter(taken) == Counter(str(number) for number in range(300))
    await stores[0].database.client.drop_database(stores[0].database.name)
    for store in stores:
        await store.close()


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "mongodb://user:s3cret@127.0.0.1:1/shop",
        "mongodb://user:s3cret/x@127.0.0.1:1/shop",
        "mongodb://user:s3cret@s3cret@127.0.0.1:1",
        "mongodb://user:s3cret:s3cret@127.0.0.1:1",
        "mongodb+srv://user:s3cret@nowhere.invalid/shop",
        "postgres://user:s3cret@127.0.0.1/shop",
    ],
)
async def test_no_server_is_told_soon_and_without_the_password(address: str) -> None:
    began = time.monotonic()
    with pytest.raises(ServerUnavailable) as caught:
        await MongoStore(address, timeout=SHORT).open()
    assert time.monotonic() - began < 5
    assert "s3cret" not in "".join(traceback.format_exception(caught.value)).replace(address, "")
    assert "s3cret" not in str(caught.value)


async def test_a_wrong_password_is_told_without_it(mongod: Mongod) -> None:
    address = mongod.uri.replace("//", "//user:s3cret@")
    with pytest.raises(ServerUnavailable) as caught:
        await MongoStore(address, timeout=SHORT).open()
    assert "uthentication failed" in str(caught.value)
    assert "s3cret" not in str(caught.value)


async def test_a_server_that_falls_silent_is_unavailable() -> None:
    with Mongod() as mongod:
        store = MongoStore(mongod.uri, timeout=SHORT)
        await store.open()
        run = held_run(store)
        await store.create_run(run)
        await asyncio.to_thread(store.renew, "w1", {"r": 1}, 60.0)
        mongod.freeze()
        try:
            began = time.monotonic()
            results = await asyncio.gather(
                store.load_run("r"),
                store.commit(commit_of(run)),
                store.post("r", message(store, "m")),
                asyncio.to_thread(store.renew, "w1", {"r": 1}, 60.0),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [ServerUnavailable] * 4
            assert time.monotonic() - began < 5
        finally:
            mongod.thaw()
        assert await store.commit(commit_of(run)) is CommitResult.LANDED
        await store.close()


async def test_without_the_right_to_make_indexes_the_commands_are_told(
    client: AsyncMongoClient[Document], caplog: pytest.LogCaptureFixture
) -> None:
    store = MongoStore(client[f"test_{bson.ObjectId()}"])
    with caplog.at_level(logging.WARNING):
        async with failing(client, ["createIndexes"], "alwaysOn", errorCode=13):
            await store.open()
    assert by_hand(RUNS) in caplog.text
    await store.create_run(new_run(store))
    await store.close()


async def test_the_users_client_stays_open(client: AsyncMongoClient[Document]) -> None:
    store = MongoStore(client[f"test_{bson.ObjectId()}"])
    await store.open()
    await store.close()
    await store.close()
    assert (await client.admin.command("ping"))["ok"] == 1


async def test_writes_are_durable_whatever_the_address_says(mongod: Mongod) -> None:
    concerns: list[Document] = []

    class Concerns(Recorder):
        def started(self, event: Any) -> None:
            if event.command_name in (*WRITES, "delete"):
                concerns.append(event.command["writeConcern"])

    name = f"test_{bson.ObjectId()}"
    client: AsyncMongoClient[Document]
    async with AsyncMongoClient(
        mongod.uri, w=0, readPreference="secondaryPreferred", event_listeners=[Concerns()]
    ) as client:
        store = MongoStore(client[name])
        await store.open()
        await every_verb(store)
        await store.close()
    assert len(concerns) > 15
    assert all(each == {"w": "majority", "j": True} for each in concerns)


async def test_the_path_of_the_address_names_the_database(mongod: Mongod) -> None:
    for path, name in {"shop": "shop", "": "streamline"}.items():
        store = MongoStore(mongod.uri.replace("/?", f"/{path}?"))
        await store.open()
        assert store.database.name == name
        await store.database.client.drop_database(name)
        await store.close()


# -- failover -------------------------------------------------------------------------------------


async def test_an_end_that_a_failover_may_undo_is_told_to_nobody() -> None:
    """Only what a majority has is an end: a caller acts on it."""
    replicas = ReplicaSet(3)
    parameters = {"enableTestCommands": 1}
    replicas.nodes = [Mongod("rs", initiate=False, parameters=parameters) for _ in range(3)]
    with replicas:
        store = MongoStore(replicas.uri, timeout=timedelta(seconds=30))
        await store.open()
        run = held_run(store)
        await store.create_run(run)
        primary = await asyncio.to_thread(replicas.primary)
        followers = [AsyncMongoClient(n.uri) for n in replicas.nodes if n is not primary]
        point = {"configureFailPoint": "stopReplProducer"}
        for follower in followers:
            await follower.admin.command({**point, "mode": "alwaysOn"})
        commit = commit_of(run, status=Status.DONE, output=1, ended_at=store.clock.now())
        committing = asyncio.create_task(store.commit(commit))
        async with asyncio.timeout(5):
            while (await load(store, run.id)).status is not Status.DONE:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await store.load_ended([run.id]) == []
        for follower in followers:
            await follower.admin.command({**point, "mode": "off"})
            await follower.close()
        assert await committing is CommitResult.LANDED
        assert [found.output for found in await store.load_ended([run.id])] == [1]
        await store.close()


async def test_commits_go_on_through_a_failover() -> None:
    with ReplicaSet(3) as replicas:
        store = MongoStore(replicas.uri, timeout=timedelta(seconds=30))
        await store.open()
        runs = [held_run(store, str(number)) for number in range(20)]
        await asyncio.gather(*(store.create_run(run) for run in runs))
        stopped = asyncio.Event()

        async def advance(run: Run) -> int:
            rev = 0
            while not stopped.is_set():
                commit = msgspec.structs.replace(
                    commit_of(run, entries=(entry(store, f"s{rev}"),)), rev=rev
                )
                assert await store.commit(commit) is CommitResult.LANDED
                rev += 1
            return rev

        tasks = [asyncio.create_task(advance(run)) for run in runs]
        await asyncio.sleep(0.5)
        await asyncio.to_thread(lambda: replicas.primary().kill())
        await asyncio.sleep(4)
        stopped.set()
        revs = await asyncio.gather(*tasks)
        for run, rev in zip(runs, revs, strict=True):
            after = await load(store, run.id)
            assert after.rev == rev
            assert [each.id for each in after.journal] == [f"s{i}" for i in range(rev)]
        renewal = await asyncio.to_thread(store.renew, "w1", {run.id: 1 for run in runs}, 60.0)
        assert len(renewal.inbox_seq) == len(runs)
        await store.close()


# -- crowds ---------------------------------------------------------------------------------------


async def test_of_a_crowd_only_so_many_calls_are_under_way(store: MongoStore) -> None:
    connection = store._connection
    now, most = 0, 0

    async def operation(again: bool) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    await asyncio.gather(*(connection.persist(operation) for _ in range(10 * UNDER_WAY)))
    assert most == UNDER_WAY


async def test_a_crowd_that_waits_for_a_silent_server_fails_with_the_first(mongod: Mongod) -> None:
    store = MongoStore(mongod.uri, timeout=timedelta(seconds=0.3))
    await store.open()
    connection = store._connection
    tried = 0

    async def silent(again: bool) -> None:
        nonlocal tried
        tried += 1
        await asyncio.get_running_loop().create_future()

    calls = (connection.persist(silent) for _ in range(10 * UNDER_WAY))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {ServerUnavailable}
    assert tried < 2 * UNDER_WAY, "those that waited did not try, one timeout after another"
    assert await store.load_run("none") is None, "and the next call tries again"
    await store.close()
