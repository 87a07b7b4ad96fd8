"""Claiming what is due, in batches, so that several workers don't fight over the same runs."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence

from bson.errors import InvalidBSON
from pymongo.errors import OperationFailure

from streamline.errors import DataCorruption
from streamline.model import Claim, Run
from streamline.store.connection import Connection, Document
from streamline.store.encoding import (
    SET_ASIDE_REMOVES,
    from_document,
    set_aside_fields,
    set_aside_outbox,
)
from streamline.store.indexes import RUNS
from streamline.store.modify import find_and_modify
from streamline.store.updates import claim_update, due_filter

_ROUNDS = 3
_MAX_SPREAD = 8


class Claims:
    """Takes runs for workers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # How many times more candidates than wanted to choose from: 1 while nobody else claims.
        self._spread = 1

    async def claim_due(self, claim: Claim, codes: Sequence[str], limit: int) -> list[Run]:
        """See `RunStore.claim_due`."""
        claimed: list[Run] = []
        for _ in range(_ROUNDS):
            wanted = limit - len(claimed)
            head = await self._due_ids(claim, codes, wanted * self._spread)
            ids = head
            if len(head) > wanted:
                # In order of dueness all the same.
                ids = [head[i] for i in sorted(random.sample(range(len(head)), wanted))]
            if not ids:
                break
            taken = await self._claim(claim, ids)
            claimed += taken
            contested = len(taken) < len(ids)
            self._spread = (
                min(self._spread * 2, _MAX_SPREAD) if contested else max(self._spread // 2, 1)
            )
            if len(claimed) >= limit or not contested:
                break
        return claimed

    async def claim_run(self, claim: Claim, run_id: str) -> Run | None:
        """See `RunStore.claim_run`."""
        runs = self._connection.collection(RUNS)
        due = {"_id": run_id, **due_filter(claim)}

        async def take(again: bool) -> Document | None:
            found = await find_and_modify(runs, due, claim_update(claim))
            if found is None and again:
                found = await runs.find_one({"_id": run_id, "claim": claim.id})
            return found

        try:
            document = await self._connection.persist(take)
        except (OperationFailure, InvalidBSON) as error:
            await self._examine(run_id, error)
            return None
        if document is None or document.get("claim") != claim.id:  # gone, or put off
            return None
        return await self._decode(document)

    async def _due_ids(self, claim: Claim, codes: Sequence[str], limit: int) -> list[object]:
        async def find(again: bool) -> list[object]:
            runs = self._connection.collection(RUNS)
            due = {"code": {"$in": list(codes)}, **due_filter(claim)}
            cursor = runs.find(due, {"_id": 1}).sort("due_at", 1).limit(limit)
            return [document["_id"] async for document in cursor]

        return await self._connection.persist(find)

    async def _claim(self, claim: Claim, ids: Sequence[object]) -> list[Run]:
        """Claim those of the runs that are still due; return them in the order of `ids`."""
        try:
            await self._mark(claim, {"$in": list(ids)})
        except OperationFailure:
            # One of them can't even be updated, and stopped the others.
            await self._each(ids, lambda run_id: self._mark(claim, run_id))
        by_id: dict[str, Document] = {}
        try:
            by_id = await self._marked(claim, {"$in": list(ids)})
        except InvalidBSON:

            async def read(run_id: object) -> None:
                by_id.update(await self._marked(claim, run_id))

            await self._each(ids, read)
        found = (by_id.get(repr(run_id)) for run_id in ids)
        decoded = [await self._decode(document) for document in found if document is not None]
        return [run for run in decoded if run is not None]

    async def _mark(self, claim: Claim, which: object) -> None:
        async def update(again: bool) -> None:
            due = {"_id": which, **due_filter(claim)}
            await self._connection.collection(RUNS).update_many(due, claim_update(claim))

        await self._connection.persist(update)

    async def _marked(self, claim: Claim, which: object) -> dict[str, Document]:
        async def find(again: bool) -> dict[str, Document]:
            cursor = self._connection.collection(RUNS).find({"_id": which, "claim": claim.id})
            # Not every `_id` can be a key: one written by hand may be a document.
            return {repr(document["_id"]): document async for document in cursor}

        return await self._connection.persist(find)

    async def _each(
        self, ids: Sequence[object], operation: Callable[[object], Awaitable[None]]
    ) -> None:
        for run_id in ids:
            try:
                await operation(run_id)
            except (OperationFailure, InvalidBSON) as error:
                await self._examine(run_id, error)

    async def _decode(self, document: Document) -> Run | None:
        try:
            return from_document(document)
        except DataCorruption as error:
            await self._set_aside(document["_id"], error, document)
            return None

    async def _examine(self, run_id: object, error: Exception) -> None:
        """Set a run aside if it is at fault; else it is the server, and the error stands."""

        async def read(again: bool) -> Document | None:
            return await self._connection.collection(RUNS).find_one({"_id": run_id})

        document: Document | None = None
        try:
            document = await self._connection.persist(read)
            if document is not None:
                from_document(document)
        except DataCorruption as corruption:
            await self._set_aside(run_id, corruption, document or {})
        except InvalidBSON as invalid:
            await self._set_aside(run_id, _unreadable(run_id, invalid), await self._kin(run_id))
        else:
            raise error

    async def _kin(self, run_id: object) -> Document:
        """Return what says whom a run that isn't even BSON has to tell, as far as that is."""
        fields = {"parent": 1, "followers": 1, "outbox": 1, "rev": 1}

        async def read(again: bool) -> Document | None:
            return await self._connection.collection(RUNS).find_one({"_id": run_id}, fields)

        try:
            return await self._connection.persist(read) or {}
        except InvalidBSON:
            return {}

    async def _set_aside(self, run_id: object, error: DataCorruption, found: Document) -> None:
        now = self._connection.clock.now()
        fields = set_aside_fields(error, now) | set_aside_outbox(found, now)
        update = {"$set": fields, "$unset": dict.fromkeys(SET_ASIDE_REMOVES, "")}

        async def write(again: bool) -> None:
            await self._connection.collection(RUNS).update_one({"_id": run_id}, update)

        await self._connection.persist(write)


def _unreadable(run_id: object, error: InvalidBSON) -> DataCorruption:
    return DataCorruption(
        f"Run {run_id!r} can't be read: {error}. Repair its document in `{RUNS}`, or remove it.",
        run_id=str(run_id),
    )
