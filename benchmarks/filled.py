"""`FilledCollection`: a database with very many parked runs, in the engine's own form.

One run of each kind is parked by the engine; its document as stored is then inserted again and
again, with ids and due times of their own.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import WriteConcern

from benchmarks.bench import Place
from benchmarks.messages import parked
from benchmarks.workflows import listener, sleeper
from streamline import Streamline
from streamline.ids import new_id

_CHUNK = 5_000
_DAY = 86_400.0


async def fill(place: Place, *, sleeping: int, waiting: int) -> None:
    """Fill a database with runs that sleep for a day to a month, and runs that wait for ever."""
    sleeps, waits = await _templates(place)
    for number, template in ((sleeping, sleeps), (waiting, waits)):
        await _insert(place, template, number)


async def _templates(place: Place) -> tuple[dict[str, Any], dict[str, Any]]:
    async with Streamline(place.address) as engine:
        handles = [
            await engine.start_run(sleeper, _DAY),
            await engine.start_run(listener, 1),
        ]
        for handle in handles:
            await parked(engine, handle)
    runs = place.database["workflow_runs"]
    documents = [await runs.find_one_and_delete({"_id": handle.id}) for handle in handles]
    sleeps, waits = documents
    assert sleeps is not None
    assert waits is not None
    return sleeps, waits


async def _insert(place: Place, template: dict[str, Any], number: int) -> None:
    # Not durable: what is lost in a crash of the server is a benchmark's.
    quick = WriteConcern(w=1, j=False)
    runs = place.database.get_collection("workflow_runs", write_concern=quick)
    for begin in range(0, number, _CHUNK):
        copies = [_copy(template) for _ in range(min(_CHUNK, number - begin))]
        await runs.insert_many(copies, ordered=False)


def _copy(template: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {"_id": new_id()}
    if "due_at" in template:
        ahead = timedelta(seconds=random.uniform(_DAY, 30 * _DAY))
        changes["due_at"] = datetime.now(UTC) + ahead
    return template | changes
