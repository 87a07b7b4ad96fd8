"""`News`: the events of one run, kept back until the write that makes them true."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from streamline.clock import Clock
from streamline.codec import decode_exception, native_of
from streamline.events import Event, EventBus
from streamline.model import Commit, Entry, EntryKind, Run, Status

_OF_STATUS = {
    Status.DONE: "workflow:completed",
    Status.FAILED: "workflow:failed",
    Status.CANCELLED: "workflow:cancelled",
    Status.PAUSED: "workflow:paused",
    Status.WAITING: "workflow:waiting",
}


_log = logging.getLogger(__name__)


class News:
    """Gathers what a commit will make true, and tells it once it has.

    Args:
        events: Who hears it.
        clock: When it happened.
    """

    def __init__(self, events: EventBus, clock: Clock) -> None:
        self._events = events
        self._clock = clock
        self._gathered: list[Event] = []

    def of_entry(self, entry: Entry, run: Run) -> None:
        """Gather what an entry tells."""
        if not self._events.heard:
            return
        if entry.kind is EntryKind.STEP:
            name = "step:failed" if entry.error is not None else "step:completed"
        elif entry.kind is EntryKind.ATTEMPT:
            name = "step:retry-scheduled"
        else:
            return
        self._gather(name, entry.at, run, entry)

    def of_commit(self, commit: Commit, run: Run) -> None:
        """Gather what a commit's status tells."""
        if not self._events.heard:
            return
        name = _OF_STATUS.get(commit.status)
        data: Any = commit.output if commit.status is Status.DONE else None
        if commit.continuation is not None:
            name, data = "workflow:continued", commit.continuation.generation
        if name is not None:
            error = None if commit.error is None else decode_exception(commit.error, run_id=run.id)
            self._gathered.append(
                Event(
                    name=name,
                    at=self._clock.now(),
                    run_id=run.id,
                    workflow=run.workflow,
                    error=error,
                    data=native_of(data),
                )
            )

    def long_journal(self, entries: int, run: Run) -> None:
        """Warn of a journal that has grown to so many entries."""
        _log.warning(
            "run %r of workflow %r has a journal of %d entries, and is replayed from all of them "
            "when another worker takes it over; let the workflow call continue_as_new() before it "
            "comes to that",
            run.id,
            run.workflow,
            entries,
        )
        self._events.emit(
            Event(
                name="workflow:long-journal",
                at=self._clock.now(),
                run_id=run.id,
                workflow=run.workflow,
                data=entries,
            )
        )

    def engine_error(self, error: Exception, run: Run) -> None:
        """Tell at once of something that went wrong around a run."""
        now = self._clock.now()
        self._events.emit(
            Event(name="engine:error", at=now, run_id=run.id, workflow=run.workflow, error=error)
        )

    def flush(self) -> None:
        """Tell what was gathered."""
        if not self._gathered:
            return
        gathered, self._gathered = self._gathered, []
        for event in gathered:
            self._events.emit(event)

    def clear(self) -> None:
        """Forget what was gathered: it didn't come true."""
        self._gathered.clear()

    def _gather(self, name: str, at: datetime, run: Run, entry: Entry) -> None:
        error = None if entry.error is None else decode_exception(entry.error, run_id=run.id)
        self._gathered.append(
            Event(
                name=name,
                at=at,
                run_id=run.id,
                workflow=run.workflow,
                step=entry.id,
                attempt=entry.attempt,
                error=error,
                data=native_of(entry.value) if entry.kind is EntryKind.STEP else entry.retry_at,
            )
        )
