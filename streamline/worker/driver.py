"""`RunDriver`: advances one claimed run. Facts come in, entries and consequences go out as commits.

A fact is what happened outside the body: an attempt ended, a timer is due, a message lies in the
inbox. The driver lets the session apply the facts, looks what the body wants next, and writes both
in one commit; only then do new steps start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from streamline.clock import Alarm
from streamline.definitions import Workflow
from streamline.errors import NonDeterminism, PayloadTooLarge
from streamline.model import Commit, CommitResult, Entry, EntryKind, Run, Status
from streamline.replay import ChildCommand
from streamline.worker import composing, generations
from streamline.worker.children import unseen, unstarted
from streamline.worker.ending import Ending
from streamline.worker.heartbeats import Heartbeats
from streamline.worker.held import HeldRun
from streamline.worker.news import News
from streamline.worker.nursery import Nursery
from streamline.worker.services import Services
from streamline.worker.session import Session
from streamline.worker.steps import StepBoard, StepState
from streamline.worker.wake import Wake

_log = logging.getLogger(__name__)

# Not `cancelled`: that may be the cancel's own doing, which is consumed with it.
_NEEDS_INBOX = frozenset({Status.WAITING, Status.DONE, Status.FAILED})
_FACTS = frozenset({EntryKind.STEP, EntryKind.ATTEMPT, EntryKind.CHILD})


def _is_fact(entry: Entry) -> bool:
    """Whether an entry tells what neither the inbox nor the clock will tell again."""
    found = entry.kind is EntryKind.OUTCOME and entry.message is None
    return found or entry.kind in _FACTS


class Plan(msgspec.Struct, frozen=True, gc=False):
    """What follows from what happened: the run's next status, and what is to begin in it."""

    status: Status
    starting: Sequence[StepState] = ()
    calling: Sequence[ChildCommand] = ()


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
        self._workflow = workflow
        self._services = services
        self._on_turn = on_turn
        self._wake = Wake()
        self._waiting = False
        self._draining = False
        self._stale_inbox = False
        self._crowded = False  # whether messages came in faster than the last commit
        self._news = News(services.events, services.clock)
        self.held: HeldRun = HeldRun(run, services, self._news)
        self._heartbeats = Heartbeats(services, self._news, self.held, self._wake.call)
        self._board = StepBoard(
            services,
            workflow.step_defaults,
            self.held,
            on_change=self._wake.call,
            on_heartbeat=self._heartbeats.beat,
        )
        self._session: Session | None = None
        self._nursery = Nursery(services, self._board.facts, self.held.persist)

    # -- from outside -----------------------------------------------------------------------------

    @property
    def run(self) -> Run:
        """The run as this worker knows it."""
        return self.held.run

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
        return None if self._session is None else self._session.next_due()

    @property
    def seen(self) -> Run:
        """The run as its document is, as far as this worker knows; without journal and inbox."""
        session = self._session
        if session is None:
            return self.run
        return msgspec.structs.replace(
            self.run, awaiting=list(session.awaiting), journal_base=session.tail.base
        )

    @property
    def quiet(self) -> bool:
        """Whether it waits, perhaps for a step."""
        return self._waiting and not self._wake.is_set()

    @property
    def idle(self) -> bool:
        """Whether it only waits: for a timer, a retry or a message."""
        return self.quiet and not self._board.running

    def hint(self) -> None:
        """Take a hint that messages came in."""
        self._stale_inbox = True
        self._wake.call()

    @property
    def hinted(self) -> bool:
        """Whether a hint came in that has not been followed."""
        return self._stale_inbox

    @property
    def inbox_seq(self) -> int:
        """How many messages are known to have come in."""
        return self.run.inbox_seq if self._session is None else self._session.inbox.seq

    def lose(self) -> None:
        """Take in that the claim is lost: cancel the steps at once, write nothing any more."""
        self.held.lost = True
        self._board.cancel_all()
        self._wake.call()

    def extend(self, until: datetime) -> None:
        """Take in that the claim was renewed."""
        was_over = self.held.lease_is_over
        self.held.lease_until = until
        if was_over:
            self._wake.call()

    def drain(self) -> None:
        """Start no further steps; the run is handed back once the running ones have ended."""
        self._draining = True
        self._wake.call()

    def abandon(self) -> None:
        """Drop everything, as if the process had died."""
        self._board.cancel_all()
        self.evict()

    def evict(self) -> None:
        """Drop the body from memory."""
        if self._session is not None:
            self._session.evict()
            self._session = None

    @property
    def can_go_on(self) -> bool:
        """Whether its body is in memory and still as the run was parked."""
        return self._session is not None and not self.held.lost

    def reclaim(self, run: Run) -> bool:
        """Go on with a parked run that was claimed again, if nobody wrote to it meanwhile."""
        # Another run may have been put in this one's place, and have come to the same `rev`.
        same = run.created_at == self.run.created_at and run.rev == self.run.rev
        # One that lost its claim, or seemed to as it parked, has forgotten the steps it waits for.
        if self._session is None or not self.can_go_on or not same:
            return False
        self._session.reclaim(run)
        self.held.run = self._session.run
        self._stale_inbox = False  # the claim brought the inbox as it is
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
            if self._session is None:
                await self._open(self.run)
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
            await self._look_at_inbox()
            session = self._live
            session.absorb()
            if session.inbox.wanted is not None:
                await self._supply(session)
                continue
            ending = session.ending()
            plan = self._plan(session, ending)
            if crowded := self._is_crowded_out(session, plan):
                # What happened goes first, and no message can refuse it; then the end or the park
                # alone. Else a run that gets messages all the time would never get anywhere.
                ending, plan = None, self._to_go_on(session)
            if ending is not None or self._must_commit(session, plan):
                commit = self._build_commit(session, plan, ending)
                if not await self._commit(session, commit) or crowded:
                    continue
                if commit.continuation is not None:
                    await self._begin_anew()
                    continue
            if plan.status is not Status.RUNNING:
                return plan.status
            # A process that stood still for longer than its lease may have lost the run: another
            # may have run these steps, and recorded them. The next renewal tells.
            now = self._services.clock.now()
            suspended = self.held.lost or self.held.lease_is_over_at(now)
            if not suspended:
                await self._start(session, plan, now)
            if self._draining and not self._board.running:
                return plan.status
            if not (self._board.facts or self.held.lost):
                await self._sleep(None if suspended else session.next_due())

    async def _start(self, session: Session, plan: Plan, now: datetime) -> None:
        for state in plan.starting:
            self._board.start(state, session.body, now)
        if plan.calling:
            await self._nursery.start(self.run, session.inbox, plan.calling)

    def _is_crowded_out(self, session: Session, plan: Plan) -> bool:
        """Whether messages keep this commit from landing that don't concern what happened."""
        if not self._crowded or session.forced:
            return False
        return session.unwritten and plan.status in _NEEDS_INBOX

    async def _sleep(self, due: datetime | None) -> None:
        """Wait until something happens or falls due."""
        alarm: Alarm | None = None
        if due is not None:
            alarm = self._services.clock.call_at(due, self._wake.call)
        self._waiting = True
        try:
            await self._wake.called()
        finally:
            self._waiting = False
            if alarm is not None:
                alarm.cancel()

    # -- the session ------------------------------------------------------------------------------

    @property
    def _live(self) -> Session:
        assert self._session is not None
        return self._session

    async def _open(self, run: Run) -> None:
        archived = await self.held.load_archive(run)
        run = await self.held.with_input(run)
        session = Session(
            run, archived, self._workflow, self._services, self._board, self._news, self._on_turn
        )
        await session.replay(self.held.at_hand)
        self._session = session
        self.held.run = session.run
        await self._nursery.hear(session.body, session.inbox)
        if run.parent is not None and await self._nursery.gave_up_orphan(run):
            self.hint()

    async def _supply(self, session: Session) -> None:
        """Load the large payload of the message that is to be taken next."""
        assert session.inbox.wanted is not None
        session.inbox.supply(await self.held.with_payload(session.inbox.wanted))

    async def _rebuild(self, session: Session) -> None:
        """Throw away what isn't committed but the facts of steps, and start from what is stored."""
        facts = [entry for entry in session.tail.pending if _is_fact(entry)]
        run = await self.held.reload()
        self.evict()
        self._news.clear()
        self._board.facts.extendleft(reversed(facts))
        await self._open(run)

    async def _begin_anew(self) -> None:
        """Go on with the next generation, by the newest code; what ran for the last one goes."""
        self._board.cancel_all()
        await asyncio.sleep(0)  # a body that awaits nothing would keep everybody else waiting
        run = await self.held.reload()
        self.evict()
        self._workflow = self._services.registry.find_code(run.code)
        await self._open(run)

    async def _look_at_inbox(self) -> None:
        if self._stale_inbox and not self.held.lost:
            self._stale_inbox = False
            self._live.refresh(await self.held.reload(journal=False))
        # After the wait, too: without its steps, which are forgotten, the run would be parked.
        if self.held.lost:
            raise self.held.lease_lost()

    # -- what follows -----------------------------------------------------------------------------

    def _plan(self, session: Session, ending: Ending | None) -> Plan:
        if ending is not None:
            return Plan(ending.status)
        if session.pause_asked:
            return Plan(Status.RUNNING if self._board.running else Status.PAUSED)
        plan = self._to_go_on(session)
        stays = plan.starting or plan.calling or self._draining or self._board.running
        return plan if stays or self._is_due_soon(session) else Plan(Status.WAITING)

    def _to_go_on(self, session: Session) -> Plan:
        """Return what is to begin if the run stays here."""
        if self._draining or session.pause_asked:
            return Plan(Status.RUNNING)
        starting = self._board.ready(session.body)
        return Plan(Status.RUNNING, starting, unstarted(session.body, self._board.facts))

    def _is_due_soon(self, session: Session) -> bool:
        due = session.next_due()
        return due is not None and due <= self._services.clock.now() + self._services.hold

    def _must_commit(self, session: Session, plan: Plan) -> bool:
        return (
            plan.status is not Status.RUNNING
            or session.unwritten
            or session.waits_unseen
            or self._heartbeats.unseen
            # A step that may not run twice must be known to have begun.
            or any(state.at_most_once for state in plan.starting)
            or unseen(plan.calling, session.awaiting)
        )

    # -- committing -------------------------------------------------------------------------------

    def _build_commit(self, session: Session, plan: Plan, ending: Ending | None) -> Commit:
        now = self._services.clock.now()
        running = plan.status is Status.RUNNING
        attempts = self._board.attempts(plan.starting, now) if running else ()
        commit = composing.compose(
            self.run, session, plan.status, ending=ending, attempts=attempts, now=now
        )
        if ending is None:
            return commit
        if ending.continues_with is not None:
            newest = self._services.registry.find_code(self.run.code)
            return generations.continued(commit, session, ending.continues_with, newest)
        return composing.ended(commit, ending, self.run, now)

    async def _commit(self, session: Session, commit: Commit) -> bool:
        """Write what happened and what follows. False if it must be thought over again."""
        try:
            result = await self.held.write(commit)
        except PayloadTooLarge as error:
            if session.forced:
                raise
            _log.error("run %r can't be stored: %s", self.id, error)
            session.force(error)
            return False
        if result is CommitResult.LOST:
            raise self.held.lease_lost()
        if result is CommitResult.INBOX_MOVED:
            self._crowded = True
            if session.unwritten or commit.consumed:
                await self._rebuild(session)
            else:  # nothing was applied that isn't stored
                session.refresh(await self.held.reload(journal=False))
            return False
        self._landed(session, commit)
        return True

    def _landed(self, session: Session, commit: Commit) -> None:
        self._crowded = self._crowded and commit.status is Status.RUNNING
        entries = len(session.tail)
        session.tail.landed(len(commit.archive))
        session.inbox.taken.clear()
        session.body.requests.clear()
        self._heartbeats.unseen = False
        if commit.awaiting is not None:
            session.awaiting = commit.awaiting
        self._note(commit)
        session.run = self.run
        # At the one commit that passes it: once, whoever drives the run and however often.
        limit = self._services.journal_warning
        if limit is not None and commit.entries and entries < limit <= len(session.tail):
            self._news.long_journal(len(session.tail), self.run)

    def _note(self, commit: Commit) -> None:
        """Take in what the document says now, and tell of it."""
        self.held.note(commit)
        self._news.of_commit(commit, self.run)
        self._news.flush()
        if commit.outbox and self._services.courier is not None:
            self._services.courier.send(self.run, commit.outbox)

    async def _set_aside(self, error: NonDeterminism) -> Status:
        """Pause a run whose code no longer fits, or let it end if it was asked to."""
        _log.error("%s", error)
        self._board.cancel_all()
        self.evict()
        self._news.clear()
        while True:
            run = await self.held.reload()
            commit = composing.set_aside(run, error, self._services.clock.now())
            result = await self.held.write(commit)
            if result is CommitResult.LOST:
                raise self.held.lease_lost()
            if result is CommitResult.LANDED:
                self._note(commit)
                return commit.status
