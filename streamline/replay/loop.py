"""`ReplayLoop`: an asyncio event loop without I/O, in which a workflow body runs.

It runs callbacks until none is ready and then stands still; time is what its owner sets, and timers
are handed to the owner instead of being waited for. It knows nothing of journals or commands.

What makes asyncio deterministic here: tasks and futures hash by their creation order, so that
sets of them iterate alike on every replay; `as_completed` wraps its coroutines in the order given;
async generators left behind are closed by the loop that ran them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import warnings
import weakref
import zlib
from asyncio import events, tasks
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, NoReturn, Protocol

from streamline.errors import BodyNotPure
from streamline.replay.forbidden import FORBIDDEN, io_error

_Callback = Callable[..., object]


class LoopOwner(Protocol):
    """Who keeps the timers of a loop and hears what goes wrong in it."""

    def timer_armed(self, handle: asyncio.TimerHandle) -> None:
        """A timer was set for `handle.when()`."""
        ...

    def timer_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A timer was cancelled before it fired."""
        ...

    def loop_failed(self, message: str, error: BaseException | None) -> None:
        """An exception got lost in the loop, as asyncio reports it."""
        ...


class ReplayFuture(asyncio.Future[Any]):
    """A future that hashes by its creation order."""

    def __init__(self, *, loop: ReplayLoop) -> None:
        self._order = loop.next_order()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._order

    __eq__ = object.__eq__


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
        self._own_context = context or contextvars.copy_context()
        super().__init__(coro, loop=loop, name=name or loop.task_name(), context=self._own_context)

    def drop(self) -> None:
        """Close the coroutine in its own context, where it finds the runtime that refuses it."""
        coroutine = self.get_coro()
        if self.done() or coroutine is None:
            return
        self._log_destroy_pending = False
        # A body may turn GeneratorExit into anything; nobody waits for it any more.
        with contextlib.suppress(BaseException):
            self._own_context.run(coroutine.close)

    def __hash__(self) -> int:
        return self._order

    __eq__ = object.__eq__


class ReplayLoop(asyncio.AbstractEventLoop):
    """An event loop that only turns when told to.

    Args:
        run_id: The run whose body it runs; for error messages, and to spread the hashes.
        owner: Who keeps its timers.
        now: What `time()` says at first, POSIX seconds.
    """

    def __init__(self, run_id: str, owner: LoopOwner, now: float) -> None:
        self.run_id = run_id
        self.now = now
        self._owner: LoopOwner | None = owner
        self._ready: deque[asyncio.Handle] = deque()
        self._tasks: weakref.WeakSet[ReplayTask] = weakref.WeakSet()
        self._created = 0
        self._named = 0
        # Different runs must not share hashes: asyncio keeps all tasks of a process in one set.
        self._salt = zlib.crc32(run_id.encode())
        self._turning = False

    # -- turning ----------------------------------------------------------------------------------

    def turn(self) -> None:
        """Run what is ready, and what that makes ready, until nothing is.

        Raises:
            BaseException: A SystemExit or KeyboardInterrupt of the body, as asyncio lets it out.
        """
        with self._entered():
            ready = self._ready
            while ready:
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        outer = events._get_running_loop()
        task = None if outer is None else asyncio.current_task(outer)
        hooks = sys.get_asyncgen_hooks()
        as_completed = asyncio.as_completed
        # From 3.14 on the current task belongs to the thread, not to the loop: leave it first.
        if outer is not None and task is not None:
            tasks._leave_task(outer, task)
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(finalizer=self._close_generator)
        asyncio.as_completed = _ordered_as_completed
        self._turning = True
        try:
            yield
        finally:
            self._turning = False
            asyncio.as_completed = as_completed
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(outer)
            if outer is not None and task is not None:
                tasks._enter_task(outer, task)

    def evict(self) -> None:
        """Drop the body where it stands: its `finally` blocks run, but can't ask for anything.

        Python closes a coroutine that is dropped; here that happens at once and in silence, with
        the loop refusing every task and timer.
        """
        self._owner = None
        with self._entered(), warnings.catch_warnings():
            # A coroutine that was created but not begun when its body was dropped is no mistake.
            warnings.simplefilter("ignore", RuntimeWarning)
            for task in sorted(self._tasks, key=hash):
                task.drop()
            self._tasks.clear()
            self._ready.clear()

    @property
    def evicted(self) -> bool:
        """Whether the body was dropped."""
        return self._owner is None

    # -- what asyncio asks of a loop --------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """Take no notice: debug mode would look at the wall clock."""

    def is_running(self) -> bool:
        return self._turning

    def is_closed(self) -> bool:
        return self.evicted

    def call_soon(
        self, callback: _Callback, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.evicted:
            self._ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: _Callback,
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: _Callback,
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if self._owner is not None:
            handle._scheduled = True  # else cancelling it would not be told to us
            self._owner.timer_armed(handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if self._owner is not None:
            self._owner.timer_cancelled(handle)

    def fire(self, handle: asyncio.TimerHandle) -> None:
        """Make a timer's callback ready."""
        handle._scheduled = False
        self._ready.append(handle)

    def create_future(self) -> ReplayFuture:
        return ReplayFuture(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **kwargs: Any,  # newer Pythons: `eager_start`; tasks stay lazy here
    ) -> ReplayTask:
        if self.evicted:
            coro.close()
            raise asyncio.CancelledError(f"run {self.run_id!r} was dropped from memory")
        _refuse_unordered(coro, self.run_id)
        task = ReplayTask(coro, loop=self, name=name, context=context)
        self._tasks.add(task)
        return task

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
        # Reference counts drop at the same point on every replay; a collection in between does not.
        if self._turning and not self.evicted:
            self.create_task(_aclose(generator))


async def _aclose(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


# -- as_completed ---------------------------------------------------------------------------------

_as_completed = asyncio.as_completed


def _ordered_as_completed(fs: Any, *, timeout: float | None = None) -> Any:
    """`asyncio.as_completed`, which puts its coroutines into a set before it starts them."""
    return _as_completed([asyncio.ensure_future(item) for item in fs], timeout=timeout)


def _nested_code(function: Any) -> Iterator[Any]:
    code = function.__code__
    yield code
    yield from (constant for constant in code.co_consts if hasattr(constant, "co_code"))


_UNORDERED = frozenset(
    [
        *_nested_code(_as_completed),
        *(
            _nested_code(tasks._AsCompletedIterator.__init__)
            if hasattr(tasks, "_AsCompletedIterator")
            else ()
        ),
    ]
)


def _refuse_unordered(coro: Coroutine[Any, Any, Any], run_id: str) -> None:
    """Refuse tasks that `as_completed` makes itself: it was imported by name, past our order."""
    frame = sys._getframe(2)
    for _ in range(3):
        if frame.f_code in _UNORDERED:
            coro.close()
            raise BodyNotPure(
                f"Run {run_id!r}: `from asyncio import as_completed` starts coroutines in an "
                "order that differs from replay to replay. Call it as asyncio.as_completed(), or "
                "give it tasks.",
                run_id=run_id,
            )
        if frame.f_back is None:
            return
        frame = frame.f_back


# -- I/O ------------------------------------------------------------------------------------------


def _forbid(name: str) -> Callable[..., NoReturn]:
    def forbidden(self: ReplayLoop, *args: Any, **kwargs: Any) -> NoReturn:
        raise io_error(self.run_id, name)

    forbidden.__name__ = name
    return forbidden


for _name in FORBIDDEN:
    setattr(ReplayLoop, _name, _forbid(_name))
