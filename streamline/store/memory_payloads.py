"""The payloads that the memory stores keep outside of their runs' documents, and their sweep."""

from __future__ import annotations

from datetime import datetime

import msgspec
from bson.objectid import ObjectId

from streamline.codec import PayloadRef
from streamline.errors import DataCorruption
from streamline.model import Run, Status
from streamline.store.base import GONE_AFTER, LOOK_AGAIN_AFTER, ORPHANED_AFTER


class KeptPayload(msgspec.Struct):
    """One payload, and when to look whether its run refers to it."""

    run_id: str
    data: bytes
    fence: int | None
    check_at: datetime


class MemoryPayloads:
    """Payloads by the ids of their references. Whoever calls holds the lock of the data."""

    def __init__(self) -> None:
        self.kept: dict[ObjectId, KeptPayload] = {}

    def put(self, run_id: str, ref: PayloadRef, data: bytes, *, fence: int | None) -> None:
        """See `RunStore.put_payload`."""
        check_at = ref.made_at + ORPHANED_AFTER
        self.kept.setdefault(ref.payload, KeptPayload(run_id, data, fence, check_at))

    def load(self, run_id: str, ref: PayloadRef, place: str) -> bytes:
        """See `RunStore.load_payload`."""
        kept = self.kept.get(ref.payload)
        if kept is None or kept.run_id != run_id:
            raise DataCorruption(
                f"The payload {place!r} of run {run_id!r}, {ref.size:,} bytes, is missing",
                run_id=run_id,
            )
        return kept.data

    def look(self, run_id: str, at: datetime) -> None:
        """Let a sweep look at a run's payloads then, at the latest."""
        for kept in self.kept.values():
            if kept.run_id == run_id:
                kept.check_at = min(kept.check_at, at)

    def due(self, now: datetime) -> list[ObjectId]:
        """Return those that are to be looked at."""
        return [key for key, kept in self.kept.items() if kept.check_at <= now]

    def judge(self, payload: ObjectId, run: Run | None, referred: bool, now: datetime) -> bool:
        """Delete a payload if it is an orphan; returns whether it was."""
        kept = self.kept[payload]
        if run is not None and referred:
            again, expire_at = now + LOOK_AGAIN_AFTER, run.expire_at
            kept.check_at = again if expire_at is None else max(expire_at, now) + GONE_AFTER
            return False
        if kept.fence is None:
            orphaned = payload.generation_time + ORPHANED_AFTER
            if orphaned > now:
                kept.check_at = orphaned
                return False
        elif run is not None and (run.fence, run.status) == (kept.fence, Status.RUNNING):
            kept.check_at = now + ORPHANED_AFTER
            return False
        del self.kept[payload]
        return True
