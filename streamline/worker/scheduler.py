"""`Scheduler`: finds runs that are due and claims them, while its worker has room.

One indexed query serves everything that time can wake: queued runs, sleeps, retries, delayed starts
and stale claims. Between queries it sleeps until the next known due time or a notice; polling is
only the net below.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from streamline.clock import Alarm
from streamline.events import Event
from streamline.model import Claim, Run
from streamline.worker.breaker import CircuitBreaker
from streamline.worker.services import Services

_log = logging.getLogger(__name__)

MIN_POLL = timedelta(milliseconds=20)
MAX_POLL = timedelta(seconds=1)
WATCHED_POLL = timedelta(seconds=5)
CLAIM_GRACE = 5.0
"""Seconds that a claim in flight gets when the worker stops."""
MAX_NAMED = 8
"""Up to so many runs that are known by id are claimed one by one; more are looked for together."""


def claim_number(run: Run) -> int:
    """Return which of its worker's claims a run is under; 0 if the claim's id doesn't tell."""
    number = (run.claim or "").rpartition("#")[2]
    return int(number) if number.isdecimal() else 0


class Scheduler:
    """The claiming half of a worker.

    Args:
        services: The worker's.
        worker: The worker's id.
        lease: Seconds.
        room: Returns how many more runs the worker can take.
        adopt: Takes a claimed run.
        polls: False where notices are never lost (in memory): then nothing is polled.
    """

    def __init__(
        self,
        services: Services,
        worker: str,
        lease: float,
        *,
        room: Callable[[], int],
        adopt: Callable[[Run], None],
        polls: bool,
    ) -> None:
        self.breaker: CircuitBreaker = CircuitBreaker()
        self.watched = False
        self.last_poll: datetime | None = None
        self._services = services
        self._worker = worker
        self._lease = lease
        self._room = room
        self._adopt = adopt
        self._polls = polls
        self._wake = asyncio.Event()
        self._named: dict[str, None] = {}
        self._sweep = True
        self._waiting = False
        self._full = False
        self._idle_polls = 0
        self._due: datetime | None = None
        self._alarm: Alarm | None = None
        self.claims: int = 0
        """How many this worker has made, of any kind."""

    @property
    def idle(self) -> bool:
        """Whether it waits for time or a notice."""
        return self._waiting and not self._wake.is_set()

    @property
    def lag(self) -> timedelta:
        """How long the longest due run has been waiting for a worker, as far as is known."""
        if self._due is None:
            return timedelta()
        return max(timedelta(), self._services.clock.now() - self._due)

    def notice_due(self, due: datetime | None = None) -> None:
        """Take a hint that a run is due now, or will be at `due`."""
        now = self._services.clock.now()
        if due is None or due <= now:
            self._idle_polls = 0
            self._ring()
        elif self._due is None or due < self._due:
            self._due = due
            if self._waiting and not self._full:
                self._set_alarm(self._time_to_look(due))

    def notice_run(self, run_id: str) -> None:
        """Take a hint that this run is due now."""
        self._named[run_id] = None
        self._wake.set()

    def notice_room(self) -> None:
        """Take in that the worker has room again."""
        # Without room no alarm was set, so what falls due later would not wake us either.
        if self._full:
            self._ring()

    def new_claim(self) -> Claim:
        """Return a claim with an id of its own."""
        self.claims += 1
        return Claim(
            id=f"{self._worker}#{self.claims}",
            worker=self._worker,
            lease=self._lease,
            ahead=self._services.ahead.total_seconds(),
        )

    async def run(self) -> None:
        """Claim what is due, for ever."""
        while True:
            self._wake.clear()
            try:
                claimed = await self._claim_whole()
            except Exception as error:
                # Whatever it is: a scheduler that ended would leave every run where it is.
                self._sweep = True  # what was to be claimed is forgotten: look for all that is due
                await self._hold_back(error)
                continue
            self._idle_polls = 0 if claimed else self._idle_polls + 1
            await self._sleep()

    async def _claim_whole(self) -> int:
        """Claim; when cancelled meanwhile, take in what was claimed, so that it is handed back."""
        claim = asyncio.get_running_loop().create_task(self._claim())
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            await asyncio.wait({claim}, timeout=CLAIM_GRACE)
            claim.cancel()
            raise

    async def _claim(self) -> int:
        """Claim what is named, or all that is due, as far as there is room; returns how many."""
        named, self._named = list(self._named), {}
        sweep = self._sweep or len(named) > MAX_NAMED or len(named) > self._room()
        if not sweep:
            return await self._claim_named(named)
        self._sweep = False
        total = 0
        codes = self._services.registry.codes()
        while (room := self._room()) > 0 and codes:
            runs = await self._services.store.claim_due(self.new_claim(), codes, room)
            self._succeeded()
            for run in runs:
                self._adopt(run)
            total += len(runs)
            if len(runs) < room:
                break
        self._due = await self._services.store.next_due(codes) if codes else None
        now = self._services.clock.now()
        if not total and self._due is not None and self._due <= now:
            # What is due but could not be had is being claimed by another: don't ask at once again.
            self._due = now + MIN_POLL
        return total

    async def _claim_named(self, named: list[str]) -> int:
        claims = (self._services.store.claim_run(self.new_claim(), run_id) for run_id in named)
        # One that fails must not strand the others: what they got is claimed, and so to be driven.
        found = await asyncio.gather(*claims, return_exceptions=True)
        runs = [run for run in found if isinstance(run, Run)]
        for run in runs:
            self._adopt(run)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        if named:
            self._succeeded()
        return len(runs)

    def _ring(self) -> None:
        """Look for all that is due at the next turn."""
        self._sweep = True
        self._wake.set()

    def _succeeded(self) -> None:
        self.last_poll = self._services.clock.now()
        if self.breaker.succeed():
            _log.info("the server is back; the scheduler goes on")
            self._emit("scheduler:circuit-closed", None)

    async def _hold_back(self, error: Exception) -> None:
        self._emit("scheduler:error", error)
        if self.breaker.fail():
            _log.error("the scheduler can't reach the server and holds back: %s", error)
            self._emit("scheduler:circuit-open", error)
        await asyncio.sleep(self.breaker.delay())

    async def _sleep(self) -> None:
        self._full = self._room() <= 0
        if self._full:
            self._cancel_alarm()  # whoever makes room wakes us
        elif self._polls:
            poll = self._services.clock.now() + self._poll_interval()
            self._set_alarm(poll if self._due is None else min(self._time_to_look(self._due), poll))
        elif self._due is not None:
            self._set_alarm(self._time_to_look(self._due))
        self._waiting = True
        try:
            await self._wake.wait()
        finally:
            self._waiting = False
            self._cancel_alarm()

    def _time_to_look(self, due: datetime) -> datetime:
        """Return when to claim what is due then: so early that it is here when its timer fires.

        Half of what a claim may be ahead, so that one look takes in what falls due meanwhile. What
        is still there later than that (the end of a lease) can be had when it is due.
        """
        early = due - self._services.ahead / 2
        return early if early > self._services.clock.now() else due

    def _poll_interval(self) -> timedelta:
        if self.watched:
            return WATCHED_POLL
        return min(MAX_POLL, MIN_POLL * 2.0 ** min(self._idle_polls, 10))

    def _set_alarm(self, at: datetime) -> None:
        self._cancel_alarm()
        self._alarm = self._services.clock.call_at(at, self._ring)

    def _cancel_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _emit(self, name: str, error: Exception | None) -> None:
        now = self._services.clock.now()
        self._services.events.emit(Event(name=name, at=now, error=error))
