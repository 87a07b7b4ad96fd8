"""`Wake`: a flag that one task waits for."""

from __future__ import annotations

import asyncio


class Wake:
    """Like `asyncio.Event`, which serves many who wait and costs a driver more with every step."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._set = False
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Whether somebody called since it was cleared."""
        return self._set

    def call(self) -> None:
        """Set the flag."""
        self._set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """Take the flag down."""
        self._set = False

    def called(self) -> asyncio.Future[None]:
        """Return what is done once the flag is set."""
        self._waiter = self._loop.create_future()
        if self._set:
            self._waiter.set_result(None)
        return self._waiter
