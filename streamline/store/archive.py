"""The collection `workflow_journal`: journal entries that were moved out of their runs' documents.

Documents here are written once and never changed, but for their expiry. Two writers of one part of
a journal agree on its content, since only committed entries are archived; so parts may overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import bson
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import BulkWriteError, WriteConcernError
from pymongo.operations import InsertOne

from streamline.errors import DataCorruption
from streamline.model import Entry
from streamline.store.connection import Connection, Document, is_transient_code
from streamline.store.encoding import entries_from, to_builtins

JOURNAL = "workflow_journal"
_CHUNK_BYTES = 12 * 1024 * 1024
_DUPLICATE_KEY = 11000


class Archive:
    """The archived parts of journals."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _parts(self) -> AsyncCollection[Document]:
        return self._connection.collection(JOURNAL)

    def _of(self, run_id: str) -> Document:
        # Expired parts may outlive their run by a minute, and another run may have its id by then.
        return {"run": run_id, "expire_at": {"$not": {"$lte": self._connection.clock.now()}}}

    async def store(self, run_id: str, entries: Sequence[Entry], *, base: int, fence: int) -> None:
        """Make entries durable, the first of them having the index `base`.

        `fence` is the claim under which it is done. It is part of the key so that a worker that
        lost its claim long ago, and whose run was replaced since, disturbs nothing.
        """
        parts = list(_parts_of(run_id, entries, base=base, fence=fence))

        async def write(again: bool) -> None:
            if not parts:
                return
            try:
                # Inserts, not upserts: a late writer with fewer entries must not shorten a part.
                await self._parts.bulk_write([InsertOne(part) for part in parts], ordered=False)
            except BulkWriteError as error:
                codes = {each["code"] for each in error.details["writeErrors"]}
                unclear = bool(error.details["writeConcernErrors"])
                if unclear or any(is_transient_code(code) for code in codes):
                    raise WriteConcernError(str(error)) from error
                if codes - {_DUPLICATE_KEY}:
                    raise

        await self._connection.persist(write)

    async def load(self, run_id: str, until: int) -> list[Entry]:
        """Return the entries with index below `until`.

        Raises:
            DataCorruption: Some are missing, or can't be read.
        """
        if not until:  # most runs: a start must not cost a read
            return []

        async def read(again: bool) -> list[Document]:
            query = self._of(run_id) | {"start": {"$lt": until}}
            return await self._parts.find(query).sort("start", 1).to_list()

        found = await self._connection.persist(read)
        entries: list[Any] = []
        while len(entries) < until:
            index = len(entries)
            fitting = [part for part in found if part["start"] <= index < part["end"]]
            if not fitting:
                raise DataCorruption(
                    f"The archived journal of run {run_id!r} lacks its entry {index} of {until}. "
                    f"Restore its documents in `{JOURNAL}` from a backup.",
                    run_id=run_id,
                )
            # The newest: what an earlier run of this id left behind has lower fences.
            best = max(fitting, key=lambda part: (part["fence"], part["end"]))
            entries.extend(best["entries"][index - best["start"] :])
        return entries_from(entries[:until], run_id=run_id)

    async def has_message(self, run_id: str, message_id: str) -> bool:
        """Whether an archived entry of the run took the message."""

        async def look(again: bool) -> bool:
            query = self._of(run_id) | {"messages": message_id}
            return await self._parts.find_one(query, {"_id": 1}) is not None

        return await self._connection.persist(look)

    async def expire(self, run_id: str, at: datetime) -> None:
        """Let the parts of an ended run be deleted together with it."""

        async def write(again: bool) -> None:
            await self._parts.update_many({"run": run_id}, {"$set": {"expire_at": at}})

        await self._connection.persist(write)

    async def keep(self, run_id: str) -> None:
        """Take back `expire`: the run goes on."""

        async def write(again: bool) -> None:
            await self._parts.update_many({"run": run_id}, {"$unset": {"expire_at": ""}})

        await self._connection.persist(write)

    async def remove(self, run_id: str, *, up_to_fence: int) -> None:
        """Delete the parts that claims up to this fence wrote."""

        async def write(again: bool) -> None:
            await self._parts.delete_many({"run": run_id, "fence": {"$lte": up_to_fence}})

        await self._connection.persist(write)


def _parts_of(
    run_id: str, entries: Sequence[Entry], *, base: int, fence: int
) -> Iterator[Document]:
    encoded: list[Document] = to_builtins(entries)
    start = 0
    size = 0
    for index, entry in enumerate(encoded):
        added = len(bson.encode(entry))
        if index > start and size + added > _CHUNK_BYTES:
            yield _part(run_id, encoded[start:index], start=base + start, fence=fence)
            start, size = index, 0
        size += added
    if encoded[start:]:
        yield _part(run_id, encoded[start:], start=base + start, fence=fence)


def _part(run_id: str, entries: list[Document], *, start: int, fence: int) -> Document:
    end = start + len(entries)
    return {
        "_id": f"{run_id}/{start}-{end}/{fence}",
        "run": run_id,
        "start": start,
        "end": end,
        "fence": fence,
        # Beside the entries, so that an index on it stays small.
        "messages": [entry["message"] for entry in entries if "message" in entry],
        "entries": entries,
    }
