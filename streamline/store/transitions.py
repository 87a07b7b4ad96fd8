"""What the verbs of a store do to a run, as pure functions: the memory store applies them.

The Mongo store says the same in update operators; the conformance suite holds the two together.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from streamline.clock import to_milliseconds
from streamline.codec import Failure, PayloadRef
from streamline.model import (
    CONTROL,
    MIN_PUT_OFF,
    SUSPECT,
    Claim,
    Commit,
    Continuation,
    Dispatch,
    Entry,
    Message,
    MessageKind,
    Run,
    Slot,
    Status,
)
from streamline.outbox import GRACE, abandonments, expires, listeners, outcomes, without

_change = msgspec.structs.replace


def same_creation(stored: Run, run: Run) -> bool:
    """Whether a stored run is the one that an earlier try of this creation inserted.

    A claim decides alone: were two creators to count as the one that inserted, both would run it.
    """
    if run.claim is not None:
        return stored.claim == run.claim
    return stored.created_at == run.created_at and stored.first_input == run.input


def claimed(run: Run, claim: Claim, now: datetime) -> Run | None:
    """Return the run under a claim, or put off; None if it isn't due."""
    ahead = timedelta(seconds=claim.ahead if run.status is Status.WAITING else 0.0)
    if run.due_at is None or run.due_at > now + ahead:
        return None
    recoveries = run.recoveries + (run.status is Status.RUNNING)
    if run.status is Status.RUNNING and recoveries in SUSPECT:
        return _put_off(run, recoveries, now)
    return _change(
        run,
        status=Status.RUNNING,
        worker=claim.worker,
        claim=claim.id,
        fence=run.fence + 1,
        due_at=now + timedelta(seconds=claim.lease),
        started_at=run.started_at or now,
        recoveries=recoveries,
        updated_at=now,
    )


def _put_off(run: Run, recoveries: int, now: datetime) -> Run:
    delay = random.uniform(MIN_PUT_OFF, 1) * 2.0 ** (recoveries - SUSPECT.start)
    return _change(
        run,
        status=Status.QUEUED,
        worker=None,
        claim=None,
        fence=run.fence + 1,
        due_at=to_milliseconds(now + timedelta(seconds=delay)),
        recoveries=recoveries,
        updated_at=now,
    )


def released(run: Run, now: datetime, *, faulty: bool) -> Run:
    """Return the run handed back."""
    return _change(
        run,
        status=Status.QUEUED,
        due_at=now,
        worker=None,
        claim=None,
        updated_at=now,
        recoveries=run.recoveries + faulty,
    )


def moved_on(run: Run, commit: Commit) -> bool:
    """Whether a message came in that the commit would pass over."""
    cancels = {message.id for message in run.inbox if message.kind is MessageKind.CANCEL}
    return (
        commit.inbox_seq not in (None, run.inbox_seq)
        or commit.open_slots not in (None, len(run.awaiting))
        or (commit.pause is not None and all(m.id != commit.pause for m in run.inbox))
        or (commit.uncancelled and not cancels <= set(commit.consumed))
        or commit.followers not in (None, len(run.followers))
    )


def committed(run: Run, commit: Commit, now: datetime) -> Run:
    """Return the run as it is after a commit that fits it."""
    kept = [] if commit.archive else run.journal
    changes: dict[str, Any] = {
        "status": commit.status,
        "rev": run.rev + 1,
        "updated_at": now,
        "journal": [*kept, *commit.entries],
        "inbox": [message for message in run.inbox if message.id not in commit.consumed],
    }
    if commit.archive:
        changes["journal_base"] = commit.journal_base + len(commit.archive)
    if commit.progress:
        changes["recoveries"] = 0
    for name in ("output", "error", "ended_at", "ended_by", "expire_at"):
        if (value := getattr(commit, name)) is not None:
            changes[name] = value
    if commit.spilled:
        changes["spilled"] = True
    if commit.context is not None:
        changes["context"] = dict(commit.context)
    if commit.awaiting is not None:
        changes["awaiting"] = list(commit.awaiting)
    if commit.attempts is not None:
        changes["attempts"] = list(commit.attempts)
    if commit.outbox:
        changes |= {"outbox": [*run.outbox, *commit.outbox], "outbox_due": commit.outbox_due}
    if commit.status is not Status.RUNNING:
        due_at = commit.due_at if commit.status is Status.WAITING else None
        changes |= {"worker": None, "claim": None, "attempts": [], "due_at": due_at}
    if commit.status.ended:
        changes["awaiting"] = []
    if commit.continuation is not None:
        # Commands are counted anew, so the ids of children must differ.
        changes |= {"fence": commit.next_fence, "epoch": run.epoch + 1}
        changes |= _begun_anew(commit.continuation)
    return _change(run, **changes)


