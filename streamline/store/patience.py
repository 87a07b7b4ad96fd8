"""`Patience`: ends calls that take longer than a timeout, with one timer for all of them.

`asyncio.timeout` sets a timer for each call, which is the largest single cost of a recorded step
beside the driver (measured). Knows nothing of what is called.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class Patience:
    """How long calls may take.

    Args:
        seconds: The same for each call.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds: float = seconds
        self._calls: dict[Call, None] = {}  # those under way; the oldest first
        # Of one event loop; whoever is called in another, as after a restart, needs another.
        self._timer: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None

    def call(self) -> Call:
        """Return a context manager for one call of the current task.

        Raises:
            TimeoutError: The call took too long, and was cancelled for it.
        """
        return Call(self)

    def began(self, call: Call) -> None:
        """Take in a call."""
        self._calls[call] = None
        if self._timer is None or self._timer[0] is not call.loop:
            self._arm(call)

    def ended(self, call: Call) -> None:
        """Forget a call."""
        del self._calls[call]

    def _arm(self, oldest: Call) -> None:
        self._timer = oldest.loop, oldest.loop.call_at(oldest.deadline, self._look)

    def _look(self) -> None:
        """End what is overdue. By now the call that the timer was set for is mostly long over."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for call in self._calls:
            if call.expired or call.loop is not loop:
                continue
            if call.deadline > now:
                self._arm(call)
                return
            call.expire()


class Call:
    """One call under way; as a context manager it does what `asyncio.timeout` does."""

    __slots__ = ("_cancelling", "_patience", "_task", "deadline", "expired", "loop")

    def __init__(self, patience: Patience) -> None:
        task = asyncio.current_task()
        assert task is not None, "only tasks can be cancelled"
        self._task = task
        self._cancelling = task.cancelling()
        self._patience = patience
        self.loop: asyncio.AbstractEventLoop = task.get_loop()
        self.deadline: float = self.loop.time() + patience.seconds
        """By the event loop's clock."""
        self.expired: bool = False
        """Whether it took too long."""

    def expire(self) -> None:
        """Cancel the call; it ends with a TimeoutError."""
        self.expired = True
        self._task.cancel()

    def __enter__(self) -> Call:
        self._patience.began(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._patience.ended(self)
        # Whoever else cancelled the task meanwhile must not be told of a timeout.
        own = self.expired and self._task.uncancel() <= self._cancelling
        if own and kind is asyncio.CancelledError:
            raise TimeoutError from error
