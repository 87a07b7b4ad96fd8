"""`SkippedClock`: time that stands still until it is moved; nobody waits for it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from streamline.clock import Alarm, Clock, to_milliseconds

START = datetime(2030, 1, 1, tzinfo=UTC)


class _Alarm:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class SkippedClock(Clock):
    """A clock for tests.

    Args:
        start: What it says at first.
    """

    def __init__(self, start: datetime = START) -> None:
        self._now = to_milliseconds(start)
        self._alarms: list[tuple[datetime, int, _Alarm]] = []
        self._order = itertools.count()

    def now(self) -> datetime:
        return self._now

    def call_at(self, when: datetime, callback: Callable[[], object]) -> Alarm:
        alarm = _Alarm(callback)
        if when <= self._now:
            asyncio.get_running_loop().call_soon(callback)
            alarm.callback = None
        else:
            heapq.heappush(self._alarms, (when, next(self._order), alarm))
        return alarm

    @property
    def next_alarm(self) -> datetime | None:
        """When the next alarm is due; None if there is none."""
        while self._alarms and self._alarms[0][2].callback is None:
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    def move_to(self, when: datetime) -> None:
        """Move the time forward and ring what falls due; to the past it doesn't move."""
        self._now = max(self._now, to_milliseconds(when + timedelta(microseconds=999)))
        while (due := self.next_alarm) is not None and due <= self._now:
            callback = heapq.heappop(self._alarms)[2].callback
            if callback is not None:
                asyncio.get_running_loop().call_soon(callback)
