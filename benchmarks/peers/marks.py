"""What workflows and steps tell the process that they run in."""

from __future__ import annotations

import asyncio
import time

woke_late: dict[str, float] = {}
"""Seconds by which each sleeper woke late, by run."""
handled: dict[int, asyncio.Future[float]] = {}
"""Told, for each message, when it was handled."""
holding: set[str] = set()
"""The runs whose step holds on in this process."""
went_on: list[float] = []
"""When runs went on here that another process had held, by the clock that all processes share."""


def mark_handled(number: int) -> None:
    """Tell that a message was handled; a body that is built again does so twice."""
    future = handled.get(number)
    if future is not None and not future.done():
        future.set_result(time.perf_counter())
