"""The collection `workflow_payloads`: payloads too large for their runs' documents.

One document for each, with the payload as native BSON where it fits. Else its bytes lie beside it
in GridFS's form, `workflow_payloads.files` and `.chunks`, which any GridFS tool reads. They are
written chunk by chunk and not by PyMongo's bucket: each chunk is tried again by itself, so no
timeout bounds the whole.

Knows of runs what `Sweep` needs to tell an orphan.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from bson.binary import Binary
from bson.codec_options import CodecOptions
from bson.int64 import Int64
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo.asynchronous.collection import AsyncCollection

from streamline.codec import PayloadRef
from streamline.errors import DataCorruption
from streamline.store.base import ORPHANED_AFTER
from streamline.store.connection import Connection, Document

PAYLOADS = "workflow_payloads"
FILES = f"{PAYLOADS}.files"
CHUNKS = f"{PAYLOADS}.chunks"
MAX_DOCUMENT = 12 * 1024 * 1024
CHUNK = 8 * 1024 * 1024

_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)


class Payloads:
    """The payloads kept outside of runs' documents."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _heads(self) -> AsyncCollection[Document]:
        return self._connection.collection(PAYLOADS)

    @property
    def _files(self) -> AsyncCollection[Document]:
        return self._connection.collection(FILES)

    @property
    def _chunks(self) -> AsyncCollection[Document]:
        return self._connection.collection(CHUNKS)

    # -- writing ----------------------------------------------------------------------------------

    async def put(self, run_id: str, ref: PayloadRef, data: bytes, *, fence: int | None) -> None:
        """See `RunStore.put_payload`."""
        head: Document = {
            "_id": ref.payload,
            "run": run_id,
            "size": ref.size,
            "check_at": ref.made_at + ORPHANED_AFTER,
        }
        if fence is not None:
            head["fence"] = fence
        if len(data) <= MAX_DOCUMENT:
            await self._insert(self._heads, head | {"content": RawBSONDocument(data)})
            return
        count = -(-len(data) // CHUNK)
        # First, so that what a crash leaves behind of it is found.
        await self._insert(self._heads, head | {"chunks": count})
        for number in range(count):
            part = data[number * CHUNK : (number + 1) * CHUNK]
            chunk = {"files_id": ref.payload, "n": number, "data": Binary(part)}
            await self._insert(self._chunks, {"_id": _key(ref.payload, number), **chunk})
        await self._insert(
            self._files,
            {
                "_id": ref.payload,
                "length": Int64(len(data)),
                "chunkSize": CHUNK,
                "uploadDate": ref.made_at,
                "filename": run_id,
            },
        )
        # Again: if this took so long that a sweep took it for an orphan, another must find it.
        await self._insert(self._heads, head | {"chunks": count})

    async def _insert(self, collection: AsyncCollection[Document], document: Document) -> None:
        fields = {name: value for name, value in document.items() if name != "_id"}

        async def insert(again: bool) -> None:
            # Not an insert: tried again it would fail, and not wait until the first is durable.
            await collection.update_one(
                {"_id": document["_id"]}, {"$setOnInsert": fields}, upsert=True
            )

        await self._connection.persist(insert)

    # -- reading ----------------------------------------------------------------------------------

    async def load(self, run_id: str, ref: PayloadRef, place: str) -> bytes:
        """See `RunStore.load_payload`."""

        async def read(again: bool) -> RawBSONDocument | None:
            heads = self._heads.with_options(codec_options=_RAW)
            return await heads.find_one({"_id": ref.payload, "run": run_id})

        head = await self._connection.persist(read)
        if head is None:
            raise missing(run_id, ref, place)
        if (content := head.get("content")) is not None:
            raw: bytes = content.raw
            return raw
        parts = []
        for number in range(head["chunks"]):
            chunk = await self._find_chunk(ref.payload, number)
            if chunk is None:
                raise missing(run_id, ref, place)
            parts.append(chunk["data"])
        return b"".join(parts)

    async def _find_chunk(self, payload: ObjectId, number: int) -> Document | None:
        async def read(again: bool) -> Document | None:
            return await self._chunks.find_one({"_id": _key(payload, number)})

        return await self._connection.persist(read)

    # -- going ------------------------------------------------------------------------------------

    async def discard(self, payload: ObjectId) -> None:
        """Delete a payload."""

        def deletion(
            collection: AsyncCollection[Document], query: Document
        ) -> Callable[[bool], Awaitable[Any]]:
            return lambda again: collection.delete_many(query)

        # The head last: as long as it is there, what is left is found.
        await self._connection.persist(deletion(self._chunks, {"files_id": payload}))
        await self._connection.persist(deletion(self._files, {"_id": payload}))
        await self._connection.persist(deletion(self._heads, {"_id": payload}))

    async def look(self, run_id: str, at: datetime) -> None:
        """Let a sweep look at a run's payloads then, at the latest."""

        async def write(again: bool) -> None:
            await self._heads.update_many({"run": run_id}, {"$min": {"check_at": at}})

        await self._connection.persist(write)


def _key(payload: ObjectId, number: int) -> str:
    return f"{payload}/{number}"


def missing(run_id: str, ref: PayloadRef, place: str) -> DataCorruption:
    """Return the error of a reference to nothing."""
    return DataCorruption(
        f"The payload {place!r} of run {run_id!r}, {ref.size:,} bytes, is missing: {PAYLOADS!r} "
        f"has no whole document {str(ref.payload)!r} of this run. Restore it from a backup, then "
        "`retry` the run; or `rewind` it to before the step.",
        run_id=run_id,
    )
