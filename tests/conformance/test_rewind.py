"""Rules of `rewind_run`."""

from __future__ import annotations

from datetime import timedelta

import pytest

from streamline.model import CommitResult, Entry, Run, Status
from streamline.store.base import RunStore
from tests.conformance.samples import BOOM, commit_of, entry, held_run, load, new_claim, slot


async def ended(store: RunStore, status: Status, entries: tuple[Entry, ...]) -> Run:
    """A run whose first half of entries was archived, ended in some way."""
    await store.create_run(held_run(store, expire_after=60.0))
    half = len(entries) // 2
    first = await load(store)
    await store.commit(commit_of(first, entries=entries[:half], awaiting=(slot(store, "s"),)))
    second = await load(store)
    commit = commit_of(
        second,
        status,
        entries=entries[half:],
        archive=tuple(second.journal),
        journal_base=0,
        output=5 if status is Status.DONE else None,
        error=None if status is Status.DONE else BOOM,
        ended_at=store.clock.now(),
        expire_at=store.clock.now() + timedelta(seconds=60),
    )
    assert await store.commit(commit) is CommitResult.LANDED
    return await load(store)


async def whole_journal(store: RunStore, run: Run) -> list[Entry]:
    return [*await store.load_archive(run.id, run.journal_base), *run.journal]


@pytest.mark.parametrize("status", [Status.DONE, Status.FAILED])
@pytest.mark.parametrize("keep", [0, 1, 2, 3, 4])
async def test_a_rewound_run_is_queued_with_what_was_kept(
    store: RunStore, status: Status, keep: int
) -> None:
    entries = tuple(entry(store, id_) for id_ in "abcd")
    run = await ended(store, status, entries)
    assert await store.rewind_run(run, entries[:keep])
    after = await load(store)
    assert await whole_journal(store, after) == list(entries[:keep])
    assert (after.status, after.rev, after.fence) == (Status.QUEUED, run.rev + 1, run.fence + 1)
    assert after.due_at is not None
    assert after.due_at <= store.clock.now() + timedelta(seconds=1)
    for field in ("output", "error", "ended_at", "expire_at"):
        assert getattr(after, field) is None
    assert after.awaiting == []


async def test_what_is_archived_after_a_rewind_takes_the_place_of_what_was_dropped(
    store: RunStore,
) -> None:
    entries = tuple(entry(store, id_) for id_ in "abcd")
    run = await ended(store, Status.DONE, entries)
    assert await store.rewind_run(run, entries[:1])
    claimed = await store.claim_run(new_claim(), "r")
    assert claimed is not None
    fresh = tuple(entry(store, id_) for id_ in "xy")
    await store.commit(commit_of(claimed, entries=fresh))
    claimed = await load(store)
    last = (entry(store, "z"),)
    commit = commit_of(
        claimed, entries=last, archive=tuple(claimed.journal), journal_base=claimed.journal_base
    )
    assert await store.commit(commit) is CommitResult.LANDED
    assert await whole_journal(store, await load(store)) == [entries[0], *fresh, *last]


async def test_only_a_run_that_is_done_or_failed_can_be_rewound(store: RunStore) -> None:
    await store.create_run(held_run(store))
    assert not await store.rewind_run(await load(store), ())
    await store.terminate("r", BOOM)
    cancelled = await load(store)
    assert not await store.rewind_run(cancelled, ())
    assert await load(store) == cancelled


async def test_a_run_that_changed_since_it_was_read_is_not_rewound(store: RunStore) -> None:
    entries = tuple(entry(store, id_) for id_ in "ab")
    run = await ended(store, Status.DONE, entries)
    assert await store.rewind_run(run, entries)
    after = await load(store)
    assert not await store.rewind_run(run, ())
    assert await load(store) == after


async def test_a_rewound_run_is_lost_to_whoever_held_it_before(store: RunStore) -> None:
    run = await ended(store, Status.FAILED, (entry(store, "a"), entry(store, "b")))
    assert await store.rewind_run(run, run.journal)
    assert await store.claim_run(new_claim("w2"), "r") is not None
    assert await store.commit(commit_of(run)) is CommitResult.LOST


async def test_what_is_left_out_among_archived_entries_is_gone(store: RunStore) -> None:
    """As a retry leaves out the attempts of the step that failed."""
    entries = tuple(entry(store, id_) for id_ in "abcdef")
    run = await ended(store, Status.FAILED, entries)
    kept = [each for each in entries if each.id != "b"]
    assert await store.rewind_run(run, kept)
    assert await whole_journal(store, await load(store)) == kept
