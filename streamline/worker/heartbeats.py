"""`Heartbeats`: writes the heartbeats of one run's steps, not too often."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from streamline.errors import ServerUnavailable
from streamline.model import Run
from streamline.worker.held import HeldRun
from streamline.worker.news import News
from streamline.worker.services import Services

_log = logging.getLogger(__name__)

EVERY = timedelta(seconds=1)


class Heartbeats:
    """Records heartbeats beside the commits: at most one a second for each step.

    Between two writes the last details are kept with the step, and go with its next commit.

    Args:
        services: The worker's.
        news: Who hears of outages.
        held: The run.
        on_unseen: Called when a commit must show an attempt before its heartbeats can be stored.
    """

    def __init__(
        self, services: Services, news: News, held: HeldRun, on_unseen: Callable[[], None]
    ) -> None:
        self.unseen: bool = False
        """Whether an attempt beats that the document doesn't show: its start cost no write."""
        self._services = services
        self._news = news
        self._held = held
        self._on_unseen = on_unseen
        self._written_at: dict[str, datetime] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def beat(self, step_id: str, details: Any) -> None:
        """Take a heartbeat of a step."""
        run = self._held.run
        if details is not None and all(attempt.id != step_id for attempt in run.attempts):
            self.unseen = True
            self._on_unseen()
            return
        now = self._services.clock.now()
        last = self._written_at.get(step_id)
        if last is not None and now - last < EVERY:
            return
        self._written_at[step_id] = now
        task = asyncio.get_running_loop().create_task(self._write(run, step_id, details))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, run: Run, step_id: str, details: Any) -> None:
        try:
            held = await self._services.store.heartbeat(run.id, run.fence, step_id, details)
        except ServerUnavailable as error:
            self._news.engine_error(error, run)
            return
        if not held:
            _log.debug("a heartbeat of step %r of run %r came too late", step_id, run.id)
