"""Runs and what hangs off them, to BSON documents and back.

Owns the shape of a document: field names, which fields are always there. Knows no database.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from bson.objectid import ObjectId

from streamline.codec import Failure, PayloadRef, lift
from streamline.errors import DataCorruption, ErrorCode
from streamline.model import Dispatch, DispatchKind, Entry, Input, Parent, Run, Status
from streamline.outbox import GRACE, readable, without

Document = dict[str, Any]

# What filters and `$inc` refer to must be there, though it is the default.
_ALWAYS: Document = {"rev": 0, "fence": 0, "inbox_seq": 0, "journal_base": 0}
_ENTRIES = list[Entry]


def to_builtins(value: object) -> Any:
    """Make BSON-native data of a struct or a collection of them; defaults are left out."""
    # ObjectIds are in references alone.
    return msgspec.to_builtins(value, builtin_types=(datetime, bytes, ObjectId))


def to_document(run: Run) -> Document:
    """Make the document of a run."""
    document: Document = to_builtins(run)
    return _ALWAYS | document


def from_document(document: Mapping[str, Any]) -> Run:
    """Read a run.

    Raises:
        DataCorruption: The document isn't one of a run.
    """
    try:
        if missing := _ALWAYS.keys() - document.keys():
            raise msgspec.ValidationError(f"it lacks {', '.join(sorted(missing))}")
        run = msgspec.convert(document, Run)
        return _checked(run)
    except (msgspec.ValidationError, TypeError) as error:
        run_id = str(document.get("_id"))
        raise DataCorruption(
            f"Run {run_id!r} can't be read: {error}. Repair its document in `workflow_runs`, or "
            "remove it.",
            run_id=run_id,
        ) from error


def _checked(run: Run) -> Run:
    """Return a run with its references as such, if payloads are all that it holds beside them.

    Raises:
        TypeError: Where any value fits, or a subclass of str, there is what no payload holds.
    """
    try:
        msgspec.to_builtins(run, builtin_types=(datetime, bytes))
    except TypeError:
        run = run.map_payloads(lambda place, value: lift(value))
        plain = run.map_payloads(lambda place, value: None if _is_reference(value) else value)
        msgspec.to_builtins(plain, builtin_types=(datetime, bytes))
    return run


def _is_reference(value: Any) -> bool:
    return type(value) is PayloadRef


def references_of(run: Run) -> dict[PayloadRef, str]:
    """Return what a run refers to, with the place of each; archived entries not included."""
    found: dict[PayloadRef, str] = {}

    def note(place: str, value: Any) -> Any:
        if _is_reference(value):
            found[value] = place
        return value

    run.map_payloads(note)
    return found


def entries_from(documents: Sequence[Mapping[str, Any]], *, run_id: str) -> list[Entry]:
    """Read journal entries.

    Raises:
        DataCorruption: One of them isn't an entry.
    """
    try:
        entries = msgspec.convert(documents, _ENTRIES)
    except msgspec.ValidationError as error:
        raise DataCorruption(
            f"The archived journal of run {run_id!r} can't be read: {error}", run_id=run_id
        ) from error
    return [entry.with_value(lift(entry.value)) for entry in entries]


def corruption(error: DataCorruption) -> Failure:
    """Make the error that a run is marked with when it can't be read."""
    return Failure(
        code=ErrorCode.DATA_CORRUPTION,
        type="streamline.errors:DataCorruption",
        message=str(error),
    )


def set_aside_fields(error: DataCorruption, now: datetime) -> Document:
    """Return the fields to set on a document that can't be read as a run."""
    return {
        "status": Status.FAILED.value,
        "error": to_builtins(corruption(error)),
        "ended_at": now,
        "updated_at": now,
    }


def set_aside_outbox(document: Mapping[str, Any], now: datetime) -> Document:
    """Return the outbox fields of a document that is set aside, as far as it can be read."""
    told: list[str] = []
    with contextlib.suppress(msgspec.ValidationError):
        told.append(msgspec.convert(document.get("parent"), Parent).run)
    with contextlib.suppress(msgspec.ValidationError):
        told += msgspec.convert(document.get("followers"), list[str])
    rev = document["rev"] if isinstance(document.get("rev"), int) else 0
    new = [Dispatch(kind=DispatchKind.OUTCOME, to=to, rev=rev) for to in told]
    outbox = to_builtins([*readable(document.get("outbox")), *new])
    return {"outbox": outbox, "outbox_due": now + GRACE} if outbox else {}


def settled_document(
    document: Mapping[str, Any], sent: Sequence[Dispatch], again_at: datetime
) -> Document:
    """Return a document that can't be read as a run, with less in its outbox."""
    left = to_builtins(without(readable(document.get("outbox")), sent))
    kept = {key: value for key, value in document.items() if not key.startswith("outbox")}
    return kept | {"outbox": left, "outbox_due": again_at} if left else kept


SET_ASIDE_REMOVES = ("due_at", "worker", "claim", "attempts", "awaiting")
"""The fields to remove from a document that can't be read as a run."""


def salvage(document: Mapping[str, Any], error: DataCorruption, now: datetime) -> Run:
    """Make a failed run of what can't be read, so that those who wait for it learn of it."""
    created, epoch = document.get("created_at"), document.get("epoch", 0)
    return Run(
        id=str(document.get("_id")),
        workflow=str(document.get("workflow")),
        version=str(document.get("version")),
        code=str(document.get("code")),
        status=Status.FAILED,
        input=Input(),
        python="",
        created_at=created if isinstance(created, datetime) else now,
        # Its end must not be taken for that of an earlier run.
        epoch=epoch if type(epoch) is int else sys.maxsize,
        updated_at=now,
        ended_at=now,
        error=corruption(error),
    )
