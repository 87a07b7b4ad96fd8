"""Rules of `follow`, `load_outboxes` and `settle_outbox`, and of what other verbs put there."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec

from streamline.model import (
    Commit,
    CommitResult,
    Dispatch,
    DispatchKind,
    Parent,
    Run,
    Slot,
    SlotKind,
    Status,
)
from streamline.store.base import RunStore
from tests.conformance.samples import (
    BOOM,
    commit_of,
    entry,
    held_run,
    load,
    new_claim,
    new_run,
    slot,
)
from tests.conformance.worlds import World

PARENT = Parent(run="p", slot="child", code="wf", epoch=2)
TO_X = Dispatch(kind=DispatchKind.ABANDON, to="x", rev=1, reason="$why")
TO_Y = Dispatch(kind=DispatchKind.CANCEL, to="y", rev=1)


def outcome(to: str, rev: int) -> Dispatch:
    return Dispatch(kind=DispatchKind.OUTCOME, to=to, rev=rev)


def child_slot(store: RunStore, id_: str, name: str, *, detached: bool = False) -> Slot:
    since = store.clock.now()
    return Slot(id=id_, kind=SlotKind.CHILD, name=name, since=since, detached=detached)


def telling(store: RunStore, run: Run, *dispatches: Dispatch, **fields: Any) -> Commit:
    due = store.clock.now() + timedelta(seconds=2)
    return commit_of(run, outbox=dispatches, outbox_due=due, **fields)


async def with_outbox(store: RunStore, *dispatches: Dispatch, **fields: Any) -> Run:
    run = held_run(store, **fields)
    await store.create_run(run)
    await store.commit(telling(store, run, *dispatches))
    return await load(store)


async def outboxes(store: RunStore, *codes: str) -> dict[str, list[Dispatch]]:
    found = await store.load_outboxes(codes or ("wf",), 10)
    return {each.run_id: each.dispatches for each in found}


async def test_a_run_keeps_its_parent_and_epoch(store: RunStore) -> None:
    await store.create_run(new_run(store, parent=PARENT, epoch=3))
    run = await load(store)
    assert (run.parent, run.epoch) == (PARENT, 3)


# -- follow ---------------------------------------------------------------------------------------


async def test_followers_are_added_once(store: RunStore) -> None:
    await store.create_run(held_run(store, parent=PARENT))
    for follower in ("a", "b", "a", "p"):
        found = await store.follow("r", follower)
        assert found is not None
        assert found.journal == found.inbox == []
    run = await load(store)
    assert (run.followers, run.inbox_seq, run.rev) == (["a", "b"], 0, 0)


async def test_followers_at_once_are_all_added(store: RunStore) -> None:
    await store.create_run(held_run(store))
    names = [f"f{n}" for n in range(10)]
    await asyncio.gather(*(store.follow("r", name) for name in names))
    assert sorted((await load(store)).followers) == sorted(names)


async def test_an_end_does_not_overlook_a_follower(store: RunStore) -> None:
    run = held_run(store)
    await store.create_run(run)
    for known in range(3):
        await store.follow("r", f"f{known}")
        end = commit_of(run, Status.DONE, followers=known)
        assert await store.commit(end) is CommitResult.INBOX_MOVED
    assert (await load(store)).status is Status.RUNNING
    end = commit_of(run, Status.DONE, followers=3)
    assert await store.commit(end) is CommitResult.LANDED


async def test_an_ended_run_is_not_followed(store: RunStore) -> None:
    run = held_run(store)
    await store.create_run(run)
    await store.commit(commit_of(run, Status.DONE, output=7))
    found = await store.follow("r", "a")
    assert found is not None
    assert (found.status, found.output, found.followers) == (Status.DONE, 7, [])
    assert (await load(store)).followers == []


async def test_what_is_not_there_is_not_followed(store: RunStore) -> None:
    assert await store.follow("r", "a") is None


# -- commits --------------------------------------------------------------------------------------


async def test_a_commit_appends_to_the_outbox(store: RunStore) -> None:
    run = await with_outbox(store, TO_X)
    result = await store.commit(telling(store, run, TO_Y, entries=(entry(store, "s"),)))
    assert result is CommitResult.LANDED
    after = await load(store)
    assert after.outbox == [TO_X, TO_Y]
    assert [each.id for each in after.journal] == ["s"]
    assert await outboxes(store) == {"r": [TO_X, TO_Y]}


async def test_a_commit_with_an_archive_appends_to_the_outbox_too(store: RunStore) -> None:
    run = held_run(store)
    await store.create_run(run)
    await store.commit(commit_of(run, entries=(entry(store, "a"),)))
    run = await load(store)
    archive = tuple(run.journal)
    await store.commit(telling(store, run, TO_X, entries=(entry(store, "b"),), archive=archive))
    after = await load(store)
    assert ([e.id for e in after.journal], after.journal_base) == (["b"], 1)
    assert after.outbox == [TO_X]


async def test_a_commit_that_is_refused_tells_nobody(store: RunStore) -> None:
    run = held_run(store, rev=3)
    await store.create_run(run)
    stale = telling(store, held_run(store), TO_X)
    assert await store.commit(stale) is CommitResult.LOST
    assert await outboxes(store) == {}


# -- ends from outside ----------------------------------------------------------------------------


async def test_a_terminated_run_tells_its_kin(store: RunStore) -> None:
    run = held_run(store, parent=PARENT, expire_after=60.0)
    await store.create_run(run)
    slots = (
        slot(store, "w"),
        child_slot(store, "a", "r/a"),
        child_slot(store, "b", "r/b", detached=True),
    )
    await store.commit(telling(store, run, TO_Y, awaiting=slots))
    await store.follow("r", "f")
    assert await store.terminate("r", BOOM)
    ended = await load(store)
    expected = [
        TO_Y,
        outcome("p", 2),
        outcome("f", 2),
        Dispatch(kind=DispatchKind.ABANDON, to="r/a", rev=2),
        Dispatch(kind=DispatchKind.ABANDON, to="r/b", rev=2),
    ]
    assert (ended.rev, ended.outbox, ended.expire_at) == (2, expected, None)
    assert await outboxes(store) == {"r": expected}


async def test_a_terminated_run_without_kin_has_no_outbox(store: RunStore, world: World) -> None:
    await store.create_run(held_run(store, expire_after=60.0))
    assert await store.terminate("r", BOOM)
    document = await world.document("r")
    assert not {"outbox", "outbox_due", "followers", "parent", "epoch"} & document.keys()
    assert (await load(store)).expire_at is not None


async def test_an_unstarted_child_that_is_cancelled_tells_its_parent(store: RunStore) -> None:
    await store.create_run(new_run(store, parent=PARENT))
    assert await store.cancel_unstarted("r", BOOM)
    assert (await load(store)).outbox == [outcome("p", 1)]


async def test_a_child_that_cannot_be_read_tells_its_parent(store: RunStore, world: World) -> None:
    await store.create_run(new_run(store, parent=PARENT, followers=["f"]))
    await world.damage("r", {"tags": 5})
    assert await store.claim_due(new_claim(), ["wf"], 10) == []
    assert await outboxes(store) == {"r": [outcome("p", 0), outcome("f", 0)]}
    assert [run.status for run in await store.load_ended(["r"])] == [Status.FAILED]
    sent = [outcome("p", 0)]
    await store.settle_outbox("r", sent, store.clock.now())
    assert await outboxes(store) == {"r": [outcome("f", 0)]}
    await store.settle_outbox("r", [outcome("f", 0)], store.clock.now())
    assert await outboxes(store) == {}
    assert "expire_at" not in await world.document("r")


async def test_kin_that_cannot_be_read_is_left_out(store: RunStore, world: World) -> None:
    await store.create_run(new_run(store, parent=PARENT))
    damaged = {"tags": 5, "parent": "p", "followers": 7, "outbox": {"a": 1}}
    await world.damage("r", damaged)
    assert await store.claim_due(new_claim(), ["wf"], 10) == []
    assert await outboxes(store) == {}


# -- loading and settling -------------------------------------------------------------------------


async def test_outboxes_are_found_by_code_the_earliest_first(store: RunStore) -> None:
    now = store.clock.now()
    for number, code in enumerate(("wf", "other", "wf", "wf")):
        run = held_run(store, f"r{number}", code=code)
        await store.create_run(run)
        due = now + timedelta(seconds=10 - number)
        await store.commit(commit_of(run, outbox=(TO_Y,), outbox_due=due))
    found = await store.load_outboxes(["wf"], 2)
    assert [each.run_id for each in found] == ["r3", "r2"]
    assert abs(found[0].due_at - now - timedelta(seconds=7)) < timedelta(milliseconds=2)
    assert {each.run_id for each in await store.load_outboxes(["other", "x"], 9)} == {"r1"}


async def test_a_settled_outbox_keeps_what_came_in_meanwhile(store: RunStore) -> None:
    run = await with_outbox(store, TO_X, TO_Y)
    again = msgspec.structs.replace(TO_X, rev=2)
    await store.commit(telling(store, run, again))
    later = store.clock.now() + timedelta(minutes=1)
    await store.settle_outbox("r", [TO_X, TO_Y], later)
    after = await load(store)
    assert after.outbox == [again]
    assert after.outbox_due is not None
    assert abs(after.outbox_due - later) < timedelta(milliseconds=2)
    assert after.rev == 2


async def test_settling_twice_changes_nothing(store: RunStore) -> None:
    await with_outbox(store, TO_X, TO_Y)
    for _ in range(2):
        await store.settle_outbox("r", [TO_X], store.clock.now())
        assert (await load(store)).outbox == [TO_Y]
    for _ in range(2):
        await store.settle_outbox("r", [TO_Y], store.clock.now())
        after = await load(store)
        assert (after.outbox, after.outbox_due) == ([], None)
    assert await outboxes(store) == {}
    await store.settle_outbox("nobody", [TO_X], store.clock.now())


async def test_an_ended_run_expires_once_it_has_told(store: RunStore) -> None:
    run = held_run(store, parent=PARENT, expire_after=60.0)
    await store.create_run(run)
    ended_at = store.clock.now()
    told = outcome("p", 1)
    await store.commit(telling(store, run, told, TO_Y, status=Status.DONE, ended_at=ended_at))
    await store.settle_outbox("r", [told], store.clock.now())
    assert (await load(store)).expire_at is None
    await store.settle_outbox("r", [TO_Y], store.clock.now())
    expire_at = (await load(store)).expire_at
    assert expire_at is not None
    assert abs(expire_at - ended_at - timedelta(seconds=60)) < timedelta(milliseconds=2)


async def test_a_run_that_goes_on_does_not_expire_by_settling(store: RunStore) -> None:
    await with_outbox(store, TO_Y, expire_after=60.0)
    await store.settle_outbox("r", [TO_Y], store.clock.now())
    assert (await load(store)).expire_at is None


async def test_an_ended_run_that_has_to_tell_is_not_replaced(store: RunStore) -> None:
    run = held_run(store, parent=PARENT)
    await store.create_run(run)
    told = outcome("p", 1)
    await store.commit(telling(store, run, told, status=Status.DONE))
    new = held_run(store, fence=2)
    assert not await store.replace_run(new, rev=1, fence=1)
    await store.settle_outbox("r", [told], store.clock.now())
    assert await store.replace_run(new, rev=1, fence=1)
    assert (await load(store)).parent is None


async def test_a_rewound_run_is_of_the_next_epoch(store: RunStore) -> None:
    run = held_run(store, parent=PARENT)
    await store.create_run(run)
    await store.commit(telling(store, run, TO_Y, status=Status.DONE))
    done = await load(store)
    assert await store.rewind_run(done, [])
    after = await load(store)
    assert (after.epoch, after.parent, after.outbox) == (1, PARENT, [TO_Y])
