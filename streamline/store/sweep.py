"""`Sweep`: finds payloads kept outside that no run refers to, and deletes them.

When a payload is looked at stands in its `check_at`; the rules are those of `RunStore`.
"""

from __future__ import annotations

from datetime import datetime

from bson.objectid import ObjectId

from streamline.model import Status
from streamline.store.archive import JOURNAL
from streamline.store.base import GONE_AFTER, LOOK_AGAIN_AFTER, ORPHANED_AFTER
from streamline.store.connection import Connection, Document
from streamline.store.indexes import RUNS
from streamline.store.payloads import PAYLOADS, Payloads

BATCH = 100
_PLACES = ("input.args", "past.input.args", "output", "journal.value", "inbox.payload")


class Sweep:
    """Sweeps the payloads of one database."""

    def __init__(self, connection: Connection, payloads: Payloads) -> None:
        self._connection = connection
        self._payloads = payloads

    async def run(self) -> int:
        """See `RunStore.sweep_payloads`."""
        deleted = 0
        while True:
            found = await self._find()
            for head in found:
                look_again = await self._judge(head)
                if look_again is None:
                    await self._payloads.discard(head["_id"])
                    deleted += 1
                else:
                    await self._put_off(head["_id"], look_again)
            if len(found) < BATCH:
                return deleted

    async def _find(self) -> list[Document]:
        async def read(again: bool) -> list[Document]:
            due = {"check_at": {"$lte": self._connection.clock.now()}}
            heads = self._connection.collection(PAYLOADS)
            fields = {"run": 1, "fence": 1}
            return await heads.find(due, fields).sort("check_at", 1).limit(BATCH).to_list()

        return await self._connection.persist(read)

    async def _judge(self, head: Document) -> datetime | None:
        """Return when to look at a payload again; None if it is an orphan."""
        now = self._connection.clock.now()
        # First the run as it is, then the references: none is added once the fence has moved on.
        run = await self._look({"_id": head["run"]}, {"fence": 1, "status": 1, "expire_at": 1})
        pending_until = _pending_until(head, run, now)
        if run is not None and await self._is_referred_to(head):
            expire_at = run.get("expire_at")
            return now + LOOK_AGAIN_AFTER if expire_at is None else max(expire_at, now) + GONE_AFTER
        return pending_until

    async def _is_referred_to(self, head: Document) -> bool:
        payload = head["_id"]
        # The document before the archive: entries move only that way.
        anywhere = {"$or": [{f"{place}.payload": payload} for place in _PLACES]}
        if await self._look({"_id": head["run"], **anywhere}, {"_id": 1}) is not None:
            return True

        async def read(again: bool) -> bool:
            parts = self._connection.collection(JOURNAL)
            query = {"run": head["run"], "entries.value.payload": payload}
            return await parts.find_one(query, {"_id": 1}) is not None

        return await self._connection.persist(read)

    async def _look(self, query: Document, fields: Document) -> Document | None:
        async def read(again: bool) -> Document | None:
            return await self._connection.collection(RUNS).find_one(query, fields)

        return await self._connection.persist(read)

    async def _put_off(self, payload: ObjectId, until: datetime) -> None:
        async def write(again: bool) -> None:
            heads = self._connection.collection(PAYLOADS)
            await heads.update_one({"_id": payload}, {"$set": {"check_at": until}})

        await self._connection.persist(write)


def _pending_until(head: Document, run: Document | None, now: datetime) -> datetime | None:
    """Return until when a reference may be on its way; None if none can come any more."""
    fence = head.get("fence")
    if fence is None:
        orphaned = head["_id"].generation_time + ORPHANED_AFTER
        return orphaned if orphaned > now else None
    held = run is not None and run.get("fence") == fence and run.get("status") == Status.RUNNING
    return now + ORPHANED_AFTER if held else None
