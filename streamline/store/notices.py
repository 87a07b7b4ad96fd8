"""What other processes do to runs, told by a change stream that is filtered on the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec
from pymongo.asynchronous.change_stream import AsyncChangeStream
from pymongo.errors import InvalidOperation, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from streamline.model import Notice
from streamline.store.connection import Connection, Document, is_transient
from streamline.store.indexes import RUNS
from streamline.store.updates import notice_pipeline

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
    return await runs.watch(notice_pipeline(besides), max_await_time_ms=1000)


def _notice(change: Document) -> Notice | None:
    try:
        return msgspec.convert({"run_id": change["documentKey"]["_id"], **change}, Notice)
    except msgspec.ValidationError:  # not a run of ours; the claim of it will tell
        return None
