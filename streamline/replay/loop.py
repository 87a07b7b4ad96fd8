"""`ReplayLoop`: an asyncio event loop without I/O, in which a workflow body runs.

It runs callbacks until none is ready and then stands still; time is what its owner sets, and timers
are handed to the owner instead of being waited for. It knows nothing of journals or commands.

What makes asyncio deterministic here: the order of `ordered.py`; async generators left behind are
closed by the loop that ran them; and no turn is interrupted by the garbage collector.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import zlib
from asyncio import events, tasks
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from datetime import datetime
from typing import Any, NoReturn, Protocol

from streamline.replay import ordered
from streamline.replay.eviction import close_tasks
from streamline.replay.forbidden import FORBIDDEN, io_error
from streamline.replay.ordered import ReplayFuture, refuse_unordered

_Callback = Callable[..., object]
_Before = tuple[asyncio.AbstractEventLoop | None, asyncio.Task[Any] | None, Any, bool]
"""The running loop of the thread, its task, the hooks for generators, whether garbage is collected.
"""


class LoopOwner(Protocol):
    """Who keeps the timers of a loop and hears what goes wrong in it."""

    def timer_armed(self, handle: asyncio.TimerHandle) -> None:
        """A timer was set for `handle.when()`."""
        ...

    def timer_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A timer was cancelled before it fired."""
        ...

    def context_given(self, context: contextvars.Context) -> None:
        """A task was given this context by the body."""
        ...

    def loop_failed(self, message: str, error: BaseException | None) -> None:
        """An exception got lost in the loop, as asyncio reports it."""
        ...


class ReplayTask(asyncio.Task[Any]):
    """A task that hashes by its creation order."""

    def __init__(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        loop: ReplayLoop,
        name: str | None,
        context: contextvars.Context | None,
    ) -> None:
        # Before asyncio's own constructor: that puts the task into a weak set.
        self._order = loop.next_order()
        # An empty context is falsy, too.
        self.context: contextvars.Context = (
            contextvars.copy_context() if context is None else context
        )
        super().__init__(coro, loop=loop, name=name or loop.task_name(), context=self.context)

    def __hash__(self) -> int:
        return self._order


