"""The filters and updates that the verbs of the Mongo store are made of, as plain data.

Payloads and names of users never become operators: classic updates hold them as values, pipelines
within `$literal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from streamline.codec import Failure, PayloadRef
from streamline.model import (
    CONTROL,
    ENDED,
    MIN_PUT_OFF,
    SUSPECT,
    Claim,
    Commit,
    Continuation,
    Message,
    MessageKind,
    Run,
    Status,
)
from streamline.store.base import REFER_WITHIN
from streamline.store.encoding import Document, to_builtins
from streamline.store.outgoing import added_outbox, due_outbox, expiry

Pipeline = list[Document]

_UNHELD = {"worker": "", "claim": "", "attempts": ""}

ENDED_VALUES = sorted(status.value for status in ENDED)
# The partial indexes are used only by filters that repeat their condition.
HAS_DUE: Document = {"$type": "date"}
HAS_WORKER: Document = {"$type": "string"}
LAST_CHARACTER = "\U0010ffff"
DUE_NOW: Document = {"$lte": ["$due_at", "$$NOW"]}
NOT_ENDED: Document = {"$nin": ENDED_VALUES}


def _literal(value: object) -> Document:
    return {"$literal": value}


def _add(field: str, number: object) -> Document:
    return {"$add": [{"$ifNull": [f"${field}", 0]}, number]}


def _is_status(*statuses: Status) -> Document:
    return {"$in": ["$status", [status.value for status in statuses]]}


# -- claims ---------------------------------------------------------------------------------------


def due_filter(claim: Claim) -> Document:
    """Match what is due by the server's own clock, or may be claimed ahead of its time.

    `$expr` gives exact index bounds. Leases end at `due_at` too: only what waits goes ahead of it.
    """
    if not claim.ahead:
        return {"due_at": HAS_DUE, "$expr": DUE_NOW}
    soon = {"$add": ["$$NOW", round(claim.ahead * 1000)]}
    waits = {"status": Status.WAITING.value}
    return {
        "due_at": HAS_DUE,
        "$expr": {"$lte": ["$due_at", soon]},
        "$or": [waits, {"$expr": DUE_NOW}],
    }


def claim_update(claim: Claim) -> Pipeline:
    """Put a run under a claim; or put it off, if it is a suspect."""
    stale = _is_status(Status.RUNNING)
    recoveries = _add("recoveries", {"$cond": [stale, 1, 0]})
    suspect = {"$and": [stale, {"$in": [recoveries, list(SUSPECT)]}]}
    doubled = {"$pow": [2, {"$subtract": [recoveries, SUSPECT.start]}]}
    share = {"$add": [MIN_PUT_OFF, {"$multiply": [1 - MIN_PUT_OFF, {"$rand": {}}]}]}
    put_off = {"$add": ["$$NOW", {"$multiply": [1000, share, doubled]}]}
    fields = {
        "status": {"$cond": [suspect, Status.QUEUED.value, Status.RUNNING.value]},
        "worker": {"$cond": [suspect, "$$REMOVE", _literal(claim.worker)]},
        "claim": {"$cond": [suspect, "$$REMOVE", _literal(claim.id)]},
        "fence": _add("fence", 1),
        "due_at": {"$cond": [suspect, put_off, lease_end(claim.lease)]},
        "started_at": {"$ifNull": ["$started_at", "$$NOW"]},
        "recoveries": recoveries,
        "updated_at": "$$NOW",
    }
    return [{"$set": fields}]


def lease_end(lease: float) -> Document:
    """The end of a lease of so many seconds that begins now."""
    return {"$add": ["$$NOW", round(lease * 1000)]}


def held_filter(run_id: str, fence: int) -> Document:
    """Match a run while it is running under a fence."""
    return {"_id": run_id, "fence": fence, "status": Status.RUNNING.value}


def holder_filter(worker: str, held: Mapping[str, int]) -> Document:
    """Match the runs that a worker holds, each under its own fence."""
    by_fence: dict[int, list[str]] = {}
    for run_id, fence in held.items():
        by_fence.setdefault(fence, []).append(run_id)
    alternatives = [{"_id": {"$in": ids}, "fence": fence} for fence, ids in by_fence.items()]
    return {"$or": alternatives, "worker": worker, "status": Status.RUNNING.value}


def holders_filter(beginning: str, besides: str) -> Document:
    """Match what workers hold whose ids begin so, but for one of them."""
    range_ = {"$gte": beginning, "$lt": beginning + LAST_CHARACTER, "$ne": besides}
    return {"worker": HAS_WORKER | range_}


def dead_holder_filter(worker: str) -> Document:
    """Match the runs that a worker holds and whose leases are live."""
    return {
        "worker": {**HAS_WORKER, "$eq": worker},
        "status": Status.RUNNING.value,
        "$expr": {"$gt": ["$due_at", "$$NOW"]},
    }


EXPIRE_UPDATE: Pipeline = [
    # Without its `claim` the change can be told from a renewal in the change stream (`notices.py`).
    {"$set": {"due_at": "$$NOW"}},
    {"$unset": "claim"},
]


def release_update(*, faulty: bool) -> Pipeline:
    """Hand a run back."""
    fields = {
        "status": Status.QUEUED.value,
        "due_at": "$$NOW",
        "updated_at": "$$NOW",
        "recoveries": _add("recoveries", int(faulty)),
    }
    return [{"$set": fields}, {"$unset": ["worker", "claim"]}]


def heartbeat_update(step: str, details: object) -> Pipeline:
    """Put details into the running attempt of a step."""
    beaten = {"$mergeObjects": ["$$this", _literal({"heartbeat": details})]}
    mine = {"$eq": ["$$this.id", _literal(step)]}
    attempts = {
        "$map": {"input": "$attempts", "in": {"$cond": [mine, beaten, "$$this"]}},
    }
    there = {"$cond": [{"$isArray": "$attempts"}, attempts, "$$REMOVE"]}
    return [{"$set": {"attempts": there}}]


# -- commits --------------------------------------------------------------------------------------


def commit_filter(commit: Commit) -> Document:
    """Match the run that a commit fits."""
    fits = held_filter(commit.run_id, commit.fence)
    fits["rev"] = commit.rev
    if commit.inbox_seq is not None:
        fits["inbox_seq"] = commit.inbox_seq
    if commit.open_slots:
        fits["awaiting"] = {"$size": commit.open_slots}
    elif commit.open_slots is not None:  # an empty array is as good as none
        fits["awaiting.0"] = {"$exists": False}
    if commit.followers:
        fits["followers"] = {"$size": commit.followers}
    elif commit.followers is not None:
        fits["followers.0"] = {"$exists": False}
    if commit.pause is not None:
        fits["inbox.id"] = commit.pause
    if commit.uncancelled:
        cancel = {"kind": MessageKind.CANCEL.value, "id": {"$nin": list(commit.consumed)}}
        fits["inbox"] = {"$not": {"$elemMatch": cancel}}
    return fits


def commit_update(commit: Commit) -> Document:
    """Apply a commit. Classic operators: they are cheaper than a pipeline, and in the oplog too."""
    set_, unset = _commit_fields(commit)
    push: Document = {}
    update: Document = {"$inc": {"rev": 1}, "$currentDate": {"updated_at": True}}
    if commit.outbox:
        push["outbox"] = {"$each": to_builtins(commit.outbox)}
    if commit.consumed:
        # By id, never a new list: a message that arrives meanwhile must stay.
        update["$pull"] = {"inbox": {"id": {"$in": list(commit.consumed)}}}
    if commit.continuation is not None:
        set_ |= _begun_anew(commit.continuation)
        update["$inc"] |= {"fence": 1, "epoch": 1}
    elif commit.entries:
        push["journal"] = {"$each": to_builtins(commit.entries)}
        if commit.archive:
            push["journal"]["$slice"] = -len(commit.entries)
    elif commit.archive:
        set_["journal"] = []
    for operator, fields in (("$set", set_), ("$unset", unset), ("$push", push)):
        if fields:
            update[operator] = fields
    return update


def _begun_anew(next_: Continuation) -> Document:
    """Return the fields that a commit sets by which a run goes on as its next generation."""
    fields: Document = to_builtins(next_)
    return fields | {"journal": [], "journal_base": 0, "recoveries": 0}


def _commit_fields(commit: Commit) -> tuple[Document, Document]:
    """Return the fields that a commit sets, and those that it removes."""
    # The filter says `running` already: what doesn't change is not written, in the oplog either.
    set_: Document = _result_fields(commit)
    unset: Document = {}

    def put(name: str, value: Any) -> None:
        """Set a field, or remove one that is empty."""
        if value:
            set_[name] = value
        else:
            unset[name] = ""

    if commit.context is not None:
        put("context", dict(commit.context))
    if commit.awaiting is not None and not commit.status.ended:
        put("awaiting", to_builtins(commit.awaiting))
    if commit.outbox:
        put("outbox_due", commit.outbox_due)
    if commit.progress:
        set_["recoveries"] = 0
    if commit.spilled:
        set_["spilled"] = True
    if commit.archive:
        set_["journal_base"] = commit.journal_base + len(commit.archive)
    if commit.status is Status.RUNNING:
        if commit.attempts is not None:
            put("attempts", to_builtins(commit.attempts))
        return set_, unset
    set_["status"] = commit.status.value
    put("due_at", commit.due_at if commit.status is Status.WAITING else None)
    unset |= _UNHELD
    if commit.status.ended:
        unset["awaiting"] = ""
    return set_, unset


def _result_fields(commit: Commit) -> Document:
    """Return the fields that a commit sets which say how a run ended."""
    fields: Document = {}
    if (output := commit.output) is not None:
        fields["output"] = to_builtins(output) if isinstance(output, PayloadRef) else output
    if commit.error is not None:
        fields["error"] = to_builtins(commit.error)
    if commit.ended_at is not None:
        fields["ended_at"] = commit.ended_at
    if commit.ended_by is not None:
        fields["ended_by"] = commit.ended_by
    if commit.expire_at is not None:
        fields["expire_at"] = commit.expire_at
    return fields


# -- messages and control -------------------------------------------------------------------------


def post_filter(
    run_id: str, message: Message, *, slot: str | None, archived: Document, room: int
) -> Document:
    """Match a run that can take a message.

    Args:
        archived: The `journal_base`, and the generation, up to which the archive is known not to
            hold the message.
        room: How large the inbox may be at most, in bytes, to have room for the message, unless
            it is one of control.
    """
    return {
        "_id": run_id,
        "status": NOT_ENDED,
        **archived,
        **_takes(message, slot, room),
    }


def parked_filter(parked: Run, message: Message, *, slot: str | None, room: int) -> Document:
    """Match a run that waits as it was parked, and can take a message."""
    return {
        "_id": parked.id,
        "status": Status.WAITING.value,
        "rev": parked.rev,
        "fence": parked.fence,
        **_takes(message, slot, room),
    }


def _takes(message: Message, slot: str | None, room: int) -> Document:
    pending = PENDING.get(message.kind)
    fits: Document = {
        "inbox.id": {"$ne": message.id},
        "journal.message": {"$ne": message.id},
        "past.taken": {"$ne": message.id},
        "$expr": {"$not": [pending]} if pending else {"$lte": [INBOX_BYTES, room]},
    }
    if isinstance(message.payload, PayloadRef):
        fits |= in_time(message.payload)
    if slot is not None:
        fits["awaiting.id"] = slot
    return fits


def in_time(ref: PayloadRef) -> Document:
    """Match as long as a new reference may be stored; see `RunStore`."""
    return {"$nor": [{"$expr": {"$gt": ["$$NOW", ref.made_at + REFER_WITHIN]}}]}


def create_in_time(document: Document, until: datetime) -> Pipeline:
    """Make of a document to be inserted this one, until some time; then fail.

    For an upsert by `_id`, which an insert can't replace: the server must look at its clock.
    """
    is_new = {"$eq": [{"$type": "$code"}, "missing"]}
    # Not a constant, which would fail as soon as it is parsed.
    too_late = {"$toInt": {"$concat": ["too late for ", "$_id"]}}
    made = {"$cond": [{"$gt": ["$$NOW", until]}, too_late, _literal(document)]}
    return [{"$replaceWith": {"$cond": [is_new, made, "$$ROOT"]}}]


INBOX_BYTES: Document = {"$bsonSize": {"inbox": "$inbox"}}

_KINDS: Document = {"$ifNull": ["$inbox.kind", []]}
_IS_CONTROL: Document = {"$in": ["$$this", sorted(kind.value for kind in CONTROL)]}
_ASKED: Document = {"$filter": {"input": _KINDS, "cond": _IS_CONTROL}}
PENDING: Mapping[MessageKind, Document] = {
    MessageKind.CANCEL: {"$in": [MessageKind.CANCEL.value, _KINDS]},
    # A cancel drops the pauses before it, not those after it.
    MessageKind.PAUSE: {"$eq": [{"$last": [_ASKED]}, MessageKind.PAUSE.value]},
}
"""Whether such a message lies in the inbox, and another would say no more."""


def post_update(message: Message, slot: str | None) -> Pipeline:
    """Put a message in the inbox, wake the run, close the slot."""
    woken = [Status.WAITING]
    fields: Document = {
        "inbox": {"$concatArrays": [{"$ifNull": ["$inbox", []]}, [_literal(to_builtins(message))]]},
        "inbox_seq": _add("inbox_seq", 1),
        "updated_at": "$$NOW",
    }
    if message.kind is MessageKind.CANCEL:
        woken.append(Status.PAUSED)
        paused = _is_status(Status.PAUSED)
        fields["status"] = {"$cond": [paused, Status.WAITING.value, "$status"]}
    earlier = {"$min": ["$due_at", "$$NOW"]}
    fields["due_at"] = {"$cond": [_is_status(*woken), earlier, "$due_at"]}
    if isinstance(message.payload, PayloadRef):
        fields["spilled"] = True
    if slot is not None:
        others = {"$ne": ["$$this.id", _literal(slot)]}
        fields["awaiting"] = {"$filter": {"input": "$awaiting", "cond": others}}
    return [{"$set": fields}]


def end_update(error: Failure, *, fence: int) -> Pipeline:
    """End a run as cancelled, with so much added to its fence."""
    rev = _add("rev", 1)
    fields = {
        "status": Status.CANCELLED.value,
        "error": _literal(to_builtins(error)),
        "rev": rev,
        "fence": _add("fence", fence),
        "updated_at": "$$NOW",
        "ended_at": "$$NOW",
        "outbox": added_outbox(rev),
    }
    return [
        {"$set": fields},
        {"$unset": ["due_at", "worker", "claim", "awaiting", "attempts"]},
        {"$set": due_outbox() | {"expire_at": expiry("$$REMOVE")}},
    ]


def rewind_filter(run_id: str, *, rev: int, fence: int) -> Document:
    """Match a run that can be rewound and that nobody changed."""
    can_be = {"$in": [Status.DONE.value, Status.FAILED.value]}
    return {"_id": run_id, "rev": rev, "fence": fence, "status": can_be}


def rewind_update(journal: object, base: int, now: object) -> Document:
    """Queue an ended run again, with the first part of its journal."""
    result = ("output", "error", "ended_at", "ended_by", "expire_at")
    gone = (*result, "awaiting", "attempts", "worker", "claim")
    return {
        "$set": {
            "status": Status.QUEUED.value,
            "journal": journal,
            "journal_base": base,
            "recoveries": 0,
            "due_at": now,
        },
        "$unset": dict.fromkeys(gone, ""),
        "$inc": {"rev": 1, "fence": 1, "epoch": 1},
        "$currentDate": {"updated_at": True},
    }


def unpause_filter(run_id: str) -> Document:
    """Match a run that is paused or will be."""
    return {
        "_id": run_id,
        "status": NOT_ENDED,
        "$or": [{"status": Status.PAUSED.value}, {"inbox.kind": MessageKind.PAUSE.value}],
    }


def unpause_update() -> Pipeline:
    """Queue a paused run; take pauses out of the inbox."""
    inbox = {"$ifNull": ["$inbox", []]}
    others = {"$ne": ["$$this.kind", MessageKind.PAUSE.value]}
    kept = {"$filter": {"input": inbox, "cond": others}}
    taken_back = {"$cond": [{"$lt": [{"$size": kept}, {"$size": inbox}]}, 1, 0]}
    paused = _is_status(Status.PAUSED)
    fields = {
        "inbox": kept,
        "inbox_seq": _add("inbox_seq", taken_back),
        "status": {"$cond": [paused, Status.QUEUED.value, "$status"]},
        "due_at": {"$cond": [paused, "$$NOW", "$due_at"]},
        "error": {"$cond": [paused, "$$REMOVE", "$error"]},
        "updated_at": "$$NOW",
    }
    return [{"$set": fields}]
