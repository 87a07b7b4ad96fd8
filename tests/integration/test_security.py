"""What comes from callers can't become a query, what comes from the database can't become code,
and passwords are told to nobody."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from streamline import (
    AesGcm,
    PayloadTooLarge,
    Registry,
    RunFailed,
    ServerUnavailable,
    Status,
    StepFailed,
    Streamline,
    StreamlineError,
    ValidationError,
    WorkflowRun,
    current,
    heartbeat,
    receive,
    set_context,
    step,
    wait,
    workflow,
)
from streamline.codec import Failure, decode_exception, resolve_type
from tests.servers import free_port

pytestmark = pytest.mark.mongo

SECONDS = 10.0
SECRET = "sesame-open-4711"
registry = Registry()

HOSTILE: dict[str, Any] = {
    "$where": "sleep(10000)",
    "$set": {"status": "done"},
    "$unset": {"worker": ""},
    "a.b": {"$gt": ""},
    "status": "$$NOW",
    "$literal": "$$ROOT",
    "deep": [{"$expr": {"$function": {"body": "x", "args": [], "lang": "js"}}}, "$status"],
    "": "$",
}
NOT_TEXT = [{"$gt": ""}, {"$ne": None}, ["a"], 7, None, b"r", "", "a\x00b", "x" * 501, "\ud800"]


@step(registry=registry, attempts=2, wait=lambda state: 0.0)
async def echo(value: Any) -> Any:
    heartbeat(value)
    await asyncio.sleep(0.02)
    set_context(**value)
    if current().attempt == 1:
        raise LookupError(value)
    return value


@workflow(registry=registry)
async def echoing(value: Any) -> list[Any]:
    told = await echo(value)
    mail = await receive("mail")
    return [told, mail, await wait("$$NOW", data=value, name="answer")]


@pytest.fixture
async def database(mongod_replica: str) -> AsyncIterator[Any]:
    """Give a database of this test's own."""
    async with AsyncMongoClient(mongod_replica) as client:
        name = f"security_{uuid.uuid4().hex[:8]}"
        yield client[name]
        await client.drop_database(name)


@pytest.fixture
async def engine(database: Any) -> AsyncIterator[Streamline]:
    async with Streamline(database, registry=registry) as engine:
        yield engine


async def _waiting(engine: Streamline, run_id: str, name: str) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            run = await engine.handle(run_id).get()
            if run.status == "waiting" and [slot.name for slot in run.awaiting] == [name]:
                return
            await asyncio.sleep(0.01)


# -- from callers ---------------------------------------------------------------------------------


async def test_values_of_users_are_never_operators_or_paths(
    engine: Streamline, database: Any
) -> None:
    bystander = await engine.start_run(echoing, {})
    await _waiting(engine, bystander.id, "mail")
    launch = echoing.options(
        id="$$NOW", context=HOSTILE, meta=HOSTILE, tags=["$set"], tenant="$$ROOT", engine=engine
    )
    run = await launch.start(HOSTILE)
    await _waiting(engine, run.id, "mail")
    await run.send("mail", HOSTILE, id="$inbox")
    await _waiting(engine, run.id, "answer")
    await run.resume(HOSTILE, name="answer")
    assert await run.result(SECONDS) == [HOSTILE, HOSTILE, HOSTILE]
    stored = await database.workflow_runs.find_one({"_id": "$$NOW"})
    assert stored["context"] == stored["meta"] == HOSTILE
    assert (stored["status"], stored["tags"], stored["tenant"]) == ("done", ["$set"], "$$ROOT")
    assert await bystander.status() is Status.WAITING
    other = await engine.start_run(echoing, HOSTILE)
    await _waiting(engine, other.id, "mail")
    await other.pause("$$NOW")
    await other.unpause()
    await other.cancel("$status")
    assert (await other.wait(SECONDS)).status == Status.CANCELLED
    last = await engine.start_run(echoing, HOSTILE)
    await last.terminate("$status")
    assert (await last.wait(SECONDS)).error.message.endswith("$status")  # type: ignore[union-attr]


@pytest.mark.parametrize("given", NOT_TEXT, ids=repr)
async def test_what_is_no_text_is_no_id(engine: Streamline, given: Any) -> None:
    await engine.start_run(echoing, {})
    with pytest.raises(ValidationError):
        engine.handle(given)
    if given is None:
        return
    with pytest.raises(ValidationError):
        await echoing.options(id=given, engine=engine).start({})
    run = await engine.start_run(echoing, {})
    with pytest.raises(ValidationError):
        await run.send("mail", 1, id=given)
    with pytest.raises(ValidationError):
        await run.resume(1, name=given)
    with pytest.raises(ValidationError):
        await run.rewind(given)


