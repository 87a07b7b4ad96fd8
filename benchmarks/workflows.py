"""The workflows that are measured."""

from __future__ import annotations

import asyncio
import time

from streamline import receive, sleep, step, workflow

woke_late: list[float] = []
"""Seconds by which each sleeper woke late."""
handled: dict[int, asyncio.Future[float]] = {}
"""Told, for each message, when it was handled."""


@step
async def count(number: int) -> int:
    """Do nothing; what is measured is everything around it."""
    return number + 1


@workflow
async def steps(number: int) -> int:
    """Run so many steps one by one."""
    total = 0
    for _ in range(number):
        total = await count(total)
    return total


@workflow
async def sleeper(seconds: float, due: float) -> None:
    """Sleep durably; `due` is when it should wake, by this host's clock."""
    await sleep(seconds)
    woke_late.append(time.time() - due)


@workflow
async def listener(messages: int) -> None:
    """Receive so many messages."""
    for _ in range(messages):
        number = await receive("bench", type=int)
        future = handled.get(number)
        if future is not None and not future.done():  # a body may be built again
            future.set_result(time.perf_counter())
