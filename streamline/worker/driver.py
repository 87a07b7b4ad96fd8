"""`RunDriver`: advances one claimed run. Facts come in, entries and consequences go out as commits.

A fact is what happened outside the body: an attempt ended, a timer is due, a message lies in the
inbox. The driver applies facts to the body one at a time, looks what the body wants next, and
writes both in one commit; only then do new steps start. A commit that the store refuses because a
message came in is thrown away with all that was derived from it, and built again on what is stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec

from streamline.clock import Alarm
from streamline.definitions import Workflow
from streamline.errors import (
    LeaseLost,
    NonDeterminism,
    PayloadTooLarge,
    ServerUnavailable,
    ValidationError,
)
from streamline.model import (
    Commit,
    CommitResult,
    Entry,
    EntryKind,
    Message,
    MessageKind,
    Run,
    Slot,
    SlotKind,
    Status,
)
from streamline.replay import (
    CANCEL,
    Cancelled,
    Execution,
    SlotCommand,
    StepCommand,
    TimerCommand,
)
from streamline.worker.ending import Ending, fail, poisoned, settle
from streamline.worker.news import News
from streamline.worker.services import Services
from streamline.worker.steps import StepBoard, StepState
from streamline.worker.tail import JournalTail

_log = logging.getLogger(__name__)

MAX_COMMIT_BYTES = 4 * 1024 * 1024
"""Facts beyond this wait for the next commit, so that a document's room is never overrun."""
RETRY_OUTAGE = 0.5
"""Seconds between tries to commit while the server is away."""


