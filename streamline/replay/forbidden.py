"""What a workflow body must not ask of its loop, and the error that it gets if it does."""

from __future__ import annotations

import asyncio

from streamline.errors import BodyNotPure

_ALLOWED = frozenset(
    {
        "call_at",
        "call_exception_handler",
        "call_later",
        "call_soon",
        "create_future",
        "create_task",
        "default_exception_handler",
        "get_debug",
        "is_closed",
        "is_running",
        "set_debug",
        "time",
    }
)

# Whatever a newer Python adds to the interface is forbidden until somebody has thought about it.
FORBIDDEN = tuple(
    name
    for name in dir(asyncio.AbstractEventLoop)
    if not name.startswith("_") and name not in _ALLOWED
)
"""The methods of an event loop that do I/O, start threads or drive the loop."""


def io_error(run_id: str, name: str) -> BodyNotPure:
    """Return the error for a body that called `loop.<name>`."""
    return BodyNotPure(
        f"Run {run_id!r}: the workflow body did I/O or used threads (loop.{name}). "
        "A body is replayed and must be pure: move this call into a @step.",
        run_id=run_id,
    )


def stuck_error(run_id: str) -> BodyNotPure:
    """Return the error for a body that stands where no entry can wake it."""
    return BodyNotPure(
        f"Run {run_id!r}: the workflow body awaits something that nothing can resolve: "
        "no step, timer or message is open. Await a @step, sleep(), wait() or receive() "
        "instead, or do this in a @step.",
        run_id=run_id,
    )
