"""The runs of the memory stores: documents as `Run`s and back, and who is told of a change.

Whoever calls holds the lock of the data.
"""

from __future__ import annotations

import bson
from bson.objectid import ObjectId

from streamline.clock import Clock
from streamline.codec import CODEC_OPTIONS, PayloadRef
from streamline.errors import DataCorruption
from streamline.model import CONTROL, Message, Notice, PostResult, Run, Status
from streamline.store.base import GONE_AFTER
from streamline.store.encoding import (
    SET_ASIDE_REMOVES,
    from_document,
    references_of,
    salvage,
    set_aside_fields,
    set_aside_outbox,
    to_builtins,
    to_document,
)
from streamline.store.memory_data import MemoryData
from streamline.store.transitions import is_open, is_pending


class MemoryRuns:
    """Runs by id, as one store sees them.

    Args:
        data: Where their documents are.
        clock: The store's.
        inbox_limit: The size of an inbox, in bytes.
    """

    def __init__(self, data: MemoryData, clock: Clock, *, inbox_limit: int) -> None:
        self._data = data
        self._clock = clock
        self.inbox_limit = inbox_limit

    def load(self, run_id: str) -> Run | None:
        """Return a run.

        Raises:
            DataCorruption: Its document isn't one of a run.
        """
        document = self._data.get(run_id)
        return None if document is None else from_document(document)

    def load_leniently(self, run_id: str) -> Run | None:
        """Return a run; one that can't be read as the failed run that it will be."""
        try:
            return self.load(run_id)
        except DataCorruption as error:
            return salvage(self._data.get(run_id) or {}, error, self._clock.now())

    def all(self) -> list[Run]:
        """Return all runs, oldest first."""
        found = (self.load_leniently(run_id) for run_id in self._data.ids())
        return [run for run in found if run is not None]

    def held(self, run_id: str, fence: int) -> Run | None:
        """Return a run if it is running under a fence."""
        run = self.load(run_id)
        if run is None or run.status is not Status.RUNNING or run.fence != fence:
            return None
        return run

    def put(self, run: Run) -> Run:
        """Store a run and tell the watchers; return it as it would be read."""
        before = self._data.get(run.id)
        self._data.put(to_document(run))
        due_now = run.due_at is not None and run.due_at <= self._clock.now()
        got_message = before is not None and before.get("inbox_seq") != run.inbox_seq
        if due_now or got_message or run.status is not Status.RUNNING:
            raised = before is not None and before.get("fence") != run.fence
            self._tell(run, run.fence if raised else None)
        stored = self.load(run.id)
        assert stored is not None
        return stored

    def end(self, run: Run) -> None:
        """Store a run that has ended; its payloads are to be looked at once it is gone."""
        self.put(run)
        if run.expire_at is not None:
            self._data.payloads.look(run.id, run.expire_at + GONE_AFTER)

    def set_aside(self, run_id: str, error: DataCorruption) -> None:
        """Fail a document that can't be read as a run."""
        document = self._data.get(run_id) or {}
        kept = {key: value for key, value in document.items() if key not in SET_ASIDE_REMOVES}
        now = self._clock.now()
        self._data.put(kept | set_aside_fields(error, now) | set_aside_outbox(document, now))
        for watcher in self._data.watchers:
            watcher.put(Notice(run_id=run_id, status=Status.FAILED))

    def sweep_payload(self, key: ObjectId) -> bool:
        """Delete a payload that its run doesn't refer to any more; returns whether it did."""
        payloads = self._data.payloads
        run = self.load_leniently(payloads.kept[key].run_id)
        referred = run is not None and key in self._referred(run)
        return payloads.judge(key, run, referred, self._clock.now())

    def refusal(self, run: Run, message: Message, slot: str | None) -> PostResult | None:
        """Return why a run can't take a message; None if it can."""
        archived = self._data.archives.get(run.id, {}).values()
        known = {entry.message for entry in (*run.journal, *archived)}
        known.update(() if run.past is None else run.past.taken)
        if message.id in known or any(message.id == other.id for other in run.inbox):
            return PostResult.DUPLICATE
        if run.status.ended:
            return PostResult.ENDED
        if slot is not None and not is_open(run.awaiting, slot):
            return PostResult.NO_SLOT
        if message.kind in CONTROL:
            return PostResult.PENDING if is_pending(run.inbox, message.kind) else None
        inbox = to_builtins([*run.inbox, message])
        if len(bson.encode({"inbox": inbox}, codec_options=CODEC_OPTIONS)) > self.inbox_limit:
            return PostResult.FULL
        return None

    def _referred(self, run: Run) -> set[ObjectId]:
        archived = self._data.archives.get(run.id, {}).values()
        values = [*references_of(run), *(entry.value for entry in archived)]
        return {value.payload for value in values if isinstance(value, PayloadRef)}

    def _tell(self, run: Run, fence: int | None) -> None:
        notice = Notice(
            run_id=run.id,
            code=run.code,
            status=run.status,
            due_at=run.due_at,
            inbox_seq=run.inbox_seq,
            fence=fence,
        )
        for watcher in self._data.watchers:
            if run.ended_by is None or run.ended_by != watcher.besides:
                watcher.put(notice)
