"""`Releases`: how a worker parts with runs that it doesn't go on with."""

from __future__ import annotations

import asyncio
import logging

from streamline.errors import StreamlineError
from streamline.model import CommitResult, Run
from streamline.worker import composing
from streamline.worker.courier import Courier
from streamline.worker.services import Services

_log = logging.getLogger(__name__)

FAULT_PAUSE = 1.0
"""Seconds before a run that could not be driven is handed back."""


class Releases:
    """Hands runs back to the store, or fails those that the engine itself can't drive.

    What can't be written is logged and left: the lease runs out.

    Args:
        services: The worker's.
        courier: Tells others of runs that are failed.
    """

    def __init__(self, services: Services, courier: Courier) -> None:
        self._services = services
        self._courier = courier

    async def release(self, run_id: str, fence: int, *, faulty: bool = False) -> None:
        """Hand back a claim."""
        try:
            await self._services.store.release(run_id, fence, faulty=faulty)
        except Exception as error:  # a full disk too: nothing else may stop for it
            _log.warning("can't hand back run %r; its lease will run out: %s", run_id, error)

    async def give_up(self, run: Run, error: Exception) -> None:
        """Fail a run that the engine itself can't drive, so that it isn't tried for ever."""
        if not isinstance(error, StreamlineError):
            # A fault of ours, or of this process: another worker may do better, but not for ever.
            await asyncio.sleep(FAULT_PAUSE)
            await self.release(run.id, run.fence, faulty=True)
            return
        try:
            await self._fail(run, error)
        except Exception as second:
            _log.warning("can't fail run %r: %s", run.id, second)

    async def _fail(self, held: Run, error: StreamlineError) -> None:
        store = self._services.store
        # As it is now: others may have come to follow it.
        run = await store.load_run(held.id, journal=False, inbox=False) or held
        commit = composing.failed(run, held.fence, error, self._services.clock.now())
        result = await store.commit(commit)
        if result is CommitResult.INBOX_MOVED:
            await self._fail(held, error)
        elif result is CommitResult.LANDED:
            await self._courier.deliver(run.id)
