"""`Timers`: the timers that one body has set and that have neither fired nor been cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from streamline.replay.commands import TimerCommand, is_sleep, timer_due
from streamline.replay.deadline import Deadline

DEADLINE = "deadline"  # the name of the timer of the workflow's own timeout


class Timers:
    """Which command each timer of the body's loop is.

    Args:
        deadline: The timeout of the whole run, which sets a timer like any other.
    """

    def __init__(self, deadline: Deadline | None) -> None:
        self._deadline = deadline
        # By id(): a TimerHandle compares equal to another with the same time and callback.
        self._ids: dict[int, str] = {}
        self.deadline_id: str = ""
        """The id of the deadline's command; empty if there is none."""

    def arm(self, handle: asyncio.TimerHandle, next_id: Callable[[str], str]) -> TimerCommand:
        """Return the command for a timer that was set; its id is the next one for its name."""
        is_deadline = self._is_deadline(handle)
        id_ = next_id(DEADLINE if is_deadline else _name(handle))
        if is_deadline:
            self.deadline_id = id_
        self._ids[id(handle)] = id_
        return TimerCommand(id=id_, due=timer_due(handle), handle=handle)

    def forget(self, handle: asyncio.TimerHandle) -> str | None:
        """Forget a timer; returns the id of its command, if it was known."""
        return self._ids.pop(id(handle), None)

    def clear(self) -> None:
        """Forget all."""
        self._ids.clear()

    def _is_deadline(self, handle: asyncio.TimerHandle) -> bool:
        callback = handle._callback  # type: ignore[attr-defined]
        return self._deadline is not None and callback == self._deadline.pass_


def _name(handle: asyncio.TimerHandle) -> str:
    return "sleep" if is_sleep(handle) else "timeout"
