"""Commits and creations as statements of one server command, and what became of each.

Commands rather than `bulk_write`: the filters make each statement safe to repeat, so PyMongo's
retryable writes, which cost the server another write per statement, have nothing to add (measured:
a quarter more commits per second).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import bson
import msgspec
from bson.raw_bson import RawBSONDocument
from pymongo.errors import AutoReconnect, DocumentTooLarge, OperationFailure, WriteConcernError

from streamline.codec import CODEC_OPTIONS
from streamline.errors import PayloadTooLarge
from streamline.model import Commit, CommitResult, Run, Status
from streamline.store.connection import DURABLE, Connection, Document, is_transient_code
from streamline.store.encoding import to_document
from streamline.store.indexes import RUNS
from streamline.store.transitions import has_landed
from streamline.store.updates import commit_filter, commit_update

_TOO_LARGE = frozenset({10334, 17419, 17420})
_DUPLICATE_KEY = 11000


class CommitStatement(msgspec.Struct, frozen=True, gc=False):
    """A commit, encoded."""

    commit: Commit
    body: bytes

    @classmethod
    def of(cls, commit: Commit) -> CommitStatement:
        """Encode a commit; what can't be encoded falls on its own commit, not on the group's."""
        return cls(commit, _encoded({"q": commit_filter(commit), "u": commit_update(commit)}))

    @property
    def size(self) -> int:
        return len(self.body)


class InsertStatement(msgspec.Struct, frozen=True, gc=False):
    """A new run, encoded."""

    run_id: str
    body: bytes

    @classmethod
    def of(cls, run: Run) -> InsertStatement:
        """Encode a run."""
        return cls(run.id, _encoded(to_document(run)))

    @property
    def size(self) -> int:
        return len(self.body)


class CommitGroup:
    """Sends commits together."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def send(
        self, statements: Sequence[CommitStatement]
    ) -> Sequence[CommitResult | Exception]:
        """Apply each of the commits or none of it; see `RunStore.commit`."""
        outcomes: dict[int, CommitResult | Exception] = {}

        async def attempt(again: bool) -> None:
            left = [index for index in range(len(statements)) if index not in outcomes]
            bodies = [statements[index].body for index in left]
            try:
                reply = await _command(self._connection, "update", "updates", bodies)
            except DocumentTooLarge as error:
                # Only a lone statement is this large; see Writer.
                outcomes.update((i, too_large(statements[i].commit.run_id, error)) for i in left)
                return
            if reply["n"] == len(left):  # as nearly always
                outcomes.update(dict.fromkeys(left, CommitResult.LANDED))
                return
            run_ids = [each.commit.run_id for each in statements]
            unclear = _sort_errors(reply, left, outcomes, run_ids)
            done = [index for index in left if index not in outcomes and index not in unclear]
            if reply["n"] == len(done):
                outcomes.update(dict.fromkeys(done, CommitResult.LANDED))
            else:
                commits = {index: statements[index].commit for index in done}
                outcomes.update(await self._tell_apart(commits))
            _raise_if(unclear)

        await self._connection.persist(attempt)
        return [outcomes[index] for index in range(len(statements))]

    async def _tell_apart(self, commits: Mapping[int, Commit]) -> dict[int, CommitResult]:
        """Find out what became of commits not all of which matched."""
        query = {"_id": {"$in": [commit.run_id for commit in commits.values()]}}
        fields = {"fence": 1, "rev": 1, "status": 1, "generation": 1}
        runs = self._connection.collection(RUNS)
        found = {document["_id"]: document async for document in runs.find(query, fields)}
        return {
            index: _result(commit, found.get(commit.run_id)) for index, commit in commits.items()
        }


class InsertGroup:
    """Sends new runs together."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def send(self, statements: Sequence[InsertStatement]) -> Sequence[bool | Exception]:
        """Insert each of the runs; False where its id is taken."""
        outcomes: dict[int, bool | Exception] = {}

        async def attempt(again: bool) -> None:
            left = [index for index in range(len(statements)) if index not in outcomes]
            bodies = [statements[index].body for index in left]
            try:
                reply = await _command(self._connection, "insert", "documents", bodies)
            except DocumentTooLarge as error:
                outcomes.update((i, too_large(statements[i].run_id, error)) for i in left)
                return
            if reply["n"] == len(left):  # as nearly always
                outcomes.update(dict.fromkeys(left, True))
                return
            unclear = _sort_errors(reply, left, outcomes, [each.run_id for each in statements])
            done = [index for index in left if index not in outcomes and index not in unclear]
            outcomes.update(dict.fromkeys(done, True))
            _raise_if(unclear)

        await self._connection.persist(attempt)
        return [outcomes[index] for index in range(len(statements))]


def _encoded(document: Document) -> bytes:
    return bson.encode(document, codec_options=CODEC_OPTIONS)


async def _command(
    connection: Connection, verb: str, payload: str, bodies: Sequence[bytes]
) -> Document:
    documents = [RawBSONDocument(body) for body in bodies]
    reply: Document = await connection.database.command(
        {verb: RUNS, payload: documents, "ordered": False, "writeConcern": DURABLE.document}
    )
    if failed := reply.get("writeConcernError"):
        # Sent again it matches nothing, but waits until what was written is durable.
        raise WriteConcernError(failed.get("errmsg", ""), failed.get("code"), failed)
    return reply


def _sort_errors(
    reply: Document, left: list[int], outcomes: dict[int, Any], run_ids: list[str]
) -> set[int]:
    """Put errors of single statements into `outcomes`; return those to be sent again."""
    unclear: set[int] = set()
    for failed in reply.get("writeErrors", ()):
        index, code = left[failed["index"]], failed["code"]
        error = OperationFailure(failed.get("errmsg", ""), code, failed)
        if is_transient_code(code):
            unclear.add(index)
        elif code in _TOO_LARGE:
            outcomes[index] = too_large(run_ids[index], error)
        elif code == _DUPLICATE_KEY:
            outcomes[index] = False
        else:
            outcomes[index] = error
    return unclear


def _raise_if(unclear: set[int]) -> None:
    if unclear:
        raise AutoReconnect(f"{len(unclear)} statements were interrupted")


def too_large(run_id: str, cause: Exception) -> PayloadTooLarge:
    """Return the error of a document that would grow past what MongoDB allows."""
    error = PayloadTooLarge(
        f"The document of run {run_id!r} would grow past the 16 MB that MongoDB allows; nothing "
        "was stored. Its context, what it waits with, heartbeats and messages are kept in it: "
        "pass large data as arguments or results, which are not.",
        run_id=run_id,
    )
    error.__cause__ = cause
    return error


def _result(commit: Commit, found: Document | None) -> CommitResult:
    # `get`: a document that was damaged since must not spoil the other commits of the group.
    if found is None:
        return CommitResult.LOST
    fence, rev = found.get("fence"), found.get("rev")
    if has_landed(commit, fence=fence, rev=rev, generation=found.get("generation", 1)):
        return CommitResult.LANDED
    held = (fence, rev) == (commit.fence, commit.rev) and found.get("status") == Status.RUNNING
    # Of all that the filter asks for, only what messages change can have been otherwise.
    guards = (commit.inbox_seq, commit.open_slots, commit.pause, commit.followers)
    guarded = commit.uncancelled or any(guard is not None for guard in guards)
    return CommitResult.INBOX_MOVED if held and guarded else CommitResult.LOST
