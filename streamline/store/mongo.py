"""The store on MongoDB: each verb as one conditional update of one document, wherever possible."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from bson.errors import InvalidBSON
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, OperationFailure
from pymongo.read_concern import ReadConcern

from streamline.clock import Clock
from streamline.codec import Failure, PayloadRef
from streamline.errors import DataCorruption
from streamline.model import (
    Claim,
    Commit,
    CommitResult,
    Dispatch,
    Entry,
    Message,
    Notice,
    PostResult,
    Run,
    Status,
)
from streamline.outbox import listeners
from streamline.store import leases, notices, updates
from streamline.store.archive import Archive
from streamline.store.base import (
    GONE_AFTER,
    REFER_WITHIN,
    Outbox,
    Renewal,
    RunStore,
    check_in_time,
)
from streamline.store.claims import Claims
from streamline.store.connection import Connection, Document
from streamline.store.encoding import from_document, salvage, to_builtins, to_document
from streamline.store.indexes import RUNS, ensure_indexes
from streamline.store.messages import Messages
from streamline.store.modify import find_and_modify
from streamline.store.outboxes import Outboxes
from streamline.store.payloads import Payloads
from streamline.store.statements import (
    CommitGroup,
    CommitStatement,
    InsertGroup,
    InsertStatement,
    too_large,
)
from streamline.store.sweep import Sweep
from streamline.store.transitions import same_creation
from streamline.store.writer import Writer

INBOX_LIMIT = 4 * 1024 * 1024
_CLOCK_REFRESH = 30.0
_WITHOUT_JOURNAL = {"journal": 0}
_HEAD = {"journal": 0, "inbox": 0, "past": 0}


class MongoStore(RunStore):
    """Runs in collections of a MongoDB database whose names begin with `workflow_`.

    Args:
        address: A URI whose path names the database (`streamline` if it has none), or a database
            of the user's own client; that client is used, and left open by `close`.
        timeout: How long the server may be silent before `ServerUnavailable`.
        inbox_limit: The size of an inbox, in bytes.
    """

    def __init__(
        self,
        address: str | AsyncDatabase[Any],
        *,
        timeout: timedelta = timedelta(seconds=10),
        inbox_limit: int = INBOX_LIMIT,
    ) -> None:
        self._connection = Connection(address, timeout=timeout)
        self.clock: Clock = self._connection.clock
        self._archive = Archive(self._connection)
        self._payloads = Payloads(self._connection)
        self._sweep = Sweep(self._connection, self._payloads)
        self._claims = Claims(self._connection)
        self._outboxes = Outboxes(self._connection, self._archive, self._payloads)
        self._messages = Messages(self._connection, self._archive, inbox_limit=inbox_limit)
        self._commits = Writer(CommitGroup(self._connection).send)
        self._inserts = Writer(InsertGroup(self._connection).send)

    @property
    def database(self) -> AsyncDatabase[Document]:
        """The database, for what users do beside the store: Beanie, transactional steps."""
        return self._connection.database

    @property
    def _runs(self) -> AsyncCollection[Document]:
        return self._connection.collection(RUNS)

    async def open(self) -> None:
        await self._connection.open()
        await ensure_indexes(self._connection)

    async def close(self) -> None:
        await self._commits.drain()
        await self._inserts.drain()
        await self._connection.close()

    # -- starting ---------------------------------------------------------------------------------

    async def create_run(self, run: Run) -> tuple[Run, bool]:
        payload = run.input.payload
        statement = InsertStatement.of(run) if payload is None else None
        while True:
            if statement is None:
                inserted = await self._insert_in_time(run, payload)
            else:
                inserted = await self._inserts.write(statement)
            if inserted:
                return run, True
            stored = await self._load(run.id, _WITHOUT_JOURNAL)
            if stored is not None:  # else it has expired since
                return stored, same_creation(stored, run)

    async def _insert_in_time(self, run: Run, payload: Any) -> bool:
        update = updates.create_in_time(to_document(run), payload.made_at + REFER_WITHIN)

        async def insert(again: bool) -> bool:
            try:
                result = await self._runs.update_one({"_id": run.id}, update, upsert=True)
            except DuplicateKeyError:
                return False
            except DocumentTooLarge as error:
                raise too_large(run.id, error) from error
            except OperationFailure:
                check_in_time(payload, run.id, self.clock.now())
                raise
            return result.upserted_id is not None

        return await self._connection.persist(insert)

    async def replace_run(self, run: Run, *, rev: int, fence: int) -> bool:
        ended = {"$in": updates.ENDED_VALUES}
        document = to_document(run)
        payload = run.input.payload
        check_in_time(payload, run.id, self.clock.now())

        async def replace(again: bool) -> bool:
            told = {"outbox_due": None}
            old = {"_id": run.id, "rev": rev, "fence": fence, "status": ended, **told}
            if isinstance(payload, PayloadRef):
                old |= updates.in_time(payload)
            if (await self._runs.replace_one(old, document)).matched_count:
                return True
            mine = {"_id": run.id, "created_at": run.created_at, "fence": run.fence}
            return again and await self._runs.find_one(mine, {"_id": 1}) is not None

        replaced = await self._connection.persist(replace)
        if replaced:
            # Afterwards: what a crash leaves behind is older than the new run, and so ignored.
            await self._archive.remove(run.id, up_to_fence=fence)
            await self._payloads.look(run.id, self.clock.now())
        return replaced

    # -- reading ----------------------------------------------------------------------------------

    async def load_run(
        self, run_id: str, *, journal: bool = True, inbox: bool = True
    ) -> Run | None:
        left_out = {"journal": journal, "past": journal, "inbox": inbox}
        return await self._load(run_id, {name: 0 for name, there in left_out.items() if not there})

    async def load_archive(self, run_id: str, until: int) -> list[Entry]:
        return await self._archive.load(run_id, until)

    async def load_ended(self, run_ids: Sequence[str]) -> list[Run]:
        async def read(again: bool) -> list[Document]:
            query = {"_id": {"$in": list(run_ids)}, "status": {"$in": updates.ENDED_VALUES}}
            # Callers act on an end: one that a failover may still undo is none.
            runs = self._runs.with_options(read_concern=ReadConcern("majority"))
            return await runs.find(query, _HEAD).to_list()

        return [self._read_leniently(found) for found in await self._connection.persist(read)]

    async def next_due(self, codes: Sequence[str]) -> datetime | None:
        await self._connection.refresh_clock(every=_CLOCK_REFRESH)

        async def read(again: bool) -> datetime | None:
            query = {"code": {"$in": list(codes)}, "due_at": updates.HAS_DUE}
            found = await self._runs.find_one(query, {"due_at": 1}, sort={"due_at": 1})
            return None if found is None else found["due_at"]

        return await self._connection.persist(read)

    # -- claims -----------------------------------------------------------------------------------

    async def claim_due(self, claim: Claim, codes: Sequence[str], limit: int) -> list[Run]:
        return await self._claims.claim_due(claim, codes, limit)

    async def claim_run(self, claim: Claim, run_id: str) -> Run | None:
        return await self._claims.claim_run(claim, run_id)

    def renew(self, worker: str, held: Mapping[str, int], lease: float) -> Renewal:
        return leases.renew(self._connection, worker, held, lease)

    async def release(self, run_id: str, fence: int, *, faulty: bool = False) -> bool:
        held = updates.held_filter(run_id, fence)
        released = {"_id": run_id, "fence": fence, "status": Status.QUEUED.value}
        return await self._update(held, updates.release_update(faulty=faulty), done=released)

    async def claim_holders(self, beginning: str, *, besides: str) -> list[str]:
        # Not `distinct`, which reads the document of every claim; this reads the index alone.
        found = updates.holders_filter(beginning, besides)
        pipeline = [{"$match": found}, {"$group": {"_id": "$worker"}}]

        async def read(again: bool) -> list[str]:
            cursor = await self._runs.aggregate(pipeline)
            return sorted([each["_id"] async for each in cursor])

        return await self._connection.persist(read)

    async def expire_claims(self, worker: str) -> int:
        async def expire(again: bool) -> int:
            dead = updates.dead_holder_filter(worker)
            return (await self._runs.update_many(dead, updates.EXPIRE_UPDATE)).matched_count

        return await self._connection.persist(expire)

    # -- advancing --------------------------------------------------------------------------------

    async def commit(self, commit: Commit) -> CommitResult:
        may_be_archived = commit.journal_base or commit.archive or commit.generation > 1
        if commit.archive:
            # Before the commit: a crash between the two leaves a copy to ignore, not a gap.
            await self._archive.store(
                commit.run_id, commit.archive, base=commit.journal_base, fence=commit.fence
            )
        result = await self._commits.write(CommitStatement.of(commit))
        if result is not CommitResult.LANDED:
            return result
        if may_be_archived:
            await self._tidy_archive(commit)
        if commit.spilled:
            await self._look_at_payloads(commit)
        return result

    async def _look_at_payloads(self, commit: Commit) -> None:
        if commit.expire_at is not None:
            await self._payloads.look(commit.run_id, commit.expire_at + GONE_AFTER)
        elif commit.continuation is not None:
            await self._payloads.look(commit.run_id, self.clock.now())

    async def _tidy_archive(self, commit: Commit) -> None:
        if commit.expire_at is not None:
            await self._archive.expire(commit.run_id, commit.expire_at)
        if commit.continuation is not None:
            # Afterwards: what a crash leaves behind has a lower fence than what the next
            # generation will archive, and goes with the next of these, or with the run.
            await self._archive.remove(commit.run_id, up_to_fence=commit.fence)

    async def heartbeat(self, run_id: str, fence: int, step: str, details: object) -> bool:
        update = updates.heartbeat_update(step, details)
        return await self._update(updates.held_filter(run_id, fence), update)

    # -- messages and control ---------------------------------------------------------------------

    async def post(self, run_id: str, message: Message, *, slot: str | None = None) -> PostResult:
        return await self._messages.post(run_id, message, slot)

    async def post_to_parked(
        self, parked: Run, message: Message, claim: Claim, *, slot: str | None = None
    ) -> Run | None:
        found = await self._messages.post_to_parked(parked, message, claim, slot)
        return None if found is None else from_document(found)

    async def cancel_unstarted(self, run_id: str, error: Failure) -> bool:
        unstarted = {"$in": [Status.DRAFT.value, Status.QUEUED.value]}
        fits = {"_id": run_id, "fence": 0, "status": unstarted}
        return await self._end(fits, updates.end_update(error, fence=0))

    async def terminate(self, run_id: str, error: Failure) -> bool:
        fits = {"_id": run_id, "status": updates.NOT_ENDED}
        return await self._end(fits, updates.end_update(error, fence=1))

    async def unpause(self, run_id: str) -> bool:
        unpaused = {"_id": run_id, "status": updates.NOT_ENDED}
        return await self._update(
            updates.unpause_filter(run_id), updates.unpause_update(), done=unpaused
        )

    async def rewind_run(self, run: Run, kept: Sequence[Entry]) -> bool:
        base = min(run.journal_base, len(kept))
        if run.journal_base:
            # Under the new fence and before the update: these parts win over the longer old ones.
            await self._archive.store(run.id, kept[:base], base=0, fence=run.fence + 1)
            await self._archive.keep(run.id)
        journal = to_builtins(kept[base:])
        rewound = await self._update(
            updates.rewind_filter(run.id, rev=run.rev, fence=run.fence),
            updates.rewind_update(journal, base, self.clock.now()),
            done={"_id": run.id, "rev": run.rev + 1, "fence": run.fence + 1},
        )
        if rewound and run.spilled:
            await self._payloads.look(run.id, self.clock.now())
        return rewound

    # -- payloads kept outside --------------------------------------------------------------------

    async def put_payload(
        self, run_id: str, ref: PayloadRef, place: str, data: bytes, *, fence: int | None = None
    ) -> None:
        await self._payloads.put(run_id, ref, data, fence=fence)

    async def load_payload(self, run_id: str, ref: PayloadRef, place: str) -> bytes:
        return await self._payloads.load(run_id, ref, place)

    async def discard_payload(self, run_id: str, ref: PayloadRef) -> None:
        await self._payloads.discard(ref.payload)

    async def sweep_payloads(self) -> int:
        return await self._sweep.run()

    # -- telling other runs -----------------------------------------------------------------------

    async def follow(self, run_id: str, follower: str) -> Run | None:
        while True:
            await self._outboxes.follow(run_id, follower)
            run = await self.load_run(run_id, journal=False, inbox=False)
            # Else it had ended when it was to be followed, and was rewound by now.
            if run is None or run.status.ended or follower in listeners(run):
                return run

    async def load_outboxes(self, codes: Sequence[str], limit: int) -> list[Outbox]:
        return await self._outboxes.load(codes, limit)

    async def settle_outbox(
        self, run_id: str, sent: Sequence[Dispatch], again_at: datetime
    ) -> None:
        await self._outboxes.settle(run_id, sent, again_at)

    # -- notices ----------------------------------------------------------------------------------

    def watch(self, *, besides: str | None = None) -> AsyncIterator[Notice]:
        return notices.watch(self._connection, besides)

    # -- what several verbs need ------------------------------------------------------------------

    async def _load(self, run_id: str, fields: Mapping[str, int] | None = None) -> Run | None:
        async def read(again: bool) -> Document | None:
            return await self._runs.find_one({"_id": run_id}, fields)

        try:
            document = await self._connection.persist(read)
        except InvalidBSON as error:
            raise DataCorruption(
                f"Run {run_id!r} can't be read: {error}. Repair its document in `{RUNS}`, or "
                "remove it.",
                run_id=run_id,
            ) from error
        return None if document is None else from_document(document)

    def _read_leniently(self, document: Document) -> Run:
        try:
            return from_document(document)
        except DataCorruption as error:
            return salvage(document, error, self.clock.now())

    async def _update(
        self, fits: Document, update: updates.Pipeline | Document, *, done: Document | None = None
    ) -> bool:
        """Update one run if it fits.

        Args:
            done: What the run matches if an earlier try had its effect and only the reply was lost.
        """

        async def write(again: bool) -> bool:
            if (await self._runs.update_one(fits, update)).matched_count:
                return True
            if done is None or not again:
                return False
            return await self._runs.find_one(done, {"_id": 1}) is not None

        return await self._connection.persist(write)

    async def _end(self, fits: Document, update: updates.Pipeline) -> bool:
        fields = {"journal_base": 1, "generation": 1, "expire_at": 1, "spilled": 1}

        async def end(again: bool) -> Document | None:
            found = await find_and_modify(self._runs, fits, update, fields)
            if found is None and again:
                ended = {"_id": fits["_id"], "status": Status.CANCELLED.value}
                found = await self._runs.find_one(ended, fields)
            return found

        ended = await self._connection.persist(end)
        if ended is None:
            return False
        # What a generation left behind that crashed on its way to the next counts, too.
        may_be_archived = ended.get("journal_base") or ended.get("generation", 1) > 1
        if may_be_archived and "expire_at" in ended:
            await self._archive.expire(ended["_id"], ended["expire_at"])
        if ended.get("spilled") and "expire_at" in ended:
            await self._payloads.look(ended["_id"], ended["expire_at"] + GONE_AFTER)
        return True
