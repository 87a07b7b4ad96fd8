"""`Waiters`: whoever in this process waits for runs to end, served together.

A thousand waiters cost one query now and then: notices name runs that may have ended, and one task
looks them up for all. In between it looks for all that are waited for, in case a notice was lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from streamline.errors import InvalidState
from streamline.model import Run
from streamline.store import RunStore

_log = logging.getLogger(__name__)

MIN_POLL = 0.02
MAX_POLL = 1.0
WATCHED_POLL = 5.0
BATCH = 1000


class Waiters:
    """Waits for the ends of runs.

    Args:
        store: Where the runs are.
        watched: Returns whether notices arrive from other processes.
        told: Returns whether this process's worker has a run and will tell of its end; then nobody
            looks, but now and then in case it doesn't.
        polls: False where notices are never lost (in memory).
    """

    def __init__(
        self,
        store: RunStore,
        *,
        watched: Callable[[], bool],
        told: Callable[[str], bool] = lambda run_id: False,
        polls: bool = True,
    ) -> None:
        self._store = store
        self._watched = watched
        self._told = told
        self._polls = polls
        self._futures: dict[str, list[asyncio.Future[Run]]] = {}
        self._suspects: set[str] = set()
        self._wake = asyncio.Event()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def count(self) -> int:
        """How many runs are waited for."""
        return len(self._futures)

    async def ended(self, run_id: str, timeout: float | None) -> Run:
        """Return a run, without its journal, once it has ended.

        Raises:
            TimeoutError: It has not within `timeout` seconds.
            InvalidState: The engine was stopped meanwhile.
        """
        future: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        self._futures.setdefault(run_id, []).append(future)
        self._ensure_task()
        self._arrived.set()
        self.suspect(run_id)
        try:
            if timeout is None:
                return await future
            async with asyncio.timeout(timeout):
                return await future
        finally:
            self._forget(run_id, future)

    def tell(self, run: Run) -> None:
        """Take in that a run has ended."""
        for future in self._futures.get(run.id, ()):
            if not future.done():
                future.set_result(run)

    def suspect(self, run_id: str) -> None:
        """Take a hint that a run may have ended."""
        if run_id in self._futures and not self._told(run_id):
            self._suspects.add(run_id)
            self._wake.set()

    def suspect_all(self) -> None:
        """Take a hint that any run may have ended."""
        for run_id in list(self._futures):
            self.suspect(run_id)

    async def look(self) -> int:
        """Look for all that is waited for, now; returns how many had ended."""
        return await self._look_up(list(self._futures))

    def close(self) -> None:
        """Stop looking; whoever still waits gets `InvalidState`."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for run_id, futures in self._futures.items():
            for future in futures:
                if not future.done():
                    future.set_exception(_stopped(run_id))

    def _forget(self, run_id: str, future: asyncio.Future[Run]) -> None:
        futures = self._futures.get(run_id, [])
        if future in futures:
            futures.remove(future)
        if not futures:
            self._futures.pop(run_id, None)

    def _ensure_task(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(
                self._keep_looking(), name="streamline-waiters"
            )

    async def _keep_looking(self) -> None:
        idle = 0
        while True:
            await self._sleep(idle)
            suspects = list(self._suspects) or list(self._futures)
            self._suspects.clear()
            self._wake.clear()
            found = 0
            try:
                for start in range(0, len(suspects), BATCH):
                    found += await self._look_up(suspects[start : start + BATCH])
            except Exception as error:
                _log.warning("can't look whether %d runs have ended: %s", len(suspects), error)
            idle = 0 if found else idle + 1

    async def _look_up(self, run_ids: Sequence[str]) -> int:
        runs = await self._store.load_ended(run_ids)
        for run in runs:
            self.tell(run)
        return len(runs)

    async def _sleep(self, idle: int) -> None:
        if not self._polls:
            await self._wake.wait()
            return
        if not self._futures:
            # Whoever comes is polled for, also one that is to be told: the worker may lose the run.
            self._arrived.clear()
            await self._arrived.wait()
        poll = WATCHED_POLL if self._watched() else min(MAX_POLL, MIN_POLL * 2.0 ** min(idle, 10))
        try:
            async with asyncio.timeout(poll):
                await self._wake.wait()
        except TimeoutError:
            return


def _stopped(run_id: str) -> InvalidState:
    return InvalidState(
        f"the engine was stopped while run {run_id!r} was waited for; the run goes on elsewhere",
        run_id=run_id,
    )
