"""`Worker`: holds claims and drives their runs, which the scheduler finds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import msgspec

from streamline import tasks
from streamline.definitions import Workflow
from streamline.errors import LeaseLost, StreamlineError, WorkflowNotFound
from streamline.events import Event
from streamline.model import CommitResult, Message, Notice, Run, Status
from streamline.outbox import outcome_error
from streamline.store import Renewal
from streamline.worker import composing
from streamline.worker.courier import Courier
from streamline.worker.driver import RunDriver
from streamline.worker.identity import WorkerId
from streamline.worker.leases import LeaseKeeper
from streamline.worker.neighbours import Neighbours
from streamline.worker.overheard import Overheard
from streamline.worker.parked import ParkedRuns
from streamline.worker.places import Places
from streamline.worker.scheduler import Scheduler, claim_number
from streamline.worker.services import Services
from streamline.worker.sweeper import Sweeper

_log = logging.getLogger(__name__)

RESERVED_GRACE = 5.0
"""Seconds that starts in flight get when the worker stops."""
FAULT_PAUSE = 1.0
"""Seconds before a run that could not be driven is handed back."""
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
        self._lease = lease
        self._concurrency = concurrency
        self._on_ended = on_ended
        self._on_lost = on_lost
        self._threaded = threaded
        self._polls = polls
        self._drivers: dict[str, RunDriver] = {}
        self._tasks: dict[str, asyncio.Task[Status | None]] = {}
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
                held=self.held,
                on_renewal=self.renewed,
                on_lapse=self._lapsed,
                blocked_after=min(BLOCKED_AFTER, self._lease / 3),
            )
            self._keeper.start()
        if claims:
            loop = asyncio.get_running_loop()
            self._background = [
                loop.create_task(self.scheduler.run(), name="streamline-scheduler"),
                loop.create_task(self.courier.run(), name="streamline-courier"),
            ]
            if self._threaded:
                sweeper = Sweeper(self._services.store)
                self._background.append(loop.create_task(sweeper.run(), name="streamline-sweeper"))
            if self._threaded and self._polls:  # in memory, all workers are this process's
                neighbours = Neighbours(self._services.store, self.id, self.scheduler.notice_due)
                self._background.append(
                    loop.create_task(neighbours.watch(), name="streamline-neighbours")
                )

    async def stop(self, drain: float) -> None:
        """Stop: no new claims; running steps get `drain` seconds; then claims are handed back."""
        self._stopping = True
        await tasks.end(self._background)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._places.until_none_is_kept(), RESERVED_GRACE)
        for driver in list(self._drivers.values()):
            driver.drain()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=drain)
        for driver, task in [(self._drivers[id_], task) for id_, task in self._tasks.items()]:
            if task.done():  # meanwhile; its claim is no longer ours
                continue
            await tasks.end([task])
            driver.abandon()
            await self._release(driver.id, driver.fence)
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
        for task in [*self._background, *self._tasks.values()]:
            task.cancel()
        for driver in self._drivers.values():
            driver.abandon()
        self._parked.evict()
        self.courier.kill()

    # -- claims -----------------------------------------------------------------------------------

    def held(self) -> dict[str, int]:
        """Return run id -> fence of all claims held."""
        return {run_id: driver.fence for run_id, driver in list(self._drivers.items())}

    def renewed(self, asked: Mapping[str, int], renewal: Renewal, until: datetime) -> None:
        """Take in what a renewal found of the claims that it asked for; they hold until then."""
        for run_id in renewal.lost:
            driver = self._drivers.get(run_id)
            # A run may have been parked and claimed again since: that claim is not the lost one.
            # Nor may one be whose own commit is raising its fence: what becomes of that tells.
            if driver is None or driver.fence != asked[run_id] or driver.held.continuing:
                continue
            driver.lose()
        for run_id, inbox_seq in renewal.inbox_seq.items():
            driver = self._drivers.get(run_id)
            if driver is not None and driver.fence == asked[run_id] and self._threaded:
                driver.extend(until)
            self._hint(run_id, inbox_seq)

    def _hint(self, run_id: str, inbox_seq: int) -> None:
        driver = self._drivers.get(run_id)
        if driver is not None and inbox_seq > driver.inbox_seq:
            driver.hint()

    def _lapsed(self) -> None:
        for run_id in list(self._drivers):
            self.lose(run_id)

    def lose(self, run_id: str) -> None:
        """Take in that a claim is lost."""
        driver = self._drivers.get(run_id)
        if driver is not None:
            driver.lose()

    def notice(self, notice: Notice) -> None:
        """Take a hint that a run changed."""
        self.courier.notice()
        if (driver := self._drivers.get(notice.run_id)) is not None:
            if notice.fence is not None and notice.fence > driver.fence:
                driver.lose()
            elif notice.inbox_seq is not None:
                self._hint(notice.run_id, notice.inbox_seq)
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
        if self._stopping or driver.id in self._drivers or driver.id in self._parked:
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
        if driver.id not in self._drivers and driver.reclaim(run):
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
        unheard = run is not None and run.claim == claim and run_id not in self._drivers
        if run is not None and unheard and run.status is Status.RUNNING and not self._stopping:
            self.adopt(run)

    def seen(self, run_id: str) -> Run | None:
        """Return a run that is driven or parked here as this worker knows it, else None."""
        driver = self._drivers.get(run_id) or self._parked.find(run_id)
        return None if driver is None or not driver.can_go_on else driver.seen

    def free_place(self) -> None:
        """Give back a place that `reserve` kept."""
        self._places.free()
        self.scheduler.notice_room()

    @property
    def idle(self) -> bool:
        """Whether nothing happens here until time passes or a message comes."""
        return all(driver.idle for driver in self._drivers.values()) and self._looks_for_nothing

    @property
    def quiet(self) -> bool:
        """Whether at most steps are running: nothing else will happen by itself."""
        return all(driver.quiet for driver in self._drivers.values()) and self._looks_for_nothing

    @property
    def _looks_for_nothing(self) -> bool:
        if self.courier.busy:
            return False
        return not self._background or (self.scheduler.idle and self.courier.idle)

    def renew_now(self) -> None:
        """Renew all leases at once, for whoever moves a skipped clock."""
        held = self.held()
        if held:
            until = self._services.clock.now() + timedelta(seconds=self._lease)
            self.renewed(held, self._services.store.renew(self.id, held, self._lease), until)

    def holds(self, run_id: str) -> bool:
        """Whether it drives this run at present, and will tell of its end."""
        driver = self._drivers.get(run_id)
        return driver is not None and not driver.held.lost

    @property
    def claimed(self) -> int:
        """How many runs it holds."""
        return len(self._drivers)

    @property
    def cached(self) -> int:
        """How many parked runs are in memory."""
        return len(self._parked)

    def _room(self) -> int:
        return 0 if self._stopping else self._concurrency - len(self._drivers) - self._places.kept

    # -- driving ----------------------------------------------------------------------------------

    def adopt(self, run: Run) -> None:
        """Drive a run that was claimed for this worker."""
        if run.id in self._drivers:
            # Claimed anew by ourselves, as its lease ran out; the old driver can't write any more.
            self.lose(run.id)
            self._tasks[run.id].add_done_callback(lambda _: self._begin(run))
            return
        self._begin(run)

    def _begin(self, run: Run) -> None:
        try:
            driver = self._driver_for(run)
        except WorkflowNotFound as error:
            # A message to a run that only others can drive made us claim it.
            _log.info("run %r is handed back: %s", run.id, error)
            self._spawn(self._release(run.id, run.fence))
            return
        self._hold(driver, run)

    def _hold(self, driver: RunDriver, run: Run) -> None:
        self._drivers[run.id] = driver
        # Where leases are renewed by hand, whoever moves the clock sees to it.
        driver.held.lease_until = run.due_at if self._threaded else None
        task = asyncio.get_running_loop().create_task(self._drive(driver), name=f"run {run.id}")
        self._tasks[run.id] = task
        task.add_done_callback(lambda done: self._finished(driver, done))
        self._hint(run.id, self._overheard.since(claim_number(run), run.id))

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
        status = await asyncio.shield(self._tasks[run.id])
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
            await self._give_up(driver, error)
            return None
        if status is Status.RUNNING:
            driver.abandon()
            await self._release(driver.id, driver.fence)
        return status

    def _finished(self, driver: RunDriver, task: asyncio.Task[Status | None]) -> None:
        if self._drivers.get(driver.id) is driver:
            del self._drivers[driver.id]
            del self._tasks[driver.id]
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

    # -- handing back -----------------------------------------------------------------------------

    async def _release(self, run_id: str, fence: int, *, faulty: bool = False) -> None:
        try:
            await self._services.store.release(run_id, fence, faulty=faulty)
        except Exception as error:  # a full disk too: nothing else may stop for it
            _log.warning("can't hand back run %r; its lease will run out: %s", run_id, error)

    def _spawn(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _give_up(self, driver: RunDriver, error: Exception) -> None:
        """Fail a run that the engine itself can't drive, so that it isn't tried for ever."""
        if not isinstance(error, StreamlineError):
            # A fault of ours, or of this process: another worker may do better, but not for ever.
            await asyncio.sleep(FAULT_PAUSE)
            await self._release(driver.id, driver.fence, faulty=True)
            return
        try:
            await self._fail(driver, error)
        except Exception as second:
            _log.warning("can't fail run %r: %s", driver.id, second)

    async def _fail(self, driver: RunDriver, error: StreamlineError) -> None:
        store = self._services.store
        # As it is now: others may have come to follow it.
        run = await store.load_run(driver.id, journal=False, inbox=False) or driver.run
        commit = composing.failed(run, driver.fence, error, self._services.clock.now())
        result = await store.commit(commit)
        if result is CommitResult.INBOX_MOVED:
            await self._fail(driver, error)
        elif result is CommitResult.LANDED:
            await self.courier.deliver(driver.id)

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
