"""Histories: runs as JSON, to be replayed against today's code.

A history is the document of a run with its whole journal, in MongoDB's extended JSON; of a run that
was continued as new, that of its present generation. A replay does
what a worker does that takes the run over, but writes nothing and runs no step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from bson import json_util

from streamline.codec import PAYLOAD_LIMIT, PayloadRef, decode_exception, encode
from streamline.definitions import Workflow
from streamline.errors import NonDeterminism, ValidationError
from streamline.model import Entry, Run, Slot, Status
from streamline.replay import (
    Cancelled,
    ChildCommand,
    Continued,
    Execution,
    Outcome,
    Returned,
    SlotCommand,
)
from streamline.store.encoding import from_document, references_of, to_document

_LIMIT = PAYLOAD_LIMIT
_WRITE = json_util.RELAXED_JSON_OPTIONS
_READ = json_util.JSONOptions(tz_aware=True)


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """Where a replay ends."""

    ending: str | None
    """`done`, `failed`, `cancelled` or `continued`; None if the body goes on."""
    value: Any = None
    """The encoded result, the text of the error, or `[args, kwargs]` to continue with."""
    open: tuple[str, ...] = ()
    """The ids of what the body waits for: steps, timers, messages and children."""
    awaiting: tuple[Slot, ...] = ()
    """The open slots for messages and children."""
    context: dict[str, Any] = {}
    """The run's own state."""


def export_history(run: Run, archived: Sequence[Entry] = ()) -> str:
    """Return a run as a history.

    Args:
        run: The run as its store returns it; one that has large payloads, as `with_payloads` does.
        archived: The entries that were moved out of its document.

    Raises:
        ValidationError: Its large payloads are not in it.
    """
    _check_whole(run, archived)
    whole = msgspec.structs.replace(run, journal=[*archived, *run.journal], journal_base=0)
    return json_util.dumps(
        to_document(whole), json_options=json_util.RELAXED_JSON_OPTIONS, indent=1
    )


def import_history(history: str | bytes) -> Run:
    """Return the run of a history, its whole journal included.

    Raises:
        DataCorruption: It isn't one of a run.
    """
    return from_document(json_util.loads(history, json_options=_READ))


def replay(flow: Workflow[..., Any], history: str | bytes | Run) -> Replayed:
    """Replay a recorded run against the code of today.

    Args:
        flow: The workflow as it is now.
        history: What `export_history` returned, or the run itself.

    Raises:
        ValidationError: Large payloads of the run are not in it; see `export_history`.
        NonDeterminism: The code asks for something else than is recorded, or the run ended and the
            code now ends otherwise.
    """
    run = history if isinstance(history, Run) else import_history(history)
    _check_whole(run)
    execution = Execution(run, flow, limit=_LIMIT, recorded=run.journal)
    try:
        execution.start(replaying=True)
        execution.replay(run.journal)
        replayed = _replayed(execution, flow)
    finally:
        execution.evict()
    now, then = (replayed.ending, replayed.value), _recorded_ending(run)
    if run.status.ended and now != then:
        raise NonDeterminism(
            f"Run {run.id!r} ended as {then}; replayed with the code of today it ends as {now}",
            run_id=run.id,
        )
    return replayed


def _replayed(execution: Execution, flow: Workflow[..., Any]) -> Replayed:
    ending, value = _ending(execution.outcome, flow)
    commands = execution.open.values()
    return Replayed(
        ending=ending,
        value=value,
        open=tuple(execution.open),
        awaiting=tuple(c.slot for c in commands if isinstance(c, (SlotCommand, ChildCommand))),
        context=dict(execution.context),
    )


def _ending(outcome: Outcome | None, flow: Workflow[..., Any]) -> tuple[str | None, Any]:
    if outcome is None:
        return None, None
    if isinstance(outcome, Cancelled):
        return "cancelled", None
    if isinstance(outcome, Continued):
        return "continued", [outcome.given.args, outcome.given.kwargs]
    if isinstance(outcome, Returned):
        return "done", encode(outcome.value, what=f"the result of {flow.name!r}", limit=_LIMIT)
    return "failed", str(outcome.error)


def _recorded_ending(run: Run) -> tuple[str, Any]:
    if run.status is Status.DONE:
        return "done", run.output
    if run.status is Status.CANCELLED or run.error is None:
        return run.status.value, None
    return "failed", str(decode_exception(run.error, run_id=run.id))


def _check_whole(run: Run, archived: Sequence[Entry] = ()) -> None:
    if references_of(run) or any(type(entry.value) is PayloadRef for entry in archived):
        raise ValidationError(
            f"Run {run.id!r} has large payloads that are kept outside of it. Put them in: "
            "`await with_payloads(engine.store, run, archived)`",
            run_id=run.id,
        )
