"""`Session`: what a worker derives from a stored run: its body, its journal, its inbox.

Facts go in and are applied to the body one at a time; entries and commands come out. Nothing here
writes. When the store refuses a commit because a message came in, the driver throws the session
away and builds another from what is stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from streamline.codec import LargePayload
from streamline.definitions import Workflow
from streamline.errors import ValidationError
from streamline.model import Dispatch, Entry, EntryKind, Message, MessageKind, Run, Slot, SlotKind
from streamline.replay import (
    CANCEL,
    Cancelled,
    ChildCommand,
    Command,
    Execution,
    StepCommand,
)
from streamline.worker.children import children_of, dispatches, outcome_entries, strays
from streamline.worker.ending import Ending, cancelled, fail, poisoned, settle
from streamline.worker.inbox import Inbox
from streamline.worker.news import News
from streamline.worker.services import Services
from streamline.worker.steps import StepBoard
from streamline.worker.tail import JournalTail

KEPT_IDS = 1000
"""How many ids of taken messages outlive `continue_as_new`, so that a repeated one counts once."""
MAX_COMMIT_BYTES = 4 * 1024 * 1024
"""Facts beyond this wait for the next commit, so that a document's room is never overrun."""


class Session:
    """The working state of one run.

    Args:
        run: The run as stored.
        archived: The entries that were moved out of its document.
        workflow: The code.
        services: The worker's.
        board: The run's steps; it outlives the session.
        news: Where events are gathered.
        on_turn: Called with the run's id before its body runs, and with None after.
    """

    def __init__(
        self,
        run: Run,
        archived: Sequence[Entry],
        workflow: Workflow[..., Any],
        services: Services,
        board: StepBoard,
        news: News,
        on_turn: Callable[[str | None], None],
    ) -> None:
        recorded = [*archived, *run.journal]
        # The journal is in the body now; a parked run must not hold it twice.
        bare = msgspec.structs.replace(run, journal=[], inbox=[])
        self.inbox: Inbox = Inbox(run)
        self.tail: JournalTail = JournalTail(run.journal_base, run.journal)
        self.awaiting: tuple[Slot, ...] = tuple(run.awaiting)
        self.body: Execution = Execution(
            bare, workflow, limit=services.limits.document, recorded=recorded
        )
        self.run: Run = _without_content(bare)
        self.body.run = self.run
        self._workflow = workflow
        self._services = services
        self._board = board
        self._news = news
        self._on_turn = on_turn
        self._floor = recorded[-1].at if recorded else run.body_began_at
        # Not those of outcomes: one that comes twice is dropped, and they might be many.
        messages = (entry for entry in recorded if entry.kind is EntryKind.MESSAGE)
        taken = (entry.message for entry in messages if entry.message is not None)
        earlier = () if run.past is None else run.past.taken
        self.message_ids: deque[str] = deque([*earlier, *taken], KEPT_IDS)
        """The ids of the last messages taken, those of earlier generations included."""
        self._settled: Ending | None = None
        self._recorded = recorded
        poisonous = run.recoveries > services.max_recoveries
        self._forced: Ending | None = poisoned(run) if poisonous else None

    def reclaim(self, run: Run) -> None:
        """Go on under another claim of the same, parked, run."""
        self.run = msgspec.structs.replace(run, journal=[], inbox=[])
        self.body.run = self.run
        self.refresh(run)

    def refresh(self, run: Run) -> None:
        """Take in which messages and open slots are stored now."""
        self.inbox.refresh(run)
        self.awaiting = tuple(run.awaiting)

    def evict(self) -> None:
        """Drop the body."""
        self.body.evict()

    async def replay(self, at_hand: Callable[[Entry], Awaitable[Entry]]) -> None:
        """Bring the body to where the journal ends.

        Args:
            at_hand: Returns an entry with its value, which may be kept outside of the journal.
        """
        recorded, self._recorded = self._recorded, []
        if self._forced is not None:
            return
        try:
            self._start()
            if not self.run.spilled:
                self._apply_recorded(recorded)
            else:
                # One by one: together, large results may take more memory than there is.
                for entry in recorded:
                    self._apply_recorded([await at_hand(entry)])
        except ValidationError as error:  # an input that can't be read fails the run at once
            self._forced = fail(error, self.run, self.body)
            return
        except BaseException:
            self.body.evict()
            raise
        self._take_recorded_commands(recorded)

    def _start(self) -> None:
        self._on_turn(self.run.id)
        try:
            self.body.start(replaying=self.run.rev > self.run.body_began_rev)
        finally:
            self._on_turn(None)

    def _apply_recorded(self, recorded: Sequence[Entry]) -> None:
        self._on_turn(self.run.id)
        try:
            self.body.replay(recorded)
        finally:
            self._on_turn(None)

    def _take_recorded_commands(self, recorded: Sequence[Entry]) -> None:
        failures: dict[str, list[Entry]] = {}
        for entry in recorded:
            if entry.kind is EntryKind.ATTEMPT:
                failures.setdefault(entry.id, []).append(entry)
        self._take_commands(failures)

    # -- facts ------------------------------------------------------------------------------------

    def absorb(self) -> None:
        """Apply all facts at hand to the body, one at a time."""
        self._drop_strays()
        self._on_turn(self.run.id)
        try:
            while (entry := self._next_entry()) is not None:
                self._apply(entry)
        finally:
            self._on_turn(None)

    def _apply(self, entry: Entry) -> None:
        self.body.apply(entry)
        self._floor = entry.at
        self.tail.append(entry)
        if entry.kind is EntryKind.ATTEMPT:
            self._board.note_failure(entry)
        elif entry.kind is EntryKind.STEP:
            self._board.remove(entry.id)
        elif entry.kind is EntryKind.CHILD:
            self._drop_strays()  # it is known by now which run it is
        self._news.of_entry(entry, self.run)
        self._take_commands({})

    def _drop_strays(self) -> None:
        if self.inbox.empty:
            return
        if told := self.inbox.all_of(MessageKind.OUTCOME):
            self.inbox.drop(strays(self.body, told))

    def _next_entry(self) -> Entry | None:
        """Return the next fact as an entry. Messages go first: they are acknowledged already."""
        if self.tail.pending_bytes > MAX_COMMIT_BYTES or self._forced is not None:
            return None
        if self.body.outcome is not None and not self._winding_up:
            return None
        if not self.inbox.empty:
            entry = self._next_message()
            if entry is not None or self.inbox.wanted is not None:
                return entry
        fact = self._next_fact() if self._board.facts else None
        return fact or self._next_timer()

    def _next_message(self) -> Entry | None:
        while (taken := self.inbox.take(self._ready_slots())) is not None:
            message, slot = taken
            if message.kind is not MessageKind.OUTCOME:
                self.message_ids.append(message.id)
                return self._entry(
                    CANCEL if slot is None else slot.id,
                    EntryKind.MESSAGE,
                    self.now(),
                    value=message.payload,
                    message=message.id,
                )
            if (entry := self._next_outcome(message)) is not None:
                return entry
        return None

    def _next_outcome(self, message: Message) -> Entry | None:
        """Return what a message tells of the end of a run; whoever calls it twice is told once."""
        entries = outcome_entries(message, children_of(self.body), self.now())
        self._board.facts.extendleft(reversed(entries[1:]))
        return msgspec.structs.replace(entries[0], fence=self.run.fence) if entries else None

    def _next_fact(self) -> Entry | None:
        facts = self._board.facts
        while facts:
            fact = facts.popleft()
            command = self.body.open.get(fact.id)
            if command is not None and _answers(fact, command):
                if fact.at >= self._floor and fact.fence == self.run.fence:
                    return fact
                return msgspec.structs.replace(
                    fact, at=max(fact.at, self._floor), fence=self.run.fence
                )
        return None

    def _next_timer(self) -> Entry | None:
        timers = self.body.open.timers
        if not timers:
            return None
        first = min(timers.values(), key=lambda timer: timer.due)
        now = self.now()
        if first.due > now:
            return None
        return self._entry(first.id, EntryKind.TIMER, now)

    def _entry(self, id_: str, kind: EntryKind, at: datetime, **fields: Any) -> Entry:
        return Entry(id=id_, kind=kind, at=at, fence=self.run.fence, **fields)

    def now(self) -> datetime:
        """Return the time; it doesn't go back within a run."""
        return max(self._services.clock.now(), self._floor)

    def _take_commands(self, failures: dict[str, list[Entry]]) -> None:
        """Take in what the body asked for and what it withdrew."""
        body = self.body
        if body.open.issued:
            stored = {attempt.id: attempt for attempt in self.run.attempts}
            for command in body.open.take_issued():
                if isinstance(command, StepCommand):
                    known = stored.get(command.id)
                    self._board.add(command, failures=failures.get(command.id, ()), stored=known)
        if body.open.withdrawn:
            for command_id in body.open.take_withdrawn():
                self._board.remove(command_id)
        if body.new_patches:
            for patch in body.new_patches:
                self.tail.append(self._entry(patch, EntryKind.PATCH, self._floor))
            body.new_patches.clear()

    # -- what follows -----------------------------------------------------------------------------

    @property
    def _winding_up(self) -> bool:
        """Whether a cancelled body has left steps running that it shielded: they may finish."""
        return isinstance(self.body.outcome, Cancelled) and any(
            isinstance(command, StepCommand) for command in self.body.open.values()
        )

    def force(self, error: Exception) -> None:
        """Let the run fail with an error of the engine, and forget what can't be written."""
        self._forced = fail(error, self.run, self.body)
        self.tail.clear()

    @property
    def forced(self) -> bool:
        """Whether the run ends for a reason that isn't its body's."""
        return self._forced is not None

    def ending(self) -> Ending | None:
        """Return how the run ends, or this generation of it, if it does."""
        if self._forced is not None:
            return self._forced
        if self.body.outcome is None or self._winding_up:
            return None
        if not isinstance(self.body.outcome, Cancelled) and (taken := self.inbox.take(())):
            # Messages go first, so this cancel can only have come before the body began; the body
            # ended without awaiting anything and never saw it.
            return cancelled(self.run, taken[0].payload)
        if self._settled is None:  # once: an output may be large
            self._settled = settle(self.body, self.run, self._workflow, self._services.limits)
        return self._settled

    def next_due(self) -> datetime | None:
        """Return when the next timer or retry is due."""
        retry = self._board.next_retry()
        timers = self.body.open.timers
        if not timers:
            return retry
        first = min(timer.due for timer in timers.values())
        return first if retry is None else min(first, retry)

    def open_slots(self) -> tuple[Slot, ...]:
        """Return the slots that the body has open."""
        return tuple([command.slot for command in self.body.open.slots.values()])

    def _ready_slots(self) -> tuple[Slot, ...]:
        """Return the open slots that can take a message.

        A child must have been started; and so must all calls of its run, which are told together.
        """
        children = self.body.open.children.values()
        unready = {child.run_id for child in children if not child.started}
        return tuple(
            [
                command.slot
                for command in self.body.open.slots.values()
                if not isinstance(command, ChildCommand) or command.run_id not in unready
            ]
        )

    def dispatches(self, ending: Ending | None) -> list[Dispatch]:
        """Return what other runs are to be told with the next commit."""
        if not (self.body.requests or self.awaiting or ending):
            return []
        return dispatches(
            self.body,
            self.run,
            self.inbox,
            awaiting=self.awaiting,
            pending=self.tail.pending,
            ending=ending,
            forced=self.forced,
        )

    @property
    def unwritten(self) -> bool:
        """Whether something was applied to the body that isn't stored."""
        return bool(self.tail.pending or self.inbox.taken or self.body.requests)

    @property
    def has_waits(self) -> bool:
        """Whether the document shows a wait, which a resume may close at any moment."""
        return any(slot.kind is SlotKind.WAIT for slot in self.awaiting)

    @property
    def waits_unseen(self) -> bool:
        """Whether a wait was opened that the document doesn't show: nobody could answer it."""
        if not (self.body.open.slots or self.awaiting):
            return False
        slots = self.open_slots()
        return slots != self.awaiting and any(slot.kind is SlotKind.WAIT for slot in slots)

    @property
    def pause_asked(self) -> bool:
        """Whether the run is to be set aside."""
        if self.inbox.empty:
            return False
        # One that comes after a cancel holds once the cancel is taken.
        pause = self.inbox.find(MessageKind.PAUSE)
        return pause is not None and self.inbox.find(MessageKind.CANCEL) is None

    @property
    def context_changed(self) -> bool:
        """Whether the run's own state differs from what is stored."""
        return self.body.context != self.run.context


def _without_content(run: Run) -> Run:
    """Return a run whose large input is left to the body."""
    payload = run.input.payload
    if not isinstance(payload, LargePayload) or payload.ref is None:
        return run
    return msgspec.structs.replace(run, input=run.input.with_payload(payload.ref))


def _answers(fact: Entry, command: Command) -> bool:
    """Whether a fact is of the kind that a command waits for; one of a step always is."""
    return not isinstance(command, ChildCommand) or fact.kind is command.kind
