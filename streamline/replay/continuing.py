"""`continue_as_new` inside the core: what ends the body, and what that comes to."""

from __future__ import annotations

import asyncio
from typing import Any

from streamline.errors import InvalidState
from streamline.model import Input
from streamline.replay.outcome import Cancelled, Continued, Failed, Outcome, Returned


class ContinueAsNew(BaseException):
    """Ends a body whose run begins anew; no `Exception`, so that user code doesn't catch it.

    Args:
        given: The encoded arguments of the next generation.
    """

    def __init__(self, given: Input) -> None:
        super().__init__("the run continues as new")
        self.given = given


def outcome_of(main: asyncio.Task[Any], run_id: str, *, called: bool) -> Outcome:
    """Return how a body ended.

    Args:
        main: Its task, which is done.
        run_id: The run.
        called: Whether it called `continue_as_new` on the way.
    """
    if main.cancelled():
        return Cancelled()
    if (error := main.exception()) is not None:
        return _raised(error)
    return _swallowed(run_id) if called else Returned(main.result())


def _raised(error: BaseException) -> Outcome:
    """Return the outcome of a body that raised something.

    A `TaskGroup` raises a group: that continues the run if nothing in it is another error. One
    that was raised on the way out, by a `finally` block for example, counts, as after a `return`.
    """
    calls = _calls(error)
    return Failed(error) if calls is None else Continued(calls[0].given)


def _swallowed(run_id: str) -> Failed:
    # To end the run as done would lose it in silence; a failed one goes on, once mended.
    return Failed(
        InvalidState(
            f"run {run_id!r} called continue_as_new(), but its body caught what that raises and "
            "returned. Let it pass: catch Exception, not BaseException, and await the task that "
            "makes the call. Then retry the run",
            run_id=run_id,
        )
    )


def _calls(error: BaseException) -> list[ContinueAsNew] | None:
    """Return the calls that an exception is made of, in order; None if there is more to it."""
    if isinstance(error, ContinueAsNew):
        return [error]
    if not isinstance(error, BaseExceptionGroup):
        return None
    parts = [_calls(part) for part in error.exceptions]
    return None if None in parts else [call for part in parts for call in part or ()]
