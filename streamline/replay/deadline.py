"""`Deadline`: the timeout of a whole run, as `asyncio.timeout` does it for a block."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any


class Deadline:
    """Cancels the main task when the time is up, and makes a TimeoutError of that.

    Args:
        limit: How long the run may take in all.
        since: When it began, POSIX seconds; earlier than its body if it was continued as new.
        what: The run and its workflow, for the error.
    """

    def __init__(self, limit: timedelta, since: float, what: str) -> None:
        self._limit = limit
        self._since = since
        self._what = what
        self._passed = False
        self._task: asyncio.Task[Any] | None = None

    async def bound(self, body: Coroutine[Any, Any, Any]) -> Any:
        """Await the body; raises TimeoutError if it was still at it."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        handle = loop.call_at(self._since + self._limit.total_seconds(), self.pass_)
        try:
            return await body
        except asyncio.CancelledError:
            if not self._passed:
                raise
            # What `on_failure` awaits is not cancelled any more.
            if self._task is not None:
                self._task.uncancel()
            raise TimeoutError(
                f"{self._what} took longer than its timeout, {self._limit}"
            ) from None
        finally:
            handle.cancel()
            self._task = None  # which refers to the run, and so to this

    def pass_(self) -> None:
        """Cancel the body."""
        self._passed = True
        if self._task is not None:
            self._task.cancel()
