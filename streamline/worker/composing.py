"""What a worker's commits are made of: what happened to a run, and what follows from it."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from streamline.codec import LargePayload, encode_exception
from streamline.errors import NonDeterminism, StreamlineError
from streamline.model import Attempt, Commit, Dispatch, MessageKind, Run, Status
from streamline.outbox import GRACE
from streamline.worker.children import failing_dispatches, last_dispatches
from streamline.worker.ending import Ending, fail
from streamline.worker.guards import guards
from streamline.worker.session import Session


def compose(
    run: Run,
    session: Session,
    status: Status,
    *,
    ending: Ending | None,
    attempts: tuple[Attempt, ...],
    now: datetime,
) -> Commit:
    """Return the commit of what was applied to a body and what it wants next.

    Args:
        run: The run as it is stored.
        session: Its working state.
        status: To which the run goes.
        ending: How the run, or its generation, ends, if it does.
        attempts: What runs once the commit has landed.
        now: The present instant.
    """
    slots = () if ending is not None else session.open_slots()
    moved = slots != session.awaiting
    pause = session.inbox.find(MessageKind.PAUSE) if status is Status.PAUSED else None
    entries = tuple(session.tail.pending)
    outbox = tuple(session.dispatches(ending))
    return Commit(
        run_id=run.id,
        fence=run.fence,
        rev=run.rev,
        status=status,
        entries=entries,
        progress=bool(entries and run.recoveries),
        consumed=(*session.inbox.taken, *([pause.id] if pause else [])),
        pause=None if pause is None else pause.id,
        **guards(session, status, moved=moved),
        due_at=session.next_due() if status is Status.WAITING else None,
        awaiting=slots if moved else None,
        attempts=attempts,
        context=dict(session.body.context) if session.context_changed else None,
        archive=session.tail.to_archive(),
        journal_base=session.tail.base,
        generation=run.generation,
        spilled=run.spilled or session.tail.has_large,
        outbox=outbox,
        outbox_due=now + GRACE if outbox else None,
    )


def ended(commit: Commit, ending: Ending, run: Run, now: datetime) -> Commit:
    """Return a commit with which the run ends."""
    return msgspec.structs.replace(
        commit,
        output=ending.output,
        spilled=commit.spilled or isinstance(ending.output, LargePayload),
        error=ending.failure,
        ended_at=now,
        ended_by=run.worker,
        expire_at=_expiry(run, commit.outbox, now),
    )


def set_aside(run: Run, error: NonDeterminism, now: datetime) -> Commit:
    """Return the commit that pauses a run whose code no longer fits; nothing of it is lost.

    A run that was asked to end does so instead: its cleanup can't be reached any more.
    """
    commit = Commit(
        run_id=run.id,
        fence=run.fence,
        rev=run.rev,
        status=Status.PAUSED,
        uncancelled=True,
        journal_base=run.journal_base,
        generation=run.generation,
        spilled=run.spilled,
        error=fail(error, run, None).failure,
    )
    cancel = next((m for m in run.inbox if m.kind is MessageKind.CANCEL), None)
    if cancel is None:
        return commit
    outbox = last_dispatches(run)
    return msgspec.structs.replace(
        commit,
        status=Status.CANCELLED,
        uncancelled=False,
        consumed=(cancel.id,),
        followers=len(run.followers),
        ended_at=now,
        ended_by=run.worker,
        expire_at=_expiry(run, outbox, now),
        outbox=outbox,
        outbox_due=now + GRACE if outbox else None,
    )


def failed(run: Run, fence: int, error: StreamlineError, now: datetime) -> Commit:
    """Return the commit that fails a run which the engine itself can't drive."""
    outbox = failing_dispatches(run)
    return Commit(
        run_id=run.id,
        fence=fence,
        rev=run.rev,
        status=Status.FAILED,
        journal_base=run.journal_base,
        generation=run.generation,
        spilled=run.spilled,
        error=encode_exception(error, code=error.code),
        ended_at=now,
        ended_by=run.worker,
        expire_at=_expiry(run, outbox, now),
        followers=len(run.followers),
        outbox=outbox,
        outbox_due=now + GRACE if outbox else None,
    )


def _expiry(run: Run, outbox: tuple[Dispatch, ...], now: datetime) -> datetime | None:
    # With something left to tell, `settle_outbox` sets it.
    if run.expire_after is None or outbox:
        return None
    return now + timedelta(seconds=run.expire_after)
