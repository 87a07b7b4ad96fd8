"""Runs, claims and entries to test with."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from typing import Any

from streamline.codec import Failure
from streamline.model import (
    Claim,
    Commit,
    Continuation,
    Entry,
    EntryKind,
    Input,
    Message,
    MessageKind,
    Past,
    Run,
    Slot,
    SlotKind,
    Status,
)
from streamline.store.base import RunStore

_numbers = count(1)
BOOM = Failure(code="WORKFLOW_CANCELLED", type="builtins:Boom", message="$enough.of.it")
# What users store must never be taken for operators or paths.
AWKWARD: dict[str, Any] = {
    "$set": {"a.b": "$status", "$$NOW": ["$$ROOT", {"$literal": 1}]},
    "a.b.c": {"$ref": "x", "$id": 1},
    "": None,
    "bytes": b"\0\xff",
    "large": 2**40,
}
NEXT = Input(args=["next", AWKWARD], kwargs={"a.b": 1}, context={"kept": AWKWARD})
"""What runs continue with."""


def new_claim(worker: str = "w1", lease: float = 60.0, ahead: float = 0.0) -> Claim:
    return Claim(id=f"claim-{next(_numbers)}", worker=worker, lease=lease, ahead=ahead)


def new_run(store: RunStore, run_id: str = "r", *, due_in: float = 0.0, **fields: Any) -> Run:
    now = store.clock.now()
    # Behind a little, since the clock of the store is known to a few milliseconds only.
    due_at = now + timedelta(seconds=due_in) - timedelta(milliseconds=50)
    defaults: dict[str, Any] = {
        "workflow": "wf",
        "version": "1",
        "code": "wf",
        "status": Status.QUEUED,
        "input": Input(args=[1, "two"], kwargs={"x": AWKWARD}),
        "python": "3.11",
        "created_at": now,
        "updated_at": now,
        "due_at": due_at,
    }
    return Run(id=run_id, **{**defaults, **fields})


def held_run(store: RunStore, run_id: str = "r", *, lease: float = 60.0, **fields: Any) -> Run:
    """A new run that is claimed by `w1` from the start."""
    claimed = {"status": Status.RUNNING, "worker": "w1", "claim": f"c-{run_id}", "fence": 1}
    return new_run(store, run_id, due_in=lease, **{**claimed, **fields})


def commit_of(run: Run, status: Status = Status.RUNNING, **fields: Any) -> Commit:
    return Commit(run_id=run.id, fence=run.fence, rev=run.rev, status=status, **fields)


def continuing(
    store: RunStore, run: Run, *, taken: tuple[str, ...] = ("taken", "before"), **fields: Any
) -> Commit:
    """The commit by which a run begins anew."""
    past = Past(input=run.first_input, at=store.clock.now(), rev=run.rev + 1, taken=[*taken])
    next_ = Continuation(
        input=NEXT,
        code=run.code,
        version="2",
        python="3.99",
        generation=run.generation + 1,
        past=past,
    )
    return commit_of(run, continuation=next_, generation=run.generation, **fields)


def entry(store: RunStore, id_: str, value: Any = None, **fields: Any) -> Entry:
    now = store.clock.now()
    return Entry(id=id_, kind=EntryKind.STEP, at=now, fence=1, value=value, **fields)


def message(
    store: RunStore, id_: str, kind: MessageKind = MessageKind.SEND, **fields: Any
) -> Message:
    return Message(id=id_, kind=kind, at=store.clock.now(), **fields)


def slot(store: RunStore, id_: str) -> Slot:
    return Slot(id=id_, kind=SlotKind.WAIT, name=id_, since=store.clock.now())


async def load(store: RunStore, run_id: str = "r") -> Run:
    run = await store.load_run(run_id)
    assert run is not None
    return run
