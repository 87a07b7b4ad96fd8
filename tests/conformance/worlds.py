"""A world to test a store in: its data, as many stores on it as wanted, and a hand on the time."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
from bson.objectid import ObjectId
from pymongo import AsyncMongoClient

from streamline.codec import CODEC_OPTIONS, AesGcm
from streamline.store.base import RunStore
from streamline.store.memory import MemoryStore
from streamline.store.memory_data import MemoryData
from streamline.store.mongo import MongoStore
from streamline.store.sealed import SealedStore
from streamline.testing import SkippedClock

Document = dict[str, Any]


class World(ABC):
    """Where the stores under test live."""

    has_notices = True

    @abstractmethod
    async def store(self, *, inbox_limit: int = 4 * 1024 * 1024) -> RunStore:
        """Open another store on the same data, as another process would."""

    @abstractmethod
    async def advance(self, seconds: float) -> None:
        """Let time pass for all that is due at a time."""

    @abstractmethod
    async def document(self, run_id: str) -> Document:
        """Return what is stored of a run."""

    @abstractmethod
    async def damage(self, run_id: str, fields: Document) -> None:
        """Overwrite fields of a run's document."""

    @abstractmethod
    async def lose_archive(self, run_id: str) -> None:
        """Delete what was archived of a run."""

    @abstractmethod
    async def payloads(self) -> dict[ObjectId, datetime]:
        """Return which payloads are kept outside of documents, and when a sweep looks at them."""

    @abstractmethod
    async def expire(self, run_id: str) -> None:
        """Delete a run's document, as MongoDB does when it expires."""

    @abstractmethod
    async def lose_payload(self, payload: ObjectId) -> None:
        """Delete a payload that is kept outside."""

    @abstractmethod
    async def hurry_sweep(self) -> None:
        """Let the next sweep look at every payload."""

    @abstractmethod
    async def close(self) -> None: ...


class MemoryWorld(World):
    def __init__(self) -> None:
        self._clock = SkippedClock()
        self._data = MemoryData()

    async def store(self, *, inbox_limit: int = 4 * 1024 * 1024) -> RunStore:
        store = MemoryStore(self._clock, self._data, inbox_limit=inbox_limit)
        await store.open()
        return store

    async def advance(self, seconds: float) -> None:
        self._clock.move_to(self._clock.now() + timedelta(seconds=seconds))

    async def document(self, run_id: str) -> Document:
        document = self._data.get(run_id)
        assert document is not None
        return document

    async def damage(self, run_id: str, fields: Document) -> None:
        self._data.put(await self.document(run_id) | fields)

    async def lose_archive(self, run_id: str) -> None:
        del self._data.archives[run_id]

    async def payloads(self) -> dict[ObjectId, datetime]:
        return {key: kept.check_at for key, kept in self._data.payloads.kept.items()}

    async def expire(self, run_id: str) -> None:
        del self._data._documents[run_id]

    async def lose_payload(self, payload: ObjectId) -> None:
        del self._data.payloads.kept[payload]

    async def hurry_sweep(self) -> None:
        for kept in self._data.payloads.kept.values():
            kept.check_at = self._clock.now()

    async def close(self) -> None:
        pass


class SealedWorld(MemoryWorld):
    """Memory underneath, and every payload encrypted on the way."""

    def __init__(self) -> None:
        super().__init__()
        self._codec = AesGcm({"k": b"k" * 32}, current="k", seal_context=True)

    async def store(self, *, inbox_limit: int = 4 * 1024 * 1024) -> RunStore:
        return SealedStore(await super().store(inbox_limit=inbox_limit), self._codec)


class MongoWorld(World):
    def __init__(self, uri: str, *, replica_set: bool) -> None:
        self.has_notices = replica_set
        self.name = f"test_{bson.ObjectId()}"
        self.client: AsyncMongoClient[Document] = AsyncMongoClient(uri)
        self.database = self.client.get_database(self.name, codec_options=CODEC_OPTIONS)
        self._stores: list[MongoStore] = []

    async def store(self, *, inbox_limit: int = 4 * 1024 * 1024) -> MongoStore:
        store = MongoStore(self.database, inbox_limit=inbox_limit)
        await store.open()
        self._stores.append(store)
        return store

    async def advance(self, seconds: float) -> None:
        # The server's clock can't be moved; what is due is brought nearer instead.
        earlier = {"$subtract": ["$due_at", round(seconds * 1000)]}
        await self.database.workflow_runs.update_many(
            {"due_at": {"$type": "date"}}, [{"$set": {"due_at": earlier}}]
        )

    async def document(self, run_id: str) -> Document:
        document = await self.database.workflow_runs.find_one({"_id": run_id})
        assert document is not None
        return document

    async def damage(self, run_id: str, fields: Document) -> None:
        await self.database.workflow_runs.update_one({"_id": run_id}, {"$set": fields})

    async def lose_archive(self, run_id: str) -> None:
        await self.database.workflow_journal.delete_many({"run": run_id})

    async def payloads(self) -> dict[ObjectId, datetime]:
        heads = self.database.workflow_payloads.find({}, {"check_at": 1})
        return {head["_id"]: head["check_at"] async for head in heads}

    async def expire(self, run_id: str) -> None:
        await self.database.workflow_runs.delete_one({"_id": run_id})

    async def lose_payload(self, payload: ObjectId) -> None:
        await self.database.workflow_payloads.delete_one({"_id": payload})

    async def hurry_sweep(self) -> None:
        long_ago = {"$set": {"check_at": datetime(2000, 1, 1, tzinfo=UTC)}}
        await self.database.workflow_payloads.update_many({}, long_ago)

    async def close(self) -> None:
        for store in self._stores:
            with contextlib.suppress(asyncio.CancelledError):
                await store.close()
        await self.client.drop_database(self.name)
        await self.client.close()