@pytest.mark.parametrize("channel", [{"$gt": ""}, "$where", "a.$b", "", None, 7, "a\x00"], ids=repr)
async def test_what_is_no_name_is_no_channel(engine: Streamline, channel: Any) -> None:
    run = await engine.start_run(echoing, {})
    with pytest.raises(ValidationError):
        await run.send(channel, 1)


OPTIONS: list[dict[str, Any]] = [
    {"tags": [{"$gt": ""}]},
    {"tags": "text"},
    {"tags": ["\ud800"]},
    {"tenant": {"$gt": ""}},
    {"tenant": 7},
    {"priority": "high"},
    {"priority": 2**64},
    {"context": ["a"]},
    {"meta": "a"},
    {"on_existing": {"$gt": ""}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
async def test_options_of_other_types_are_refused(
    engine: Streamline, database: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        await echoing.options(**options, engine=engine).start({})
    assert await database.workflow_runs.count_documents({}) == 0


async def test_a_reason_is_text_of_acceptable_size(engine: Streamline) -> None:
    run = await engine.start_run(echoing, {})
    for ask in (run.cancel, run.pause, run.terminate):
        with pytest.raises(ValidationError):
            await ask({"$set": 1})  # type: ignore[arg-type]
        with pytest.raises(PayloadTooLarge):
            await ask("x" * 17_000_000)
    await _waiting(engine, run.id, "mail")


# -- from the database ----------------------------------------------------------------------------

NAMES = [
    "this:Exception",  # importing it prints
    "antigravity:x",
    "os:system",
    "builtins:eval",
    "builtins:exec",
    "builtins:SystemExit",
    "builtins:KeyboardInterrupt",
    "subprocess:Popen",
    "importlib:import_module",
    "streamline.errors:sys",
    "streamline.errors:ErrorCode",
    "os.path:os.system",
    "builtins:Exception.__subclasses__",
    "builtins:__import__('os').system('true')",
    ":",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_name_never_imports_nor_makes_what_is_no_exception(name: str) -> None:
    before = set(sys.modules)
    failure = Failure(
        code="STEP_FAILED", type=name, message="x", args=["true"], attributes={"a": 1}
    )
    assert type(decode_exception(failure)) is StepFailed
    assert set(sys.modules) - before <= {"streamline"}


def test_a_stored_exception_runs_no_code_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    class Trap(Exception):
        def __new__(cls, *args: Any) -> Any:
            ran.append("new")
            return super().__new__(cls)

        def __init__(self, *args: Any) -> None:
            ran.append("init")

        def __setattr__(self, name: str, value: Any) -> None:
            ran.append("setattr")

        @property
        def armed(self) -> bool:
            return False

        @armed.setter
        def armed(self, value: bool) -> None:
            ran.append("setter")

    Trap.__qualname__ = "Trap"
    monkeypatch.setattr(sys.modules[__name__], "Trap", Trap, raising=False)
    attributes = {"armed": True, "__class__": 1, "__reduce__": 2, "other": 3}
    failure = Failure(
        code="X", type=f"{__name__}:Trap", message="x", args=["a"], attributes=attributes
    )
    assert isinstance(decode_exception(failure), Trap)
    assert ran == []


@pytest.mark.parametrize(
    "reference",
    [
        *(name for name in NAMES if not name.endswith(("Popen", "ErrorCode", "Interrupt", "Exit"))),
        ["generic", "os:system", ["true"]],
        ["generic", "builtins:eval", ["any"]],
        ["literal", ["member", "subprocess:Popen", "poll"]],
        ["union", "builtins:exec"],
        {"$where": "1"},
        [["any"]],
        ["any", "builtins:int"],
        ["union"] * 100_000,
        "builtins:int" * 100_000,
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_stored_type_is_of_a_loaded_class_or_unknown(reference: Any) -> None:
    before = set(sys.modules)
    assert resolve_type(reference) is None
    assert set(sys.modules) == before


def test_reading_what_is_stored_imports_no_named_module() -> None:
    # In a process of its own: whether `this` was imported shows in what it prints.
    program = (
        "from streamline.codec import Failure, decode_exception, resolve_type\n"
        "decode_exception(Failure(code='X', type='this:s', message=''))\n"
        "resolve_type('this:s'); resolve_type(['generic', 'this:s', ['this:d']])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b""


async def test_a_hostile_error_in_a_document_is_only_told(
    engine: Streamline, database: Any
) -> None:
    run = await engine.start_run(echoing, {})
    await _waiting(engine, run.id, "mail")
    evil = {"code": "STEP_FAILED", "type": "os:system", "message": "touch x", "args": ["touch x"]}
    await database.workflow_runs.update_one(
        {"_id": run.id}, {"$set": {"status": "failed", "error": evil}}
    )
    with pytest.raises(RunFailed, match="touch x") as caught:
        await run.result(SECONDS)
    assert isinstance(caught.value.__cause__, StepFailed)


# -- secrets --------------------------------------------------------------------------------------


def _addresses(mongod: str) -> list[str]:
    host = mongod.removeprefix("mongodb://").partition("/")[0]
    gone = f"127.0.0.1:{free_port()}"
    return [
        f"mongodb://me:{SECRET}@{host}/db",  # the wrong password
        f"mongodb://me:{SECRET}@{host}/db?authMechanism=SCRAM-SHA-1&authSource=admin",
        f"mongodb://me:{SECRET}@{gone}/db",  # nobody there
        f"mongodb://me:{SECRET}@no-such-host.invalid/db",
        f"mongodb://me:{SECRET}@{host},{gone}/db?replicaSet=none",
        f"mongodb://me:{SECRET}@:{host}:x/db",  # no valid address
        f"mongodb://me:@{SECRET}/{SECRET}@{host}/db",
        f"mongodb://me:{SECRET}/x@{host}/db",  # not escaped
        f"mongodb://me:{SECRET}@{host}/db?replicaSet=another",
        f"mongodb+srv://me:{SECRET}@no-such-host.invalid/db",
        f"mongodb://{host}/db?tls=true&tlsCertificateKeyFilePassword={SECRET}&tlsCertificateKeyFile=no",
        f"mongodb://{gone}/db?authMechanism=MONGODB-AWS&authMechanismProperties=AWS_SESSION_TOKEN:{SECRET}",
        f"http://me:{SECRET}@{host}/db",
        f"me:{SECRET}@{host}/db",
    ]


@pytest.mark.parametrize("index", range(14))
async def test_no_failure_to_connect_tells_the_password(
    mongod_replica: str, index: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="streamline")
    address = _addresses(mongod_replica)[index]
    engine = Streamline(address, registry=registry, server_timeout="1s")
    with pytest.raises(StreamlineError) as caught:
        async with asyncio.timeout(SECONDS), engine:
            pass
    assert isinstance(caught.value, ServerUnavailable)
    told = [caplog.text, repr(engine), str(engine), repr(engine.registry), *_chain(caught.value)]
    assert not [text for text in told if SECRET in text]


def _chain(error: BaseException | None) -> list[str]:
    texts: list[str] = []
    while error is not None:
        texts += [str(error), repr(error)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return texts


@pytest.mark.parametrize(
    "show",
    [
        lambda engine: engine,
        lambda engine: engine.store,
        lambda engine: engine.control,
        lambda engine: engine.store._connection,
        lambda engine: engine._worker,
        lambda engine: engine.handle("r"),
        lambda engine: engine.health(),
        lambda engine: engine.events,
    ],
)
async def test_no_repr_tells_the_password(
    mongod_replica: str, database: Any, show: Callable[[Streamline], Any]
) -> None:
    host = mongod_replica.removeprefix("mongodb://").partition("/")[0]
    # An option that is no credential of this server, but a secret all the same.
    address = f"mongodb://{host}/{database.name}?directConnection=true&appName=x"
    sealing = AesGcm({"k": SECRET.encode().ljust(32, b"!")}, current="k")
    async with Streamline(address, registry=registry) as engine:
        assert SECRET not in repr(show(engine))
    async with Streamline(address, registry=registry, payload_codec=sealing) as sealed:
        assert SECRET not in repr(sealed.store) + repr(sealing) + repr(vars(sealed))


async def test_a_document_of_a_run_is_no_place_for_operators(
    engine: Streamline, database: Any
) -> None:
    run = await echoing.options(id="plain", engine=engine).start({})
    await _waiting(engine, run.id, "mail")
    found = await WorkflowRun.find_one(WorkflowRun.id == "plain")
    assert found is not None
    assert found.id == "plain"
