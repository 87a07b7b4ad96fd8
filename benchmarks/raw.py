"""What the driver itself takes on the same server: the floor that ratios refer to."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any, Self

from pymongo import AsyncMongoClient, InsertOne, UpdateOne, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection

from benchmarks import samples
from benchmarks.samples import Sample

_DATABASE = "bench_raw"
_SEQUENCE = 11
_STEPS = 5


class RawDriver:
    """Majority updates that are the engine's own, without an engine: see `samples`.

    They go to a collection with the engine's indexes, by PyMongo's usual calls.

    Args:
        uri: The server.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri)
        # What a write of PyMongo costs by default, and what it costs without being retryable.
        self._bare: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri, retryWrites=False)
        self._sequence: Sample
        self._steps: Sample

    async def start(self) -> Self:
        """Record what the engine writes, and warm up."""
        self._sequence = await samples.record(self._uri, _DATABASE, _SEQUENCE)
        self._steps = await samples.record(self._uri, _DATABASE, _STEPS)
        for _ in range(20):
            await self.sequence()
        await self.bulk(50, 10)
        await self.bulk(50, 10, retryable=False)
        return self

    async def close(self) -> None:
        """Drop what was written and disconnect."""
        await self._client.drop_database(_DATABASE)
        await self._client.close()
        await self._bare.close()

    async def sequence(self) -> float:
        """Return the milliseconds of 11 updates of one document, one by one."""
        runs = self._runs(self._client)
        run_id = uuid.uuid4().hex
        changes = [self._sequence.change(run_id, number) for number in range(_SEQUENCE)]
        await runs.insert_one(self._sequence.insert(run_id))
        began = time.perf_counter()
        for query, update in changes:
            await runs.update_one(query, update)
        return (time.perf_counter() - began) * 1000

    async def round_trip(self) -> float:
        """Return the milliseconds of one update."""
        return await self.sequence() / _SEQUENCE

    async def burst(self, number: int) -> list[float]:
        """Return the milliseconds until each of so many updates is done that begin together."""
        runs = self._runs(self._client)
        ids = [uuid.uuid4().hex for _ in range(number)]
        await runs.bulk_write([InsertOne(self._steps.insert(each)) for each in ids])
        began = time.perf_counter()

        async def one(run_id: str) -> float:
            await runs.update_one(*self._steps.change(run_id, 0))
            return (time.perf_counter() - began) * 1000

        return await asyncio.gather(*map(one, ids))

    async def bulk(self, batch: int, rounds: int, *, retryable: bool = True) -> float:
        """Return updates per second in bulk writes, one after the other.

        Each round is a batch of documents, each updated five times, as by a run of five steps.
        """
        runs = self._runs(self._client if retryable else self._bare)
        seconds = 0.0
        for _ in range(rounds):
            ids = [uuid.uuid4().hex for _ in range(batch)]
            await runs.bulk_write([InsertOne(self._steps.insert(each)) for each in ids])
            writes = [
                [UpdateOne(*self._steps.change(each, number)) for each in ids]
                for number in range(_STEPS)
            ]
            began = time.perf_counter()
            for write in writes:
                result = await runs.bulk_write(write, ordered=False)
                assert result.matched_count == batch, "raw updates must find their documents"
            seconds += time.perf_counter() - began
        return batch * rounds * _STEPS / seconds

    @staticmethod
    def _runs(
        client: AsyncMongoClient[dict[str, Any]],
    ) -> AsyncCollection[dict[str, Any]]:
        durable = WriteConcern("majority", j=True)
        return client.get_database(_DATABASE).get_collection(samples.RUNS, write_concern=durable)
