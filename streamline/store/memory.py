"""A store in this process's memory, for tests and for trying things out.

Keeps BSON-encoded copies, never live objects. Several stores may share one `MemoryData`, as several
processes share a server; `sever` lets one of them die.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import bson
import msgspec

from streamline.clock import Clock, SystemClock
from streamline.codec import CODEC_OPTIONS, Failure, PayloadRef
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
from streamline.outbox import readable
from streamline.store.base import GONE_AFTER, Outbox, Renewal, RunStore, check_in_time, is_late
from streamline.store.encoding import (
    Document,
    entries_from,
    from_document,
    settled_document,
    to_builtins,
)
from streamline.store.memory_data import MemoryData, Watcher
from streamline.store.memory_runs import MemoryRuns
from streamline.store.transitions import (
    cancelled,
    claimed,
    committed,
    followed,
    has_landed,
    is_parked_as,
    moved_on,
    posted,
    released,
    rewound,
    same_creation,
    settled,
    unpaused,
)

INBOX_LIMIT = 4 * 1024 * 1024

_change = msgspec.structs.replace


class MemoryStore(RunStore):
    """Runs in memory.

    Args:
        clock: Where time comes from; the system's by default.
        data: What to share with other stores; its own by default.
        inbox_limit: The size of an inbox, in bytes.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        data: MemoryData | None = None,
        *,
        inbox_limit: int = INBOX_LIMIT,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.data: MemoryData = MemoryData() if data is None else data
        self._runs = MemoryRuns(self.data, self.clock, inbox_limit=inbox_limit)
        self.on_commit: Callable[[Commit], None] | None = None
        self._severed = False
        self._watchers: list[Watcher] = []

    async def open(self) -> None:
        await self._alive()

    async def close(self) -> None:
        await self._alive()
        for watcher in self._watchers:
            watcher.put(None)

    def sever(self) -> None:
        """Die: from now on every verb of this store waits for ever and changes nothing."""
        self._severed = True

    # -- starting ---------------------------------------------------------------------------------

    async def create_run(self, run: Run) -> tuple[Run, bool]:
        await self._alive()
        with self.data.lock:
            if (stored := self._runs.load(run.id)) is not None:
                return _change(stored, journal=[]), same_creation(stored, run)
            check_in_time(run.input.payload, run.id, self.clock.now())
            return self._runs.put(run), True

    async def replace_run(self, run: Run, *, rev: int, fence: int) -> bool:
        await self._alive()
        with self.data.lock:
            stored = self._runs.load(run.id)
            if stored is None or not stored.status.ended or stored.outbox:
                return False
            if (stored.rev, stored.fence) != (rev, fence):
                return False
            check_in_time(run.input.payload, run.id, self.clock.now())
            self.data.archives.pop(run.id, None)
            self.data.payloads.look(run.id, self.clock.now())
            self._runs.put(run)
            return True

    # -- reading ----------------------------------------------------------------------------------

    async def load_run(
        self, run_id: str, *, journal: bool = True, inbox: bool = True
    ) -> Run | None:
        await self._alive()
        with self.data.lock:
            run = self._runs.load(run_id)
            if run is None:
                return None
            left_out: dict[str, Any] = {} if journal else {"journal": [], "past": None}
            return _change(run, **left_out, **({} if inbox else {"inbox": []}))

    async def load_archive(self, run_id: str, until: int) -> list[Entry]:
        await self._alive()
        with self.data.lock:
            archive = self.data.archives.get(run_id, {})
            try:
                entries = [archive[index] for index in range(until)]
            except KeyError as missing:
                raise DataCorruption(
                    f"The journal of run {run_id!r} lacks its entry {missing}", run_id=run_id
                ) from None
            return [_copy(entry) for entry in entries]

    async def load_ended(self, run_ids: Sequence[str]) -> list[Run]:
        await self._alive()
        with self.data.lock:
            found = (self._runs.load_leniently(run_id) for run_id in run_ids)
            return [_head(run) for run in found if run and run.status.ended]

    async def next_due(self, codes: Sequence[str]) -> datetime | None:
        await self._alive()
        with self.data.lock:
            return next((due_at for due_at, _ in self.data.due(codes)), None)

    # -- claims -----------------------------------------------------------------------------------

    async def claim_due(self, claim: Claim, codes: Sequence[str], limit: int) -> list[Run]:
        await self._alive()
        until = self.clock.now() + timedelta(seconds=claim.ahead)
        claimed: list[Run] = []
        with self.data.lock:
            for due_at, run_id in self.data.due(codes):
                if due_at > until or len(claimed) >= limit:
                    break
                if (run := self._claim(claim, run_id)) is not None:
                    claimed.append(run)
        return claimed

    async def claim_run(self, claim: Claim, run_id: str) -> Run | None:
        await self._alive()
        with self.data.lock:
            return self._claim(claim, run_id)

    def renew(self, worker: str, held: Mapping[str, int], lease: float) -> Renewal:
        lost: set[str] = set()
        inbox_seq: dict[str, int] = {}
        with self.data.lock:
            for run_id, fence in held.items():
                run = None if self._severed else self._runs.held(run_id, fence)
                if run is None or run.worker != worker:
                    lost.add(run_id)
                    continue
                self._runs.put(_change(run, due_at=self.clock.now() + timedelta(seconds=lease)))
                inbox_seq[run_id] = run.inbox_seq
        return Renewal(lost=frozenset(lost), inbox_seq=inbox_seq)

    async def release(self, run_id: str, fence: int, *, faulty: bool = False) -> bool:
        await self._alive()
        with self.data.lock:
            if (run := self._runs.held(run_id, fence)) is None:
                return False
            self._runs.put(released(run, self.clock.now(), faulty=faulty))
            return True

    async def claim_holders(self, beginning: str, *, besides: str) -> list[str]:
        await self._alive()
        with self.data.lock:
            holders = {run.worker for run in self._runs.all() if run.worker is not None}
            return sorted(each for each in holders - {besides} if each.startswith(beginning))

    async def expire_claims(self, worker: str) -> int:
        await self._alive()
        with self.data.lock:
            now = self.clock.now()
            held = (run for run in self._runs.all() if run.worker == worker)
            dead = [run for run in held if run.due_at is not None and run.due_at > now]
            for run in dead:
                self._runs.put(_change(run, due_at=now, claim=None))
            return len(dead)

    # -- advancing --------------------------------------------------------------------------------

    async def commit(self, commit: Commit) -> CommitResult:
        await self._alive()
        with self.data.lock:
            run = self._runs.load(commit.run_id)
            if run is not None and has_landed(
                commit, fence=run.fence, rev=run.rev, generation=run.generation
            ):
                return CommitResult.LANDED
            run = self._runs.held(commit.run_id, commit.fence)
            if run is None or run.rev != commit.rev:
                return CommitResult.LOST
            if moved_on(run, commit):
                return CommitResult.INBOX_MOVED
            self._runs.put(committed(run, commit, self.clock.now()))
            if commit.continuation is not None:
                self.data.archives.pop(run.id, None)
                self.data.payloads.look(commit.run_id, self.clock.now())
            if commit.spilled and commit.expire_at is not None:
                self.data.payloads.look(commit.run_id, commit.expire_at + GONE_AFTER)
            if commit.archive:
                archive = self.data.archives.setdefault(run.id, {})
                for index, entry in enumerate(commit.archive, commit.journal_base):
                    archive[index] = _copy(entry)
        if self.on_commit is not None:
            self.on_commit(commit)
        await self._alive()
        return CommitResult.LANDED

    async def heartbeat(self, run_id: str, fence: int, step: str, details: object) -> bool:
        await self._alive()
        with self.data.lock:
            if (run := self._runs.held(run_id, fence)) is None:
                return False
            attempts = [
                _change(attempt, heartbeat=details) if attempt.id == step else attempt
                for attempt in run.attempts
            ]
            self._runs.put(_change(run, attempts=attempts))
            return True

    # -- messages and control ---------------------------------------------------------------------

    async def post(self, run_id: str, message: Message, *, slot: str | None = None) -> PostResult:
        await self._alive()
        with self.data.lock:
            run = self._runs.load(run_id)
            if run is None:
                return PostResult.NO_RUN
            if (reason := self._runs.refusal(run, message, slot)) is not None:
                return reason
            check_in_time(message.payload, run_id, self.clock.now())
            self._runs.put(posted(run, message, slot, self.clock.now()))
            return PostResult.POSTED

    async def post_to_parked(
        self, parked: Run, message: Message, claim: Claim, *, slot: str | None = None
    ) -> Run | None:
        await self._alive()
        with self.data.lock:
            run = self._runs.load(parked.id)
            if (
                run is None
                or not is_parked_as(run, parked)
                or self._runs.refusal(run, message, slot)
            ):
                return None
            now = self.clock.now()
            if is_late(message.payload, now):
                return None
            woken = claimed(posted(run, message, slot, now), claim, now)
            assert woken is not None
            return _change(self._runs.put(woken), journal=[])

    async def cancel_unstarted(self, run_id: str, error: Failure) -> bool:
        await self._alive()
        with self.data.lock:
            run = self._runs.load(run_id)
            if run is None or run.fence or run.status not in (Status.DRAFT, Status.QUEUED):
                return False
            self._runs.end(cancelled(run, error, self.clock.now(), fence=0))
            return True

    async def terminate(self, run_id: str, error: Failure) -> bool:
        await self._alive()
        with self.data.lock:
            run = self._runs.load(run_id)
            if run is None or run.status.ended:
                return False
            self._runs.end(cancelled(run, error, self.clock.now(), fence=run.fence + 1))
            return True

    async def unpause(self, run_id: str) -> bool:
        await self._alive()
        with self.data.lock:
            run = self._runs.load(run_id)
            if run is None:
                return False
            if (after := unpaused(run, self.clock.now())) is None:
                return False
            self._runs.put(after)
            return True

    async def rewind_run(self, run: Run, kept: Sequence[Entry]) -> bool:
        await self._alive()
        with self.data.lock:
            stored = self._runs.load(run.id)
            if stored is None or (stored.rev, stored.fence) != (run.rev, run.fence):
                return False
            if stored.status not in (Status.DONE, Status.FAILED):
                return False
            base = min(stored.journal_base, len(kept))
            if stored.journal_base:
                archive = {index: _copy(entry) for index, entry in enumerate(kept[:base])}
                self.data.archives[run.id] = archive
            self._runs.put(rewound(stored, [_copy(e) for e in kept[base:]], base, self.clock.now()))
            self.data.payloads.look(run.id, self.clock.now())
            return True

    # -- payloads kept outside --------------------------------------------------------------------

    async def put_payload(
        self, run_id: str, ref: PayloadRef, place: str, data: bytes, *, fence: int | None = None
    ) -> None:
        await self._alive()
        with self.data.lock:
            self.data.payloads.put(run_id, ref, data, fence=fence)

    async def load_payload(self, run_id: str, ref: PayloadRef, place: str) -> bytes:
        await self._alive()
        with self.data.lock:
            return self.data.payloads.load(run_id, ref, place)

    async def discard_payload(self, run_id: str, ref: PayloadRef) -> None:
        await self._alive()
        with self.data.lock:
            self.data.payloads.kept.pop(ref.payload, None)

    async def sweep_payloads(self) -> int:
        await self._alive()
        now = self.clock.now()
        with self.data.lock:
            return sum(self._runs.sweep_payload(key) for key in self.data.payloads.due(now))

    # -- telling other runs -----------------------------------------------------------------------

    async def follow(self, run_id: str, follower: str) -> Run | None:
        await self._alive()
        with self.data.lock:
            if (run := self._runs.load(run_id)) is None:
                return None
            if (after := followed(run, follower, self.clock.now())) is not run:
                run = self._runs.put(after)
            return _change(run, journal=[], inbox=[])

    async def load_outboxes(self, codes: Sequence[str], limit: int) -> list[Outbox]:
        await self._alive()
        with self.data.lock:
            return [
                Outbox(
                    run_id=run_id,
                    due_at=due_at,
                    dispatches=readable((self.data.get(run_id) or {}).get("outbox")),
                )
                for due_at, run_id in self.data.outboxes(codes)[:limit]
            ]

    async def settle_outbox(
        self, run_id: str, sent: Sequence[Dispatch], again_at: datetime
    ) -> None:
        await self._alive()
        with self.data.lock:
            document = self.data.get(run_id)
            if document is None:
                return
            try:
                run = from_document(document)
            except DataCorruption:  # it was set aside, and expires never
                self.data.put(settled_document(document, sent, again_at))
            else:
                self._runs.end(settled(run, sent, again_at))

    # -- notices ----------------------------------------------------------------------------------

    def watch(self, *, besides: str | None = None) -> AsyncIterator[Notice]:
        watcher = Watcher(besides)
        self._watchers.append(watcher)
        with self.data.lock:
            self.data.watchers.append(watcher)
        return self._notices(watcher)

    async def _notices(self, watcher: Watcher) -> AsyncIterator[Notice]:
        try:
            yield Notice()
            while (notice := await watcher.get()) is not None:
                await self._alive()
                yield notice
        finally:
            self._watchers.remove(watcher)
            with self.data.lock:
                self.data.watchers.remove(watcher)

    # -- what several verbs need ------------------------------------------------------------------

    async def _alive(self) -> None:
        if self._severed:
            await asyncio.get_running_loop().create_future()

    def _claim(self, claim: Claim, run_id: str) -> Run | None:
        try:
            run = self._runs.load(run_id)
        except DataCorruption as error:
            self._runs.set_aside(run_id, error)
            return None
        after = None if run is None else claimed(run, claim, self.clock.now())
        if after is None:
            return None
        put = self._runs.put(after)
        return put if put.claim == claim.id else None


def _head(run: Run) -> Run:
    return _change(run, journal=[], inbox=[], past=None)


def _copy(entry: Entry) -> Entry:
    data = bson.encode(to_builtins(entry), codec_options=CODEC_OPTIONS)
    document: Document = bson.decode(data, codec_options=CODEC_OPTIONS)
    (copied,) = entries_from([document], run_id="")
    return copied
