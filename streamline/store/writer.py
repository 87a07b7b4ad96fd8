"""Group commit: what gathers while a write is in flight goes out together as the next one.

Knows nothing of what is written; a lone item goes out at once.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

MAX_COUNT = 500
MAX_BYTES = 8 * 1024 * 1024
MAX_IN_FLIGHT = 3
COMPANY = 20
"""About so many go together; a crowd is shared out over the writes that may be in flight."""


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
        self._in_flight = 0
        self._groups: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._alone = True  # whether the last write had no company: the next may have none, too
        self._landed = asyncio.Event()

    async def write(self, item: I) -> R:
        """Write one item, in company if there is any.

        Raises:
            Exception: What `send` returned for this item, or raised for its group.
        """
        if self._alone and not (self._in_flight or self._waiting):
            return await self._write_alone(item)
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._schedule()
        return await future

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        while self._waiting or self._in_flight:
            self._landed.clear()
            await self._landed.wait()

    async def _write_alone(self, item: I) -> R:
        # In the task of whoever writes: handing it to another would cost turns of the event loop,
        # which are most of what a lone write takes beside the server's time.
        self._in_flight += 1
        try:
            (outcome,) = await self._send([item])
        finally:
            self._land()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _schedule(self) -> None:
        """Pump in the next turn of the loop: what else is written in this one comes along."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        while (writes := self._more_writes()) > 0:
            group = self._take(most=math.ceil(len(self._waiting) / writes))
            self._in_flight += 1
            self._alone = len(group) == 1
            task = asyncio.get_running_loop().create_task(self._flush(group))
            self._groups.add(task)
            task.add_done_callback(self._group_landed)

    def _group_landed(self, task: asyncio.Task[None]) -> None:
        self._groups.discard(task)
        self._land()

    def _land(self) -> None:
        self._in_flight -= 1
        self._landed.set()
        if self._waiting:
            self._schedule()

    def _more_writes(self) -> int:
        """Return over how many writes those that wait should be shared out now.

        Whoever is answered writes again soon. Were a crowd in one write, it would come back all at
        once, and client and server would take turns being idle (measured: a third fewer commits).
        And a few that a write leaves behind would follow it by themselves, again and again: up to
        two fifths of the client's processor time.
        """
        waiting = len(self._waiting)
        if not waiting:
            return 0
        writes = min(MAX_IN_FLIGHT - self._in_flight, max(1, round(waiting / COMPANY)))
        # Beside two others a small write costs more than it gains: its items wait for company.
        fills_up = self._in_flight + writes == MAX_IN_FLIGHT
        return writes - 1 if fills_up and waiting < writes * COMPANY else writes

    def _take(self, *, most: int) -> list[tuple[I, asyncio.Future[R]]]:
        group: list[tuple[I, asyncio.Future[R]]] = []
        size = 0
        while self._waiting and len(group) < min(most, MAX_COUNT):
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
