"""How the tasks of a dropped body are closed: in silence, and without any effect.

A coroutine that is closed sees GeneratorExit where it stands, and its `finally` blocks run. They
find a loop that takes nothing in: whatever they await stands still, and is closed in its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import warnings
import weakref
from asyncio import tasks
from collections.abc import Coroutine, Generator, Iterator
from typing import Any

PATIENCE = 20
"""How often a coroutine is closed that awaits something more in its cleanup."""


class Never(Coroutine[Any, Any, Any]):
    """What a dropped body awaits. Unlike a real coroutine it may be left without a warning."""

    def __await__(self) -> Generator[Any, Any, Any]:
        yield

    def send(self, value: Any) -> Any:
        """Stand still."""

    def throw(self, *error: Any) -> Any:
        """Let an exception through."""
        raise error[0]

    def close(self) -> None:
        """Have nothing to close."""


def close_tasks(
    loop: asyncio.AbstractEventLoop,
    dropped: list[tuple[asyncio.Task[Any], contextvars.Context]],
) -> None:
    """Close the coroutines of tasks that will never run again, each in its own context.

    The list is emptied, and nothing else may hold the tasks.
    """
    if dropped:
        # What is freed on the way must find the runtime, too: a step that is called without one
        # is the plain function, and would run.
        with _silence():
            dropped[0][1].copy().run(_close_all, loop, dropped)


def _close_all(
    loop: asyncio.AbstractEventLoop,
    dropped: list[tuple[asyncio.Task[Any], contextvars.Context]],
) -> None:
    refusing = []
    while dropped:
        task, context = dropped.pop(0)
        coroutine = task.get_coro()
        if coroutine is not None and not _close(loop, task, context, coroutine):
            refusing.append(weakref.ref(coroutine))
        del task, context, coroutine
    # One that catches even GeneratorExit, for ever, is closed once more when it is freed, and
    # Python complains. One that refers to itself, by a caught exception for example, is left to
    # the collector: that is to find it now, while nobody listens and nothing happens.
    if any(reference() is not None for reference in refusing):
        gc.collect()


def _close(
    loop: asyncio.AbstractEventLoop,
    task: asyncio.Task[Any],
    context: contextvars.Context,
    coroutine: Any,
) -> bool:
    """Close a coroutine; False if it goes on whatever is thrown into it."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    tasks._enter_task(loop, task)
    try:
        for _ in range(PATIENCE):
            # A body may turn GeneratorExit into anything; nobody waits for it any more.
            with contextlib.suppress(BaseException):
                context.run(coroutine.close)
            if getattr(coroutine, "cr_frame", None) is None:
                return True
    finally:
        tasks._leave_task(loop, task)
    return False


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    hook = sys.unraisablehook
    with warnings.catch_warnings():
        # A coroutine that was created but not begun when its body was dropped is no mistake.
        warnings.simplefilter("ignore", RuntimeWarning)
        sys.unraisablehook = lambda unraisable: None
        try:
            yield
        finally:
            sys.unraisablehook = hook
