"""`Environment`: an engine in memory whose time is skipped, whose steps can be mocked, and whose
worker process can die."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, ParamSpec, Self, TypeVar
from unittest.mock import AsyncMock

from streamline.definitions import Registry, Step, Workflow
from streamline.durations import Duration, to_timedelta
from streamline.engine import Streamline
from streamline.handles import RunHandle
from streamline.store.memory import MemoryStore
from streamline.store.memory_data import MemoryData
from streamline.testing.clock import START, SkippedClock
from streamline.testing.crashes import CrashTest
from streamline.testing.mocks import mocked_workflow
from streamline.testing.process import CommitHook, Process, WriteHook, survive

P = ParamSpec("P")
R = TypeVar("R")

_TURNS = 10
"""How many turns of the event loop without news count as standing still."""
_PATIENCE = 0.25
"""How many real seconds `settle` gives to steps that are running."""


class Environment(Streamline):
    """What the fixture `streamline` gives.

    The test is a client of its own; a worker runs beside it, as another process would. Whenever the
    test waits for a run (`handle.result()`, `handle.wait()`) and everything is parked, time is
    moved to whatever is due next. It stands still otherwise: move it with `advance`.

    Args:
        start: What the time is at first.
        registry: The definitions; the global registry by default.
    """

    def __init__(self, start: datetime = START, *, registry: Registry | None = None) -> None:
        self.clock: SkippedClock = SkippedClock(start)
        self._shared = MemoryData()
        self.before_commit: CommitHook = survive
        self.after_commit: CommitHook = survive
        self.before_write: WriteHook = survive
        self.after_write: WriteHook = survive
        self._mocks: dict[str, Step[..., Any]] = {}
        self._mocked_flows: dict[str, Workflow[..., Any]] = {}
        self._process: Process | None = None
        self._skipper: asyncio.Task[None] | None = None
        self._crashing: asyncio.Task[None] | None = None
        store = MemoryStore(self.clock, self._shared)
        super().__init__(store=store, worker=False, registry=registry)

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> Self:
        await super().start()
        await self._spawn()
        self._skipper = asyncio.get_running_loop().create_task(self._skip(), name="skipped time")
        return self

    async def stop(self, drain: Duration = 0.0) -> None:
        if self._skipper is not None:
            self._skipper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._skipper
            self._skipper = None
        if self._process is not None:
            await self._process.stop(drain)
            self._process = None
        await super().stop(drain)

    @property
    def process(self) -> Process:
        """The worker process that lives at present."""
        assert self._process is not None
        return self._process

    async def _spawn(self) -> Process:
        process = Process(
            self.clock,
            self._shared,
            self.registry,
            self._substitute,
            lambda flow: self._mocked_flows.get(flow.name, flow),
        )
        process.events = self.events
        process.mortal_store.before_commit = self.before_commit
        process.mortal_store.after_commit = self.after_commit
        process.mortal_store.before_write = self.before_write
        process.mortal_store.after_write = self.after_write
        self._process = await process.start()
        return self._process

    # -- mocks ------------------------------------------------------------------------------------

    def mock(
        self,
        step: Step[P, R] | Workflow[P, R],
        *,
        returns: Any = None,
        raises: BaseException | type[BaseException] | None = None,
        side_effect: Any = None,
    ) -> AsyncMock:
        """Put a mock in the place of a step's or workflow's function, until the environment stops.

        What the mock returns goes the way of any result: it is recorded, and must fit the step's
        annotation. Retries and timeouts stay the step's. A mocked workflow is a run all the same,
        with the call of the mock as its one step, tried once.

        Args:
            step: The step, or a workflow that others call.
            returns: What each call returns.
            raises: What each call raises instead.
            side_effect: A function to call, or a list of results and exceptions, one for each call.

        Returns:
            The mock, for `assert_awaited_once_with` and the like.
        """
        mock = AsyncMock(
            return_value=returns, side_effect=raises if raises is not None else side_effect
        )

        async def stand_in(*args: Any, **kwargs: Any) -> Any:
            return await mock(*args, **kwargs)

        if isinstance(step, Workflow):
            self._mocked_flows[step.name] = mocked_workflow(step, stand_in)
        else:
            self._mocks[step.name] = Step(
                stand_in, name=step.name, options=step.options, signature=step.signature
            )
        return mock

    def _substitute(self, step: Step[..., Any]) -> Step[..., Any]:
        return self._mocks.get(step.name, step)

    # -- time -------------------------------------------------------------------------------------

    async def advance(self, duration: Duration) -> None:
        """Move time forward, stopping at everything that falls due on the way.

        Returns when `settle` does.
        """
        target = self.clock.now() + to_timedelta(duration)
        await self.settle()
        while (due := self.clock.next_alarm) is not None and due <= target:
            self._move_to(due)
            await self.settle()
        self._move_to(target)
        await self.settle()

    async def settle(self) -> None:
        """Wait until nothing more happens by itself.

        Steps that are still running after a quarter of a (real) second are left running.
        """
        await self._stand_still(lambda: self.process.worker.quiet)
        given_up_at = time.monotonic() + _PATIENCE
        while not self.process.worker.idle and time.monotonic() < given_up_at:
            await asyncio.sleep(0.001)
            await self._stand_still(lambda: self.process.worker.quiet)

    async def _stand_still(self, still: Callable[[], bool]) -> None:
        turns = 0
        while turns < _TURNS:
            await asyncio.sleep(0)
            turns = turns + 1 if still() and self._crashing is None else 0

    def _move_to(self, when: datetime) -> None:
        self.clock.move_to(when)
        self.process.worker.renew_now()

    async def _skip(self) -> None:
        """Move time whenever somebody waits and nothing happens by itself."""
        while True:
            if self._parked:
                await self._stand_still(lambda: True)
                due = self.clock.next_alarm
                if due is not None and await self._nobody_served() and self._parked:
                    self._move_to(due)
                    continue
            # Steps that do real I/O take real time; look again soon, and cost nothing meanwhile.
            await asyncio.sleep(0.001)

    @property
    def _parked(self) -> bool:
        """Whether somebody waits, and nothing happens by itself."""
        waited_for = self._waiters is not None and self._waiters.count > 0
        return waited_for and self._crashing is None and self.process.worker.idle

    async def _nobody_served(self) -> bool:
        """Whether none of what is waited for has ended; the news of an end takes its time."""
        assert self._waiters is not None
        return await self._waiters.look() == 0

    # -- crashes ----------------------------------------------------------------------------------

    async def crash(self) -> None:
        """Let the worker process die here, and another take over what it held."""
        dead = self.process
        dead.die()
        process = await self._spawn()
        await process.mortal_store.expire_claims(dead.worker.id)

    def crash_soon(self) -> None:
        """Crash from within the worker: as soon as the event loop turns."""
        if self._crashing is None:
            self._crashing = asyncio.get_running_loop().create_task(self.crash())
            self._crashing.add_done_callback(self._crashed)

    def _crashed(self, task: asyncio.Task[None]) -> None:
        self._crashing = None
        if not task.cancelled() and task.exception() is not None:
            raise AssertionError("the crashed worker could not be replaced") from task.exception()

    async def crash_everywhere(self, flow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a workflow again and again, letting the worker die at each of its commits in turn.

        For a workflow that waits for messages, use `crash_everywhere_with`.

        Returns:
            The result, which was the same each time.

        Raises:
            AssertionError: A crash changed the result, or a recorded step ran again.
            RunFailed: The workflow fails without a crash.
        """
        return await self.crash_everywhere_with(lambda: flow.start(*args, **kwargs))

    async def crash_everywhere_with(
        self,
        start: Callable[[], Awaitable[RunHandle[R]]],
        script: Callable[[RunHandle[R]], Awaitable[None]] | None = None,
    ) -> R:
        """Do what `crash_everywhere` does with runs that are started and spoken to as given.

        Each run happens in an environment of its own, with the mocks of this one: once without a
        crash, then with one right before, and one right after, every commit and every other write
        by which the worker starts children or lets runs know of each other.

        Args:
            start: Starts a run on the current engine.
            script: Sends it what it waits for; it runs beside it and sees no crash.
        """
        return await CrashTest(self.sibling, start, script).run()

    def sibling(self) -> Environment:
        """Return another environment, not started, with the same mocks and an empty store."""
        other = Environment(registry=self.registry)
        other._mocks = self._mocks
        other._mocked_flows = self._mocked_flows
        return other
