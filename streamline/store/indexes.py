"""The indexes that every query of the store relies on. They belong to the store, not to Beanie."""

from __future__ import annotations

import json
import logging
from typing import Any

from pymongo.errors import OperationFailure
from pymongo.operations import IndexModel

from streamline.store.archive import JOURNAL
from streamline.store.connection import Connection
from streamline.store.payloads import CHUNKS, PAYLOADS
from streamline.store.updates import HAS_DUE, HAS_WORKER

RUNS = "workflow_runs"
_UNAUTHORIZED = 13
_logger = logging.getLogger(__name__)

_EXPIRY: dict[str, Any] = {
    "name": "expire_at",
    "expireAfterSeconds": 0,
    "partialFilterExpression": {"expire_at": {"$type": "date"}},
}

INDEXES: dict[str, list[IndexModel]] = {
    RUNS: [
        IndexModel(
            {"code": 1, "due_at": 1},
            name="due",
            partialFilterExpression={"due_at": HAS_DUE},
        ),
        IndexModel(
            {"worker": 1},
            name="holder",
            partialFilterExpression={"worker": HAS_WORKER},
        ),
        IndexModel(
            {"code": 1, "outbox_due": 1},
            name="outbox",
            partialFilterExpression={"outbox_due": HAS_DUE},
        ),
        IndexModel({"expire_at": 1}, **_EXPIRY),
    ],
    JOURNAL: [
        IndexModel({"run": 1, "start": 1}, name="part"),
        IndexModel({"run": 1, "messages": 1}, name="message"),
        IndexModel({"expire_at": 1}, **_EXPIRY),
    ],
    PAYLOADS: [
        IndexModel({"run": 1}, name="run"),
        IndexModel({"check_at": 1}, name="check"),
    ],
    # The index that GridFS asks for, and its name there.
    CHUNKS: [IndexModel({"files_id": 1, "n": 1}, unique=True)],
}


async def ensure_indexes(connection: Connection) -> None:
    """Create what is missing; without the right to, say what an administrator must run."""
    for name, models in INDEXES.items():

        async def create(again: bool, name: str = name, models: list[IndexModel] = models) -> None:
            await connection.collection(name).create_indexes(models)

        try:
            await connection.persist(create)
        except OperationFailure as error:
            if error.code != _UNAUTHORIZED:
                raise
            _logger.warning(
                "No right to create the indexes of %s; without them every query scans the "
                "collection. Let an administrator run:\n%s",
                name,
                by_hand(name),
            )


def by_hand(name: str) -> str:
    """Return the commands that create a collection's indexes in mongosh."""
    lines = []
    for model in INDEXES[name]:
        options = dict(model.document)
        keys = dict(options.pop("key"))
        lines.append(f"db.{name}.createIndex({json.dumps(keys)}, {json.dumps(options)})")
    return "\n".join(lines)