class RunDriver:
    """Advances one run for as long as this worker holds its claim.

    Args:
        run: The run as claimed.
        workflow: The newest code for it.
        services: The worker's.
        on_turn: Called with the run's id before its body runs, and with None after.
    """

    def __init__(
        self,
        run: Run,
        workflow: Workflow[..., Any],
        services: Services,
        *,
        on_turn: Callable[[str | None], None],
    ) -> None:
        self.run = run
        self.workflow = workflow
        self.draining = False
        self._services = services
        self._on_turn = on_turn
        self._waiting = False
        self._wake = asyncio.Event()
        self._lost = False
        self._stale_inbox = False
        self._execution: Execution | None = None
        self._board = StepBoard(services, workflow.step_defaults, self._wake.set, self._beat)
        self._news = News(services.events)
        self._beats: set[asyncio.Task[None]] = set()
        self._last_beat: dict[str, datetime] = {}

    # -- from outside -----------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The id of the run."""
        return self.run.id

    @property
    def fence(self) -> int:
        """The claim under which this driver writes."""
        return self.run.fence

    @property
    def due_at(self) -> datetime | None:
        """When a parked run is due by time."""
        return self._next_due() if self._execution is not None else None

    @property
    def idle(self) -> bool:
        """Whether it only waits: for a timer, a retry or a message."""
        return self.quiet and not self._board.running

    @property
    def quiet(self) -> bool:
        """Whether it waits, perhaps for a step."""
        return self._waiting and not self._wake.is_set()

    def hint(self, inbox_seq: int | None) -> None:
        """Take a hint that messages came in."""
        if inbox_seq is None or inbox_seq > self.run.inbox_seq:
            self._stale_inbox = True
            self._wake.set()

    def lose(self) -> None:
        """Take in that the claim is lost: cancel the steps at once, write nothing any more."""
        self._lost = True
        self._board.cancel_all()
        self._wake.set()

    def drain(self) -> None:
        """Start no further steps; the run is handed back once the running ones have ended."""
        self.draining = True
        self._wake.set()

    def abandon(self) -> None:
        """Drop everything, as if the process had died."""
        self._board.cancel_all()
        self.evict()

    def evict(self) -> None:
        """Drop the body from memory."""
        if self._execution is not None:
            self._execution.evict()
            self._execution = None

    def reclaim(self, run: Run) -> bool:
        """Go on with a parked run that was claimed again, if nobody wrote to it meanwhile."""
        if self._execution is None or run.rev != self.run.rev:
            return False
        self.run = msgspec.structs.replace(run, journal=[])
        self._lost = False
        return True

    # -- driving ----------------------------------------------------------------------------------

    async def drive(self) -> Status:
        """Advance the run until it ends, parks, is paused, or is to be handed back.

        Returns:
            The status it was left in; `running` if it is to be handed back.

        Raises:
            LeaseLost: Another worker has it.
        """
        try:
            if self._execution is None:
                await self._enter()
            self._board.fence = self.run.fence
            return await self._advance()
        except NonDeterminism as error:
            return await self._set_aside(error)
        finally:
            if self.run.status is not Status.WAITING:
                self._board.cancel_all()
                self.evict()

    async def _advance(self) -> Status:
        while True:
            self._wake.clear()
            if self._lost:
                raise LeaseLost(f"another worker took over run {self.id!r}", run_id=self.id)
            if self._stale_inbox:
                await self._refresh_inbox()
            self._absorb()
            ending = self._ending()
            status = self._next_status(ending)
            starting = self._starting(status)
            if self._must_commit(status, starting) and not await self._commit(
                status, ending, starting
            ):
                continue
            if status is not Status.RUNNING:
                return status
            for state in starting:
                self._board.start(state, self._body)
            if self.draining and not self._board.running:
                return status
            if not self._more_facts():
                await self._sleep()

    async def _sleep(self) -> None:
        """Wait until something happens or falls due."""
        due = self._next_due()
        alarm: Alarm | None = None
        if due is not None:
            alarm = self._services.clock.call_at(due, self._wake.set)
        self._waiting = True
        try:
            await self._wake.wait()
        finally:
            self._waiting = False
            if alarm is not None:
                alarm.cancel()

    # -- entering ---------------------------------------------------------------------------------

    @property
    def _body(self) -> Execution:
        assert self._execution is not None
        return self._execution

    async def _enter(self) -> None:
        """Build the body and replay what is recorded."""
        run = self.run
        self._ending_override: Ending | None = None
        if run.recoveries > self._services.max_recoveries:
            self._ending_override = poisoned(run)
        archived = await self._services.store.load_archive(run.id, run.journal_base)
        recorded = [*archived, *run.journal]
        self._tail = JournalTail(run.journal_base, run.journal)
        self._floor = recorded[-1].at if recorded else run.started_at or run.created_at
        self._pausing: Message | None = None
        self._consumed: list[str] = []
        self._awaiting = tuple(run.awaiting)
        # The journal is in the body now; a parked run must not hold it twice.
        self.run = msgspec.structs.replace(run, journal=[])
        self._execution = Execution(
            self.run, self.workflow, limit=self._services.payload_limit, recorded=recorded
        )
        if self._ending_override is None:
            self._replay(recorded)

    def _replay(self, recorded: list[Entry]) -> None:
        self._on_turn(self.id)
        try:
            self._body.start(replaying=self.run.rev > 0)
        except ValidationError as error:  # an input that can't be read must fail the run at once
            self._ending_override = fail(error, self.run, self._body)
            return
        self._body.replay(recorded)
        self._on_turn(None)
        failures: dict[str, list[Entry]] = {}
        for entry in recorded:
            if entry.kind is EntryKind.ATTEMPT:
                failures.setdefault(entry.id, []).append(entry)
        self._take_commands(failures)

    async def _rebuild(self) -> None:
        """Throw away what isn't committed but the facts of steps, and start from what is stored."""
        kept = [e for e in self._tail.pending if e.kind in (EntryKind.STEP, EntryKind.ATTEMPT)]
        run = await self._services.store.load_run(self.id)
        if run is None or run.fence != self.run.fence or run.status is not Status.RUNNING:
            raise LeaseLost(f"another worker took over run {self.id!r}", run_id=self.id)
        self.evict()
        self._news.clear()
        self.run = run
        self._board.facts.extendleft(reversed(kept))
        await self._enter()

    async def _refresh_inbox(self) -> None:
        self._stale_inbox = False
        run = await self._services.store.load_run(self.id)
        if run is None or run.fence != self.run.fence:
            raise LeaseLost(f"another worker took over run {self.id!r}", run_id=self.id)
        taken = set(self._consumed)
        inbox = [message for message in run.inbox if message.id not in taken]
        self.run = msgspec.structs.replace(self.run, inbox=inbox, inbox_seq=run.inbox_seq)

    # -- absorbing facts --------------------------------------------------------------------------

    def _absorb(self) -> None:
        """Apply all facts at hand to the body, one at a time."""
        self._on_turn(self.id)
        while (entry := self._next_entry()) is not None:
            self._body.apply(entry)
            self._floor = entry.at
            self._tail.append(entry)
            if entry.kind is EntryKind.ATTEMPT:
                self._board.note_failure(entry)
            elif entry.kind is EntryKind.STEP:
                self._board.remove(entry.id)
            self._news.of_entry(entry, self.run)
            self._take_commands({})
        self._on_turn(None)

    def _more_facts(self) -> bool:
        return bool(self._board.facts)

    def _next_entry(self) -> Entry | None:
        """Return the next fact as an entry. Messages go first: they are acknowledged already."""
        if self._tail.pending_bytes > MAX_COMMIT_BYTES or self._ending_override is not None:
            return None
        if self._body.outcome is not None and not self._winding_up():
            return None
        return self._next_message() or self._next_fact() or self._next_timer()

    def _next_message(self) -> Entry | None:
        slots = [c.slot for c in self._body.open.values() if isinstance(c, SlotCommand)]
        for message in self.run.inbox:
            if message.kind is MessageKind.PAUSE:
                self._pausing = message
                continue
            if message.kind is MessageKind.CANCEL:
                return self._take(message, CANCEL)
            slot = next((slot for slot in slots if _fits(message, slot)), None)
            if slot is not None:
                return self._take(message, slot.id)
        return None

    def _take(self, message: Message, entry_id: str) -> Entry:
        inbox = [other for other in self.run.inbox if other is not message]
        self.run = msgspec.structs.replace(self.run, inbox=inbox)
        self._consumed.append(message.id)
        return self._entry(
            entry_id, EntryKind.MESSAGE, self._now(), value=message.payload, message=message.id
        )

    def _next_fact(self) -> Entry | None:
        facts = self._board.facts
        while facts:
            fact = facts.popleft()
            if fact.id in self._body.open:
                return msgspec.structs.replace(
                    fact, at=max(fact.at, self._floor), fence=self.run.fence
                )
        return None

    def _next_timer(self) -> Entry | None:
        timers = [c for c in self._body.open.values() if isinstance(c, TimerCommand)]
        first = min(timers, key=lambda timer: timer.due, default=None)
        now = self._now()
        if first is None or first.due > now:
            return None
        return self._entry(first.id, EntryKind.TIMER, now)

    def _entry(self, id_: str, kind: EntryKind, at: datetime, **fields: Any) -> Entry:
        return Entry(id=id_, kind=kind, at=at, fence=self.run.fence, **fields)

    def _now(self) -> datetime:
        return max(self._services.clock.now(), self._floor)

    def _take_commands(self, failures: dict[str, list[Entry]]) -> None:
        """Take in what the body asked for and what it withdrew."""
        stored = {attempt.id: attempt for attempt in self.run.attempts}
        for command in self._body.take_issued():
            if isinstance(command, StepCommand):
                self._board.add(
                    command,
                    failures=failures.get(command.id, []),
                    stored=stored.get(command.id),
                )
        for step_id in self._body.take_withdrawn():
            self._board.remove(step_id)
        for patch in self._body.new_patches:
            self._tail.append(self._entry(patch, EntryKind.PATCH, self._floor))
        self._body.new_patches.clear()

    # -- what follows -----------------------------------------------------------------------------

    def _winding_up(self) -> bool:
        """Whether a cancelled body has left steps running that it shielded: they may finish."""
        return isinstance(self._body.outcome, Cancelled) and any(
            isinstance(command, StepCommand) for command in self._body.open.values()
        )

    def _ending(self) -> Ending | None:
        if self._ending_override is not None:
            return self._ending_override
        if self._body.outcome is None or self._winding_up():
            return None
        return settle(self._body, self.run, self.workflow, self._services.payload_limit)

    def _next_status(self, ending: Ending | None) -> Status:
        if ending is not None:
            return ending.status
        if self._board.running:
            return Status.RUNNING
        if self._pausing is not None:
            return Status.PAUSED
        now = self._services.clock.now()
        due = self._next_due()
        if self._board.ready(now, self._body) or self.draining:
            return Status.RUNNING
        if due is not None and due <= now + self._services.hold:
            return Status.RUNNING
        return Status.WAITING

    def _next_due(self) -> datetime | None:
        """Return when the next timer or retry is due."""
        times = [c.due for c in self._body.open.values() if isinstance(c, TimerCommand)]
        retry = self._board.next_retry()
        return min([*times, *([retry] if retry else [])], default=None)

    def _starting(self, status: Status) -> list[StepState]:
        if status is not Status.RUNNING or self.draining or self._pausing is not None:
            return []
        return self._board.ready(self._services.clock.now(), self._body)

    def _open_slots(self) -> tuple[Slot, ...]:
        return tuple(c.slot for c in self._body.open.values() if isinstance(c, SlotCommand))

    # -- committing -------------------------------------------------------------------------------

    def _must_commit(self, status: Status, starting: list[StepState]) -> bool:
        if status is not Status.RUNNING or self._tail.pending or self._consumed:
            return True
        # A wait that nobody can see can't be answered; a step that may not run twice must be known.
        return (
            any(slot.kind is SlotKind.WAIT for slot in self._open_slots())
            and self._open_slots() != self._awaiting
        ) or any(state.at_most_once for state in starting)

    async def _commit(
        self, status: Status, ending: Ending | None, starting: list[StepState]
    ) -> bool:
        """Write what happened and what follows. False if it must be thought over again."""
        commit = self._build_commit(status, ending, starting)
        try:
            result = await self._write(commit)
        except PayloadTooLarge as error:
            if self._ending_override is not None:
                raise
            _log.error("run %r can't be stored: %s", self.id, error)
            self._ending_override = fail(error, self.run, self._body)
            self._tail.pending.clear()
            return False
        if result is CommitResult.LOST:
            raise LeaseLost(
                f"another worker took over run {self.id!r}, or it was ended", run_id=self.id
            )
        if result is CommitResult.INBOX_MOVED:
            await self._rebuild()
            return False
        self._landed(commit)
        return True

    async def _write(self, commit: Commit) -> CommitResult:
        """Commit, through outages, for as long as the claim may hold."""
        while True:
            try:
                return await self._services.store.commit(commit)
            except ServerUnavailable as error:
                self._news.engine_error(error, self.run, self._services.clock.now())
                if self._lost:
                    return CommitResult.LOST
                await asyncio.sleep(RETRY_OUTAGE)

    def _build_commit(
        self, status: Status, ending: Ending | None, starting: list[StepState]
    ) -> Commit:
        slots = () if ending is not None else self._open_slots()
        moved = slots != self._awaiting
        now = self._services.clock.now()
        consumed = tuple(self._consumed)
        if status is Status.PAUSED and self._pausing is not None:
            consumed += (self._pausing.id,)
        commit = Commit(
            run_id=self.id,
            fence=self.run.fence,
            rev=self.run.rev,
            status=status,
            entries=tuple(self._tail.pending),
            consumed=consumed,
            # Whoever parks, ends or closes a slot must know of every message that was accepted.
            inbox_seq=self.run.inbox_seq if moved or status is not Status.RUNNING else None,
            due_at=self._next_due() if status is Status.WAITING else None,
            awaiting=slots if moved else None,
            attempts=self._board.attempts(starting, now) if status is Status.RUNNING else (),
            context=dict(self._body.context) if self._context_changed() else None,
            archive=self._tail.to_archive(),
            journal_base=self._tail.base,
        )
        return commit if ending is None else self._ended(commit, ending, now)

    def _context_changed(self) -> bool:
        return self._body.context_changed or any(e.context for e in self._tail.pending)

    def _ended(self, commit: Commit, ending: Ending, now: datetime) -> Commit:
        expire_after = self.run.expire_after
        return msgspec.structs.replace(
            commit,
            output=ending.output,
            error=ending.failure,
            ended_at=now,
            expire_at=None if expire_after is None else now + timedelta(seconds=expire_after),
        )

    def _landed(self, commit: Commit) -> None:
        self._tail.landed(len(commit.archive))
        self._consumed.clear()
        self._body.context_changed = False
        self._awaiting = self._awaiting if commit.awaiting is None else commit.awaiting
        context = self.run.context if commit.context is None else dict(commit.context)
        self.run = msgspec.structs.replace(
            self.run,
            rev=commit.rev + 1,
            status=commit.status,
            context=context,
            output=commit.output,
            error=commit.error,
            ended_at=commit.ended_at,
            expire_at=commit.expire_at,
            recoveries=0 if commit.entries else self.run.recoveries,
            attempts=list(commit.attempts or ()),
        )
        self._news.of_commit(commit, self.run, self._services.clock.now())
        self._news.flush()

    async def _set_aside(self, error: NonDeterminism) -> Status:
        """Pause a run whose code no longer fits; nothing of it is lost.

        A run that was asked to end does so instead: its cleanup can't be reached any more.
        """
        _log.error("%s", error)
        self.evict()
        self._board.cancel_all()
        ending = fail(error, self.run, None)
        cancel = next((m for m in self.run.inbox if m.kind is MessageKind.CANCEL), None)
        status = Status.PAUSED if cancel is None else Status.CANCELLED
        commit = Commit(
            run_id=self.id,
            fence=self.run.fence,
            rev=self.run.rev,
            status=status,
            consumed=() if cancel is None else (cancel.id,),
            error=ending.failure,
            ended_at=None if cancel is None else self._services.clock.now(),
        )
        if await self._write(commit) is CommitResult.LOST:
            raise LeaseLost(f"another worker took over run {self.id!r}", run_id=self.id)
        self.run = msgspec.structs.replace(
            self.run, rev=commit.rev + 1, status=status, error=ending.failure
        )
        self._news.clear()
        self._news.of_commit(commit, self.run, self._services.clock.now())
        self._news.flush()
        return status

    # -- heartbeats -------------------------------------------------------------------------------

    def _beat(self, step_id: str, details: Any) -> None:
        """Record a heartbeat, at most once a second for each step."""
        now = self._services.clock.now()
        last = self._last_beat.get(step_id)
        if last is not None and now - last < timedelta(seconds=1):
            return
        self._last_beat[step_id] = now
        task = asyncio.get_running_loop().create_task(self._store_beat(step_id, details))
        self._beats.add(task)
        task.add_done_callback(self._beats.discard)

    async def _store_beat(self, step_id: str, details: Any) -> None:
        try:
            held = await self._services.store.heartbeat(self.id, self.run.fence, step_id, details)
        except ServerUnavailable as error:
            self._news.engine_error(error, self.run, self._services.clock.now())
            return
        if not held and not self._board.running:
            _log.debug("a heartbeat of step %r of run %r came too late", step_id, self.id)


def _fits(message: Message, slot: Slot) -> bool:
    if message.kind is MessageKind.RESUME:
        return message.name == slot.id
    return slot.kind is SlotKind.RECEIVE and message.name == slot.name
