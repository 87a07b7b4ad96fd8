"""Rules of a commit with a `continuation`: the run begins anew, as its next generation."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from streamline.model import Attempt, CommitResult, PostResult, Run, Status
from streamline.store.base import RunStore
from tests.conformance.samples import (
    AWKWARD,
    BOOM,
    NEXT,
    commit_of,
    continuing,
    entry,
    held_run,
    load,
    message,
    new_claim,
    new_run,
    slot,
)


@pytest.fixture
async def run(store: RunStore) -> Run:
    """A run that holds a little of everything."""
    await store.create_run(held_run(store, context={"old": 1}, recoveries=2))
    attempts = (Attempt(id="b", attempt=1, started_at=store.clock.now()),)
    first = commit_of(
        await load(store),
        entries=(entry(store, "a", 1, message="taken"),),
        attempts=attempts,
        awaiting=(slot(store, "s"),),
    )
    await store.commit(first)
    for id_ in ("m1", "m2", "m3"):
        await store.post("r", message(store, id_, name="c", payload=AWKWARD))
    return await load(store)


async def test_a_continuation_replaces_what_it_holds_and_empties_the_journal(
    store: RunStore, run: Run
) -> None:
    commit = continuing(store, run, context={"kept": AWKWARD}, awaiting=(), attempts=())
    assert await store.commit(commit) is CommitResult.LANDED
    after = await load(store)
    next_ = commit.continuation
    assert next_ is not None
    assert after == msgspec.structs.replace(
        run,
        input=NEXT,
        version="2",
        python="3.99",
        generation=2,
        past=next_.past,
        context={"kept": AWKWARD},
        journal=[],
        journal_base=0,
        awaiting=[],
        attempts=[],
        recoveries=0,
        rev=run.rev + 1,
        fence=run.fence + 1,
        epoch=run.epoch + 1,
        updated_at=after.updated_at,
    )
    assert (after.status, after.claim, after.worker) == (Status.RUNNING, run.claim, run.worker)
    assert after.first_input == run.input


async def test_a_second_continuation_keeps_what_the_run_was_started_with(
    store: RunStore, run: Run
) -> None:
    await store.commit(continuing(store, run))
    await store.commit(continuing(store, await load(store)))
    after = await load(store)
    assert (after.generation, after.first_input, after.input) == (3, run.input, NEXT)


async def test_messages_stay_in_order_but_for_the_consumed(store: RunStore, run: Run) -> None:
    await store.commit(continuing(store, run, consumed=("m2",)))
    await store.post("r", message(store, "m4"))
    after = await load(store)
    assert [each.id for each in after.inbox] == ["m1", "m3", "m4"]
    assert after.inbox[0] == run.inbox[0]
    assert after.inbox_seq == run.inbox_seq + 1


async def test_a_continuation_is_refused_if_a_message_came_that_it_must_know(
    store: RunStore, run: Run
) -> None:
    commit = continuing(store, run, inbox_seq=run.inbox_seq)
    await store.post("r", message(store, "s-answer"), slot="s")
    assert await store.commit(commit) is CommitResult.INBOX_MOVED
    after = await load(store)
    assert (after.generation, after.journal) == (1, run.journal)
    unaware = msgspec.structs.replace(commit, inbox_seq=None)
    assert await store.commit(unaware) is CommitResult.LANDED


async def test_a_continuation_that_landed_lands_when_tried_again(store: RunStore, run: Run) -> None:
    commit = continuing(store, run)
    assert await store.commit(commit) is CommitResult.LANDED
    once = await load(store)
    assert await store.commit(commit) is CommitResult.LANDED
    assert await load(store) == once


async def test_a_run_that_was_terminated_did_not_continue(store: RunStore, run: Run) -> None:
    commit = continuing(store, run)
    await store.terminate("r", BOOM)
    ended = await load(store)
    assert (ended.fence, ended.rev) == (run.fence + 1, run.rev + 1)  # as if it had landed
    assert await store.commit(commit) is CommitResult.LOST
    assert await load(store) == ended


async def test_a_continuation_that_was_taken_over_since_is_lost(store: RunStore, run: Run) -> None:
    commit = continuing(store, run)
    await store.commit(commit)
    await store.expire_claims("w1")
    assert await store.claim_run(new_claim("w2"), "r") is not None
    assert await store.commit(commit) is CommitResult.LOST


async def test_nothing_of_the_generation_before_fits_any_more(store: RunStore, run: Run) -> None:
    await store.commit(continuing(store, run))
    after = await load(store)
    await store.commit(commit_of(after, attempts=tuple(run.attempts)))  # the same step again
    late = await load(store)
    assert not await store.heartbeat("r", run.fence, "b", {"of": "the last generation"})
    assert await store.commit(commit_of(run)) is CommitResult.LOST
    stale = msgspec.structs.replace(commit_of(late), fence=run.fence)
    assert await store.commit(stale) is CommitResult.LOST
    assert not await store.release("r", run.fence)
    assert store.renew("w1", {"r": run.fence}, 60).lost == {"r"}
    assert store.renew("w1", {"r": after.fence}, 60).inbox_seq == {"r": after.inbox_seq}
    renewed = await load(store)
    assert renewed.attempts == late.attempts


async def test_a_continuation_keeps_the_lease(store: RunStore, run: Run) -> None:
    await store.commit(continuing(store, run))
    assert (await load(store)).due_at == run.due_at
    assert await store.claim_run(new_claim("w2"), "r") is None


async def test_archived_entries_of_the_last_generation_are_never_read(
    store: RunStore, run: Run
) -> None:
    old = [entry(store, f"old-{n}", message=f"old-{n}") for n in range(4)]
    full = commit_of(run, entries=(old[0],), archive=tuple(run.journal), journal_base=0)
    await store.commit(full)
    archived = await load(store)
    assert archived.journal_base == 1
    await store.commit(continuing(store, archived, journal_base=archived.journal_base))
    new = entry(store, "new", message="of-new")
    await store.commit(commit_of(await load(store), entries=(new,), generation=2))
    before = await load(store)
    await store.commit(
        commit_of(before, entries=(old[1],), archive=(new,), journal_base=0, generation=2)
    )
    after = await load(store)
    assert await store.load_archive("r", after.journal_base) == [new]
    assert await store.post("r", message(store, "of-new")) is PostResult.DUPLICATE


async def test_the_kept_ids_of_taken_messages_are_duplicates(store: RunStore, run: Run) -> None:
    await store.commit(continuing(store, run))
    for id_ in ("taken", "before", "m1"):
        assert await store.post("r", message(store, id_)) is PostResult.DUPLICATE
    assert await store.post("r", message(store, "other")) is PostResult.POSTED


async def test_ids_that_are_not_kept_are_new_again(store: RunStore, run: Run) -> None:
    await store.commit(continuing(store, run, taken=("before",)))
    assert await store.post("r", message(store, "taken")) is PostResult.POSTED


async def test_a_duplicate_is_told_of_an_ended_run_too(store: RunStore, run: Run) -> None:
    await store.commit(continuing(store, run))
    await store.commit(commit_of(await load(store), Status.DONE))
    assert await store.post("r", message(store, "taken")) is PostResult.DUPLICATE
    assert await store.post("r", message(store, "other")) is PostResult.ENDED


async def test_those_who_ask_how_a_run_stands_get_no_past(store: RunStore, run: Run) -> None:
    await store.commit(continuing(store, run))
    head = await store.load_run("r", journal=False, inbox=False)
    assert head is not None
    assert (head.past, head.generation, head.input) == (None, 2, NEXT)
    await store.commit(commit_of(await load(store), Status.DONE))
    assert [each.past for each in await store.load_ended(["r"])] == [None]


async def test_a_message_that_claims_a_parked_run_brings_its_past(
    store: RunStore, run: Run
) -> None:
    await store.commit(continuing(store, run))
    await store.commit(commit_of(await load(store), Status.WAITING, generation=2))
    parked = await load(store)
    assert await store.post_to_parked(parked, message(store, "taken"), new_claim("w2")) is None
    assert await load(store) == parked
    woken = await store.post_to_parked(parked, message(store, "new"), new_claim("w2"))
    assert woken is not None
    assert (woken.generation, woken.past, woken.worker) == (2, parked.past, "w2")


async def test_a_creation_tried_again_counts_though_the_run_has_continued(store: RunStore) -> None:
    run = new_run(store)
    await store.create_run(run)
    claimed = await store.claim_run(new_claim(), "r")
    assert claimed is not None
    await store.commit(continuing(store, claimed))
    stored, created = await store.create_run(run)
    assert created
    assert stored.generation == 2
    other = msgspec.structs.replace(run, input=NEXT)
    assert not (await store.create_run(other))[1]


async def test_a_continued_run_is_rewound_within_its_generation(store: RunStore, run: Run) -> None:
    await store.commit(continuing(store, run))
    entries = (entry(store, "x"), entry(store, "y"))
    done = commit_of(await load(store), Status.DONE, entries=entries, output=1, generation=2)
    await store.commit(done)
    ended = await load(store)
    assert await store.rewind_run(ended, ended.journal[:1])
    after = await load(store)
    assert (after.generation, after.past, after.input) == (2, ended.past, NEXT)
    assert [each.id for each in after.journal] == ["x"]


async def test_a_replaced_run_is_in_its_first_generation(store: RunStore, run: Run) -> None:
    await store.commit(continuing(store, run))
    await store.commit(commit_of(await load(store), Status.DONE, generation=2))
    ended = await load(store)
    fresh = new_run(store, fence=ended.fence + 1)
    assert await store.replace_run(fresh, rev=ended.rev, fence=ended.fence)
    after = await load(store)
    assert (after.generation, after.past) == (1, None)
    assert after.created_at - run.created_at < timedelta(minutes=1)