class ReplayLoop(asyncio.AbstractEventLoop):
    """An event loop that only turns when told to.

    Args:
        run_id: The run whose body it runs; for error messages, and to spread the hashes.
        owner: Who keeps its timers.
        now: What `time()` says at first.
    """

    def __init__(self, run_id: str, owner: LoopOwner, now: datetime) -> None:
        self.run_id = run_id
        self._latest = now
        self._now = now.timestamp()
        self._is_behind = False  # whether `_now` is that of an earlier instant than `_latest`
        self._owner: LoopOwner | None = owner
        self._ready: deque[asyncio.Handle] = deque()
        # Held for as long as they aren't done: asyncio's own loops don't, and what the collector
        # finds there is closed at any time, commands of its `finally` blocks and all.
        self._tasks: list[ReplayTask] = []
        self._sweep_at = 16
        self._created = 0
        self._named = 0
        # Different runs must not share hashes: asyncio keeps all tasks of a process in one set.
        self._salt = zlib.crc32(run_id.encode())
        self._entered = False
        self._turning = False

    # -- turning ----------------------------------------------------------------------------------

    def turn(self) -> None:
        """Run what is ready, and what that makes ready, until nothing is.

        Raises:
            BaseException: A SystemExit or KeyboardInterrupt of the body, as asyncio lets it out.
        """
        if self._entered:
            self._run_ready()
            return
        before = self._enter()
        try:
            self._run_ready()
        finally:
            self._leave(before)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Stay the running loop between turns: else a replay takes half as long again."""
        before = self._enter()
        self._entered = True
        try:
            yield
        finally:
            self._entered = False
            self._leave(before)

    def _run_ready(self) -> None:
        self._turning = True
        try:
            ready = self._ready
            while ready:
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            self._turning = False

    def _enter(self) -> _Before:
        """Make this the running loop of the thread; returns what it was like before."""
        outer = events._get_running_loop()
        task = None if outer is None else asyncio.current_task(outer)
        before = outer, task, sys.get_asyncgen_hooks(), gc.isenabled()
        # Cycles that the body left behind must not be freed at one point of it or another.
        gc.disable()
        # From 3.14 on the current task belongs to the thread, not to the loop: leave it first.
        if outer is not None and task is not None:
            tasks._leave_task(outer, task)
        events._set_running_loop(self)
        # Without `firstiter` the outer loop would hear of the body's generators, and close them.
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._close_generator)
        return before

    def _leave(self, before: _Before) -> None:
        """Put everything back."""
        outer, task, hooks, collecting = before
        sys.set_asyncgen_hooks(*hooks)
        events._set_running_loop(outer)
        if outer is not None and task is not None:
            tasks._enter_task(outer, task)
        if collecting:
            gc.enable()

    def evict(self) -> None:
        """Drop the body where it stands: its `finally` blocks run, but can't ask for anything.

        Python closes a coroutine that is dropped; here that happens at once and in silence.
        """
        self._owner = None
        self._ready.clear()
        dropped: list[tuple[asyncio.Task[Any], contextvars.Context]] = [
            (task, task.context) for task in self._tasks if not task.done()
        ]
        self._tasks.clear()
        with self.entered():
            close_tasks(self, dropped)

    @property
    def evicted(self) -> bool:
        """Whether the body was dropped."""
        return self._owner is None

    # -- what asyncio asks of a loop --------------------------------------------------------------

    def time(self) -> float:
        if self._is_behind:
            self._is_behind = False
            self._now = max(self._now, self._latest.timestamp())
        return self._now

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """Take no notice: debug mode would look at the wall clock."""

    def is_running(self) -> bool:
        return self._turning

    def is_closed(self) -> bool:
        return self.evicted

    def call_soon(  # type: ignore[override]  # callbacks of any arguments
        self, callback: _Callback, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.evicted:
            self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: _Callback,
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: _Callback,
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if self._owner is not None:
            handle._scheduled = True  # type: ignore[attr-defined]  # else cancelling it would not be told to us
            self._owner.timer_armed(handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if self._owner is not None:
            self._owner.timer_cancelled(handle)

    def advance(self, now: datetime) -> None:
        """Set the time; it never goes back."""
        # As a number it is made when it is asked for: most bodies never do, and that isn't cheap.
        if now > self._latest:
            self._latest = now
            self._is_behind = True

    def fire(self, handle: asyncio.TimerHandle) -> None:
        """Make a timer's callback ready."""
        # Instants are whole milliseconds: `time()` must not be before the time that was waited for.
        self._now = max(self.time(), handle.when())
        handle._scheduled = False  # type: ignore[attr-defined]
        self._ready.append(handle)

    def create_future(self) -> ReplayFuture:
        return ReplayFuture(loop=self)

    def create_task(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **kwargs: Any,  # newer Pythons: `eager_start`; tasks stay lazy here
    ) -> ReplayTask:
        if self.evicted:
            coro.close()  # the task will never run; this keeps Python from complaining
            return ReplayTask(coro, loop=self, name=name, context=context)
        refuse_unordered(coro, self.run_id)
        if context is not None and self._owner is not None:
            self._owner.context_given(context)
        if len(self._tasks) >= self._sweep_at:
            self._tasks = [task for task in self._tasks if not task.done()]
            self._sweep_at = max(16, 2 * len(self._tasks))
        task = ReplayTask(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def unfinished_tasks(self) -> set[asyncio.Task[Any]]:
        """Return the tasks that aren't done, put into the set in creation order."""
        return {task for task in self._tasks if not task.done()}

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._owner is not None:
            self._owner.loop_failed(context.get("message", ""), context.get("exception"))

    default_exception_handler = call_exception_handler

    def next_order(self) -> int:
        """Return the hash of the next task or future: by order, spread over the integers."""
        self._created += 1
        return (self._salt + self._created * 0x9E3779B97F4A7C15) & 0x0FFF_FFFF_FFFF_FFFF

    def task_name(self) -> str:
        """Return a name that is the same on every replay, unlike asyncio's process-wide count."""
        self._named += 1
        return f"task-{self._named}"

    def _close_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        # Reference counts drop at the same point on every replay. What comes from outside a turn
        # is the collector's, and may be in another thread.
        if self._turning and events._get_running_loop() is self and not self.evicted:
            self.create_task(_aclose(generator))


async def _aclose(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


# -- I/O ------------------------------------------------------------------------------------------


def _forbid(name: str) -> Callable[..., NoReturn]:
    def forbidden(self: ReplayLoop, *args: Any, **kwargs: Any) -> NoReturn:
        raise io_error(self.run_id, name)

    forbidden.__name__ = name
    return forbidden


for _name in FORBIDDEN:
    setattr(ReplayLoop, _name, _forbid(_name))

ordered.install()
