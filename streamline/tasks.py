"""Ending tasks for sure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN = 1.0
"""Seconds before a task that didn't end is cancelled again."""


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until all have ended, however they end.

    Again and again: a cancel can get lost in a library that takes it for a failure of its own, as
    network clients now and then do.
    """
    ended = list(tasks)
    pending = set(ended)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN)
    await asyncio.gather(*ended, return_exceptions=True)  # so that no exception counts as lost
