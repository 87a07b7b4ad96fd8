"""Rules of `claim_due`, `claim_run`, `renew`, `release` and of dead holders."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from streamline.model import Run, Status
from streamline.store.base import RunStore
from tests.conformance.samples import (
    commit_of,
    held_run,
    load,
    new_claim,
    new_run,
)
from tests.conformance.worlds import Document, World

SOON = timedelta(seconds=5)


async def test_a_claim_takes_what_is_due_and_returns_it_claimed(store: RunStore) -> None:
    await store.create_run(new_run(store, fence=3))
    claim = new_claim(lease=60.0)
    [run] = await store.claim_due(claim, ["wf"], 10)
    assert (run.status, run.worker, run.claim) == (Status.RUNNING, "w1", claim.id)
    assert (run.fence, run.rev, run.recoveries) == (4, 0, 0)
    assert run.due_at is not None
    assert abs(run.due_at - store.clock.now() - timedelta(seconds=60)) < SOON
    assert run.started_at is not None
    assert abs(run.started_at - store.clock.now()) < SOON
    assert run == await load(store)


async def test_a_claim_keeps_when_the_run_first_started(world: World, store: RunStore) -> None:
    await store.create_run(new_run(store))
    first = await store.claim_run(new_claim(), "r")
    assert first is not None
    await world.advance(61)
    again = await store.claim_run(new_claim(), "r")
    assert again is not None
    assert again.started_at == first.started_at


async def test_a_claim_skips_what_is_not_due_yet(world: World, store: RunStore) -> None:
    await store.create_run(new_run(store, due_in=30, status=Status.DRAFT))
    assert await store.claim_due(new_claim(), ["wf"], 10) == []
    assert await store.claim_run(new_claim(), "r") is None
    await world.advance(31)
    assert len(await store.claim_due(new_claim(), ["wf"], 10)) == 1


@pytest.mark.parametrize("by_id", [False, True])
async def test_a_claim_ahead_takes_what_waits_and_nothing_else(
    world: World, store: RunStore, by_id: bool
) -> None:
    soon = store.clock.now() + timedelta(seconds=20)
    for run_id, due_at in {"soon": soon, "later": soon + timedelta(minutes=1)}.items():
        run = held_run(store, run_id)
        await store.create_run(run)
        await store.commit(commit_of(run, Status.WAITING, due_at=due_at))
    await store.create_run(held_run(store, "held", lease=20))
    await store.create_run(new_run(store, "draft", due_in=20, status=Status.DRAFT))
    await store.create_run(new_run(store, "put off", due_in=20))
    ids = ["soon", "later", "held", "draft", "put off"]
    if by_id:
        got = [await store.claim_run(new_claim(ahead=30), run_id) for run_id in ids]
        claimed = [run for run in got if run is not None]
    else:
        claimed = await store.claim_due(new_claim(ahead=30), ["wf"], 10)
    assert [(run.id, run.status, run.recoveries) for run in claimed] == [
        ("soon", Status.RUNNING, 0)
    ]
    assert claimed[0].due_at is not None
    assert claimed[0].due_at > soon + timedelta(seconds=10), "the end of the lease"


async def test_a_claim_skips_a_run_whose_lease_is_live(store: RunStore) -> None:
    await store.create_run(held_run(store))
    assert await store.claim_due(new_claim(), ["wf"], 10) == []
    assert await store.claim_run(new_claim(), "r") is None


async def test_a_claim_skips_ended_paused_and_waiting_runs(store: RunStore) -> None:
    for status in (Status.DONE, Status.FAILED, Status.CANCELLED, Status.PAUSED, Status.WAITING):
        run = held_run(store, status.value)
        await store.create_run(run)
        await store.commit(commit_of(run, status))
        assert await store.claim_run(new_claim(), run.id) is None
    assert await store.claim_due(new_claim(), ["wf"], 10) == []


async def test_a_claim_skips_other_codes(store: RunStore) -> None:
    await store.create_run(new_run(store, "a", code="wf@1"))
    await store.create_run(new_run(store, "b", code="wf@2"))
    claimed = await store.claim_due(new_claim(), ["wf@2", "wf@3"], 10)
    assert [run.id for run in claimed] == ["b"]


async def test_the_longest_due_come_first_up_to_the_limit(store: RunStore) -> None:
    for number, due_in in enumerate((-1, -4, -2, -3)):
        await store.create_run(new_run(store, str(number), due_in=due_in, code=f"wf{number % 2}"))
    claimed = await store.claim_due(new_claim(), ["wf0", "wf1"], 3)
    assert [run.id for run in claimed] == ["1", "3", "2"]


async def test_a_run_found_running_counts_as_a_recovery(world: World, store: RunStore) -> None:
    await store.create_run(held_run(store, lease=30))
    await world.advance(31)
    [run] = await store.claim_due(new_claim("w2", lease=30), ["wf"], 10)
    assert (run.recoveries, run.worker, run.fence) == (1, "w2", 2)
    await world.advance(31)
    again = await store.claim_run(new_claim("w3"), "r")
    assert again is not None
    assert again.recoveries == 2


async def test_concurrent_claims_take_each_run_once(world: World) -> None:
    stores = [await world.store() for _ in range(4)]
    for number in range(40):
        await stores[0].create_run(new_run(stores[0], str(number)))
    taken: list[Run] = []

    async def work(store: RunStore, worker: str) -> None:
        while claimed := await store.claim_due(new_claim(worker), ["wf"], 5):
            taken.extend(claimed)

    await asyncio.gather(*(work(store, f"w{i}") for i, store in enumerate(stores)))
    # One who lost every race stops early; the others had what it missed.
    await work(stores[0], "last")
    assert Counter(run.id for run in taken) == Counter(str(number) for number in range(40))
    assert {run.fence for run in taken} == {1}


async def test_concurrent_claims_of_one_run_have_one_winner(world: World) -> None:
    stores = [await world.store() for _ in range(4)]
    await stores[0].create_run(new_run(stores[0]))
    results = await asyncio.gather(*(store.claim_run(new_claim(), "r") for store in stores))
    assert sum(run is not None for run in results) == 1


async def test_claims_of_several_workers_spread_over_what_is_due(world: World) -> None:
    stores = [await world.store() for _ in range(3)]
    for number in range(60):
        await stores[0].create_run(new_run(stores[0], str(number)))
    claimed = await asyncio.gather(*(s.claim_due(new_claim(), ["wf"], 10) for s in stores))
    assert [len(runs) for runs in claimed if runs].count(10) >= 2


async def test_a_run_that_cant_be_read_is_set_aside(world: World, store: RunStore) -> None:
    damages: dict[str, Document] = {
        "a": {"input": 5},
        "b": {"fence": "x"},
        "c": {"journal": [{"id": 1}]},
    }
    for run_id in (*damages, "sound"):
        await store.create_run(new_run(store, run_id))
    for run_id, fields in damages.items():
        await world.damage(run_id, fields)
    assert [run.id for run in await store.claim_due(new_claim(), ["wf"], 10)] == ["sound"]
    for run_id in damages:
        document = await world.document(run_id)
        assert (document["status"], document["error"]["code"]) == ("failed", "DATA_CORRUPTION")
        assert run_id in document["error"]["message"]
        assert "due_at" not in document
    ended = await store.load_ended(list(damages))
    assert {run.id for run in ended} == set(damages)
    assert {run.error.code for run in ended if run.error} == {"DATA_CORRUPTION"}


async def test_claim_run_sets_aside_a_run_that_cant_be_read(world: World, store: RunStore) -> None:
    damages: dict[str, Document] = {"a": {"input": 5}, "b": {"fence": "x"}}
    for run_id, fields in damages.items():
        await store.create_run(new_run(store, run_id))
        await world.damage(run_id, fields)
        assert await store.claim_run(new_claim(), run_id) is None
        assert (await world.document(run_id))["error"]["code"] == "DATA_CORRUPTION"


async def test_claim_run_returns_none_for_an_unknown_run(store: RunStore) -> None:
    assert await store.claim_run(new_claim(), "none") is None


async def test_next_due_is_the_earliest_of_the_codes(store: RunStore) -> None:
    assert await store.next_due(["wf"]) is None
    late, early = new_run(store, "a", due_in=30), new_run(store, "b", due_in=-10)
    for run in (late, early, new_run(store, "c", due_in=-20, code="other")):
        await store.create_run(run)
    assert await store.next_due(["wf", "none"]) == early.due_at


async def test_renew_extends_what_is_held_from_another_thread(
    world: World, store: RunStore
) -> None:
    for run_id in ("a", "b"):
        await store.create_run(held_run(store, run_id, lease=10, inbox_seq=7))
    renewal = await asyncio.to_thread(store.renew, "w1", {"a": 1, "b": 1}, 120.0)
    assert renewal.lost == frozenset()
    assert renewal.inbox_seq == {"a": 7, "b": 7}
    run = await load(store, "a")
    assert run.rev == 0
    assert run.due_at is not None
    assert abs(run.due_at - store.clock.now() - timedelta(seconds=120)) < SOON
    await world.advance(60)
    assert await store.claim_due(new_claim(), ["wf"], 10) == []


async def test_renew_reports_what_is_lost_and_leaves_it(store: RunStore) -> None:
    runs = {
        "held": held_run(store, "held"),
        "other_fence": held_run(store, "other_fence", fence=2),
        "other_worker": held_run(store, "other_worker", worker="w2"),
        "parked": held_run(store, "parked"),
    }
    for run in runs.values():
        await store.create_run(run)
    await store.commit(commit_of(runs["parked"], Status.WAITING))
    held = dict.fromkeys([*runs, "none"], 1)
    renewal = await asyncio.to_thread(store.renew, "w1", held, 600.0)
    assert renewal.lost == {"other_fence", "other_worker", "parked", "none"}
    assert set(renewal.inbox_seq) == {"held"}
    for run_id in ("other_fence", "other_worker"):
        assert (await load(store, run_id)).due_at == runs[run_id].due_at


async def test_renew_of_nothing_finds_nothing(store: RunStore) -> None:
    renewal = await asyncio.to_thread(store.renew, "w1", {}, 60.0)
    assert (renewal.lost, renewal.inbox_seq) == (frozenset(), {})


async def test_release_makes_a_run_due_now_without_a_recovery(store: RunStore) -> None:
    await store.create_run(held_run(store))
    assert await store.release("r", 1)
    run = await load(store)
    assert (run.status, run.worker, run.claim) == (Status.QUEUED, None, None)
    again = await store.claim_run(new_claim("w2"), "r")
    assert again is not None
    assert (again.recoveries, again.fence) == (0, 2)


async def test_release_is_refused_once_the_claim_is_lost(store: RunStore) -> None:
    await store.create_run(held_run(store, fence=2))
    assert not await store.release("r", 1)
    assert not await store.release("none", 1)
    assert (await load(store)).status is Status.RUNNING


async def test_claim_holders_are_those_who_hold_one_now(store: RunStore) -> None:
    assert await store.claim_holders("", besides="me") == []
    for run_id, worker in {"a": "w1", "b": "w2", "c": "w2", "d": "w3"}.items():
        await store.create_run(held_run(store, run_id, worker=worker))
    await store.release("d", 1)
    assert sorted(await store.claim_holders("", besides="me")) == ["w1", "w2"]


async def test_claim_holders_are_asked_for_by_how_they_begin(store: RunStore) -> None:
    workers = ("far/1", "here", "here/", "here/1", "here/2", "here/\uffff", "here0", "herf")
    for number, worker in enumerate(workers):
        await store.create_run(held_run(store, str(number), worker=worker))
    await store.create_run(new_run(store, "q"))
    found = await store.claim_holders("here/", besides="here/1")
    assert sorted(found) == ["here/", "here/2", "here/\uffff"]


async def test_expired_claims_are_due_now_and_count_as_recoveries(store: RunStore) -> None:
    for run_id, worker in {"a": "w1", "b": "w1", "c": "w2"}.items():
        await store.create_run(held_run(store, run_id, worker=worker))
    assert await store.expire_claims("w1") == 2
    assert await store.expire_claims("none") == 0
    claimed = await store.claim_due(new_claim("w3"), ["wf"], 10)
    assert {run.id: run.recoveries for run in claimed} == {"a": 1, "b": 1}


async def test_a_commit_with_progress_sets_recoveries_to_zero(store: RunStore) -> None:
    run = held_run(store, recoveries=2)
    await store.create_run(run)
    await store.commit(commit_of(run))
    assert (await load(store)).recoveries == 2
    await store.commit(commit_of(await load(store), progress=True))
    assert (await load(store)).recoveries == 0


async def test_a_faulty_release_counts_as_a_recovery(store: RunStore) -> None:
    await store.create_run(held_run(store))
    assert await store.release("r", 1, faulty=True)
    assert (await load(store)).recoveries == 1
    claimed = await store.claim_run(new_claim("w2"), "r")
    assert claimed is not None
    assert claimed.recoveries == 1


@pytest.mark.parametrize("recoveries", [2, 3, 4])
async def test_a_suspect_is_put_off_before_it_is_claimed_again(
    world: World, store: RunStore, recoveries: int
) -> None:
    await store.create_run(held_run(store, recoveries=recoveries))
    await world.advance(61)
    assert await store.claim_due(new_claim("w2"), ["wf"], 10) == []
    put_off = await load(store)
    assert (put_off.status, put_off.recoveries) == (Status.QUEUED, recoveries + 1)
    assert (put_off.worker, put_off.claim, put_off.fence) == (None, None, 2)
    assert put_off.due_at is not None
    longest = timedelta(seconds=2 ** (recoveries - 2))
    assert put_off.due_at - store.clock.now() <= longest
    await world.advance(longest.total_seconds())
    claimed = await store.claim_run(new_claim("w2"), "r")
    assert claimed is not None
    assert (claimed.recoveries, claimed.fence) == (recoveries + 1, 3)


async def test_a_run_past_all_recoveries_is_claimed_to_be_failed(
    world: World, store: RunStore
) -> None:
    await store.create_run(held_run(store, recoveries=5))
    await world.advance(61)
    claimed = await store.claim_run(new_claim("w2"), "r")
    assert claimed is not None
    assert claimed.recoveries == 6


async def test_a_watch_says_first_that_it_begins(world: World, store: RunStore) -> None:
    async for notice in store.watch():
        assert notice.run_id == ""
        break
