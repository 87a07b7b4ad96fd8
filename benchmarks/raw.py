"""What the driver itself takes on the same server: the floor that ratios refer to."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from pymongo import AsyncMongoClient, InsertOne, UpdateOne, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection

from benchmarks.measure import median


class RawDriver:
    """Majority updates of documents like those that runs have.

    Args:
        uri: The server.
    """

    def __init__(self, uri: str) -> None:
        self._client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri)
        database = self._client.get_database("bench_raw")
        self._runs: AsyncCollection[dict[str, Any]] = database.get_collection(
            "runs", write_concern=WriteConcern("majority")
        )

    async def close(self) -> None:
        """Drop what was written and disconnect."""
        await self._client.drop_database("bench_raw")
        await self._client.close()

    async def sequence(self, updates: int, rounds: int) -> float:
        """Return the median milliseconds of so many updates of one document, one by one."""
        times = []
        for _ in range(rounds):
            run_id = uuid.uuid4().hex
            await self._runs.insert_one(_document(run_id))
            began = time.perf_counter()
            for rev in range(updates):
                await self._runs.update_one(*_change(run_id, rev))
            times.append((time.perf_counter() - began) * 1000)
        return median(times)

    async def side_by_side(self, in_flight: int, each: int) -> float:
        """Return updates per second of documents that are updated one by one, side by side."""
        ids = [f"side-{in_flight}-{number}" for number in range(in_flight)]
        await self._runs.bulk_write([InsertOne(_document(run_id)) for run_id in ids])

        async def update(run_id: str) -> None:
            for rev in range(each):
                await self._runs.update_one(*_change(run_id, rev))

        began = time.perf_counter()
        await asyncio.gather(*(update(run_id) for run_id in ids))
        return in_flight * each / (time.perf_counter() - began)

    async def bulk(self, batch: int, rounds: int) -> float:
        """Return updates per second in bulk writes of so many documents, one after the other."""
        ids = [f"bulk-{batch}-{number}" for number in range(batch)]
        await self._runs.bulk_write([InsertOne(_document(run_id)) for run_id in ids])
        began = time.perf_counter()
        for rev in range(rounds):
            changes = [UpdateOne(*_change(run_id, rev)) for run_id in ids]
            await self._runs.bulk_write(changes, ordered=False)
        return batch * rounds / (time.perf_counter() - began)


def _document(run_id: str) -> dict[str, Any]:
    return {
        "_id": run_id,
        "workflow": "bench",
        "status": "running",
        "input": {"args": [5], "kwargs": {}},
        "fence": 1,
        "rev": 0,
        "journal": [],
        "worker": "host/boot/4026531836/1234/567890/1",
    }


def _change(run_id: str, rev: int) -> tuple[dict[str, Any], dict[str, Any]]:
    entry = {"id": f"step#{rev}", "kind": "step", "fence": 1, "value": rev, "attempt": 1}
    wanted = {"_id": run_id, "fence": 1, "rev": rev}
    return wanted, {"$push": {"journal": {"$each": [entry]}}, "$inc": {"rev": 1}}
