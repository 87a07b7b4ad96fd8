"""`HeldRun`: one claimed run as this worker knows it, and its way to the store.

Owns the claim: whether it holds, what is read and written under it, through outages. Knows no body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import TypeVar

import msgspec

from streamline.errors import LeaseLost, ServerUnavailable
from streamline.model import Commit, CommitResult, Entry, Message, Run, Status
from streamline.store import Spill
from streamline.worker.news import News
from streamline.worker.services import Services

T = TypeVar("T")

RETRY_OUTAGE = 0.5
"""Seconds between tries while the server is away."""


class HeldRun:
    """A run under a claim.

    Args:
        run: The run as claimed; what is known of it changes with every commit.
        services: The worker's.
        news: Who hears of outages.
    """

    def __init__(self, run: Run, services: Services, news: News) -> None:
        self.run: Run = run
        self.lost: bool = False
        """Whether the claim is known to be lost: then nothing is written any more."""
        self.continuing: bool = False
        """Whether a commit is on its way that raises the fence: only its result tells."""
        self.lease_until: datetime | None = None
        """When the claim runs out unless it is renewed; None where nothing tells."""
        self._services = services
        self._news = news
        self._spill = Spill(services.store)

    @property
    def lease_is_over(self) -> bool:
        """Whether the claim has run out, as far as is known: another worker may have the run."""
        return self.lease_is_over_at(self._services.clock.now())

    def lease_is_over_at(self, now: datetime) -> bool:
        """Whether it has run out at an instant, likewise."""
        return self.lease_until is not None and now >= self.lease_until

    def lease_lost(self) -> LeaseLost:
        """Return the error for a claim that is lost."""
        run_id = self.run.id
        return LeaseLost(f"another worker took over run {run_id!r}, or it was ended", run_id=run_id)

    async def persist(self, verb: Callable[[], Awaitable[T]]) -> T:
        """Ask the store, through outages, for as long as the claim may hold.

        An outage is no fault of the run's: it must neither fail it nor count against it.

        Raises:
            LeaseLost: The claim is known to be lost.
        """
        while True:
            try:
                return await verb()
            except ServerUnavailable as error:
                await self._outlast(error)

    async def _outlast(self, error: ServerUnavailable) -> None:
        self._news.engine_error(error, self.run)
        if self.lost:
            raise self.lease_lost() from error
        await asyncio.sleep(RETRY_OUTAGE)

    # -- reading ----------------------------------------------------------------------------------

    async def reload(self, *, journal: bool = True) -> Run:
        """Return the run as it is stored.

        Raises:
            LeaseLost: It is another's, or has ended.
        """
        store = self._services.store
        run = await self.persist(lambda: store.load_run(self.run.id, journal=journal))
        if run is None or run.fence != self.run.fence or run.status is not Status.RUNNING:
            raise self.lease_lost()
        if run.spilled:  # by a message
            self.run = msgspec.structs.replace(self.run, spilled=True)
        return run

    async def load_archive(self, run: Run) -> list[Entry]:
        """Return the entries that were moved out of a run's document."""
        if not run.journal_base:
            return []
        store = self._services.store
        return await self.persist(lambda: store.load_archive(run.id, run.journal_base))

    async def with_input(self, run: Run) -> Run:
        """Return a run with its input, which may be kept outside of its document."""
        if run.input.payload is None:
            return run
        given = await self.persist(lambda: self._spill.input(run.input, run.id))
        return msgspec.structs.replace(run, input=given)

    async def at_hand(self, entry: Entry) -> Entry:
        """Return an entry with its value, which may be kept outside of the journal."""
        return await self.persist(lambda: self._spill.entry(entry, self.run.id))

    async def with_payload(self, message: Message) -> Message:
        """Return a message with its payload, which may be kept outside of the inbox."""
        load = self._spill.load
        payload = await self.persist(lambda: load(message.payload, self.run.id, message.place))
        return message.with_payload(payload)

    # -- writing ----------------------------------------------------------------------------------

    async def write(self, commit: Commit) -> CommitResult:
        """Write a commit, its large payloads first.

        Raises:
            LeaseLost: The claim is known to be lost.
        """
        self.continuing = commit.continuation is not None
        try:
            if commit.spilled:
                commit = await self.persist(partial(self._spill.commit, commit))
            while True:  # as `persist` does, which would take a little more with every step
                try:
                    return await self._services.store.commit(commit)
                except ServerUnavailable as error:
                    await self._outlast(error)
        finally:
            self.continuing = False

    def note(self, commit: Commit) -> None:
        """Take in what the document says now that a commit has landed."""
        run = self.run
        self.run = msgspec.structs.replace(
            run,
            rev=commit.rev + 1,
            fence=commit.next_fence,
            status=commit.status,
            spilled=run.spilled or commit.spilled,
            context=run.context if commit.context is None else dict(commit.context),
            output=commit.output,
            error=commit.error,
            ended_at=commit.ended_at,
            ended_by=commit.ended_by,
            expire_at=commit.expire_at,
            recoveries=0 if commit.entries else run.recoveries,
            attempts=list(commit.attempts or ()),
        )
