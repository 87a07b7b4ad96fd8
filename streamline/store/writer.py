"""Group commit: what gathers while a write is in flight goes out together as the next one.

Knows nothing of what is written; a lone item goes out at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

MAX_COUNT = 500
MAX_BYTES = 8 * 1024 * 1024
# No faster than one (measured), but a large or slow write doesn't hold up all the others.
MAX_IN_FLIGHT = 2


class Sized(Protocol):
    """What can be written."""

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        ...


I = TypeVar("I", bound=Sized)  # noqa: E741 - an item
R = TypeVar("R")


class Writer(Generic[I, R]):
    """Collects items and writes them in groups.

    Args:
        send: Writes a group; returns, in order, what became of each item: a result, or the error
            to raise to the one who wrote it.
    """

    def __init__(self, send: Callable[[Sequence[I]], Awaitable[Sequence[R | Exception]]]) -> None:
        self._send = send
        self._waiting: deque[tuple[I, asyncio.Future[R]]] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def write(self, item: I) -> R:
        """Write one item, in company if there is any.

        Raises:
            Exception: What `send` returned for this item, or raised for its group.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, future))
        if not self._scheduled:
            # Not at once: what else is written in this turn of the loop comes along.
            self._scheduled = True
            loop.call_soon(self._pump)
        return await future

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        while self._waiting or self._in_flight:
            await asyncio.sleep(0)
            if self._in_flight:
                await asyncio.wait(self._in_flight)

    def _pump(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._in_flight) < MAX_IN_FLIGHT:
            task = asyncio.get_running_loop().create_task(self._flush(self._take()))
            self._in_flight.add(task)
            task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if not self._scheduled:
            self._scheduled = True
            # In the next turn, so that those just answered can join with their next write.
            task.get_loop().call_soon(self._pump)

    def _take(self) -> list[tuple[I, asyncio.Future[R]]]:
        group: list[tuple[I, asyncio.Future[R]]] = []
        size = 0
        while self._waiting and len(group) < MAX_COUNT:
            size += self._waiting[0][0].size
            if group and size > MAX_BYTES:
                break
            group.append(self._waiting.popleft())
        return group

    async def _flush(self, group: list[tuple[I, asyncio.Future[R]]]) -> None:
        outcomes: Sequence[R | Exception]
        try:
            outcomes = await self._send([item for item, _ in group])
        except Exception as error:
            outcomes = [error] * len(group)
        except asyncio.CancelledError:
            for _, future in group:
                future.cancel()
            raise
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
