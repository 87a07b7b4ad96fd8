"""What other processes do to runs, told by a change stream that is filtered on the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

import msgspec
from pymongo.asynchronous.change_stream import AsyncChangeStream
from pymongo.errors import InvalidOperation, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from streamline.model import Notice, Status
from streamline.store.connection import Connection, Document, is_transient
from streamline.store.indexes import RUNS
from streamline.store.updates import ENDED_VALUES, Pipeline

_NOT_A_REPLICA_SET = 40573
_NO_RIGHT = 13
_PAUSE = 0.1
_logger = logging.getLogger(__name__)


async def watch(connection: Connection, besides: str | None) -> AsyncIterator[Notice]:
    """Yield notices; see `RunStore.watch`."""
    while True:
        try:
            stream = await connection.persist(lambda again: _open(connection, besides))
        except OperationFailure as error:
            if error.code == _NO_RIGHT:
                _logger.warning("No right to watch %s; other processes' changes are polled", RUNS)
            elif error.code != _NOT_A_REPLICA_SET:
                raise
            return
        try:
            yield Notice()
            async for change in stream:
                if (notice := _notice(change)) is not None:
                    yield notice
        except InvalidOperation:
            return  # the client was closed
        except PyMongoError as error:
            # PyMongo has resumed already where it can; what is left is to begin anew. The changes
            # between are lost, which notices may be.
            if not (is_transient(error) or isinstance(error, OperationFailure)):
                raise
            await asyncio.sleep(_PAUSE)
        finally:
            with suppress(PyMongoError):
                await stream.close()


async def _open(connection: Connection, besides: str | None) -> AsyncChangeStream[Document]:
    # Change streams refuse any other read concern, such as one from the user's URI.
    runs = connection.collection(RUNS).with_options(read_concern=ReadConcern("majority"))
    return await runs.watch(_pipeline(besides), max_await_time_ms=1000)


def _notice(change: Document) -> Notice | None:
    try:
        return msgspec.convert({"run_id": change["documentKey"]["_id"], **change}, Notice)
    except msgspec.ValidationError:  # not a run of ours; the claim of it will tell
        return None


def _pipeline(besides: str | None) -> Pipeline:
    """Let only those changes through that may concern workers or waiters, and little of each."""
    changed = "updateDescription.updatedFields"
    removed = "updateDescription.removedFields"
    told = [Status.QUEUED.value, Status.PAUSED.value]
    ends = {f"{changed}.status": {"$in": ENDED_VALUES}}
    updates = [
        {f"{changed}.inbox_seq": {"$exists": True}},
        {f"{changed}.status": {"$in": told}},
        ends if besides is None else {**ends, f"{changed}.ended_by": {"$ne": besides}},
        {f"{changed}.status": Status.WAITING.value, f"{changed}.due_at": {"$exists": True}},
        {f"{changed}.status": {"$exists": False}, removed: "claim"},  # see `updates.EXPIRE_UPDATE`
    ]
    inserts = {"fullDocument.status": {"$ne": Status.RUNNING.value}}
    return [
        {
            "$match": {
                "$or": [
                    {"operationType": {"$in": ["insert", "replace"]}, **inserts},
                    {"operationType": "update", "$or": updates},
                ]
            }
        },
        {"$project": {"documentKey": 1, **dict(_noticed(changed))}},
    ]


def _noticed(changed: str) -> Iterable[tuple[str, Document | str]]:
    yield "code", "$fullDocument.code"
    yield "fence", f"${changed}.fence"
    for name in ("status", "due_at", "inbox_seq"):
        yield name, {"$ifNull": [f"${changed}.{name}", f"$fullDocument.{name}"]}
