"""Faults put into the engine of one worker process, to prove that the checker can fail.

A name may have several parts: `fence+slow` takes out the fence and makes parks slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pymongo.errors import AutoReconnect

from streamline.model import Commit, Status
from streamline.store import leases, statements, updates
from streamline.store.mongo import MongoStore

Document = dict[str, Any]

SLOW_PARK = 0.5


def apply(name: str) -> None:
    """Apply the parts of a name, separated by `+`; none if it is empty."""
    for part in filter(None, name.split("+")):
        MUTATIONS[part]()


def _without(*fields: str) -> Callable[[Commit], Document]:
    original = statements.commit_filter

    def commit_filter(commit: Commit) -> Document:
        fits = original(commit)
        return {name: value for name, value in fits.items() if name not in fields}

    return commit_filter


def _forget_fence() -> None:
    """Let anybody write who once had the run; and don't let a renewal tell that it is lost."""
    statements.commit_filter = _without("fence", "status")

    def holder_filter(worker: str, held: Mapping[str, int]) -> Document:
        return {"_id": {"$in": list(held)}, "status": Status.RUNNING.value}

    def extend(connection: Any, worker: str, held: Mapping[str, int], lease: float) -> Any:
        runs = connection.twin()[leases.RUNS]
        fits = holder_filter(worker, held)
        runs.update_many(fits, [{"$set": {"due_at": updates.lease_end(lease)}}])
        return dict.fromkeys(held, 0)

    leases._extend = extend


def _forget_inbox_seq() -> None:
    statements.commit_filter = _without("inbox_seq")


def _forget_rev() -> None:
    statements.commit_filter = _without("rev")


def _slow_parks() -> None:
    """Leave time between the decision to park and its commit. No fault: any server may be slow."""
    original = MongoStore.commit

    async def commit(self: MongoStore, commit: Commit) -> Any:
        if commit.status is Status.WAITING:
            await asyncio.sleep(SLOW_PARK)
        return await original(self, commit)

    MongoStore.commit = commit  # type: ignore[method-assign]


def _lost_replies() -> None:
    """Lose the reply to every other update. No fault: any network does that."""
    original = statements._command
    count = 0

    async def command(connection: Any, verb: str, *rest: Any) -> Document:
        nonlocal count
        reply: Document = await original(connection, verb, *rest)
        count += verb == "update"
        if verb == "update" and count % 2:
            raise AutoReconnect("the reply was lost")
        return reply

    statements._command = command


MUTATIONS: dict[str, Callable[[], None]] = {
    "fence": _forget_fence,
    "inbox": _forget_inbox_seq,
    "rev": _forget_rev,
    "slow": _slow_parks,
    "deaf": _lost_replies,
}
