"""Rules of `post`, `cancel_unstarted`, `terminate`, `unpause` and `watch`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from streamline.model import (
    CommitResult,
    Entry,
    EntryKind,
    MessageKind,
    Notice,
    PostResult,
    Run,
    Status,
)
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
    slot,
)
from tests.conformance.worlds import World


async def parked(
    store: RunStore, run_id: str = "r", status: Status = Status.WAITING, **fields: object
) -> Run:
    run = held_run(store, run_id)
    await store.create_run(run)
    await store.commit(commit_of(run, status, **fields))
    return await load(store, run_id)


def is_due(store: RunStore, run: Run) -> bool:
    return run.due_at is not None and run.due_at <= store.clock.now() + timedelta(seconds=1)


async def test_a_message_is_appended_and_counted(store: RunStore) -> None:
    await store.create_run(held_run(store))
    messages = [message(store, id_, name="ch", payload=AWKWARD) for id_ in ("a", "b")]
    for each in messages:
        assert await store.post("r", each) is PostResult.POSTED
    run = await load(store)
    assert (run.inbox, run.inbox_seq, run.rev) == (messages, 2, 0)


async def test_a_message_makes_a_waiting_run_due_now(store: RunStore) -> None:
    await parked(store)
    await store.post("r", message(store, "m"))
    run = await load(store)
    assert run.status is Status.WAITING
    assert is_due(store, run)
    assert await store.claim_run(new_claim(), "r") is not None


async def test_a_message_brings_a_later_due_at_forward(store: RunStore) -> None:
    await parked(store, due_at=store.clock.now() + timedelta(hours=1))
    await store.post("r", message(store, "m"))
    assert is_due(store, await load(store))


@pytest.mark.parametrize("kind", list(MessageKind))
async def test_a_message_leaves_due_at_of_other_runs(store: RunStore, kind: MessageKind) -> None:
    runs = [held_run(store, "running"), new_run(store, "queued", due_in=30)]
    for run in runs:
        await store.create_run(run)
        assert await store.post(run.id, message(store, "m", kind)) is PostResult.POSTED
        after = await load(store, run.id)
        assert (after.status, after.due_at) == (run.status, run.due_at)


async def test_a_paused_run_is_woken_by_a_cancel_only(store: RunStore) -> None:
    await parked(store, status=Status.PAUSED)
    for kind in (MessageKind.SEND, MessageKind.RESUME, MessageKind.PAUSE):
        await store.post("r", message(store, kind.value, kind))
        run = await load(store)
        assert (run.status, run.due_at) == (Status.PAUSED, None)
    await store.post("r", message(store, "c", MessageKind.CANCEL))
    run = await load(store)
    assert run.status is Status.WAITING
    assert is_due(store, run)
    assert run.inbox_seq == 4


async def test_a_message_closes_its_slot(store: RunStore) -> None:
    await parked(store, awaiting=(slot(store, "a"), slot(store, "b")))
    assert await store.post("r", message(store, "m"), slot="a") is PostResult.POSTED
    assert [each.id for each in (await load(store)).awaiting] == ["b"]


async def test_of_several_posts_to_a_slot_one_wins(world: World) -> None:
    stores = [await world.store() for _ in range(4)]
    await parked(stores[0], awaiting=(slot(stores[0], "a"),))
    results = await asyncio.gather(
        *(s.post("r", message(s, f"m{i}"), slot="a") for i, s in enumerate(stores))
    )
    assert sorted(results) == sorted([PostResult.POSTED] + [PostResult.NO_SLOT] * 3)
    assert (await load(stores[0])).inbox_seq == 1


async def test_a_message_in_the_inbox_is_a_duplicate(store: RunStore) -> None:
    await parked(store)
    await store.post("r", message(store, "m"))
    before = await load(store)
    assert await store.post("r", message(store, "m", payload=2)) is PostResult.DUPLICATE
    assert await load(store) == before


def taken(store: RunStore, message_id: str) -> Entry:
    now = store.clock.now()
    return Entry(id=message_id, kind=EntryKind.MESSAGE, at=now, fence=1, message=message_id)


async def test_a_message_that_was_taken_is_a_duplicate(store: RunStore) -> None:
    await parked(store, entries=(taken(store, "m"),))
    assert await store.post("r", message(store, "m")) is PostResult.DUPLICATE
    assert (await load(store)).inbox_seq == 0


async def test_a_message_whose_entry_was_archived_is_a_duplicate(store: RunStore) -> None:
    run = held_run(store, journal=[taken(store, "m"), entry(store, "s")])
    await store.create_run(run)
    await store.commit(commit_of(run, archive=tuple(run.journal)))
    assert await store.post("r", message(store, "m")) is PostResult.DUPLICATE
    assert await store.post("r", message(store, "n")) is PostResult.POSTED
    await store.commit(commit_of(await load(store), Status.DONE))
    assert await store.post("r", message(store, "m")) is PostResult.DUPLICATE


async def test_a_message_for_no_run_or_an_ended_one_is_refused(store: RunStore) -> None:
    assert await store.post("r", message(store, "m"), slot="a") is PostResult.NO_RUN
    await parked(store, status=Status.DONE)
    assert await store.post("r", message(store, "m"), slot="a") is PostResult.ENDED
    assert (await load(store)).inbox == []


async def test_the_first_reason_that_applies_is_given(world: World) -> None:
    store = await world.store(inbox_limit=300)
    large = "x" * 400
    await parked(store, entries=(taken(store, "m"),))
    result = await store.post("r", message(store, "m", payload=large), slot="none")
    assert result is PostResult.DUPLICATE
    result = await store.post("r", message(store, "n", payload=large), slot="none")
    assert result is PostResult.NO_SLOT
    assert await store.post("r", message(store, "n", payload=large)) is PostResult.FULL
    await store.terminate("r", BOOM)
    result = await store.post("r", message(store, "m", payload=large), slot="none")
    assert result is PostResult.DUPLICATE
    result = await store.post("r", message(store, "n", payload=large), slot="none")
    assert result is PostResult.ENDED


async def test_an_inbox_holds_no_more_than_its_limit(world: World) -> None:
    store = await world.store(inbox_limit=10_000)
    await parked(store)
    results = [await store.post("r", message(store, str(i), payload="x" * 2_000)) for i in range(6)]
    assert results == [PostResult.POSTED] * 4 + [PostResult.FULL] * 2
    await store.claim_run(new_claim(), "r")
    await store.commit(commit_of(await load(store), consumed=("0",)))
    assert await store.post("r", message(store, "again", payload="x" * 2_000)) == "posted"


@pytest.mark.parametrize("kind", [MessageKind.CANCEL, MessageKind.PAUSE])
async def test_a_full_inbox_has_room_for_a_cancel_and_a_pause(
    world: World, kind: MessageKind
) -> None:
    store = await world.store(inbox_limit=1_000)
    await store.create_run(held_run(store))
    assert await store.post("r", message(store, "m", payload="x" * 600)) == "posted"
    assert await store.post("r", message(store, "n", payload="x" * 600)) == "full"
    asked = message(store, "c", kind, payload="x" * 2_000)
    assert await store.post("r", asked) == "posted"
    run = await load(store)
    assert (run.inbox[1:], run.inbox_seq) == ([asked], 2)


@pytest.mark.parametrize("kind", [MessageKind.CANCEL, MessageKind.PAUSE])
async def test_a_second_cancel_or_pause_is_pending(world: World, kind: MessageKind) -> None:
    stores = [await world.store() for _ in range(4)]
    await stores[0].create_run(held_run(stores[0]))
    await stores[0].post("r", message(stores[0], "m"))
    results = await asyncio.gather(
        *(each.post("r", message(each, f"c{i}", kind)) for i, each in enumerate(stores))
    )
    assert sorted(results) == sorted([PostResult.POSTED] + [PostResult.PENDING] * 3)
    run = await load(stores[0])
    assert ([each.kind for each in run.inbox], run.inbox_seq) == ([MessageKind.SEND, kind], 2)
    known = run.inbox[1]
    assert await stores[0].post("r", known) == "duplicate"
    await stores[0].commit(commit_of(run, consumed=(known.id,)))
    assert await stores[0].post("r", message(stores[0], "again", kind)) == "posted"


async def test_control_messages_do_not_pile_up(store: RunStore) -> None:
    """A cancel drops the pauses before it; so a pause that comes after it is another."""
    await store.create_run(held_run(store))
    kinds = [MessageKind.PAUSE, MessageKind.CANCEL] * 3
    results = [await store.post("r", message(store, f"c{i}", k)) for i, k in enumerate(kinds)]
    assert results == [PostResult.POSTED] * 3 + [PostResult.PENDING] * 3
    await store.commit(commit_of(await load(store), Status.DONE))
    assert await store.post("r", message(store, "late", MessageKind.CANCEL)) == "ended"


# -- control --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.DRAFT, Status.QUEUED])
async def test_a_run_never_claimed_is_cancelled_at_once(store: RunStore, status: Status) -> None:
    await store.create_run(new_run(store, status=status, expire_after=3600.0, inbox_seq=0))
    assert await store.cancel_unstarted("r", BOOM)
    run = await load(store)
    assert (run.status, run.error, run.due_at) == (Status.CANCELLED, BOOM, None)
    assert run.ended_at is not None
    assert run.expire_at == run.ended_at + timedelta(hours=1)


async def test_a_run_once_claimed_is_not_cancelled_at_once(store: RunStore) -> None:
    await store.create_run(held_run(store))
    assert not await store.cancel_unstarted("r", BOOM)
    await store.release("r", 1)
    assert not await store.cancel_unstarted("r", BOOM)
    assert not await store.cancel_unstarted("none", BOOM)
    assert (await load(store)).status is Status.QUEUED


@pytest.mark.parametrize("status", [Status.RUNNING, Status.WAITING, Status.PAUSED])
async def test_terminate_ends_a_run_and_takes_its_claim(store: RunStore, status: Status) -> None:
    run = await parked(store, status=status, awaiting=(slot(store, "s"),))
    assert await store.terminate("r", BOOM)
    after = await load(store)
    assert (after.status, after.error, after.fence) == (Status.CANCELLED, BOOM, 2)
    assert (after.worker, after.due_at, after.awaiting, after.expire_at) == (None, None, [], None)
    assert after.ended_at is not None
    assert await store.commit(commit_of(run)) == "lost"


async def test_terminate_is_refused_for_ended_and_unknown_runs(store: RunStore) -> None:
    assert not await store.terminate("r", BOOM)
    before = await parked(store, status=Status.DONE)
    assert not await store.terminate("r", BOOM)
    assert await load(store) == before


async def test_unpause_queues_a_paused_run_without_its_error(store: RunStore) -> None:
    await parked(store, status=Status.PAUSED, error=BOOM)
    assert await store.unpause("r")
    run = await load(store)
    assert (run.status, run.error, run.inbox_seq) == (Status.QUEUED, None, 0)
    assert is_due(store, run)
    assert not await store.unpause("r")


async def test_unpause_takes_back_a_pause(store: RunStore) -> None:
    before = held_run(store, error=BOOM)
    await store.create_run(before)
    kept = message(store, "m")
    await store.post("r", kept)
    await store.post("r", message(store, "p", MessageKind.PAUSE))
    assert await store.unpause("r")
    run = await load(store)
    assert (run.inbox, run.inbox_seq) == ([kept], 3)
    assert (run.status, run.due_at, run.error) == (Status.RUNNING, before.due_at, BOOM)


async def test_unpause_is_refused_where_nothing_is_paused(store: RunStore) -> None:
    assert not await store.unpause("none")
    await store.create_run(held_run(store))
    await store.post("r", message(store, "m"))
    before = await load(store)
    assert not await store.unpause("r")
    assert await load(store) == before
    await store.commit(commit_of(before, Status.DONE))
    assert not await store.unpause("r")


# -- to parked runs -------------------------------------------------------------------------------


async def test_a_message_to_a_parked_run_claims_it(store: RunStore) -> None:
    known = await parked(store, awaiting=(slot(store, "a"), slot(store, "b")))
    sent = message(store, "m", MessageKind.RESUME, name="a", payload=AWKWARD)
    run = await store.post_to_parked(known, sent, new_claim("w2"), slot="a")
    assert run is not None
    assert (run.status, run.worker, run.fence, run.rev) == (Status.RUNNING, "w2", 2, known.rev)
    assert (run.inbox, run.inbox_seq, run.recoveries) == ([sent], 1, 0)
    assert [each.id for each in run.awaiting] == ["b"]
    assert run == await load(store)
    assert run.due_at is not None
    assert run.due_at > store.clock.now() + timedelta(seconds=30), "the end of the lease"


async def test_the_run_is_returned_without_its_journal(store: RunStore) -> None:
    known = await parked(store, entries=(entry(store, "s"),))
    run = await store.post_to_parked(known, message(store, "m"), new_claim())
    assert run is not None
    assert run.journal == []
    assert [each.id for each in (await load(store)).journal] == ["s"]


async def test_messages_that_came_before_come_along(store: RunStore) -> None:
    known = await parked(store)
    await store.post("r", message(store, "first"))
    run = await store.post_to_parked(known, message(store, "second"), new_claim())
    assert run is not None
    assert [each.id for each in run.inbox] == ["first", "second"]


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSED, Status.DONE, Status.FAILED])
async def test_a_run_that_does_not_wait_is_not_claimed(store: RunStore, status: Status) -> None:
    known = held_run(store)
    await store.create_run(known)
    if status is not Status.RUNNING:
        await store.commit(commit_of(known, status))
    before = await load(store)
    assert await store.post_to_parked(before, message(store, "m"), new_claim()) is None
    assert await load(store) == before


async def test_a_run_that_went_on_since_it_was_parked_is_not_claimed(store: RunStore) -> None:
    known = await parked(store)
    await store.post("r", message(store, "m"))
    other = await store.claim_run(new_claim("w2"), "r")
    assert other is not None
    await store.commit(commit_of(other, Status.WAITING))
    before = await load(store)
    for stale in (known, other):  # one by its fence, the other by its rev
        assert await store.post_to_parked(stale, message(store, "n"), new_claim()) is None
    assert await load(store) == before


@pytest.mark.parametrize("kind", [MessageKind.CANCEL, MessageKind.PAUSE])
async def test_a_parked_run_takes_a_cancel_and_a_pause_however_full_but_once(
    world: World, kind: MessageKind
) -> None:
    store = await world.store(inbox_limit=1_000)
    known = await parked(store)
    await store.post("r", message(store, "m", payload="x" * 600))
    large = message(store, "c1", kind, payload="x" * 2_000)
    run = await store.post_to_parked(known, large, new_claim())
    assert run is not None
    await store.commit(commit_of(run, Status.WAITING))
    before = await load(store)
    assert await store.post_to_parked(before, message(store, "c2", kind), new_claim()) is None
    assert await load(store) == before


async def test_a_message_that_the_document_knows_is_not_put_there_again(store: RunStore) -> None:
    known = await parked(store, entries=(taken(store, "taken"),))
    await store.post("r", message(store, "lying"))
    before = await load(store)
    for message_id in ("taken", "lying"):
        assert await store.post_to_parked(known, message(store, message_id), new_claim()) is None
    assert await load(store) == before


async def test_a_slot_that_is_closed_refuses_the_message(store: RunStore) -> None:
    known = await parked(store, awaiting=(slot(store, "a"),))
    assert await store.post("r", message(store, "m"), slot="a") is PostResult.POSTED
    before = await load(store)
    assert await store.post_to_parked(known, message(store, "n"), new_claim(), slot="a") is None
    assert await load(store) == before


async def test_of_two_who_know_a_parked_run_one_gets_it(world: World) -> None:
    stores = [await world.store() for _ in range(4)]
    known = await parked(stores[0])
    runs = await asyncio.gather(
        *(
            s.post_to_parked(known, message(s, f"m{i}"), new_claim(f"w{i}"))
            for i, s in enumerate(stores)
        )
    )
    (winner,) = [run for run in runs if run is not None]
    assert await load(stores[0]) == winner


async def test_there_is_nothing_to_claim_of_an_unknown_run(store: RunStore) -> None:
    unknown = held_run(store)
    assert await store.post_to_parked(unknown, message(store, "m"), new_claim()) is None


# -- notices --------------------------------------------------------------------------------------


async def until(notices: AsyncIterator[Notice], run_id: str, **fields: object) -> Notice:
    """Read notices until one of this run has these fields."""
    async with asyncio.timeout(10):
        async for notice in notices:
            fits = all(getattr(notice, name) == value for name, value in fields.items())
            if notice.run_id == run_id and fits:
                return notice
    raise AssertionError("the notices ended")


async def begun(watching: RunStore, acting: RunStore, besides: str | None) -> Any:
    """Return the notices of a store, once what another does is told."""
    notices = watching.watch(besides=besides)
    first = asyncio.ensure_future(anext(notices))
    while not first.done():  # a change stream tells of what comes after it was opened
        await acting.create_run(new_run(acting, f"early-{asyncio.get_running_loop().time()}"))
        await asyncio.wait([first], timeout=0.05)
    return notices


async def test_notices_tell_what_other_stores_do(world: World) -> None:
    watching, acting = await world.store(), await world.store()
    if not world.has_notices:
        assert [notice async for notice in watching.watch()] == []
        return
    notices = await begun(watching, acting, None)
    run = held_run(acting)
    await acting.create_run(run)
    await acting.create_run(new_run(acting, "queued"))
    assert (await until(notices, "queued", status=Status.QUEUED)).code == "wf"
    await acting.commit(commit_of(run, Status.WAITING))
    await acting.post("r", message(acting, "m"))
    assert is_due(acting, await load(acting))
    assert (await until(notices, "r", inbox_seq=1)).due_at is not None
    claimed = await acting.claim_run(new_claim(), "r")
    assert claimed is not None
    assert await acting.expire_claims("w1") == 1
    await until(notices, "r")
    await acting.terminate("r", BOOM)
    # Whoever held it has lost it.
    await until(notices, "r", status=Status.CANCELLED, fence=claimed.fence + 1)
    await acting.create_run(ending := held_run(acting, "ending"))
    await acting.commit(commit_of(ending, Status.DONE))
    await until(notices, "ending", status=Status.DONE, fence=None)
    await notices.aclose()


async def test_a_worker_is_not_told_of_ends_that_it_tells_itself(world: World) -> None:
    watching, acting = await world.store(), await world.store()
    if not world.has_notices:
        assert [notice async for notice in watching.watch(besides="w1")] == []
        return
    notices = await begun(watching, acting, "w1")
    told = []
    for run_id, worker in (("mine", "w1"), ("another's", "w2"), ("nobody's", None), ("last", "w2")):
        await acting.create_run(held := held_run(acting, run_id))
        commit = commit_of(held, Status.DONE, ended_by=worker)
        assert await acting.commit(commit) is CommitResult.LANDED
        assert (await load(acting, run_id)).ended_by == worker
    async with asyncio.timeout(10):
        while "last" not in told:
            notice = await anext(notices)
            told += [notice.run_id] * (notice.status is Status.DONE)
    assert told == ["another's", "nobody's", "last"]
    await notices.aclose()
