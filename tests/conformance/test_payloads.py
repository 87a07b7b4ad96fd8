"""Rules of the payloads that are kept outside of their runs' documents."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import bson
import msgspec
import pytest

from streamline.codec import PayloadRef
from streamline.errors import DataCorruption, ServerUnavailable
from streamline.model import (
    INPUT,
    OUTPUT,
    CommitResult,
    Dispatch,
    DispatchKind,
    Entry,
    EntryKind,
    Input,
    MessageKind,
    PostResult,
    Run,
    Status,
)
from streamline.store.base import GONE_AFTER, ORPHANED_AFTER, REFER_WITHIN, RunStore
from tests.conformance.samples import (
    AWKWARD,
    BOOM,
    commit_of,
    entry,
    held_run,
    load,
    message,
    new_claim,
    new_run,
)
from tests.conformance.worlds import World

KILO = 1000
MEGA = 1000 * KILO
DATA = bson.encode({"v": AWKWARD})


def ref_of(store: RunStore, data: bytes = DATA, *, age: timedelta = timedelta()) -> PayloadRef:
    return PayloadRef.new(store.clock.now() - age, len(data))


def old(store: RunStore) -> PayloadRef:
    """A reference so old that nothing can be on its way to refer to it."""
    return ref_of(store, age=ORPHANED_AFTER + timedelta(minutes=1))


async def put(
    store: RunStore,
    place: str = OUTPUT,
    *,
    ref: PayloadRef | None = None,
    data: bytes = DATA,
    fence: int | None = None,
    run_id: str = "r",
) -> PayloadRef:
    ref = ref or ref_of(store, data)
    await store.put_payload(run_id, ref, place, data, fence=fence)
    return ref


async def kept(world: World) -> set[Any]:
    return set(await world.payloads())


# -- putting and loading --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 300 * KILO, 11 * MEGA, 13 * MEGA, 33 * MEGA])
async def test_a_payload_of_any_size_comes_back(store: RunStore, size: int) -> None:
    data = bson.encode({"v": {"a.b": "$x", "rest": b"\0\xff" * (size // 2)}})
    ref = await put(store, data=data)
    assert await store.load_payload("r", ref, OUTPUT) == data


async def test_a_payload_put_again_is_there_once(world: World, store: RunStore) -> None:
    for data in (DATA, bson.encode({"v": b"x" * 17 * MEGA})):
        ref = ref_of(store, data)
        await asyncio.gather(*(put(store, ref=ref, data=data) for _ in range(2)))
        await put(store, ref=ref, data=data)
        assert await store.load_payload("r", ref, OUTPUT) == data
    assert len(await kept(world)) == 2


async def test_a_missing_payload_is_corruption_that_names_the_run_and_the_place(
    store: RunStore,
) -> None:
    with pytest.raises(DataCorruption, match="'journal/step/charge/1' of run 'r'") as caught:
        await store.load_payload("r", ref_of(store), "journal/step/charge/1")
    assert caught.value.run_id == "r"


async def test_a_payload_of_another_run_is_not_found(store: RunStore) -> None:
    ref = await put(store, run_id="other")
    with pytest.raises(DataCorruption):
        await store.load_payload("r", ref, OUTPUT)


async def test_a_discarded_payload_is_gone(world: World, store: RunStore) -> None:
    for data in (DATA, bson.encode({"v": b"x" * 17 * MEGA})):
        ref = await put(store, data=data)
        await store.discard_payload("r", ref)
        with pytest.raises(DataCorruption):
            await store.load_payload("r", ref, OUTPUT)
    assert await kept(world) == set()


# -- references -----------------------------------------------------------------------------------


async def referring(store: RunStore, run_id: str = "r", **fields: Any) -> tuple[Run, PayloadRef]:
    """Create a run that is held, and whose input is kept outside."""
    ref = await put(store, INPUT, run_id=run_id)
    run = held_run(store, run_id, input=Input(args=[ref]), spilled=True, **fields)
    assert (await store.create_run(run))[1]
    return run, ref


async def test_references_come_back_as_such_wherever_they_are(store: RunStore) -> None:
    run, given = await referring(store)
    result, output, mail = [await put(store, fence=1), await put(store, fence=1), await put(store)]
    await store.post("r", message(store, "m", MessageKind.SEND, payload=mail))
    archived = (entry(store, "a", result),)
    first = commit_of(run, entries=archived, spilled=True)
    assert await store.commit(first) is CommitResult.LANDED
    more = commit_of(
        await load(store), entries=(entry(store, "b", result),), archive=archived, output=output
    )
    assert await store.commit(more) is CommitResult.LANDED
    after = await load(store)
    assert (after.input.payload, after.output) == (given, output)
    assert [each.value for each in after.journal] == [result]
    assert [each.payload for each in after.inbox] == [mail]
    assert [each.value for each in await store.load_archive("r", 1)] == [result]
    assert after.spilled
    claimed = await reclaimed(store)
    assert claimed.input.payload == given


async def reclaimed(store: RunStore) -> Run:
    held = await load(store)
    await store.release("r", held.fence)
    claimed = await store.claim_run(new_claim(), "r")
    assert claimed is not None
    return claimed


async def test_what_users_pass_is_never_a_reference(store: RunStore) -> None:
    alike = {"payload": str(bson.ObjectId()), "size": 5}
    run = held_run(store, input=Input(args=[alike]), output=alike)
    await store.create_run(run)
    await store.post("r", message(store, "m", MessageKind.SEND, payload=alike))
    await store.commit(commit_of(run, entries=(entry(store, "a", alike),)))
    after = await load(store)
    assert after.input.args == [alike]
    assert [after.output, after.journal[0].value, after.inbox[0].payload] == [alike] * 3
    assert not after.spilled


async def test_references_count_little_for_the_inbox(world: World) -> None:
    store = await world.store(inbox_limit=10 * KILO)
    await store.create_run(held_run(store))
    for number in range(20):
        mail = await put(store, f"inbox/{number}", data=bson.encode({"v": "x" * 300 * KILO}))
        post = message(store, str(number), MessageKind.SEND, payload=mail)
        assert await store.post("r", post) is PostResult.POSTED
    assert (await load(store)).spilled


async def test_a_creation_with_a_large_input_has_the_rules_of_any_other(store: RunStore) -> None:
    run, _ = await referring(store)
    assert await store.create_run(run) == (await head(store), True)
    other = msgspec.structs.replace(run, claim="another")
    assert not (await store.create_run(other))[1]
    refs = [await put(store, INPUT, run_id="n") for _ in range(8)]
    runs = [held_run(store, "n", claim=f"c{i}", input=Input(args=[r])) for i, r in enumerate(refs)]
    results = await asyncio.gather(*(store.create_run(run) for run in runs))
    assert [created for _, created in results].count(True) == 1


async def head(store: RunStore) -> Run:
    return msgspec.structs.replace(await load(store), journal=[])


# -- references that come too late ----------------------------------------------------------------


def late(store: RunStore) -> PayloadRef:
    return ref_of(store, age=REFER_WITHIN + timedelta(seconds=2))


async def test_a_run_is_not_created_so_long_after_its_payload_that_it_may_be_swept(
    store: RunStore,
) -> None:
    run = held_run(store, input=Input(args=[late(store)]), spilled=True)
    with pytest.raises(ServerUnavailable, match="'r'"):
        await store.create_run(run)
    assert await store.load_run("r") is None


async def test_a_run_is_not_replaced_so_late_either(store: RunStore) -> None:
    run = held_run(store)
    await store.create_run(run)
    await store.commit(commit_of(run, Status.DONE))
    new = held_run(store, fence=2, input=Input(args=[late(store)]), spilled=True)
    with pytest.raises(ServerUnavailable, match="'r'"):
        await store.replace_run(new, rev=1, fence=1)
    assert (await load(store)).status is Status.DONE


async def test_a_message_is_not_posted_so_late_either(store: RunStore) -> None:
    await store.create_run(held_run(store))
    before = await load(store)
    with pytest.raises(ServerUnavailable, match="'r'"):
        await store.post("r", message(store, "m", payload=late(store)))
    assert await load(store) == before


async def test_nor_to_a_run_that_is_parked(store: RunStore) -> None:
    run = held_run(store)
    await store.create_run(run)
    await store.commit(commit_of(run, Status.WAITING))
    parked = await load(store)
    post = message(store, "m", payload=late(store))
    assert await store.post_to_parked(parked, post, new_claim()) is None
    assert await load(store) == parked
    post = message(store, "m", payload=await put(store))
    woken = await store.post_to_parked(parked, post, new_claim())
    assert woken is not None
    assert woken.spilled
    assert [each.payload for each in woken.inbox] == [post.payload]


# -- sweeping -------------------------------------------------------------------------------------


async def sweep(world: World, store: RunStore) -> int:
    await world.hurry_sweep()
    return await store.sweep_payloads()


async def test_a_payload_without_a_run_is_swept_when_no_run_can_refer_to_it_any_more(
    world: World, store: RunStore
) -> None:
    gone = await put(store, ref=old(store))
    young = await put(store, ref=ref_of(store, age=REFER_WITHIN))
    assert await sweep(world, store) == 1
    assert await kept(world) == {young.payload}
    assert gone.payload != young.payload


async def test_a_large_payload_is_swept_whole(world: World, store: RunStore) -> None:
    data = bson.encode({"v": b"x" * 17 * MEGA})
    ref = await put(store, ref=old(store), data=data)
    assert await sweep(world, store) == 1
    with pytest.raises(DataCorruption):
        await store.load_payload("r", ref, OUTPUT)


@pytest.mark.parametrize("place", ["input", "output", "journal", "inbox"])
async def test_what_a_document_refers_to_is_not_swept(
    world: World, store: RunStore, place: str
) -> None:
    ref, orphan = await put(store, ref=old(store)), await put(store, ref=old(store))
    stored = {"payload": ref.payload, "size": ref.size}
    now = store.clock.now()
    fields = {
        "input": {"args": [stored], "kwargs": {}, "context": {}},
        "output": stored,
        "journal": [{"id": "a", "kind": "step", "at": now, "fence": 1, "value": stored}],
        "inbox": [{"id": "m", "kind": "send", "at": now, "payload": stored}],
    }
    await store.create_run(held_run(store))
    await world.damage("r", {place: fields[place]})
    assert await sweep(world, store) == 1
    assert await kept(world) == {ref.payload} != {orphan.payload}


async def test_what_the_archive_refers_to_is_not_swept(world: World, store: RunStore) -> None:
    run = held_run(store)
    await store.create_run(run)
    ref = await put(store, ref=old(store), fence=1)
    entries = (entry(store, "a", ref),)
    await store.commit(commit_of(run, entries=entries, spilled=True))
    moved = commit_of(await load(store), archive=entries, entries=(entry(store, "b"),))
    assert await store.commit(moved) is CommitResult.LANDED
    await reclaimed(store)
    assert await sweep(world, store) == 0
    assert await kept(world) == {ref.payload}


async def test_a_payload_whose_commit_may_be_on_its_way_is_never_swept(
    world: World, store: RunStore
) -> None:
    """However old it is: the worker may wake an hour late, and its claim still hold."""
    run = held_run(store)
    await store.create_run(run)
    ref = await put(store, ref=old(store), fence=1)
    assert await sweep(world, store) == 0
    late_commit = commit_of(run, entries=(entry(store, "a", ref),), spilled=True)
    assert await store.commit(late_commit) is CommitResult.LANDED
    assert await store.load_payload("r", ref, OUTPUT) == DATA


@pytest.mark.parametrize("how", ["claimed", "parked", "ended", "terminated"])
async def test_a_payload_whose_commit_can_not_land_any_more_is_swept(
    world: World, store: RunStore, how: str
) -> None:
    run = held_run(store)
    await store.create_run(run)
    ref = await put(store, ref=ref_of(store), fence=1)
    if how == "claimed":
        await reclaimed(store)
    elif how == "terminated":
        await store.terminate("r", BOOM)
    else:
        status = Status.WAITING if how == "parked" else Status.DONE
        await store.commit(commit_of(run, status))
    assert await sweep(world, store) == 1
    late_commit = commit_of(await load(store), entries=(entry(store, "a", ref),), spilled=True)
    late_commit = msgspec.structs.replace(late_commit, fence=1)
    assert await store.commit(late_commit) is CommitResult.LOST


async def test_a_sweep_puts_off_what_it_keeps(world: World, store: RunStore) -> None:
    await referring(store)
    await put(store)
    assert await sweep(world, store) == 0
    await world.lose_payload(next(iter(await kept(world))))  # not by the store: it must not look
    assert await store.sweep_payloads() == 0
    assert len(await kept(world)) == 1


async def test_many_orphans_are_swept_at_once(world: World, store: RunStore) -> None:
    await asyncio.gather(*(put(store, ref=old(store)) for _ in range(250)))
    assert await sweep(world, store) == 250
    assert await kept(world) == set()


# -- going with the run ---------------------------------------------------------------------------


async def ended(
    store: RunStore, run: Run, *, keep: timedelta = timedelta(minutes=1), **fields: Any
) -> None:
    later = store.clock.now() + keep
    commit = commit_of(run, Status.DONE, expire_at=later, spilled=True, **fields)
    assert await store.commit(commit) is CommitResult.LANDED


async def looked_at(world: World, store: RunStore, *refs: PayloadRef) -> set[timedelta]:
    """Return how long after the run's expiry these payloads are looked at."""
    expire_at = (await load(store)).expire_at
    assert expire_at is not None
    times = await world.payloads()
    return {times[ref.payload] - expire_at for ref in refs}


