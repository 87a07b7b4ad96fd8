"""`EventBus`: what listeners in this process hear of runs, steps and the engine.

Events are emitted after the write that makes them true. A listener can't harm a run: what it raises
is logged and, once, told to the listeners of `engine:error`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

_log = logging.getLogger(__name__)

DRAIN = 5.0
"""Seconds that async listeners get when the engine stops."""

EVENT_NAMES = frozenset(
    {
        "workflow:started",
        "workflow:completed",
        "workflow:failed",
        "workflow:waiting",
        "workflow:resumed",
        "workflow:cancelled",
        "workflow:paused",
        "workflow:recovered",
        "workflow:retry",
        "workflow:continued",
        "workflow:long-journal",
        "step:started",
        "step:completed",
        "step:failed",
        "step:retry-scheduled",
        "engine:error",
        "scheduler:error",
        "scheduler:circuit-open",
        "scheduler:circuit-closed",
    }
)
"""All names that an engine emits."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened; fields that don't apply are None."""

    name: str
    at: datetime
    run_id: str | None = None
    workflow: str | None = None
    step: str | None = None
    attempt: int | None = None
    error: BaseException | None = None
    data: Any = None


Listener = Callable[[Event], Any]


class EventBus:
    """The listeners of one engine."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Listener]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def on(self, name: str, listener: Listener) -> Callable[[], None]:
        """Call a sync or async listener at each event of a name, or at every one with `"*"`.

        Returns:
            A function that takes the listener off again.

        Raises:
            ValueError: No event has that name.
        """
        if name != "*" and name not in EVENT_NAMES:
            raise ValueError(f"no event is named {name!r}; there are {sorted(EVENT_NAMES)}")
        self._listeners.setdefault(name, []).append(listener)

        def off() -> None:
            if listener in self._listeners.get(name, []):
                self._listeners[name].remove(listener)

        return off

    @property
    def heard(self) -> bool:
        """Whether anybody listens; where nobody does, no event needs to be made."""
        return bool(self._listeners)

    def emit(self, event: Event) -> None:
        """Tell the listeners; async ones run in tasks of their own."""
        if not self._listeners:
            return
        for listener in [*self._listeners.get(event.name, ()), *self._listeners.get("*", ())]:
            try:
                result = listener(event)
            except KeyboardInterrupt:
                raise  # somebody who wants to end the process
            except BaseException as error:  # a SystemExit in here would end a run's driver
                self._report(event, error)
            else:
                if inspect.isawaitable(result):
                    self._follow(event, result)

    async def drain(self, timeout: float = DRAIN) -> None:
        """Wait until the async listeners called so far are done; cancel those that take longer."""
        loop, own = asyncio.get_running_loop(), asyncio.current_task()
        deadline = loop.time() + timeout
        slow: set[asyncio.Task[None]] = set()
        # Again and again: a listener may emit events of its own.
        while not slow and (tasks := {task for task in self._tasks if task is not own}):
            _, slow = await asyncio.wait(tasks, timeout=max(0.0, deadline - loop.time()))
        for task in slow:
            _log.warning("a listener has not ended after %g s and is cancelled", timeout)
            task.cancel()

    def _follow(self, event: Event, awaitable: Any) -> None:
        async def follow() -> None:
            try:
                await awaitable
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                self._report(event, error)

        task = asyncio.get_running_loop().create_task(follow())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _report(self, event: Event, error: BaseException) -> None:
        _log.error("a listener of %r raised", event.name, exc_info=error)
        if event.name != "engine:error":
            self.emit(Event(name="engine:error", at=event.at, run_id=event.run_id, error=error))
