"""Who follows a run, and what runs have still to tell others."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from streamline.model import Dispatch
from streamline.outbox import readable
from streamline.store.archive import Archive
from streamline.store.base import GONE_AFTER, Outbox
from streamline.store.connection import Connection, Document
from streamline.store.indexes import RUNS
from streamline.store.modify import find_and_modify
from streamline.store.outgoing import due_outbox, expiry, left_outbox
from streamline.store.payloads import Payloads
from streamline.store.updates import HAS_DUE, NOT_ENDED


class Outboxes:
    """Fills lists of followers, and empties outboxes."""

    def __init__(self, connection: Connection, archive: Archive, payloads: Payloads) -> None:
        self._connection = connection
        self._archive = archive
        self._payloads = payloads

    async def follow(self, run_id: str, follower: str) -> None:
        """Add a follower, unless the run has ended or tells it anyway."""
        fits = {
            "_id": run_id,
            "status": NOT_ENDED,
            "followers": {"$ne": follower},
            "parent.run": {"$ne": follower},
        }
        change = {"$push": {"followers": follower}, "$currentDate": {"updated_at": True}}

        async def write(again: bool) -> None:
            await self._connection.collection(RUNS).update_one(fits, change)

        await self._connection.persist(write)

    async def load(self, codes: Sequence[str], limit: int) -> list[Outbox]:
        """See `RunStore.load_outboxes`."""

        async def find(again: bool) -> list[Document]:
            query = {"code": {"$in": list(codes)}, "outbox_due": HAS_DUE}
            cursor = self._connection.collection(RUNS).find(query, {"outbox": 1, "outbox_due": 1})
            return await cursor.sort("outbox_due", 1).limit(limit).to_list()

        return [
            Outbox(
                run_id=found["_id"],
                due_at=found["outbox_due"],
                dispatches=readable(found.get("outbox")),
            )
            for found in await self._connection.persist(find)
        ]

    async def settle(self, run_id: str, sent: Sequence[Dispatch], again_at: datetime) -> None:
        """See `RunStore.settle_outbox`."""
        expire_at = expiry({"$ifNull": ["$expire_at", "$$REMOVE"]})
        change = [
            {"$set": {"outbox": left_outbox(sent)}},
            {"$set": due_outbox(again_at) | {"expire_at": expire_at}},
        ]
        fields = {"journal_base": 1, "generation": 1, "expire_at": 1, "spilled": 1}

        async def write(again: bool) -> Document | None:
            runs = self._connection.collection(RUNS)
            return await find_and_modify(runs, {"_id": run_id}, change, fields)

        settled = await self._connection.persist(write)
        if settled is None or "expire_at" not in settled:
            return
        if settled.get("journal_base") or settled.get("generation", 1) > 1:
            await self._archive.expire(run_id, settled["expire_at"])
        if settled.get("spilled"):
            await self._payloads.look(run_id, settled["expire_at"] + GONE_AFTER)
