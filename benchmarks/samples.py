"""`Sample`: the statements by which the engine really writes a run, for the raw driver to repeat.

They are recorded from the wire, so that the raw driver's documents and updates are the engine's
own, whatever these look like: neither leaner nor fatter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bson
import msgspec
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from benchmarks.workflows import steps
from streamline import Streamline

Document = dict[str, Any]
RUNS = "workflow_runs"
_AWARE: CodecOptions[Document] = CodecOptions(tz_aware=True)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What was written for one run: the document as inserted, and its updates in order."""

    document: Document
    updates: list[tuple[Document, Document]]

    def insert(self, run_id: str) -> Document:
        """Return the same document of another run."""
        return self.document | {"_id": run_id}

    def change(self, run_id: str, number: int) -> tuple[Document, Document]:
        """Return the filter and the update of the same write to another run."""
        query, update = self.updates[number]
        return query | {"_id": run_id}, update


class _Recorder(CommandListener):
    """Keeps what is written to the collection of runs."""

    def __init__(self) -> None:
        self.inserted: list[Document] = []
        self.updated: list[Document] = []

    def started(self, event: CommandStartedEvent) -> None:
        command = event.command
        if command.get("insert") == RUNS:
            self.inserted += map(_plain, command["documents"])
        elif command.get("update") == RUNS:
            self.updated += map(_plain, command["updates"])

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass

    def sample(self, run_id: str) -> Sample:
        """Return what was written for a run."""
        inserted = next(document for document in self.inserted if document["_id"] == run_id)
        return Sample(document=inserted, updates=list(self._updates(run_id)))

    def _updates(self, run_id: str) -> Iterator[tuple[Document, Document]]:
        for statement in self.updated:
            if statement["q"].get("_id") == run_id:
                yield statement["q"], statement["u"]


def _plain(document: Any) -> Document:
    if isinstance(document, RawBSONDocument):
        return bson.decode(document.raw, _AWARE)
    return dict(document)


async def record(uri: str, database: str, length: int) -> Sample:
    """Record what is written for a run of so many steps.

    The engine's collection stays, with its indexes, for the raw driver to write to.

    Raises:
        RuntimeError: It isn't one update a step, so raw updates would not be what they are for.
    """
    recorder = _Recorder()
    client: AsyncMongoClient[Document] = AsyncMongoClient(uri, event_listeners=[recorder])
    try:
        async with Streamline(client.get_database(database)) as engine:
            handle = await engine.start_run(steps, length)
            await handle.result()
    finally:
        await client.close()
    sample = recorder.sample(handle.id)
    if len(sample.updates) != length:
        raise RuntimeError(
            f"the engine sent {len(sample.updates)} updates for a run of {length} steps; see what "
            "it writes by now, and what raw updates should be like"
        )
    return sample
