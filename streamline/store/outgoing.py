"""Expressions of update pipelines that fill and empty outboxes, as `transitions` says in Python."""

from __future__ import annotations

from collections.abc import Sequence

from streamline.errors import ErrorCode
from streamline.model import ENDED, Dispatch, DispatchKind, SlotKind
from streamline.outbox import GRACE
from streamline.store.encoding import Document

_EMPTY: list[object] = []


def _list(field: str) -> Document:
    # Not `$ifNull`: what somebody wrote there by hand must not stop the update.
    return {"$cond": [{"$isArray": f"${field}"}, f"${field}", _EMPTY]}


def _dispatches(kind: DispatchKind, to: Document, rev: object) -> Document:
    each = {"kind": {"$literal": kind.value}, "to": "$$to", "rev": rev}
    return {"$map": {"input": to, "as": "to", "in": each}}


def added_outbox(rev: object) -> Document:
    """The outbox of a run that is ended from outside: told are parent, followers and children."""
    parent: Document = {
        "$cond": [{"$eq": [{"$type": "$parent.run"}, "string"]}, ["$parent.run"], _EMPTY]
    }
    told = {"$concatArrays": [parent, _list("followers")]}
    is_child = {"$eq": ["$$this.kind", SlotKind.CHILD.value]}
    slots = {"$filter": {"input": _list("awaiting"), "cond": is_child}}
    children = {"$map": {"input": slots, "in": "$$this.name"}}
    outcomes = _dispatches(DispatchKind.OUTCOME, told, rev)
    abandoned = _dispatches(DispatchKind.ABANDON, children, rev)
    return {"$concatArrays": [_list("outbox"), outcomes, abandoned]}


def left_outbox(sent: Sequence[Dispatch]) -> Document:
    """The outbox without what was delivered, whatever came in since."""
    keys = [{"kind": each.kind.value, "to": each.to, "rev": each.rev} for each in sent]
    key = {"kind": "$$this.kind", "to": "$$this.to", "rev": "$$this.rev"}
    gone = {"$in": [key, {"$literal": keys}]}
    return {"$filter": {"input": _list("outbox"), "cond": {"$not": gone}}}


def due_outbox(at: object = None) -> Document:
    """Fields that keep an outbox with something in it, due at an instant; else remove it."""
    due = {"$add": ["$$NOW", round(GRACE.total_seconds() * 1000)]} if at is None else at
    empty = {"$eq": ["$outbox", _EMPTY]}
    return {
        "outbox": {"$cond": [empty, "$$REMOVE", "$outbox"]},
        "outbox_due": {"$cond": [empty, "$$REMOVE", due]},
    }


def expiry(otherwise: object) -> Document:
    """When an ended run expires; with something in its outbox, or for ever, `otherwise`."""
    kept = {"$multiply": ["$expire_after", 1000]}
    can_expire = {
        "$and": [
            {"$eq": ["$outbox", _EMPTY]},
            {"$in": ["$status", sorted(status.value for status in ENDED)]},
            {"$isNumber": "$expire_after"},
            {"$eq": [{"$type": "$ended_at"}, "date"]},
            {"$ne": ["$error.code", ErrorCode.DATA_CORRUPTION.value]},
        ]
    }
    return {"$cond": [can_expire, {"$add": ["$ended_at", kept]}, otherwise]}
