"""Rules of `create_run`, `replace_run` and of what a store keeps."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec
import pytest

from streamline.errors import DataCorruption, PayloadTooLarge
from streamline.model import Input, MessageKind, Slot, SlotKind, Status
from streamline.store.base import RunStore
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


async def test_a_created_run_reads_back_equal(store: RunStore) -> None:
    now = store.clock.now()
    run = new_run(
        store,
        context=AWKWARD,
        meta={"a.b": 1},
        tags=["x"],
        tenant="t",
        priority=3,
        output=[AWKWARD],
        error=BOOM,
        journal=[entry(store, "charge", AWKWARD, retry_at=now)],
        inbox=[message(store, "m", MessageKind.RESUME, name="wait", payload=AWKWARD)],
        awaiting=[Slot(id="s", kind=SlotKind.WAIT, name="s", since=now, data=AWKWARD)],
        expire_after=12.5,
    )
    assert await store.create_run(run) == (run, True)
    assert await store.load_run("r") == run


async def test_what_is_given_in_and_handed_out_is_not_shared(store: RunStore) -> None:
    run = new_run(store)
    created, _ = await store.create_run(run)
    await store.create_run(new_run(store, "other"))
    run.input.args.append("given")
    loaded = await load(store)
    loaded.input.args.append("loaded")
    assert (await load(store)).input.args == [1, "two"]
    del created


async def test_load_run_returns_none_for_an_unknown_id(store: RunStore) -> None:
    assert await store.load_run("r") is None


async def test_a_second_creation_gets_the_stored_run_without_its_journal(store: RunStore) -> None:
    first = held_run(store, journal=[entry(store, "s")])
    await store.create_run(first)
    second = new_run(store, input=Input(args=["other"]))
    stored, created = await store.create_run(second)
    assert not created
    assert stored == msgspec.structs.replace(first, journal=[])


async def test_of_concurrent_creations_exactly_one_inserts(world: World) -> None:
    stores = [await world.store() for _ in range(4)]
    runs = [held_run(store, claim=f"c{i}") for i, store in enumerate(stores)]
    results = await asyncio.gather(
        *(store.create_run(run) for store, run in zip(stores, runs, strict=True))
    )
    assert sorted(created for _, created in results) == [False, False, False, True]
    winner = next(run for run, created in results if created)
    assert {run.claim for run, _ in results} == {winner.claim}


async def test_a_creation_tried_again_with_its_claim_counts_as_the_one(store: RunStore) -> None:
    run = held_run(store)
    await store.create_run(run)
    stored, created = await store.create_run(run)
    assert created
    assert stored == run


async def test_a_creation_tried_again_without_a_claim_counts_as_the_one(store: RunStore) -> None:
    run = new_run(store)
    await store.create_run(run)
    assert (await store.create_run(run))[1]
    await store.claim_run(new_claim(), "r")
    assert (await store.create_run(run))[1]


async def test_a_creation_with_another_claim_is_another_one(store: RunStore) -> None:
    run = held_run(store)
    await store.create_run(run)
    assert not (await store.create_run(msgspec.structs.replace(run, claim="another")))[1]


async def test_a_run_that_is_too_large_is_refused(store: RunStore) -> None:
    large = new_run(store, input=Input(args=["x" * 17 * 1024 * 1024]))
    with pytest.raises(PayloadTooLarge) as caught:
        await store.create_run(large)
    assert caught.value.run_id == "r"
    assert await store.load_run("r") is None


async def test_load_run_names_a_run_that_cant_be_read(world: World, store: RunStore) -> None:
    await store.create_run(new_run(store))
    await world.damage("r", {"status": "no such status"})
    with pytest.raises(DataCorruption, match="'r'") as caught:
        await store.load_run("r")
    assert caught.value.run_id == "r"


async def ended_with_archive(store: RunStore) -> None:
    run = held_run(store, journal=[entry(store, "a"), entry(store, "b")])
    await store.create_run(run)
    await store.commit(
        commit_of(run, Status.DONE, archive=tuple(run.journal), entries=(entry(store, "c"),))
    )


async def test_replace_run_replaces_an_ended_run_and_its_archive(store: RunStore) -> None:
    await ended_with_archive(store)
    new = held_run(store, fence=2, created_at=store.clock.now() + timedelta(seconds=1))
    assert await store.replace_run(new, rev=1, fence=1)
    assert await load(store) == new
    with pytest.raises(DataCorruption):
        await store.load_archive("r", 2)


async def test_replace_run_refuses_a_run_that_has_not_ended(store: RunStore) -> None:
    run = held_run(store)
    await store.create_run(run)
    assert not await store.replace_run(held_run(store, fence=2), rev=0, fence=1)
    assert await load(store) == run


@pytest.mark.parametrize(("rev", "fence"), [(0, 1), (1, 0), (2, 1)])
async def test_replace_run_refuses_another_rev_or_fence(
    store: RunStore, rev: int, fence: int
) -> None:
    await ended_with_archive(store)
    assert not await store.replace_run(held_run(store, fence=2), rev=rev, fence=fence)
    assert (await load(store)).status is Status.DONE


async def test_replace_run_refuses_an_unknown_run(store: RunStore) -> None:
    assert not await store.replace_run(new_run(store), rev=0, fence=0)


async def test_an_old_claim_does_not_fit_the_replacing_run(store: RunStore) -> None:
    await ended_with_archive(store)
    old = await load(store)
    new = held_run(store, fence=2)
    await store.replace_run(new, rev=old.rev, fence=old.fence)
    assert await store.commit(commit_of(old, output="old")) == "lost"
    assert await load(store) == new


async def test_load_ended_returns_ended_runs_without_journals(store: RunStore) -> None:
    await store.create_run(new_run(store, "open"))
    for run_id in ("a", "b"):
        run = held_run(store, run_id, inbox=[message(store, "m")])
        await store.create_run(run)
        await store.commit(commit_of(run, Status.DONE, output=run_id, entries=(entry(store, "s"),)))
    found = {run.id: run for run in await store.load_ended(["a", "b", "open", "none"])}
    assert {run_id: run.output for run_id, run in found.items()} == {"a": "a", "b": "b"}
    assert all(not run.journal and not run.inbox for run in found.values())
