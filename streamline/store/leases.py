"""Renewal of leases, blocking: it runs in a thread of its own beside a busy event loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice

import pymongo
from pymongo.errors import PyMongoError

from streamline.errors import ServerUnavailable
from streamline.model import Status
from streamline.store.base import Renewal
from streamline.store.connection import Connection, is_transient
from streamline.store.indexes import RUNS
from streamline.store.updates import holder_filter, lease_end

_CHUNK = 1000
_PAUSE = 0.1


def renew(connection: Connection, worker: str, held: Mapping[str, int], lease: float) -> Renewal:
    """Extend the leases of what a worker still holds; see `RunStore.renew`.

    Raises:
        ServerUnavailable: No answer within the timeout.
    """
    lost: set[str] = set()
    inbox_seq: dict[str, int] = {}
    for chunk in _chunks(held):
        kept = _persist(connection, worker, chunk, lease)
        inbox_seq |= kept
        lost |= chunk.keys() - kept.keys()
    return Renewal(lost=frozenset(lost), inbox_seq=inbox_seq)


def _chunks(held: Mapping[str, int]) -> Iterator[dict[str, int]]:
    items = iter(held.items())
    while chunk := dict(islice(items, _CHUNK)):
        yield chunk


def _persist(
    connection: Connection, worker: str, held: Mapping[str, int], lease: float
) -> dict[str, int]:
    deadline = time.monotonic() + connection.timeout
    while True:
        try:
            with pymongo.timeout(connection.timeout):
                return _extend(connection, worker, held, lease)
        except PyMongoError as error:
            if not is_transient(error):
                raise
            if time.monotonic() > deadline:
                raise ServerUnavailable(
                    f"The leases of worker {worker!r} can't be renewed: MongoDB did not answer "
                    f"within {connection.timeout:g} s."
                ) from error
            time.sleep(_PAUSE)


def _extend(
    connection: Connection, worker: str, held: Mapping[str, int], lease: float
) -> dict[str, int]:
    runs = connection.twin()[RUNS]
    runs.update_many(holder_filter(worker, held), [{"$set": {"due_at": lease_end(lease)}}])
    # Afterwards: a claim once lost never comes back under its fence, so what is still held now
    # was held by the update too.
    fields = {"fence": 1, "inbox_seq": 1, "worker": 1, "status": 1}
    return {
        found["_id"]: found.get("inbox_seq", 0)
        for found in runs.find({"_id": {"$in": list(held)}}, fields)
        if found.get("fence") == held[found["_id"]]
        and found.get("worker") == worker
        and found.get("status") == Status.RUNNING.value
    }