async def test_payloads_go_with_their_run(world: World, store: RunStore) -> None:
    run, given = await referring(store)
    other = await put(store, run_id="other")
    output = await put(store, fence=1)
    await ended(store, run, output=output)
    assert await looked_at(world, store, given, output) == {GONE_AFTER}
    await world.expire("r")
    # The input may be meant for a new run of this id, for as long as it is young.
    assert await sweep(world, store) == 1
    assert await kept(world) == {given.payload, other.payload}


async def test_an_expired_runs_input_goes_once_it_is_old(world: World, store: RunStore) -> None:
    ref = await put(store, INPUT, ref=old(store))
    await store.create_run(held_run(store))
    stored = {"payload": ref.payload, "size": ref.size}
    await world.damage("r", {"input": {"args": [stored], "kwargs": {}, "context": {}}})
    assert await sweep(world, store) == 0
    await world.expire("r")
    assert await sweep(world, store) == 1


@pytest.mark.parametrize("how", ["terminate", "cancel_unstarted"])
async def test_payloads_go_with_a_run_that_was_ended_from_outside(
    world: World, store: RunStore, how: str
) -> None:
    ref = await put(store, INPUT)
    fields = {"input": Input(args=[ref]), "spilled": True, "expire_after": 60.0}
    await store.create_run(new_run(store, **fields))
    assert await getattr(store, how)("r", BOOM)
    assert await looked_at(world, store, ref) == {GONE_AFTER}


