"""What a run has to tell other runs: that it ended, or that they should.

Dispatches are written in the commit that makes them due, delivered after it, and removed once they
are delivered: so they are delivered at least once, whatever crashes. The receiver tells repeated
ones by their message ids. Knows no store.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec

from streamline.codec import Failure, LargePayload, decode_exception
from streamline.errors import ErrorCode, RunCancelled, RunFailed
from streamline.model import Dispatch, DispatchKind, Run, Slot, SlotKind, Status

GRACE = timedelta(seconds=2)
"""How long an outbox is left to the process that wrote it."""
_STAMP = re.compile(r"(?P<created>\d+\.\d{3})\.(?P<epoch>\d+)(?=/\d+$|$)")
_RUN_FAILED = "streamline.errors:RunFailed"
_RUN_CANCELLED = "streamline.errors:RunCancelled"


def listeners(run: Run) -> list[str]:
    """Return the ids of the runs that are to be told of a run's end."""
    parent = [] if run.parent is None else [run.parent.run]
    return [*parent, *run.followers]


def outcomes(run: Run, rev: int) -> list[Dispatch]:
    """Return what a run has to tell by its end."""
    return [Dispatch(kind=DispatchKind.OUTCOME, to=to, rev=rev) for to in listeners(run)]


def abandonments(slots: Iterable[Slot], rev: int) -> list[Dispatch]:
    """Return what a run has to tell the children of these slots that it wants no more."""
    children = (slot for slot in slots if slot.kind is SlotKind.CHILD)
    return [Dispatch(kind=DispatchKind.ABANDON, to=slot.name, rev=rev) for slot in children]


def without(outbox: Iterable[Dispatch], sent: Iterable[Dispatch]) -> list[Dispatch]:
    """Return what is left once some of it was delivered."""
    gone = {(each.kind, each.to, each.rev) for each in sent}
    return [each for each in outbox if (each.kind, each.to, each.rev) not in gone]


def readable(stored: Any) -> list[Dispatch]:
    """Return the dispatches among what a document has as its outbox."""
    found = []
    for each in stored if isinstance(stored, list) else ():
        with contextlib.suppress(msgspec.ValidationError):
            found.append(msgspec.convert(each, Dispatch))
    return found


def expires(run: Run) -> datetime | None:
    """Return when an ended run expires that has nothing left to tell; one set aside never does."""
    if run.expire_after is None or run.ended_at is None:
        return None
    if run.error is not None and run.error.code == ErrorCode.DATA_CORRUPTION:
        return None
    return run.ended_at + timedelta(seconds=run.expire_after)


# -- ids of messages -----------------------------------------------------------------------------


def stamp(run: Run) -> str:
    """Return what tells a run from those that had its id before it: when it was created, and how
    often it was begun anew.
    """
    return f"{run.created_at.timestamp():.3f}.{run.epoch}"


def incarnation(run: Run) -> str:
    """Return a name for a run that no other run of its id shares, before or after it."""
    return f"{run.id}/{stamp(run)}"


def outcome_id(run: Run, dispatch: Dispatch) -> str:
    """Return the id of the message that tells of this end of a run, and of no other."""
    return f"outcome/{incarnation(run)}/{dispatch.rev}"


def is_outdated(message_id: str, stamp: str) -> bool:
    """Whether an outcome is of an earlier run than the one of this stamp; both have the same id."""
    told, asked = _STAMP.search(message_id), _STAMP.fullmatch(stamp)
    if told is None or asked is None:
        return False
    return _order(told) < _order(asked)


def _order(found: re.Match[str]) -> tuple[float, int]:
    return float(found["created"]), int(found["epoch"])


def cancel_id(sender: str) -> str:
    """Return the id of a cancel: the first of one sender counts, a second would hit the cleanup."""
    return f"cancel/{sender}"


# -- outcomes -------------------------------------------------------------------------------------


def outcome_failure(run: Run) -> Failure | None:
    """Return what an ended run raises where it is waited for; None if it is done."""
    if run.status is Status.DONE:
        return None
    error = run.error
    if run.status is Status.CANCELLED:
        message = error.message if error is not None else f"run {run.id!r} was cancelled"
        return Failure(
            code=ErrorCode.WORKFLOW_CANCELLED,
            type=_RUN_CANCELLED,
            message=message,
            args=[message],
            attributes={"run_id": run.id, "step": None},
        )
    assert error is not None
    step = f" in step {error.step!r}" if error.step else ""
    message = (
        f"run {run.id!r} of workflow {run.workflow!r} failed{step} ({error.code}): "
        f"{error.message or error.type.rpartition(':')[2]}"
    )
    return Failure(
        code=ErrorCode.WORKFLOW_FAILED,
        type=_RUN_FAILED,
        message=message,
        args=[message],
        attributes={"run_id": run.id, "step": error.step, "error_code": error.code},
        cause=error,
    )


def own_copy(value: Any) -> Any:
    """Return a payload for another place; one that is kept outside is to be put there anew."""
    return LargePayload(value.data) if isinstance(value, LargePayload) else value


def outcome_error(run: Run) -> RunFailed | RunCancelled | None:
    """Return what to raise for an ended run; its own error is the cause. None if it is done."""
    failure = outcome_failure(run)
    if failure is None:
        return None
    error = decode_exception(failure, run_id=run.id)
    assert isinstance(error, (RunFailed, RunCancelled))
    return error