def _begun_anew(next_: Continuation) -> dict[str, Any]:
    """Return what changes of a run that goes on as its next generation."""
    return {
        "input": next_.input,
        "code": next_.code,
        "version": next_.version,
        "python": next_.python,
        "generation": next_.generation,
        "past": next_.past,
        "journal": [],
        "journal_base": 0,
        "awaiting": [],
        "attempts": [],
        "recoveries": 0,
    }


def has_landed(commit: Commit, *, fence: int | None, rev: int | None, generation: int) -> bool:
    """Whether a run at this fence, `rev` and generation is as a commit left it.

    Nobody else writes under its fence, so it is this very commit, tried before. One that raised
    the fence left a generation behind, too: a `terminate` would come to the same fence and `rev`.
    """
    if (fence, rev) != (commit.next_fence, commit.rev + 1):
        return False
    return commit.continuation is None or generation == commit.continuation.generation


def posted(run: Run, message: Message, slot: str | None, now: datetime) -> Run:
    """Return the run with a message in its inbox, and woken by it."""
    changes: dict[str, Any] = {}
    if isinstance(message.payload, PayloadRef):
        changes["spilled"] = True
    if run.status is Status.WAITING:
        changes["due_at"] = now if run.due_at is None else min(now, run.due_at)
    elif run.status is Status.PAUSED and message.kind is MessageKind.CANCEL:
        changes |= {"status": Status.WAITING, "due_at": now}
    if slot is not None:
        changes["awaiting"] = [open_ for open_ in run.awaiting if open_.id != slot]
    return _change(
        run,
        inbox=[*run.inbox, message],
        inbox_seq=run.inbox_seq + 1,
        updated_at=now,
        **changes,
    )


def is_parked_as(run: Run, parked: Run) -> bool:
    """Whether a run waits, and nobody but senders wrote to it since it was parked."""
    unchanged = (run.rev, run.fence) == (parked.rev, parked.fence)
    return unchanged and run.status is Status.WAITING


def is_pending(inbox: list[Message], kind: MessageKind) -> bool:
    """Whether a cancel or pause lies in the inbox, and another would say no more."""
    asked = [message.kind for message in inbox if message.kind in CONTROL]
    if kind is MessageKind.CANCEL:
        return kind in asked
    return asked[-1:] == [kind]  # a cancel drops the pauses before it, not those after it


def is_open(awaiting: list[Slot], slot: str) -> bool:
    """Whether a slot is among those that are open."""
    return any(open_.id == slot for open_ in awaiting)


def unpaused(run: Run, now: datetime) -> Run | None:
    """Return the run queued again, or with a pause taken back; None if there is neither."""
    inbox = [message for message in run.inbox if message.kind is not MessageKind.PAUSE]
    taken_back = len(inbox) < len(run.inbox)
    if run.status.ended or not (run.status is Status.PAUSED or taken_back):
        return None
    changes: dict[str, Any] = {"inbox_seq": run.inbox_seq + taken_back}
    if run.status is Status.PAUSED:
        changes |= {"status": Status.QUEUED, "due_at": now, "error": None}
    return _change(run, inbox=inbox, updated_at=now, **changes)


def cancelled(run: Run, error: Failure, now: datetime, *, fence: int) -> Run:
    """Return the run ended as cancelled."""
    rev = run.rev + 1
    outbox = [*run.outbox, *outcomes(run, rev), *abandonments(run.awaiting, rev)]
    ended = _change(
        run,
        status=Status.CANCELLED,
        error=error,
        rev=rev,
        fence=fence,
        updated_at=now,
        ended_at=now,
        outbox=outbox,
        outbox_due=now + GRACE if outbox else None,
        due_at=None,
        worker=None,
        claim=None,
        awaiting=[],
        attempts=[],
    )
    return ended if outbox else _change(ended, expire_at=expires(ended))


def followed(run: Run, follower: str, now: datetime) -> Run:
    """Return the run with a follower more; one that is told anyway changes nothing."""
    if run.status.ended or follower in listeners(run):
        return run
    return _change(run, followers=[*run.followers, follower], updated_at=now)


def settled(run: Run, sent: Sequence[Dispatch], again_at: datetime) -> Run:
    """Return the run with less in its outbox; once that is empty, an ended one may expire."""
    left = without(run.outbox, sent)
    changed = _change(run, outbox=left, outbox_due=again_at if left else None)
    if left or not run.status.ended or run.expire_at is not None:
        return changed
    return _change(changed, expire_at=expires(run))


def rewound(run: Run, journal: list[Entry], base: int, now: datetime) -> Run:
    """Return an ended run queued again, with the first part of its journal."""
    return _change(
        run,
        status=Status.QUEUED,
        epoch=run.epoch + 1,
        journal=journal,
        journal_base=base,
        rev=run.rev + 1,
        fence=run.fence + 1,
        recoveries=0,
        due_at=now,
        updated_at=now,
        output=None,
        error=None,
        ended_at=None,
        ended_by=None,
        expire_at=None,
        awaiting=[],
        attempts=[],
    )