async def test_payloads_go_with_a_run_that_expires_once_it_has_told(
    world: World, store: RunStore
) -> None:
    ref = await put(store, INPUT)
    fields = {"input": Input(args=[ref]), "spilled": True, "expire_after": 60.0}
    await store.create_run(held_run(store, **fields))
    told = Dispatch(kind=DispatchKind.OUTCOME, to="p", rev=1)
    now = store.clock.now()
    commit = commit_of(
        await load(store), Status.DONE, outbox=(told,), outbox_due=now, ended_at=now, spilled=True
    )
    assert await store.commit(commit) is CommitResult.LANDED
    await store.settle_outbox("r", [told], now)
    assert await looked_at(world, store, ref) == {GONE_AFTER}


async def test_a_sweep_before_the_run_is_gone_looks_again_then(
    world: World, store: RunStore
) -> None:
    run, given = await referring(store)
    await ended(store, run, keep=timedelta(days=90))
    assert await sweep(world, store) == 0
    assert await looked_at(world, store, given) == {GONE_AFTER}


async def test_payloads_of_a_replaced_run_are_swept_and_the_new_ones_stay(
    world: World, store: RunStore
) -> None:
    run, _ = await referring(store)
    await ended(store, run, output=await put(store, fence=1))
    given = await put(store, INPUT)
    mail = await put(store)  # of a message on its way to the new run
    new = held_run(store, fence=2, input=Input(args=[given]), spilled=True)
    assert await store.replace_run(new, rev=1, fence=1)
    # The old output can't be referred to any more; the old input might be, for what a sweep knows.
    assert await store.sweep_payloads() == 1
    assert {given.payload, mail.payload} < await kept(world)


async def test_what_a_rewind_drops_is_swept_and_the_rest_stays(
    world: World, store: RunStore
) -> None:
    run, given = await referring(store)
    first, second, output = [await put(store, fence=1) for _ in range(3)]
    entries = (entry(store, "a", first), entry(store, "b", second))
    await ended(store, run, entries=entries, output=output)
    assert await store.rewind_run(await load(store), entries[:1])
    assert await store.sweep_payloads() == 2
    assert await kept(world) == {given.payload, first.payload}


async def test_the_places_of_references(store: RunStore) -> None:
    ref = ref_of(store)
    step = entry(store, "charge#2", ref, attempt=3)
    assert step.place == "journal/step/charge#2/3"
    assert message(store, "m", payload=ref).place == "inbox/m"
    now = store.clock.now()
    taken = Entry(id="s", kind=EntryKind.MESSAGE, at=now, fence=1, value=ref, message="m")
    assert taken.place == "inbox/m"  # where it was put, and sealed
    assert taken.with_value("small").place == "journal/message/s/0"
