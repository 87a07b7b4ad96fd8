"""Rules of `commit`, `load_archive` and `heartbeat`."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec
import pytest

from streamline.errors import DataCorruption, PayloadTooLarge
from streamline.model import (
    Attempt,
    Commit,
    CommitResult,
    Entry,
    MessageKind,
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
    slot,
)
from tests.conformance.worlds import World


@pytest.fixture
async def run(store: RunStore) -> Run:
    run = held_run(store, context={"old": 1})
    await store.create_run(run)
    return run


def attempt(store: RunStore, id_: str) -> Attempt:
    return Attempt(id=id_, attempt=1, started_at=store.clock.now())


async def test_a_commit_changes_what_it_gives_and_no_more(store: RunStore, run: Run) -> None:
    entries = (entry(store, "a", AWKWARD), entry(store, "b"))
    awaiting, attempts = (slot(store, "s"),), (attempt(store, "c"),)
    commit = commit_of(run, entries=entries, awaiting=awaiting, attempts=attempts, context=AWKWARD)
    assert await store.commit(commit) is CommitResult.LANDED
    after = await load(store)
    assert after == msgspec.structs.replace(
        run,
        rev=1,
        journal=list(entries),
        awaiting=list(awaiting),
        attempts=list(attempts),
        context=AWKWARD,
        updated_at=after.updated_at,
    )
    assert await store.commit(commit_of(after)) is CommitResult.LANDED
    again = await load(store)
    assert again == msgspec.structs.replace(after, rev=2, updated_at=again.updated_at)


async def test_a_commit_sets_updated_at_by_the_servers_clock(store: RunStore) -> None:
    run = held_run(store, updated_at=store.clock.now() - timedelta(days=1))
    await store.create_run(run)
    await store.commit(commit_of(run))
    assert abs((await load(store)).updated_at - store.clock.now()) < timedelta(seconds=5)


async def test_empty_collections_can_be_committed(store: RunStore, run: Run) -> None:
    full = commit_of(run, awaiting=(slot(store, "s"),), attempts=(attempt(store, "a"),))
    await store.commit(full)
    await store.commit(commit_of(await load(store), awaiting=(), attempts=(), context={}))
    after = await load(store)
    assert (after.awaiting, after.attempts, after.context) == ([], [], {})


async def test_entries_are_appended_in_order(store: RunStore, run: Run) -> None:
    for start in range(0, 6, 2):
        commit = commit_of(
            await load(store), entries=(entry(store, str(start)), entry(store, str(start + 1)))
        )
        await store.commit(commit)
    assert [each.id for each in (await load(store)).journal] == list("012345")


@pytest.mark.parametrize("change", [{"fence": 2}, {"fence": 0}, {"rev": 1}, {"rev": -1}])
async def test_a_commit_is_lost_with_another_fence_or_rev(
    store: RunStore, run: Run, change: dict[str, int]
) -> None:
    commit = msgspec.structs.replace(commit_of(run, output="x"), **change)
    if change != {"rev": -1}:  # which is a commit that landed
        assert await store.commit(commit) is CommitResult.LOST
    assert await load(store) == run


async def test_a_commit_is_lost_unless_the_run_is_running(store: RunStore, run: Run) -> None:
    await store.release("r", 1)
    assert await store.commit(commit_of(run)) is CommitResult.LOST
    await store.terminate("r", BOOM)
    assert await store.commit(commit_of(run)) is CommitResult.LOST
    missing = msgspec.structs.replace(commit_of(run), run_id="none")
    assert await store.commit(missing) is CommitResult.LOST


@pytest.mark.parametrize("status", [Status.RUNNING, Status.WAITING, Status.DONE, Status.PAUSED])
async def test_a_commit_that_landed_lands_when_tried_again(
    store: RunStore, run: Run, status: Status
) -> None:
    commit = commit_of(run, status, entries=(entry(store, "a"),))
    assert await store.commit(commit) is CommitResult.LANDED
    once = await load(store)
    assert await store.commit(commit) is CommitResult.LANDED
    assert await load(store) == once


async def test_a_commit_is_refused_when_a_message_came_in(store: RunStore, run: Run) -> None:
    assert await store.post("r", message(store, "m")) == "posted"
    before = await load(store)
    commit = commit_of(run, Status.WAITING, inbox_seq=0, entries=(entry(store, "a"),))
    assert await store.commit(commit) is CommitResult.INBOX_MOVED
    assert await load(store) == before
    assert await store.commit(msgspec.structs.replace(commit, inbox_seq=1)) is CommitResult.LANDED


async def test_a_commit_without_inbox_seq_takes_no_notice_of_messages(
    store: RunStore, run: Run
) -> None:
    await store.post("r", message(store, "m"))
    assert await store.commit(commit_of(run)) is CommitResult.LANDED


async def refused_then_landed(store: RunStore, refused: Commit, landed: Commit) -> None:
    before = await load(store)
    assert await store.commit(refused) is CommitResult.INBOX_MOVED
    assert await load(store) == before
    assert await store.commit(landed) is CommitResult.LANDED


async def test_a_commit_is_refused_when_a_slot_was_closed(store: RunStore, run: Run) -> None:
    await store.commit(commit_of(run, awaiting=(slot(store, "a"), slot(store, "b"))))
    for id_, left in (("a", 1), ("b", 0)):
        run = await load(store)
        commit = commit_of(run, open_slots=left + 1, awaiting=(), entries=(entry(store, id_),))
        await store.post("r", message(store, f"to {id_}", MessageKind.RESUME), slot=id_)
        again = commit_of(run, open_slots=left)
        await refused_then_landed(store, commit, again)


async def test_a_commit_that_knows_the_open_slots_takes_no_notice_of_other_messages(
    store: RunStore, run: Run
) -> None:
    assert await store.commit(commit_of(run, open_slots=0)) is CommitResult.LANDED
    await store.commit(commit_of(await load(store), awaiting=(slot(store, "a"),)))
    for kind in (MessageKind.SEND, MessageKind.CANCEL, MessageKind.PAUSE):
        await store.post("r", message(store, kind.value, kind))
    commit = commit_of(await load(store), open_slots=1, awaiting=())
    assert await store.commit(commit) is CommitResult.LANDED
    assert len((await load(store)).inbox) == 3


async def test_a_commit_is_refused_when_its_pause_was_taken_back(store: RunStore, run: Run) -> None:
    await store.post("r", message(store, "p", MessageKind.PAUSE))
    await store.post("r", message(store, "m"))
    assert await store.unpause("r")
    commit = commit_of(run, Status.PAUSED, pause="p", consumed=("p",))
    await store.post("r", message(store, "p2", MessageKind.PAUSE))
    later = msgspec.structs.replace(commit, pause="p2", consumed=("p2",))
    await refused_then_landed(store, commit, later)
    assert [each.id for each in (await load(store)).inbox] == ["m"]


@pytest.mark.parametrize("status", [Status.PAUSED, Status.DONE])
async def test_a_commit_is_refused_when_it_would_pass_over_a_cancel(
    store: RunStore, run: Run, status: Status
) -> None:
    for kind in (MessageKind.SEND, MessageKind.PAUSE, MessageKind.CANCEL):
        await store.post("r", message(store, kind.value, kind))
    commit = commit_of(run, status, uncancelled=True, consumed=("pause",))
    later = msgspec.structs.replace(commit, consumed=("cancel",))
    await refused_then_landed(store, commit, later)


async def test_a_commit_that_no_cancel_lies_before_takes_no_notice_of_other_messages(
    store: RunStore, run: Run
) -> None:
    assert await store.commit(commit_of(run, uncancelled=True)) is CommitResult.LANDED
    for kind in (MessageKind.SEND, MessageKind.PAUSE):
        await store.post("r", message(store, kind.value, kind))
    commit = commit_of(await load(store), Status.DONE, uncancelled=True)
    assert await store.commit(commit) is CommitResult.LANDED


async def test_of_a_park_and_a_message_at_once_none_is_missed(world: World) -> None:
    worker, sender = await world.store(), await world.store()
    for number in range(20):
        run = held_run(worker, str(number))
        await worker.create_run(run)
        result, _ = await asyncio.gather(
            worker.commit(commit_of(run, Status.WAITING, inbox_seq=0)),
            sender.post(run.id, message(sender, "m")),
        )
        after = await load(worker, run.id)
        assert [each.id for each in after.inbox] == ["m"]
        if result is CommitResult.LANDED:
            assert after.due_at is not None
        else:
            assert (result, after.status) == (CommitResult.INBOX_MOVED, Status.RUNNING)


async def test_consumed_messages_leave_the_inbox_and_others_stay(store: RunStore, run: Run) -> None:
    for id_ in ("a", "b", "c"):
        await store.post("r", message(store, id_))
    await store.commit(commit_of(run, consumed=("a", "c")))
    after = await load(store)
    assert [each.id for each in after.inbox] == ["b"]
    assert after.inbox_seq == 3


@pytest.mark.parametrize("status", [each for each in Status if each is not Status.RUNNING])
async def test_any_status_but_running_lets_go_of_the_claim(
    store: RunStore, run: Run, status: Status
) -> None:
    await store.commit(
        commit_of(run, attempts=(attempt(store, "a"),), awaiting=(slot(store, "s"),))
    )
    await store.commit(commit_of(await load(store), status))
    after = await load(store)
    assert (after.status, after.worker, after.claim, after.attempts) == (status, None, None, [])
    assert after.due_at is None
    assert bool(after.awaiting) is not status.ended


async def test_a_commit_to_waiting_sets_due_at(store: RunStore, run: Run) -> None:
    due_at = store.clock.now() + timedelta(hours=1)
    await store.commit(commit_of(run, Status.WAITING, due_at=due_at))
    assert (await load(store)).due_at == due_at


async def test_a_commit_to_an_end_records_the_outcome(store: RunStore, run: Run) -> None:
    now = store.clock.now()
    later = now + timedelta(days=1)
    await store.commit(
        commit_of(run, Status.FAILED, output=AWKWARD, error=BOOM, ended_at=now, expire_at=later)
    )
    after = await load(store)
    assert (after.output, after.error) == (AWKWARD, BOOM)
    assert (after.ended_at, after.expire_at) == (now, later)


async def test_a_commit_that_is_too_large_writes_nothing(store: RunStore, run: Run) -> None:
    small = commit_of(run, entries=(entry(store, "small", "x" * 9_000_000),))
    assert await store.commit(small) is CommitResult.LANDED
    before = await load(store)
    for size in (9_000_000, 17_000_000):
        large = commit_of(before, entries=(entry(store, "large", "x" * size),))
        with pytest.raises(PayloadTooLarge) as caught:
            await store.commit(large)
        assert caught.value.run_id == "r"
        assert await load(store) == before


async def test_commits_side_by_side_have_results_of_their_own(store: RunStore) -> None:
    runs = [held_run(store, str(number)) for number in range(60)]
    await asyncio.gather(*(store.create_run(run) for run in runs))
    for run in runs[::3]:
        await store.post(run.id, message(store, "m"))
    commits = [
        msgspec.structs.replace(
            commit_of(run, inbox_seq=0, output=run.id), fence=2 if number % 3 == 1 else 1
        )
        for number, run in enumerate(runs)
    ]
    results = await asyncio.gather(*(store.commit(commit) for commit in commits))
    expected = [CommitResult.INBOX_MOVED, CommitResult.LOST, CommitResult.LANDED]
    assert results == expected * 20
    for number, run in enumerate(runs):
        assert (await load(store, run.id)).rev == (number % 3 == 2)


# -- the archive ----------------------------------------------------------------------------------


async def archived(store: RunStore, run: Run, rounds: int) -> list[Entry]:
    """Commit entries, three a time, archiving all the older ones each time; return them all."""
    entries: list[Entry] = []
    for number in range(rounds):
        before = await load(store)
        new = tuple(entry(store, f"s{number}.{i}", AWKWARD) for i in range(3))
        commit = commit_of(
            before, entries=new, archive=tuple(before.journal), journal_base=before.journal_base
        )
        assert await store.commit(commit) is CommitResult.LANDED
        entries += new
    return entries


async def test_archived_entries_leave_the_document_and_can_be_loaded(
    store: RunStore, run: Run
) -> None:
    entries = await archived(store, run, 4)
    after = await load(store)
    assert (after.journal, after.journal_base) == (entries[9:], 9)
    for until in (0, 1, 5, 9):
        assert await store.load_archive("r", until) == entries[:until]


async def test_everything_can_be_archived_by_a_commit_without_entries(
    store: RunStore, run: Run
) -> None:
    entries = await archived(store, run, 2)
    before = await load(store)
    await store.commit(
        commit_of(before, archive=tuple(before.journal), journal_base=before.journal_base)
    )
    after = await load(store)
    assert (after.journal, after.journal_base) == ([], 6)
    assert await store.load_archive("r", 6) == entries


async def test_the_same_archive_written_twice_does_no_harm(store: RunStore, run: Run) -> None:
    entries = await archived(store, run, 3)
    before = await load(store)
    commit = commit_of(
        before, archive=tuple(before.journal), journal_base=6, entries=(entry(store, "x"),)
    )
    assert await store.commit(commit) is CommitResult.LANDED
    assert await store.commit(commit) is CommitResult.LANDED
    assert await store.load_archive("r", 9) == entries


async def test_an_archive_of_a_lost_commit_does_no_harm(store: RunStore, run: Run) -> None:
    first = entry(store, "a")
    await store.commit(commit_of(run, entries=(first,)))
    stale = await load(store)
    second = entry(store, "b")
    await store.commit(commit_of(stale, entries=(second,)))
    # One who lost its claim archives less than there is by now, and then more is archived.
    lost = commit_of(stale, archive=(first,), entries=(entry(store, "other"),))
    lost = msgspec.structs.replace(lost, rev=0)
    assert await store.commit(lost) is CommitResult.LOST
    now = await load(store)
    await store.commit(commit_of(now, archive=tuple(now.journal)))
    assert await store.commit(lost) is CommitResult.LOST
    assert await store.load_archive("r", 2) == [first, second]


async def test_a_large_archive_is_stored_in_parts(store: RunStore, run: Run) -> None:
    entries = []
    for number in range(3):
        new = entry(store, f"s{number}", "x" * 5_000_000)
        await store.commit(commit_of(await load(store), entries=(new,)))
        entries.append(new)
    now = await load(store)
    await store.commit(commit_of(now, archive=tuple(now.journal)))
    assert await store.load_archive("r", 3) == entries


async def test_missing_archived_entries_are_corruption(
    world: World, store: RunStore, run: Run
) -> None:
    await archived(store, run, 3)
    with pytest.raises(DataCorruption, match="'r'"):
        await store.load_archive("r", 7)
    await world.lose_archive("r")
    with pytest.raises(DataCorruption, match="'r'"):
        await store.load_archive("r", 3)


# -- heartbeats -----------------------------------------------------------------------------------


async def test_a_heartbeat_is_recorded_in_its_attempt(store: RunStore, run: Run) -> None:
    await store.commit(commit_of(run, attempts=(attempt(store, "a"), attempt(store, "b"))))
    assert await store.heartbeat("r", 1, "b", AWKWARD)
    after = await load(store)
    assert [each.heartbeat for each in after.attempts] == [None, AWKWARD]
    assert after.rev == 1


async def test_a_heartbeat_of_a_lost_claim_is_refused(store: RunStore, run: Run) -> None:
    await store.commit(commit_of(run, attempts=(attempt(store, "a"),)))
    assert not await store.heartbeat("r", 2, "a", 1)
    assert not await store.heartbeat("none", 1, "a", 1)
    assert (await load(store)).attempts[0].heartbeat is None


async def test_a_heartbeat_without_a_recorded_attempt_changes_nothing(
    store: RunStore, run: Run
) -> None:
    assert await store.heartbeat("r", 1, "a", 1)
    assert (await load(store)).attempts == []
