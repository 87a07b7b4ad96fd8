"""`Worker`: holds claims and drives their runs, which the scheduler finds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import msgspec

from streamline import tasks
from streamline.definitions import Workflow
from streamline.errors import LeaseLost, WorkflowNotFound
from streamline.events import Event
from streamline.model import Message, Notice, Run, Status
from streamline.outbox import outcome_error
from streamline.worker.courier import Courier
from streamline.worker.driver import RunDriver
from streamline.worker.drivers import Drivers
from streamline.worker.identity import WorkerId
from streamline.worker.leases import LeaseKeeper
from streamline.worker.neighbours import Neighbours
from streamline.worker.overheard import Overheard
from streamline.worker.parked import ParkedRuns
from streamline.worker.places import Places
from streamline.worker.releases import Releases
from streamline.worker.scheduler import Scheduler, claim_number
from streamline.worker.services import Services
from streamline.worker.sweeper import Sweeper

_log = logging.getLogger(__name__)

RESERVED_GRACE = 5.0
"""Seconds that starts in flight get when the worker stops."""
BLOCKED_AFTER = 2.0
"""Seconds without a turn of the event loop before a warning."""


class Worker:
    """Drives runs in this process.

    Args:
        services: What its drivers need.
        lease: The length of a claim in seconds.
        concurrency: How many runs it drives, and plain steps it has in threads, at once.
        cache_size: How many parked runs stay in memory.
        on_ended: Called with each run that ends here.
        on_lost: Called with the id of each run that was being driven here and is another's now.
        polls: Whether the scheduler polls; see `Scheduler`.
        threaded: Whether leases are renewed by a thread; tests with skipped time renew by hand.
    """

    def __init__(
        self,
        services: Services,
        *,
        lease: float,
        concurrency: int,
        cache_size: int,
        on_ended: Callable[[Run], None],
        on_lost: Callable[[str], None],
        polls: bool = True,
        threaded: bool = True,
    ) -> None:
        self.id: str = str(WorkerId.new())
        self._threads = ThreadPoolExecutor(
            max(1, concurrency), thread_name_prefix="streamline-step"
        )
        self.courier: Courier = Courier(
            services.store,
            services.registry.codes,
            tell=self._tell,
            notify=self.notice,
            on_cancelled=lambda run: self._tell_cancelled(run),
            polls=polls,
        )
        services = msgspec.structs.replace(services, threads=self._threads, courier=self.courier)
        self._services = services
        self._releases = Releases(services, self.courier)
        self._lease = lease
        self._concurrency = concurrency
        self._on_ended = on_ended
        self._on_lost = on_lost
        self._threaded = threaded
        self._polls = polls
        self.drivers: Drivers = Drivers(keeps_time=threaded)
        self._parked = ParkedRuns(cache_size)
        self._places = Places()
        self._overheard = Overheard()
        self._keeper: LeaseKeeper | None = None
        self._background: list[asyncio.Task[None]] = []
        self._stopping = False
        self._errands: set[asyncio.Task[None]] = set()
        self.scheduler: Scheduler = Scheduler(
            services, self.id, lease, room=self._room, adopt=self.adopt, polls=polls
        )

    # -- life -------------------------------------------------------------------------------------

    def start(self, *, claims: bool) -> None:
        """Begin to keep leases; with `claims`, also to claim what is due."""
        if self._threaded:
            self._keeper = LeaseKeeper(
                self._services.store,
                self.id,
                self._lease,
                held=self.drivers.fences,
                on_renewal=self.drivers.renewed,
                on_lapse=self.drivers.lose_all,
                blocked_after=min(BLOCKED_AFTER, self._lease / 3),
            )
            self._keeper.start()
        if claims:
            loop = asyncio.get_running_loop()
            self._background = [
                loop.create_task(work, name=f"streamline-{name}")
                for name, work in self._background_work().items()
            ]

    def _background_work(self) -> dict[str, Coroutine[Any, Any, None]]:
        work: dict[str, Coroutine[Any, Any, None]] = {
            "scheduler": self.scheduler.run(),
            "courier": self.courier.run(),
        }
        store = self._services.store
        if self._threaded:
            work["sweeper"] = Sweeper(store).run()
        if self._threaded and self._polls:  # in memory, all workers are of this process
            work["neighbours"] = Neighbours(store, self.id, self.scheduler.notice_due).watch()
        return work

    async def stop(self, drain: float) -> None:
        """Stop: no new claims; running steps get `drain` seconds; then claims are handed back."""
        self._stopping = True
        await tasks.end(self._background)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._places.until_none_is_kept(), RESERVED_GRACE)
        for driver, _ in self.drivers.at_work():
            driver.drain()
        if self.drivers:
            await asyncio.wait([task for _, task in self.drivers.at_work()], timeout=drain)
        for driver, task in self.drivers.at_work():
            if task.done():  # meanwhile; its claim is no longer ours
                continue
            await tasks.end([task])
            driver.abandon()
            await self._releases.release(driver.id, driver.fence)
        self._parked.evict()
        await self.courier.stop()
        await asyncio.gather(*self._errands)
        if self._keeper is not None:
            await self._keeper.stop()
        # Not waited for: a step that hangs in a thread must not keep the engine from stopping.
        self._threads.shutdown(wait=False, cancel_futures=True)

    def kill(self) -> None:
        """Drop everything at once, as if the process had died; for tests."""
        self._stopping = True
        for task in [*self._background, *(task for _, task in self.drivers.at_work())]:
            task.cancel()
        for driver, _ in self.drivers.at_work():
            driver.abandon()
        self._parked.evict()
        self.courier.kill()

    # -- claims -----------------------------------------------------------------------------------

    def notice(self, notice: Notice) -> None:
        """Take a hint that a run changed."""
        self.courier.notice()
        if self.drivers.notice(notice):
            return
        if notice.inbox_seq:
            claims = self.scheduler.claims
            self._overheard.note(notice.run_id, notice.inbox_seq, claims=claims)
        if notice.due_at is not None and notice.status is not Status.RUNNING:
            if not self._background or not self._takes(notice.code):
                return
            if notice.due_at <= self._services.clock.now():
                self.scheduler.notice_run(notice.run_id)
            else:
                self.scheduler.notice_due(notice.due_at)

    def _takes(self, code: str | None) -> bool:
        return code is None or self._services.registry.takes(code)

    def reserve(self, flow: Workflow[..., Any]) -> bool:
        """Keep a place for a run of this workflow, if it can begin here at once.

        Whoever got one calls `free_place` once the run is adopted, or isn't to be.
        """
        claims = bool(self._background) and self._room() > 0
        if not claims or not self._services.registry.takes(flow.code):
            return False
        self._places.keep()
        return True

    def take_parked(self, run_id: str) -> RunDriver | None:
        """Take a run out of the cache, with a place for it, if it can go on here at once.

        Whoever got one calls `wake` with the claimed run, or `put_back`.
        """
        if not self._background or self._room() <= 0 or self._parked.find(run_id) is None:
            return None
        self._places.keep()
        return self._parked.take(run_id)

    def put_back(self, driver: RunDriver) -> None:
        """Give back what `take_parked` took: the run was not claimed."""
        self.free_place()
        if self._stopping or driver.id in self.drivers or driver.id in self._parked:
            driver.evict()  # claimed by the scheduler meanwhile, and built anew; or never again
        else:
            self._parked.keep(driver)

    async def post_to(
        self, driver: RunDriver, message: Message, *, slot: str | None = None
    ) -> bool:
        """Bring a run that `take_parked` took a message, and go on with it; else put it back.

        Returns:
            Whether it has the message; else the store says why not.
        """
        claim = self.scheduler.new_claim()
        store = self._services.store
        try:
            run = await store.post_to_parked(driver.seen, message, claim, slot=slot)
        except BaseException:
            # It may have had its effect: then the run is ours, and nobody else may drive it.
            self.put_back(driver)
            self.fetch(driver.id, claim.id)
            raise
        if run is None:
            self.put_back(driver)
            return False
        self.wake(driver, run)
        return True

    async def _tell(self, run_id: str, message: Message) -> bool:
        """Bring a run a message at once if it is parked here and can go on."""
        driver = self.take_parked(run_id)
        if driver is None:
            return False
        if driver.seen.journal_base:  # its id isn't new: the store must look for it in the archive
            self.put_back(driver)
            return False
        return await self.post_to(driver, message)

    def wake(self, driver: RunDriver, run: Run) -> None:
        """Go on with a run that `take_parked` took and that was claimed for this worker."""
        self.free_place()
        if driver.id not in self.drivers and driver.reclaim(run):
            self._announce(run)
            self._hold(driver, run)
        else:
            driver.evict()
            self.fetch(run.id, run.claim)

    def fetch(self, run_id: str, claim: str | None) -> None:
        """Drive a run if this claim on it was made: whoever made it may not have heard of it."""
        self._spawn(self._fetch(run_id, claim))

    async def _fetch(self, run_id: str, claim: str | None) -> None:
        try:
            run = await self._services.store.load_run(run_id)
        except Exception as error:
            _log.warning("can't read run %r; its lease may have to run out: %s", run_id, error)
            return
        unheard = run is not None and run.claim == claim and run_id not in self.drivers
        if run is not None and unheard and run.status is Status.RUNNING and not self._stopping:
            self.adopt(run)

    def seen(self, run_id: str) -> Run | None:
        """Return a run that is driven or parked here as this worker knows it, else None."""
        driver = self.drivers.get(run_id) or self._parked.find(run_id)
        return None if driver is None or not driver.can_go_on else driver.seen

    def free_place(self) -> None:
        """Give back a place that `reserve` kept."""
        self._places.free()
        self.scheduler.notice_room()

    @property
    def idle(self) -> bool:
        """Whether nothing happens here until time passes or a message comes."""
        return self.drivers.idle and self._looks_for_nothing

    @property
    def quiet(self) -> bool:
        """Whether at most steps are running: nothing else will happen by itself."""
        return self.drivers.quiet and self._looks_for_nothing

    @property
    def _looks_for_nothing(self) -> bool:
        if self.courier.busy:
            return False
        return not self._background or (self.scheduler.idle and self.courier.idle)

    def renew_now(self) -> None:
        """Renew all leases at once, for whoever moves a skipped clock."""
        held = self.drivers.fences()
        if held:
            until = self._services.clock.now() + timedelta(seconds=self._lease)
            renewal = self._services.store.renew(self.id, held, self._lease)
            self.drivers.renewed(held, renewal, until)

    @property
    def claimed(self) -> int:
        """How many runs it holds."""
        return len(self.drivers)

    @property
    def cached(self) -> int:
        """How many parked runs are in memory."""
        return len(self._parked)

    def _room(self) -> int:
        return 0 if self._stopping else self._concurrency - len(self.drivers) - self._places.kept

    # -- driving ----------------------------------------------------------------------------------

    def adopt(self, run: Run) -> None:
        """Drive a run that was claimed for this worker."""
        if run.id in self.drivers:
            # Claimed anew by ourselves, as its lease ran out; the old driver can't write any more.
            self.drivers.lose(run.id)
            self.drivers.task_of(run.id).add_done_callback(lambda _: self._begin(run))
            return
        self._begin(run)

    def _begin(self, run: Run) -> None:
        try:
            driver = self._driver_for(run)
        except WorkflowNotFound as error:
            # A message to a run that only others can drive made us claim it.
            _log.info("run %r is handed back: %s", run.id, error)
            self._spawn(self._releases.release(run.id, run.fence))
            return
        self._hold(driver, run)

    def _hold(self, driver: RunDriver, run: Run) -> None:
        task = self.drivers.start(driver, self._drive(driver), run.due_at)
        task.add_done_callback(lambda done: self._finished(driver, done))
        self.drivers.hint(run.id, self._overheard.since(claim_number(run), run.id))

    def _driver_for(self, run: Run) -> RunDriver:
        parked = self._parked.take(run.id)
        if parked is not None:
            if parked.reclaim(run):
                self._announce(run)
                return parked
            parked.evict()
        workflow = self._services.registry.find_code(run.code)
        if self._services.replace_workflow is not None:
            workflow = self._services.replace_workflow(workflow)
        self._announce(run)
        return RunDriver(run, workflow, self._services, on_turn=self._turning)

    def _turning(self, run_id: str | None) -> None:
        if self._keeper is not None:
            self._keeper.active_run = run_id

    async def execute(self, run: Run) -> Status:
        """Drive a claimed run here and now; returns the status it was left in."""
        self.adopt(run)
        status = await asyncio.shield(self.drivers.task_of(run.id))
        await self.courier.finish()  # there may be no other process to do it soon
        return Status.RUNNING if status is None else status

    async def _drive(self, driver: RunDriver) -> Status | None:
        """Drive to the end of this claim. None if the claim was lost."""
        try:
            status = await driver.drive()
        except LeaseLost as error:
            _log.info("%s; this worker leaves it alone", error)
            driver.abandon()
            return None
        except asyncio.CancelledError:
            raise
        except Exception as error:
            _log.exception("driving run %r failed; it is handed back", driver.id)
            self._emit_error(driver.run, error)
            driver.abandon()
            await self._releases.give_up(driver.run, error)
            return None
        if status is Status.RUNNING:
            driver.abandon()
            await self._releases.release(driver.id, driver.fence)
        return status

    def _finished(self, driver: RunDriver, task: asyncio.Task[Status | None]) -> None:
        self.drivers.remove(driver)
        if task.cancelled() or self._stopping:
            driver.evict()
        elif task.result() is Status.WAITING:
            self._park(driver)
        elif driver.run.status.ended:
            self._on_ended(driver.run)
        elif task.result() is None:
            self._on_lost(driver.id)
        self.scheduler.notice_room()

    def _park(self, driver: RunDriver) -> None:
        if driver.hinted:
            # A message came in while the park was on its way, and found the run still held here.
            self.scheduler.notice_run(driver.id)
        elif driver.due_at is not None:
            self.scheduler.notice_due(driver.due_at)
        self._parked.keep(driver)

    def _spawn(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    # -- telling ----------------------------------------------------------------------------------

    def _announce(self, run: Run) -> None:
        if run.recoveries:
            name = "workflow:recovered"
        elif run.rev == 0:
            name = "workflow:started"
        else:
            name = "workflow:resumed"
        self._emit(name, run)

    def _tell_cancelled(self, run: Run) -> None:
        """Tell of a run that was ended without its body."""
        self._on_ended(run)
        self._emit("workflow:cancelled", run, outcome_error(run))

    def _emit_error(self, run: Run, error: Exception) -> None:
        self._emit("engine:error", run, error)

    def _emit(self, name: str, run: Run, error: Exception | None = None) -> None:
        if not self._services.events.heard:
            return
        self._services.events.emit(
            Event(
                name=name,
                at=self._services.clock.now(),
                run_id=run.id,
                workflow=run.workflow,
                error=error,
            )
        )
