"""The sealed store: what stays readable, what is found out, keys that change, runs set aside."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import bson
import pytest

from streamline import (
    AesGcm,
    PayloadCodec,
    Registry,
    RunConflict,
    RunFailed,
    Status,
    Streamline,
    ValidationError,
    continue_as_new,
    receive,
    set_context,
)
from streamline import step as step_
from streamline import workflow as workflow_
from streamline.codec import Failure, PayloadRef
from streamline.errors import DataCorruption
from streamline.model import Attempt, Input, MessageKind, Slot, SlotKind
from streamline.store.memory import MemoryStore
from streamline.store.memory_data import MemoryData
from streamline.store.sealed import SealedStore
from tests.conformance.samples import commit_of, entry, held_run, message, new_claim, new_run

OLD, NEW = b"o" * 32, b"n" * 32
SECRET = "attack at dawn"


def codec(**options: Any) -> AesGcm:
    return AesGcm({"old": OLD}, current="old", **options)


@pytest.fixture
def data() -> MemoryData:
    return MemoryData()


@pytest.fixture
def plain(data: MemoryData) -> MemoryStore:
    return MemoryStore(data=data)


@pytest.fixture
def store(plain: MemoryStore) -> SealedStore:
    return SealedStore(plain, codec())


FAILURE = Failure(
    code="STEP_FAILED",
    type="builtins:ValueError",
    message=SECRET,
    traceback=SECRET,
    step="charge",
    args=[SECRET],
    attributes={"what": SECRET},
    notes=[SECRET],
    cause=Failure(code="STEP_FAILED", type="builtins:OSError", message=SECRET),
    parts=[Failure(code="STEP_FAILED", type="builtins:OSError", message=SECRET)],
)


def full_of_secrets(store: SealedStore) -> Any:
    now = store.clock.now()
    return held_run(
        store,
        input=Input(args=[SECRET], kwargs={"to": SECRET}),
        output=SECRET,
        error=FAILURE,
        journal=[entry(store, "charge", SECRET), entry(store, "ship", error=FAILURE)],
        inbox=[message(store, "m", MessageKind.SEND, name="mail", payload=[SECRET])],
        awaiting=[
            Slot(id="w", kind=SlotKind.WAIT, name="w", since=now, reason=SECRET, data=SECRET)
        ],
        attempts=[Attempt(id="ship", attempt=1, started_at=now, heartbeat=SECRET)],
        context={"tenantId": "t-1"},
    )


async def test_no_payload_is_readable_in_the_document(store: SealedStore, data: MemoryData) -> None:
    run = full_of_secrets(store)
    await store.create_run(run)
    more = commit_of(
        run,
        entries=(entry(store, "pay", SECRET),),
        archive=tuple(run.journal),
        output=SECRET,
        error=FAILURE,
        awaiting=tuple(run.awaiting),
        attempts=tuple(run.attempts),
    )
    await store.commit(more)
    await store.heartbeat("r", 1, "ship", {"at": SECRET})
    assert SECRET not in repr(data.get("r"))
    assert SECRET not in repr(data.archives)
    assert [e.value for e in await store.load_archive("r", 2)] == [SECRET, None]
    await store.terminate("r", FAILURE)
    assert SECRET not in repr(data.get("r"))
    loaded = await store.load_run("r")
    assert loaded is not None
    assert loaded.error == FAILURE


async def test_what_queries_and_people_need_stays_readable(
    store: SealedStore, data: MemoryData
) -> None:
    await store.create_run(full_of_secrets(store))
    document = data.get("r")
    assert document is not None
    assert document["context"] == {"tenantId": "t-1"}
    assert document["journal"][0]["id"] == "charge"
    assert document["error"]["code"] == "STEP_FAILED"
    assert document["error"]["type"] == "builtins:ValueError"
    assert document["error"]["message"] == document["awaiting"][0]["reason"] == "(sealed)"
    assert document["output"].keys() == {"key", "aes_gcm"}
    assert document["output"]["key"] == "old"


async def test_a_context_is_sealed_where_the_codec_says_so(
    plain: MemoryStore, data: MemoryData
) -> None:
    store = SealedStore(plain, codec(seal_context=True))
    run = held_run(store, context={"a": SECRET}, input=Input(context={"a": SECRET}))
    await store.create_run(run)
    await store.commit(commit_of(run, context={"b": SECRET}, entries=()))
    assert SECRET not in repr(data.get("r"))
    loaded = await store.load_run("r")
    assert loaded is not None
    assert (loaded.context, loaded.input.context) == ({"b": SECRET}, {"a": SECRET})


# -- tampering ------------------------------------------------------------------------------------


def flip(envelope: Any) -> None:
    envelope["aes_gcm"] = envelope["aes_gcm"][:-1] + bytes([envelope["aes_gcm"][-1] ^ 1])


def _change_a_bit(document: Any) -> None:
    flip(document["journal"][0]["value"])


def _swap_two_results(document: Any) -> None:
    first, second = document["journal"]
    first["value"], second["value"] = second["value"], first["value"]


def _take_another_runs(document: Any) -> None:
    document["input"] = document.pop("other")["input"]


def _write_plain(document: Any) -> None:
    document["journal"][0]["value"] = 5


def _write_a_plain_input(document: Any) -> None:
    document["input"]["args"] = []


def _write_a_plain_error(document: Any) -> None:
    document["error"] = {"code": "X", "type": "X", "message": "X"}


def _name_an_unknown_key(document: Any) -> None:
    document["journal"][0]["value"]["key"] = "unknown"


def _cut_short(document: Any) -> None:
    document["journal"][0]["value"]["aes_gcm"] = b"short"


def _change_a_message(document: Any) -> None:
    document["inbox"] = [
        {"id": "m", "kind": "send", "at": document["created_at"], "name": "n", "payload": "plain"}
    ]


TAMPERINGS = [
    _change_a_bit,
    _swap_two_results,
    _take_another_runs,
    _write_plain,
    _write_a_plain_input,
    _write_a_plain_error,
    _name_an_unknown_key,
    _cut_short,
    _change_a_message,
]


@pytest.mark.parametrize("tamper", TAMPERINGS)
async def test_a_run_that_was_tampered_with_is_set_aside_alone(
    store: SealedStore, data: MemoryData, tamper: Any
) -> None:
    for run_id in ("bad", "good", "other"):
        journal = [entry(store, "a", "A"), entry(store, "b", "B")]
        await store.create_run(new_run(store, run_id, journal=journal, input=Input(args=[run_id])))
    document = data.get("bad")
    assert document is not None
    document["other"] = data.get("other")
    tamper(document)
    document.pop("other", None)
    data.put(document)
    with pytest.raises(DataCorruption, match="'bad'") as caught:
        await store.load_run("bad")
    assert caught.value.run_id == "bad"
    claimed = await store.claim_due(new_claim(), ["wf"], 10)
    assert sorted(run.id for run in claimed) == ["good", "other"]
    after = data.get("bad")
    assert after is not None
    assert (after["status"], after["error"]["code"]) == ("failed", "DATA_CORRUPTION")
    assert "'bad'" in after["error"]["message"]
    assert "due_at" not in after


async def test_a_tampered_run_that_is_claimed_by_id_is_set_aside(
    store: SealedStore, data: MemoryData
) -> None:
    await store.create_run(new_run(store))
    document = data.get("r")
    assert document is not None
    flip(document["input"]["args"][0])
    data.put(document)
    assert await store.claim_run(new_claim(), "r") is None
    [found] = await store.load_ended(["r"])
    assert found.error is not None
    assert (found.status, found.error.code) == (Status.FAILED, "DATA_CORRUPTION")


async def test_a_tampered_archive_names_the_run(store: SealedStore, data: MemoryData) -> None:
    run = held_run(store, journal=[entry(store, "a", "A")])
    await store.create_run(run)
    await store.commit(commit_of(run, archive=tuple(run.journal), entries=()))
    flip(data.archives["r"][0].value)
    with pytest.raises(DataCorruption, match="'r'"):
        await store.load_archive("r", 1)


async def test_a_codec_that_fails_corrupts_nothing_but_the_run(plain: MemoryStore) -> None:
    class Broken(PayloadCodec):
        def encode(self, native: Any, *, run_id: str, field: str) -> Any:
            return native

        def decode(self, stored: Any, *, run_id: str, field: str) -> Any:
            raise OSError("the key server is away")

    store = SealedStore(plain, Broken())
    await plain.create_run(SealedStore(plain, codec())._seal.run(new_run(store)))
    with pytest.raises(DataCorruption, match="the key server is away"):
        await store.load_run("r")


# -- keys -----------------------------------------------------------------------------------------


async def test_after_a_rotation_old_runs_are_read_and_new_ones_use_the_new_key(
    store: SealedStore, plain: MemoryStore, data: MemoryData
) -> None:
    await store.create_run(new_run(store, "before"))
    rotated = SealedStore(plain, AesGcm({"old": OLD, "new": NEW}, current="new"))
    await rotated.create_run(new_run(store, "after"))
    assert await rotated.load_run("before") is not None
    document = data.get("after")
    assert document is not None
    assert document["input"]["args"][0]["key"] == "new"
    with pytest.raises(DataCorruption, match="'new' is not among those given"):
        await store.load_run("after")


async def test_one_payload_is_never_sealed_the_same_twice_nor_for_another_run() -> None:
    sealing = codec()
    first = sealing.encode(SECRET, run_id="a", field="output")
    assert sealing.encode(SECRET, run_id="a", field="output") != first
    assert sealing.decode(first, run_id="a", field="output") == SECRET
    for run_id, field in (("b", "output"), ("a", "input"), ("a/o", "utput")):
        with pytest.raises(DataCorruption):
            sealing.decode(first, run_id=run_id, field=field)


def test_many_runs_dont_pile_up_in_the_codec() -> None:
    sealing = codec()
    for number in range(5000):
        sealing.encode(1, run_id=str(number), field="output")
    assert len(sealing._ciphers) <= 4096


def test_keys_are_checked_and_never_shown() -> None:
    with pytest.raises(ValidationError, match="32 random bytes"):
        AesGcm({"k": b"short"}, current="k")
    with pytest.raises(ValidationError, match="'x' is not among"):
        AesGcm({"k": OLD}, current="x")
    assert repr(codec()) == "AesGcm(keys=['old'], current='old')"


def test_without_cryptography_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ValidationError, match=r"streamline-durable\[crypto\]"):
        codec()


# -- payloads kept outside ------------------------------------------------------------------------

LARGE = bson.encode({"v": SECRET * 1000})


async def put(store: SealedStore, place: str) -> PayloadRef:
    ref = PayloadRef.new(store.clock.now(), len(LARGE))
    await store.put_payload("r", ref, place, LARGE)
    return ref


async def test_payloads_kept_outside_are_sealed(store: SealedStore, data: MemoryData) -> None:
    ref = await put(store, "output")
    assert SECRET.encode() not in data.payloads.kept[ref.payload].data
    assert await store.load_payload("r", ref, "output") == LARGE


async def test_a_payload_kept_outside_is_bound_to_its_place(
    store: SealedStore, data: MemoryData
) -> None:
    one, other = await put(store, "journal/step/a/1"), await put(store, "journal/step/b/1")
    kept = data.payloads.kept
    with pytest.raises(DataCorruption, match="journal/step/b/1"):
        await store.load_payload("r", one, "journal/step/b/1")
    kept[one.payload], kept[other.payload] = kept[other.payload], kept[one.payload]
    with pytest.raises(DataCorruption, match="journal/step/a/1"):
        await store.load_payload("r", one, "journal/step/a/1")


@pytest.mark.parametrize("stored", [LARGE, b"no document", bson.encode({"sealed": "plain"})])
async def test_a_payload_that_was_put_there_by_others_is_not_taken(
    store: SealedStore, data: MemoryData, stored: bytes
) -> None:
    ref = await put(store, "output")
    data.payloads.kept[ref.payload].data = stored
    with pytest.raises(DataCorruption, match="'output' of run 'r'"):
        await store.load_payload("r", ref, "output")


async def test_payloads_from_before_the_codec_are_read_where_it_accepts_plain_ones(
    plain: MemoryStore,
) -> None:
    ref = PayloadRef.new(plain.clock.now(), len(LARGE))
    await plain.put_payload("r", ref, "output", LARGE)
    store = SealedStore(plain, codec(accept_plain=True))
    assert await store.load_payload("r", ref, "output") == LARGE
    with pytest.raises(DataCorruption):
        await SealedStore(plain, codec()).load_payload("r", ref, "output")


# -- with an engine -------------------------------------------------------------------------------

registry = Registry()


@step_(registry=registry)
async def shout(text: str) -> str:
    return text.upper()


@workflow_(registry=registry)
async def echoing(text: str) -> str:
    return await shout(text)


@workflow_(registry=registry)
async def renewing(text: str, generations: int = 2) -> str:
    await receive("go")
    shouted = await shout(text)
    set_context(said=shouted)
    if generations > 1:
        continue_as_new(shouted, generations - 1)
    return shouted


def engine(data: MemoryData, sealing: PayloadCodec | None, *, worker: bool = True) -> Streamline:
    store = MemoryStore(data=data)
    return Streamline(store=store, registry=registry, payload_codec=sealing, worker=worker)


@pytest.fixture
async def client(data: MemoryData) -> AsyncIterator[Streamline]:
    """Give an engine that seals with the old key, and has no worker."""
    async with engine(data, codec(), worker=False) as client:
        yield client


async def test_a_worker_without_the_codec_leaves_sealed_runs_alone(
    client: Streamline, data: MemoryData
) -> None:
    run = await client.start_run(echoing, "hello")
    async with engine(data, None) as other:
        mine = await other.start_run(echoing, "plain")
        assert await mine.result(10) == "PLAIN"
        assert await run.status() is Status.QUEUED
    async with engine(data, codec()):
        assert await run.result(10) == "HELLO"


async def test_runs_from_before_the_codec_are_driven_where_it_accepts_plain_payloads(
    data: MemoryData,
) -> None:
    async with engine(data, None, worker=False) as before:
        run_id = (await before.start_run(echoing, "hello")).id
    async with engine(data, codec(accept_plain=True)) as moving:
        assert await moving.handle(run_id).result(10) == "HELLO"
        assert (await moving.handle(run_id).get()).output == "HELLO"


async def test_a_run_set_aside_for_want_of_its_key_is_retried_with_it(
    client: Streamline, data: MemoryData
) -> None:
    run = await client.start_run(echoing, "hello")
    async with engine(data, AesGcm({"new": NEW}, current="new")):
        assert (await run.wait(10)).status == Status.FAILED
        with pytest.raises(RunFailed, match="'old' is not among those given") as caught:
            await run.result(10)
        assert caught.value.error_code == "DATA_CORRUPTION"
    await client.handle(run.id).retry()
    async with engine(data, codec()):
        assert await run.result(10) == "HELLO"


async def test_a_run_that_continues_as_new_stays_sealed(data: MemoryData) -> None:
    async with engine(data, codec(seal_context=True)) as sealed:
        run = await sealed.start_run(renewing, SECRET)
        await run.send("go")
        await _generation(data, run.id, 2)
        document = data.get(run.id)
        assert document is not None
        assert SECRET.lower().encode() not in bson.encode(document).lower()
        assert document["code"] == "sealed/renewing"
        # With what it was started, not with what it goes on with.
        await renewing.options(id=run.id, engine=sealed).start(SECRET)
        with pytest.raises(RunConflict):
            await renewing.options(id=run.id, engine=sealed).start(SECRET.upper(), 1)
        await run.send("go")
        assert await run.result(5) == SECRET.upper()


async def test_a_plain_run_that_continues_as_new_is_sealed_from_then_on(data: MemoryData) -> None:
    async with engine(data, None) as plainly:
        run_id = (await plainly.start_run(renewing, SECRET)).id
    async with engine(data, codec(accept_plain=True)) as sealed:
        run = sealed.handle(run_id)
        await run.send("go")
        await _generation(data, run_id, 2)
        document = data.get(run_id)
        assert document is not None
        assert document["code"] == "sealed/renewing"
        assert SECRET.encode() not in bson.encode({"both": [document["input"], document["past"]]})
        await run.send("go")
        assert await run.result(5) == SECRET.upper()
        assert (await run.get()).past.input.args == [SECRET]


async def _generation(data: MemoryData, run_id: str, generation: int) -> None:
    async with asyncio.timeout(5):
        while (data.get(run_id) or {}).get("generation", 1) < generation:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
