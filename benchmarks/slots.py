"""`in_slots`: so many calls one after the other in each of some slots, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def in_slots(call: Callable[[], Awaitable[object]], number: int, slots: int) -> None:
    """Await `number` calls, `slots` of them at a time.

    A task for each slot rather than for each call behind a semaphore: what is measured is what is
    called, not thousands of tasks that wait for their turn.
    """
    left = iter(range(number))

    async def slot() -> None:
        for _ in left:
            await call()

    await asyncio.gather(*(slot() for _ in range(slots)))
